"""Rows in a child process of their own, in halves, until the row that kills its process stands alone.

The last resort for a shard whose workers keep dying: slow, but it ends, and every other row gets its picture.
Run as `python -m pipelines.isolation FD`, it is the child: rows and settings from stdin, results to the descriptor.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from actors.rows import Picture, Row, SamplerConfig
from actors.sampler import DDIMSampler

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
SILENCE_S = 600.0  # a child without a result for so long hangs, and is killed


class WorkerDied(RuntimeError):
    """The process that rendered the row ended, or hung, each time."""


def render_isolated(
    config: SamplerConfig, rows: Sequence[Row], silence_s: float = SILENCE_S
) -> dict[str, Picture | Exception]:
    """{id: picture, or what the row raised}; WorkerDied for a row that ends its process."""
    if not rows:
        return {}
    results, death = _in_child(config, rows, silence_s)
    left = [row for row in rows if row.id not in results]
    if not left:
        return results
    log.warning("the child process %s with %d rows left", death, len(left))
    if len(left) == 1:
        return results | {left[0].id: WorkerDied(f"worker died: its process {death}")}
    middle = len(left) // 2
    for half in (left[:middle], left[middle:]):
        results |= render_isolated(config, half, silence_s)
    return results


def _in_child(
    config: SamplerConfig, rows: Sequence[Row], silence_s: float
) -> tuple[dict[str, Picture | Exception], str]:
    """-> what the child gave before it ended, and how it ended."""
    reading, writing = os.pipe()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.isolation", str(writing)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=(writing,),
        env=environment,
    )
    os.close(writing)
    assert child.stdin is not None
    with os.fdopen(reading, "rb") as results:
        try:
            pickle.dump((config, list(rows)), child.stdin)
            child.stdin.close()
        except BrokenPipeError:
            log.warning("the child process ended before it had its rows")
        found, hung = _collect(child, results, silence_s)
    code = child.wait()
    return found, f"hung for {silence_s:.0f} s" if hung else _ending(code)


def _collect(
    child: subprocess.Popen, results: BinaryIO, silence_s: float
) -> tuple[dict[str, Picture | Exception], bool]:
    found: dict[str, Picture | Exception] = {}
    hung = threading.Event()

    def give_up() -> None:
        hung.set()
        child.kill()

    while True:
        timer = threading.Timer(silence_s, give_up)
        timer.start()
        try:
            id, result = pickle.load(results)
        except (EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a result
            return found, hung.is_set()
        finally:
            timer.cancel()
        found[id] = result


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def _serve(config: SamplerConfig, rows: Sequence[Row], results: BinaryIO) -> None:
    lock = threading.Lock()

    def give(id: str, future: "Future[Picture]") -> None:
        error: Any = future.exception()
        with lock:
            pickle.dump((id, error or future.result()), results)
            results.flush()

    sampler = DDIMSampler(config)
    for row in rows:
        sampler.submit(row).add_done_callback(partial(give, row.id))
    sampler.close()


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "wb") as descriptor:
        sampler_config, planned = pickle.load(sys.stdin.buffer)
        _serve(sampler_config, planned, descriptor)
