"""Ends this process when its engine has rows in hand and makes no progress, as if the process had died.

A hung engine cannot be told to stop, and one that hangs in C may hold every Python thread: so the end comes from a
thread that needs no lock (`faulthandler`), and it leaves every thread's traceback in the worker's log.
"""

import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from actors.rows import Picture, Row
from pipelines.boundary import raised_by

log = logging.getLogger(__name__)
LOOK_S = 1.0
Submit = Callable[[Row], "Future[Picture]"]


class Watchdog:
    """Kills the process after timeout_s without progress while rows are in hand; None: never.

    stats: of the engine; whatever changes there is a move.
    """

    def __init__(self, timeout_s: float | None, stats: Callable[[], Mapping[str, float]]) -> None:
        self.timeout_s, self._stats = timeout_s, stats
        self._lock = threading.Lock()
        self._in_hand = self._settled = 0
        self._thread: threading.Thread | None = None
        self._seen: object = None  # what the engine had done at the last look

    def watched(self, submit: Submit) -> Submit:
        """Wraps submit: a row is in hand from before its call to its result."""
        return lambda row: self._submit(submit, row)

    def _submit(self, submit: Submit, row: Row) -> "Future[Picture]":
        future: Future[Picture] | None = None
        self._count(1)
        try:
            future = submit(row)
            return future
        finally:
            if future is None:
                self._count(-1)
            else:
                future.add_done_callback(lambda _: self._count(-1))

    def _count(self, rows: int) -> None:
        with self._lock:
            self._in_hand += rows
            self._settled += rows < 0
            if self._thread is None and self.timeout_s is not None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(LOOK_S)

    def _look(self) -> None:
        """Looks once. Unreadable figures count as no progress: a hanging engine ends all the same."""
        assert self.timeout_s is not None
        with self._lock:
            in_hand, settled = self._in_hand, self._settled
        figures: dict[str, float] = {}
        if in_hand and (error := raised_by(lambda: figures.update(self._stats()))) is not None:
            log.warning("the engine's figures could not be read: %s", error)
        moves = (settled, figures)
        if not in_hand:
            faulthandler.cancel_dump_traceback_later()
            self._seen = None
        elif moves != self._seen:
            self._seen = moves
            faulthandler.dump_traceback_later(self.timeout_s, exit=True, file=2)
