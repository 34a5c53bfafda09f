"""Finished run folders made by hand: the worker's own sinks and manifest rows, with noise in place of a network."""

from typing import Any

import numpy as np
import pyarrow as pa

from actors.rows import Picture, SamplerConfig
from pipelines.render.keys import plan_key, render_key
from pipelines.render.manifest_rows import failed_row, ok_row, with_place
from pipelines.render.sink import Sink
from pipelines.render.tries import RowTries, Try
from pipelines.run.layout import Attempt, RunFolder
from pipelines.run.schema import PlannedRow, planned_rows, schema_from_json
from tests.plans import planned_row, write_plan

RENDER_CLASS = "abcd/cpu-avx512-1t/float32/16x16-4lanes-8decode/ddim/torch-2"


def picture(row: PlannedRow) -> Picture:
    """A function of the row's seed, as every picture is."""
    noise = np.random.default_rng(row.seed).integers(0, 256, (row.height, row.width, 3), dtype=np.uint8)
    return Picture(noise, 2 * (row.num_steps or 0), 0.01, RENDER_CLASS, truncated=False)


def store(run: RunFolder, shard: str, layout: str = "files") -> tuple[Attempt, pa.Table, Sink]:
    """The protocol up to the commit: an attempt, its images, and the manifest that is still to be committed."""
    (entry,) = [row for row in run.shard_index(int(shard[:4])).to_pylist() if row["shard"] == shard]
    attempt = run.begin_attempt(shard)
    rows = planned_rows(run.read_shard(entry["part"], entry["row_group"]))
    sink = Sink(run, shard, attempt, layout, "png")
    results = [_result(sink, row) for row in rows]
    packed = sink.close()
    schema = schema_from_json(run.read_plan(int(shard[:4]))["manifest_schema"])
    return attempt, pa.Table.from_pylist([with_place(row, packed) for row in results], schema=schema), sink


def _result(sink: Sink, row: PlannedRow) -> dict[str, Any]:
    if row.error_type:
        return failed_row(row, sink.shard, sink.attempt, row.error_type, row.error_message)
    made = picture(row)
    return ok_row(RowTries(row, done=[Try(row.seed, made)]), sink.put(row, made.image), keys(row), sink)


def keys(row: PlannedRow) -> dict[str, str]:
    """As a worker's attempt makes them."""
    sampler = SamplerConfig("")
    return {"render_key": render_key(row, RENDER_CLASS, sampler), "plan_key": plan_key(row, RENDER_CLASS, sampler, "")}


def render_shard(run: RunFolder, shard: str, layout: str = "files") -> bool:
    """The whole protocol; whether this attempt's manifest stands."""
    _, table, sink = store(run, shard, layout)
    committed = run.commit_manifest(shard, table)
    if not committed:
        sink.discard()
    return committed


def finished_run(run: RunFolder, layout: str = "files", rows: int = 20) -> RunFolder:
    """Four shards of five rows, the eighth row bad; every shard done."""
    planned = [planned_row(i) for i in range(rows)]
    planned[7] |= {"error_type": "EmptyPrompt", "error_message": "the prompt is empty", "num_steps": None}
    write_plan(run, planned, 5)
    for shard in run.shard_index(1)["shard"].to_pylist():
        assert render_shard(run, shard, layout)
    return run
