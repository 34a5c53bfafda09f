"""Handles Ctrl-C, SIGTERM and SIGHUP: the first asks the run to finish what is in flight, the second ends it at once.

Installed after `ray.init`, which sets handlers of its own. Only the main thread can. A terminal that closes sends
SIGHUP, more than once: that never ends a run at once, and where nohup made it ignored it stays so.
"""

import os
import shlex
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from jobs.terminal.console import Console

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def this_command() -> str:
    """The command as the user typed it."""
    return shlex.join(["python", "-m", "jobs", *sys.argv[1:]])


class Interrupted(BaseException):
    """A signal came where there is nothing to finish."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def leave_on_signals() -> None:
    """SIGTERM and SIGHUP end this process with 143 and 129 where nothing is in flight, instead of Ray's own 15."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            _set(number, _leave)


def _set(number: int, handler: Any) -> Any:
    """Sets a handler; the one before it. A signal that is ignored stays so."""
    before = signal.getsignal(number)
    return before if number == signal.SIGHUP and before is signal.SIG_IGN else signal.signal(number, handler)


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
        """130, 143 or 129 once a signal came, else None."""
        return None if self.number is None else 128 + self.number

    def __enter__(self) -> Self:
        self._before = [_set(number, self._on_signal) for number in SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if number == signal.SIGHUP:
                return
            with suppress(OSError):
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
