"""Ctrl-C and SIGTERM: the first asks the run to finish what is in flight, the second ends it at once.

Installed after `ray.init`, which sets handlers of its own. Only the main thread can.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from jobs.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal came where there is nothing to finish."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def leave_on_sigterm() -> None:
    """SIGTERM ends this process with 143 where nothing is in flight, instead of Ray's own handler's 15."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


class Interrupts:
    """`with Interrupts(console, resume) as interrupts: render(..., stop=interrupts.stop)`.

    resume: the command that goes on where this one stopped. Outside `graceful()` the first signal raises Interrupted.
    """

    def __init__(self, console: Console, resume: str) -> None:
        self.console = console
        self.resume = resume
        self.stop = threading.Event()
        self.graceful = False
        self.number: int | None = None
        self._before: list[Any] = []

    @property
    def exit_code(self) -> int | None:
        """130 or 143 once a signal came, else None."""
        return None if self.number is None else 128 + self.number

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._on_signal) for number in SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os.write(2, b"\nstopped at once; finished shards are kept\n")
            os._exit(128 + number)
        self.number = number
        if not self.graceful:
            raise Interrupted(number)
        self.stop.set()
        self.console.say(
            "stopping: what is in flight is finished and committed; press Ctrl-C again to stop at once\n"
            f"go on later with: {self.resume}"
        )
