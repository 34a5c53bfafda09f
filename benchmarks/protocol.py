"""What the commit protocol costs an undisturbed run: a shard as a worker stores it, against bare writes of its images.

    python -m benchmarks.protocol [--images 200] [--size 512] [--threads 8] [--steps 10] [--no-s3] [--write]

The protocol: an attempt object first, pictures under keys of that attempt, each hashed, the manifest last in one
create-if-absent PUT. The bare side encodes the same pictures and writes them, with the same threads, and nothing else.
First with pictures that are there already (`stores`), then as a run has it, with pictures that the embedded model makes
(`renders`): a worker with its shard, against the same engine whose pictures are only written, and against a worker that
writes none (layout none: no encoding, no upload).
"""

import argparse
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from actors.rows import Picture, Row, SamplerConfig
from benchmarks.encode import photo_like
from benchmarks.measure import alternate, arguments, cpu_ratio, machine, markdown, ratio, report
from benchmarks.sinks import places
from pipelines.cluster.pools import PoolSpec
from pipelines.render.attempt import engine_row
from pipelines.render.messages import Lease
from pipelines.render.pool import planned_shards
from pipelines.render.sink import Sink, encode_image
from pipelines.render.worker import RenderWorker, WorkerConfig
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.schema import manifest_schema, planned_rows
from pipelines.run.schema import planned_row as typed_row
from pipelines.storage.checkpoints import ModelSource
from tests.plans import planned_row, write_plan

SHARDS = (f"0002-{number:06d}" for number in itertools.count())


def with_protocol(run: RunFolder, given: argparse.Namespace, image: np.ndarray) -> None:
    """One shard of `--images` pictures, committed."""
    shard = next(SHARDS)
    attempt = run.begin_attempt(shard)
    sink = Sink(run, shard, attempt, "files", "png")
    with ThreadPoolExecutor(given.threads) as pool:
        rows = list(pool.map(functools.partial(_stored, sink, image, shard), range(given.images)))
    sink.close()
    if not run.commit_manifest(shard, pa.Table.from_pylist(rows, schema=manifest_schema(pa.schema([])))):
        raise RuntimeError(f"{shard} was there already")


def _stored(sink: Sink, image: np.ndarray, shard: str, number: int) -> dict[str, Any]:
    row = {"id": f"r{number}", "prompt": "a fox in the snow", "shard": shard, "seed": number, "status": "ok"}
    stored = sink.put(typed_row(row), image)
    return row | {"uri": stored.uri, "bytes": stored.num_bytes, "sha256": stored.sha256}


def bare(run: RunFolder, given: argparse.Namespace, image: np.ndarray) -> None:
    """The same pictures, encoded and written."""
    folder = f"bare/{next(SHARDS)}"

    def write(number: int) -> None:
        run.write(f"{folder}/r{number}.png", encode_image(image, "png"))

    with ThreadPoolExecutor(given.threads) as pool:
        list(pool.map(write, range(given.images)))


class Rendering:
    """The embedded model in workers without Ray, which share one engine; a new shard each turn."""

    def __init__(self, run: RunFolder, given: argparse.Namespace) -> None:
        self.run, self.threads = run, given.threads
        text = "a red circle above a small blue star"
        size = {"prompt": text, "width": 32, "height": 32, "num_steps": given.steps}
        write_plan(run, [planned_row(i, **size) for i in range(2 * given.images * given.repeats)], given.images)
        shards = planned_shards(read_plan(run), (PoolSpec(),))
        self.leases = (Lease(shard, 0) for shard in shards)
        source, schema = ModelSource(os.path.abspath(given.model)), read_plan(run).manifest_schema
        settings = SamplerConfig("", dtype="float32", device="cpu", num_threads=1)
        job = WorkerConfig(run, source, settings, "default", given.layout, "png", schema)
        self.worker, self.quiet = RenderWorker(job, None), RenderWorker(replace(job, layout="none"), None)
        self.sampler = self.quiet._sampler = self.worker._loaded()
        self.rows = [engine_row(row) for row in planned_rows(run.read_shard(shards[0].part, 0))]
        self.sampler.submit(self.rows[0]).result()  # what is made at the first call is made now

    def with_protocol(self) -> None:
        """One shard, from its lease to its manifest."""
        self._render(self.worker)

    def without_pictures(self) -> None:
        """The same, with the sink off."""
        self._render(self.quiet)

    def _render(self, worker: RenderWorker) -> None:
        counts = worker._render(next(self.leases))
        assert counts["ok"] == len(self.rows), counts

    def bare(self) -> None:
        """The same rows, engine and threads, and nothing but writes."""
        folder = f"bare/{next(SHARDS)}"

        def write(row: Row, picture: Future[Picture]) -> None:
            self.run.write(f"{folder}/{row.id}.png", encode_image(picture.result().image, "png"))

        with ThreadPoolExecutor(self.threads) as pool:
            written = [pool.submit(write, row, self.sampler.submit(row)) for row in self.rows]
        for each in written:
            each.result()


def lines(place: str, run: RunFolder, given: argparse.Namespace) -> Iterator[list[Any]]:
    """Of one place: what is only stored, and what is rendered."""
    image, rendering = photo_like(given.size), Rendering(run, given)
    stored = {
        "protocol": functools.partial(with_protocol, run, given, image),
        "bare": functools.partial(bare, run, given, image),
    }
    rendered = {"protocol": rendering.with_protocol, "bare": rendering.bare, "sink off": rendering.without_pictures}
    sides: dict[str, Mapping[str, Callable[[], None]]] = {f"stores {given.size} px": stored, "renders 32 px": rendered}
    for what, calls in sides.items():
        turns = alternate(calls, given.repeats)
        ours = turns["protocol"]
        cells: list[Any] = [place, what, ours.text]
        for name in ("bare", "sink off"):
            other = turns.get(name)
            cells += [other.text, ratio(ours, other), cpu_ratio(ours, other)] if other else [None] * 3
        yield cells


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--images", type=int, default=200, help="of a shard")
    parser.add_argument("--size", type=int, default=512, help="px")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--model", default="training/scenes/model", help="that renders")
    parser.add_argument("--steps", type=int, default=10, help="of a picture that is rendered")
    parser.add_argument(
        "--layout", default="files", choices=("files", "webdataset", "parquet"), help="of what is rendered"
    )
    parser.add_argument("--no-s3", action="store_true", help="the local folder only")
    given = parser.parse_args()
    where = machine()
    with places(not given.no_s3) as runs:
        rows = [line for place, run in runs.items() for line in lines(place, run, given)]
    columns = (
        *("where", "a shard that", "protocol, s", "bare write, s", "ratio", "of CPU seconds"),
        *("sink off, s", "protocol / sink off", "of CPU seconds"),
    )
    what = (
        f"Shards of {given.images} PNG pictures, {given.steps} guided steps where they are rendered, "
        f"{given.threads} threads, {given.repeats} turns."
    )
    report(
        "protocol", f"{what}\n\n{markdown(columns, rows)}", {"options": vars(given), "rows": rows}, where, given.write
    )


if __name__ == "__main__":
    main()
