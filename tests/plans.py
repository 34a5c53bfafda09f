"""A hand-made plan: what the render tests lease from; and a scorer that a worker can import."""

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.run import schema
from pipelines.run.layout import RunFolder, parquet_bytes
from pipelines.run.schema import PlannedRow, manifest_schema, schema_to_json

PLAN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("category", pa.string()),
        ("seed", pa.int64()),
        ("seed_pinned", pa.bool_()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("num_inference_steps", pa.int32()),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("budget_scores", pa.list_(pa.float32())),
        ("num_steps", pa.int32()),
        ("action_probability", pa.float32()),
        ("policy_version", pa.string()),
        ("price", pa.float64()),
        ("bar", pa.float64()),
        ("expected_tries", pa.float32()),
        ("shard", pa.string()),
        ("note", pa.string()),
    ]
)
CARRIED = pa.schema([("note", pa.string())])


def planned_row(i: int, **values: Any) -> dict[str, Any]:
    defaults = {
        "id": f"r{i:04d}",
        "prompt_id": f"r{i:04d}",
        "sample": 0,
        "prompt": f"a fox number {i}",
        "seed": 1000 + i,
        "seed_pinned": False,
        "width": 16,
        "height": 16,
        "guidance_scale": 5.0,
        "error_type": "",
        "error_message": "",
        "num_steps": 1 + i % 4,
        "note": f"note {i}",
    }
    return defaults | values


def typed_row(i: int, **values: Any) -> PlannedRow:
    """The same, as a worker has it."""
    return schema.planned_row(planned_row(i, **values))


def lane_steps(row: dict[str, Any]) -> int:
    return 0 if row["error_type"] else row["num_steps"] * (2 if row["guidance_scale"] > 1 else 1)


def write_plan(run: RunFolder, rows: list[dict[str, Any]], rows_a_shard: int, generation: int = 1) -> None:
    """One part, one row group a shard, longest rows first."""
    groups = [rows[i : i + rows_a_shard] for i in range(0, len(rows), rows_a_shard)]
    tables, index = [], []
    for n, group in enumerate(groups):
        shard = f"{generation:04d}-{n:06d}"
        ordered = sorted(group, key=lane_steps, reverse=True)
        tables.append(pa.Table.from_pylist([row | {"shard": shard} for row in ordered], schema=PLAN_SCHEMA))
        good = [row for row in group if not row["error_type"]]
        index.append(
            {
                "shard": shard,
                "row_group": n,
                "rows": len(group),
                "good_rows": len(good),
                "lane_steps": sum(map(lane_steps, group)),
                "budgets": sorted({row["num_steps"] for row in good}),
            }
        )
    part = run.write_part(generation, 0, tables)
    table = pa.Table.from_pylist([row | {"part": part} for row in index])
    run.write(f"plan/{generation:04d}/shards.parquet", parquet_bytes([table]))
    run.commit_plan(generation, {"manifest_schema": schema_to_json(manifest_schema(CARRIED))})


def brightness(images: list[np.ndarray], prompts: list[str]) -> list[float]:
    """A scorer of the tests' own."""
    return [float(image.mean()) + len(prompt) for image, prompt in zip(images, prompts, strict=True)]
