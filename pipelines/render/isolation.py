"""Renders rows in child processes, in halves, until the row that kills its process stands alone.

The last resort for a shard whose workers keep dying: slow, but it ends, and every other row gets its picture. One
picture is in memory at a time: the child waits until the one before is stored. Run as `python -m
pipelines.render.isolation FD`, it is the child: rows and settings from stdin, results to the descriptor.
"""

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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from actors.rows import EngineBroken, Picture, Row, SamplerConfig
from actors.sampler import DDIMSampler
from pipelines.boundary import raised_by
from pipelines.render.attempt import AttemptFailed
from pipelines.render.tries import RowFailed

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
SILENCE_S = 900.0  # a child without a step or a result for so long hangs, and is killed
START_S = 900.0  # for its start, until the model is loaded and has passed its probe: no row is to blame for that
TICK_S = 1.0
READY = "ready"  # a child's first word
BROKEN = 70  # exit code of a child whose engine broke
_CHILDREN: set[subprocess.Popen] = set()


class WorkerDied(RuntimeError):
    """The process that rendered the row ended each time."""


class RowTimeout(WorkerDied):
    """The process that rendered the row hung each time."""


class Abandoned(Exception):
    """The caller no longer waits for the rows."""


Deliver = Callable[[str, "Picture | Exception"], None]


class IsolatedRows:
    """submit(row) -> Future[Picture], as the sampler has it; the children start once all rows are there.

    A row that is submitted again, with another seed, waits until the others are done.
    """

    def __init__(
        self, config: SamplerConfig, rows: Sequence[Row], silence_s: float, on_move: Callable[[], None]
    ) -> None:
        self._isolation = Isolation(config, self._deliver, silence_s, on_move)
        self._rows, self._again = rows, list[Row]()
        self._started = False
        self._futures: dict[str, Future[Picture]] = {}

    def submit(self, row: Row) -> "Future[Picture]":
        """Its callbacks run before the next picture is read."""
        future = self._futures[row.id] = Future()
        if self._started:
            self._again.append(row)
        elif len(self._futures) == len(self._rows):
            self._started = True
            threading.Thread(target=self._run, name="isolation", daemon=True).start()
        return future

    def _run(self) -> None:
        error, rows = None, self._rows
        while rows and error is None:
            error = raised_by(lambda rows=rows: self._isolation.render(rows))  # type: ignore[misc]
            rows, self._again = self._again, []
        if not isinstance(error, EngineBroken):  # whatever it is, no row is to blame
            error = AttemptFailed(f"isolation ended with {type(error).__name__}: {error}")
        for future in list(self._futures.values()):
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _deliver(self, id: str, result: "Picture | Exception") -> None:
        future = self._futures.pop(id)
        if not future.set_running_or_notify_cancel():
            raise Abandoned
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


