"""Rows in a child process of their own, in halves, until the row that kills its process stands alone.

The last resort for a shard whose workers keep dying: slow, but it ends, and every other row gets its picture.
Run as `python -m pipelines.isolation FD`, it is the child: rows and settings from stdin, results to the descriptor.
"""

import faulthandler
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from actors.rows import Picture, Row, SamplerConfig
from actors.sampler import DDIMSampler

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
SILENCE_S = 900.0  # a child without a step or a result for so long hangs, and is killed
START_S = 900.0  # for its start, until the model is loaded: no row is to blame for that
TICK_S = 1.0
_CHILDREN: set[subprocess.Popen] = set()


class WorkerDied(RuntimeError):
    """The process that rendered the row ended each time."""


class RowTimeout(WorkerDied):
    """The process that rendered the row hung each time."""


def render_isolated(
    config: SamplerConfig,
    rows: Sequence[Row],
    silence_s: float = SILENCE_S,
    on_move: Callable[[], None] = lambda: None,
) -> dict[str, Picture | Exception]:
    """{id: picture, or what the row raised}; WorkerDied for a row that ends its process. on_move: it goes on."""
    if not rows:
        return {}
    results, death = _in_child(config, rows, silence_s, on_move)
    on_move()
    left = [row for row in rows if row.id not in results]
    if not left:
        return results
    log.warning("the child process %s with %d rows left", death, len(left))
    if len(left) == 1:
        return results | {left[0].id: death}
    middle = len(left) // 2
    for half in (left[:middle], left[middle:]):
        results |= render_isolated(config, half, silence_s, on_move)
    return results


def end_children() -> None:
    """For a process that is about to leave."""
    for child in list(_CHILDREN):
        child.kill()


def _in_child(
    config: SamplerConfig, rows: Sequence[Row], silence_s: float, on_move: Callable[[], None]
) -> tuple[dict[str, Picture | Exception], WorkerDied]:
    """-> what the child gave before it ended, and how it ended."""
    reading, writing = os.pipe()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.isolation", str(writing), str(silence_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=(writing,),
        env=environment,
    )
    _CHILDREN.add(child)
    os.close(writing)
    assert child.stdin is not None
    with os.fdopen(reading, "rb") as results:
        try:
            pickle.dump((config, list(rows)), child.stdin)
            child.stdin.close()
        except BrokenPipeError:
            log.warning("the child process ended before it had its rows")
        found, hung = _collect(child, results, silence_s, on_move)
    code = child.wait()
    _CHILDREN.discard(child)
    if hung:
        return found, RowTimeout(f"timeout: its process hung for {silence_s:.0f} s")
    return found, WorkerDied(f"worker died: its process {_ending(code)}")


def _collect(
    child: subprocess.Popen, results: BinaryIO, silence_s: float, on_move: Callable[[], None]
) -> tuple[dict[str, Picture | Exception], bool]:
    found: dict[str, Picture | Exception] = {}
    hung = threading.Event()

    def give_up() -> None:
        hung.set()
        child.kill()

    patience_s = max(START_S, silence_s)
    while True:
        timer = threading.Timer(patience_s, give_up)
        timer.start()
        try:
            id, result = pickle.load(results)
        except (EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a result
            return found, hung.is_set()
        finally:
            timer.cancel()
        patience_s = silence_s
        if id is not None:
            found[id] = result
        on_move()


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with code {code}"


class _Child:
    """Results to the parent, and a sign of life for every second with a step."""

    def __init__(self, results: BinaryIO, silence_s: float) -> None:
        self.results, self.silence_s = results, silence_s
        self.lock = threading.Lock()

    def give(self, id: str | None, result: Any) -> None:
        """id None: a sign of life."""
        with self.lock:
            pickle.dump((id, result), self.results)
            self.results.flush()

    def serve(self, config: SamplerConfig, rows: Sequence[Row]) -> None:
        """Renders all rows."""
        sampler = DDIMSampler(config)
        sampler.load()
        threading.Thread(target=self._tick, args=(sampler,), daemon=True).start()
        for row in rows:
            sampler.submit(row).add_done_callback(partial(self._settled, row.id))
        sampler.close()

    def _settled(self, id: str, future: "Future[Picture]") -> None:
        self.give(id, future.exception() or future.result())

    def _tick(self, sampler: DDIMSampler) -> None:
        """A child that hangs and whose parent is gone ends itself."""
        seen: Any = None
        while True:
            if (stats := sampler.stats()) != seen:
                seen = stats
                faulthandler.dump_traceback_later(2 * self.silence_s, exit=True)
                try:
                    self.give(None, None)
                except BrokenPipeError:  # the parent is gone
                    os._exit(1)
            time.sleep(TICK_S)


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "wb") as descriptor:
        sampler_config, planned = pickle.load(sys.stdin.buffer)
        _Child(descriptor, float(sys.argv[2])).serve(sampler_config, planned)
