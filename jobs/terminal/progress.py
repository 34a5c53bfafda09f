"""One line that says how a render goes, redrawn on a terminal and repeated every ten seconds elsewhere."""

import shutil
import time
from collections.abc import Callable
from typing import Protocol

from jobs.terminal.console import Console

EVERY_S = 10.0
REDRAW_S = 0.2


class Progress(Protocol):
    """What `pipelines.render.driver` tells: rows by what became of them, rates, and what the run waits for."""

    @property
    def total(self) -> int:
        """Rows of the plan."""

    @property
    def done(self) -> int:
        """Rows that are ok, failed or filtered."""

    @property
    def failed(self) -> int:
        """Rows without a picture."""

    @property
    def mean_steps(self) -> float | None:
        """Mean steps of the rows done."""

    @property
    def images_per_second(self) -> float | None:
        """Of this run, lately."""

    @property
    def waiting(self) -> str | None:
        """What nothing goes on without, such as a GPU; a whole phrase."""

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end."""


def progress_line(progress: Progress, largest: int | None) -> str:
    """`12/40 images · 3.1 images/s · 14.2 steps, 72 % saved · 1 failed · ETA 0:09`; largest: budget, in steps."""
    parts = [f"{progress.done:,}/{progress.total:,} images"]
    if progress.images_per_second:
        parts.append(f"{rate(progress.images_per_second)} images/s")
    if progress.mean_steps:
        parts.append(steps_text(progress.mean_steps, largest))
    parts.append(f"{progress.failed:,} failed")
    if progress.waiting:
        parts.append(progress.waiting)
    elif progress.eta_s is not None and progress.done < progress.total:
        parts.append(f"ETA {duration(progress.eta_s)}")
    return " · ".join(parts)


def steps_text(mean_steps: float, largest: int | None) -> str:
    """Mean steps, and the share of steps saved against the largest budget."""
    saved = f", {100 * (1 - mean_steps / largest):.0f} % saved" if largest and largest > mean_steps else ""
    return f"{mean_steps:.1f} steps{saved}"


def rate(per_second: float) -> str:
    """Three significant digits, no exponent."""
    return f"{per_second:.3g}" if per_second < 1000 else f"{per_second:,.0f}"


def duration(seconds: float) -> str:
    """m:ss, h:mm:ss above an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressLine:
    """Call it with each Progress; it draws at most five lines a second.

    Off a terminal it says one in ten seconds, and at once what is newly waited for.
    """

    def __init__(self, console: Console, largest: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.largest = largest
        self.clock = clock
        self._last: float | None = None
        self._shown = ""
        self._waiting: str | None = None

    def __call__(self, progress: Progress) -> None:
        """Draw this state if it is time, and the last one always."""
        now, line = self.clock(), progress_line(progress, self.largest)
        interval = REDRAW_S if self.console.is_terminal else EVERY_S
        due = self._last is None or now - self._last >= interval or progress.done >= progress.total
        due = due or (progress.waiting is not None and progress.waiting != self._waiting)
        if not due or line == self._shown:
            return
        self._last, self._shown, self._waiting = now, line, progress.waiting
        if self.console.is_terminal:
            width = shutil.get_terminal_size().columns
            self.console.draw(line if len(line) < width else line[: width - 2] + "…")
        else:
            self.console.say(line)