@dataclass
class Isolation:
    """deliver: gets each row's id and picture, or what the row raised; WorkerDied for one that ends its process.

    on_move: it goes on. Raises EngineBroken where no child can load the model and pass its probe: no row is to blame.
    """

    config: SamplerConfig
    deliver: Deliver
    silence_s: float = SILENCE_S
    on_move: Callable[[], None] = field(default=lambda: None)

    def render(self, rows: Sequence[Row]) -> None:
        """Renders all rows, in halves where a child dies over them."""
        if not rows:
            return
        done, ready, death = self._in_child(rows)
        self.on_move()
        if not ready:
            raise EngineBroken(f"no process can load the model here: the child {death}")
        left = [row for row in rows if row.id not in done]
        if not left:
            return
        log.warning("the child process %s with %d rows left", death, len(left))
        if len(left) == 1:
            self._check_engine()
            self.deliver(left[0].id, death)
            return
        middle = len(left) // 2
        for half in (left[:middle], left[middle:]):
            self.render(half)

    def _check_engine(self) -> None:
        """Starts a child without rows: if its engine passes the probe, the row is at fault and not the device."""
        _, ready, death = self._in_child(())
        if not ready:
            raise EngineBroken(f"no process can load the model here any more: the child {death}")

    def _in_child(self, rows: Sequence[Row]) -> tuple[set[str], bool, WorkerDied]:
        """-> the ids it delivered before it ended, whether its engine passed the probe, and how it ended."""
        reading, writing = os.pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.render.isolation", str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(writing,),
            env=environment,
        )
        _CHILDREN.add(child)
        os.close(writing)
        assert child.stdin is not None
        try:
            with os.fdopen(reading, "rb") as results:
                impatient = threading.Timer(START_S, child.kill)  # one that never reads its rows
                impatient.start()
                try:
                    pickle.dump((self.config, list(rows)), child.stdin)
                    child.stdin.close()
                except BrokenPipeError:
                    log.warning("the child process ended before it had its rows")
                finally:
                    impatient.cancel()
                done, ready, hung = self._collect(child, results)
        finally:
            child.kill()
            code = child.wait()
            _CHILDREN.discard(child)
        if hung:
            return done, ready, RowTimeout(f"timeout: its process hung for {self.silence_s:.0f} s")
        return done, ready, WorkerDied(f"worker died: its process {_ending(code)}")

    def _collect(self, child: subprocess.Popen, results: BinaryIO) -> tuple[set[str], bool, bool]:
        """-> ids delivered, whether it was ready, whether it hung."""
        done: set[str] = set()
        hung, ready, patience_s = threading.Event(), False, max(START_S, self.silence_s)

        def give_up() -> None:
            hung.set()
            child.kill()

        while True:
            timer = threading.Timer(patience_s, give_up)
            timer.start()
            try:
                id, result = pickle.load(results)
            except (EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a result
                return done, ready, hung.is_set()
            finally:
                timer.cancel()
            ready = ready or result == READY
            patience_s = self.silence_s
            if id is not None:
                self.deliver(id, result)
                done.add(id)
            self.on_move()


def end_children() -> None:
    """Ends all children, before this process ends."""
    for child in list(_CHILDREN):
        child.kill()


def _ending(code: int) -> str:
    if code == BROKEN:
        return "ended since its engine broke"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with code {code}"


class _Child:
    """The child's side: sends results to the parent, and a sign of life for every second with a step."""

    def __init__(self, results: BinaryIO) -> None:
        self.results, self.parent = results, os.getppid()
        self.lock = threading.Lock()

    def give(self, id: str | None, result: Any) -> None:
        """Sends one result; id None: a sign of life."""
        with self.lock:
            pickle.dump((id, result), self.results)
            self.results.flush()

    def serve(self, config: SamplerConfig, rows: Sequence[Row]) -> None:
        """Renders all rows, once the engine has passed its probe; ends at once where the engine breaks over them."""
        sampler = DDIMSampler(config)
        sampler.load()
        self.give(None, READY)
        threading.Thread(target=self._tick, args=(sampler,), daemon=True).start()
        for row in rows:
            sampler.submit(row).add_done_callback(partial(self._settled, row.id))
        sampler.close()

    def _settled(self, id: str, future: "Future[Picture]") -> None:
        error = future.exception()
        if isinstance(error, EngineBroken):  # over one of the rows in it: as if that row had killed the process
            log.error("the engine broke", exc_info=error)
            os._exit(BROKEN)
        self.give(id, future.result() if error is None else RowFailed(type(error).__name__, str(error)))

    def _tick(self, sampler: DDIMSampler) -> None:
        """Ends the process once its parent is gone: a hanging child does not notice that by itself."""
        seen: Any = None
        while os.getppid() == self.parent:
            if (stats := sampler.stats()) != seen:
                seen = stats
                if raised_by(lambda: self.give(None, None)) is not None:
                    break
            time.sleep(TICK_S)
        os._exit(1)


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "wb") as descriptor:
        sampler_config, planned = pickle.load(sys.stdin.buffer)
        _Child(descriptor).serve(sampler_config, planned)
