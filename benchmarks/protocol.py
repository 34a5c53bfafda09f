"""What the commit protocol costs an undisturbed run: a shard as a worker stores it, against bare writes of its images.

    python -m benchmarks.protocol [--images 200] [--size 512] [--threads 8] [--no-s3] [--write]

The protocol: an attempt object first, pictures under keys of that attempt, each hashed, the manifest last in one
create-if-absent PUT. The bare side encodes the same pictures and writes them, with the same threads, and nothing else.
"""

import argparse
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.encode import photo_like
from benchmarks.measure import alternate, arguments, cpu_ratio, machine, markdown, ratio, report
from benchmarks.sinks import places
from pipelines.sinks import Sink, encode_image
from pipelines.store import RunFolder, manifest_schema

SHARDS = (f"0001-{number:06d}" for number in itertools.count())


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
    stored = sink.put(row, image)
    return row | {"uri": stored.uri, "bytes": stored.num_bytes, "sha256": stored.sha256}


def bare(run: RunFolder, given: argparse.Namespace, image: np.ndarray) -> None:
    """The same pictures, encoded and written."""
    folder = f"bare/{next(SHARDS)}"

    def write(number: int) -> None:
        run.write(f"{folder}/r{number}.png", encode_image(image, "png"))

    with ThreadPoolExecutor(given.threads) as pool:
        list(pool.map(write, range(given.images)))


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--images", type=int, default=200, help="of a shard")
    parser.add_argument("--size", type=int, default=512, help="px")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--no-s3", action="store_true", help="the local folder only")
    given = parser.parse_args()
    where, rows, image = machine(), [], photo_like(given.size)
    with places(not given.no_s3) as runs:
        for place, run in runs.items():
            sides = {"protocol": with_protocol, "bare": bare}
            turns = alternate(
                {name: functools.partial(call, run, given, image) for name, call in sides.items()}, given.repeats
            )
            more = turns["protocol"].median - turns["bare"].median
            ratios = ratio(turns["protocol"], turns["bare"]), cpu_ratio(turns["protocol"], turns["bare"])
            rows.append([place, turns["protocol"].text, turns["bare"].text, *ratios, 1000 * more])
    columns = ("where", "protocol, s", "bare write, s", "ratio", "of CPU seconds", "more a shard, ms")
    what = f"Shards of {given.images} PNG pictures of {given.size} px, {given.threads} threads, {given.repeats} turns."
    report(
        "protocol", f"{what}\n\n{markdown(columns, rows)}", {"options": vars(given), "rows": rows}, where, given.write
    )


if __name__ == "__main__":
    main()
