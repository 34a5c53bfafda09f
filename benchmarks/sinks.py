"""Objects and bytes a second by layout, to a local folder and to the S3 server of the tests.

    python -m benchmarks.sinks [--images 200] [--size 512] [--threads 8] [--no-s3] [--write]

Pictures are encoded and written as a worker does it: `Sink.put` from several threads, then `close`.
"""

import argparse
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from benchmarks.encode import photo_like
from benchmarks.measure import alternate, arguments, machine, markdown, report
from pipelines.render.sink import LAYOUTS, Sink
from pipelines.run.layout import Attempt, RunFolder
from pipelines.run.schema import planned_row
from pipelines.storage.folder import StorageOptions
from tests.s3_server import S3Server


def write_shard(run: RunFolder, layout: str, given: argparse.Namespace, image: np.ndarray) -> int:
    """One shard of `--images` pictures. -> bytes of pictures."""
    attempt = Attempt("0001-000000", 1, secrets.token_hex(4))
    sink = Sink(run, "0001-000000", attempt, layout, given.format)
    with ThreadPoolExecutor(given.threads) as pool:
        put = functools.partial(_put, sink, image)
        written = sum(pool.map(put, range(given.images)))
    sink.close()
    return written


def _put(sink: Sink, image: np.ndarray, number: int) -> int:
    return sink.put(planned_row({"id": f"r{number}", "prompt": "a fox"}), image).num_bytes or 0


@contextmanager
def places(with_s3: bool) -> Iterator[dict[str, RunFolder]]:
    """Where to write, by name; both are gone afterwards."""
    folder = tempfile.mkdtemp(prefix="sinks-")
    try:
        local = {"local disk": RunFolder(f"{folder}/run")}
        if not with_s3:
            yield local
            return
        keys = (secrets.token_hex(8), secrets.token_hex(20))
        os.environ.update(S3Server.env(*keys))
        with S3Server(*keys) as server:
            options = StorageOptions(endpoint_url=server.endpoint_url)
            yield local | {"S3 server": RunFolder(f"s3://{server.bucket()}/run", options)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=200, help="of a shard")
    parser.add_argument("--size", type=int, default=512, help="px")
    parser.add_argument("--format", default="png", choices=("png", "jpeg", "webp"))
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--no-s3", action="store_true", help="the local folder only")
    given = parser.parse_args()
    where, rows, image = machine(), [], photo_like(given.size)
    with places(not given.no_s3) as runs:
        for place, run in runs.items():
            calls = {layout: functools.partial(write_shard, run, layout, given, image) for layout in LAYOUTS}
            for layout, side in alternate(calls, given.repeats).items():
                rate, megabytes = given.images / side.median, side.values[-1] / 1e6 / side.median
                objects = {"files": given.images, "none": 0}.get(layout, 1)
                rows.append([place, layout, objects, side.text, rate, megabytes])
    columns = ("where", "layout", "objects", "s, median (spread)", "pictures/s", "MB/s")
    what = f"{given.images} {given.format} pictures of {given.size} px, {given.threads} threads, encoding included."
    report("sinks", f"{what}\n\n{markdown(columns, rows)}", {"options": vars(given), "rows": rows}, where, given.write)


if __name__ == "__main__":
    main()
