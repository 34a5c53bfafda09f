"""What a resume asks of the store: a real plan of many shards, all but a few of them done, and the real command again.

`python -m tests.resume_cost --shards 2000` plans 500 rows a shard on radosgw, writes the manifests of rows that nobody
rendered, types `run` again behind the counting proxy, and prints requests by kind and room.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.run.layout import RunFolder
from pipelines.run.schema import schema_from_json
from pipelines.storage.folder import StorageOptions
from tests.campaign import own_server
from tests.checkpoints import make_checkpoint
from tests.clusters import Driver, wait
from tests.fault_proxy import FaultProxy
from tests.other_servers import Server

ROWS_A_SHARD = 500  # 20 guided steps a row, 40 lane-steps, of the 20,000 that a shard may have
PATIENCE_S = 1800.0
PICTURE = "images/nobody.png"
JOB = """\
model: {{path: {model}, device: cpu}}
input: {{path: {prompts}}}
steps: {{selector: fixed, fixed: 20}}
pools: [{{name: default, lanes: 32}}]
output: {{path: "{run}"}}
storage: {{endpoint_url: "{endpoint}"}}
"""


def finish_unrendered(run: RunFolder, shards: Iterable[dict[str, Any]]) -> None:
    """The manifests of shards that nobody rendered: planned columns, and one picture for all rows."""
    schema = schema_from_json(run.read_plan(1)["manifest_schema"])

    def finish(entry: dict[str, Any]) -> None:
        run.begin_attempt(entry["shard"])
        planned = run.read_shard(entry["part"], entry["row_group"])
        assert run.commit_manifest(entry["shard"], manifest_of(planned, schema))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(finish, shards))


def manifest_of(planned: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows that say they are done."""
    said = {"status": "ok", "uri": PICTURE, "revision": 0, "attempts": 1, "created_at": datetime.now(UTC)}
    columns = []
    for field in schema:
        if field.name in said:
            columns.append(pa.array([said[field.name]] * planned.num_rows, field.type))
        elif field.name in planned.column_names:
            columns.append(planned[field.name].cast(field.type))
        else:
            columns.append(pa.nulls(planned.num_rows, field.type))
    return pa.table(columns, schema=schema)


def resume(shards: int, left: int, folder: Path, server: Server) -> Counter[tuple[str, str]]:
    """Requests by (kind, room) of `run` on a folder where all but `left` shards are done."""
    prompts = folder / "prompts.jsonl"
    rows = range(shards * ROWS_A_SHARD)
    prompts.write_text("".join(json.dumps({"id": f"r{i:07d}", "prompt": f"fox {i}"}) + "\n" for i in rows))
    with FaultProxy(server.s3_port) as proxy:
        run = RunFolder(f"s3://{server.bucket()}/run", StorageOptions(server.endpoint_url))
        job = folder / "job.yaml"
        model = make_checkpoint("sd1", folder / "model")
        job.write_text(JOB.format(model=model, prompts=prompts, run=run.url, endpoint=proxy.endpoint_url))
        _must(Driver.start(job, "local", verb="plan"))
        index = run.shard_index(1).to_pylist()
        assert (len(index), index[0]["rows"]) == (shards, ROWS_A_SHARD)
        run.write(PICTURE, _picture())
        finish_unrendered(run, index[left:])
        proxy.counts.clear()
        _must(Driver.start(job, "local"))
        assert len(run.done_shards()) == shards
        return proxy.counts


def _must(driver: Driver) -> None:
    if wait(driver.process, PATIENCE_S) != 0:
        raise RuntimeError(driver.said()[-3000:])


def _picture() -> bytes:
    import numpy as np

    from pipelines.render.sink import encode_image

    return encode_image(np.zeros((16, 16, 3), np.uint8), "png")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.resume_cost", description=__doc__)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--left", type=int, default=3, help="shards that are not done yet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, own_server() as server:
        counts = resume(options.shards, options.left, Path(folder), server)
    for (kind, room), count in sorted(counts.items()):
        print(f"{kind:8s} {room:16s} {count:6d}")
    print(f"{counts.total()} requests, {options.shards} shards of {ROWS_A_SHARD} rows, {options.left} of them rendered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
