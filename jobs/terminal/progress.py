"""Shows a render's progress as one line, redrawn on a terminal and repeated every ten seconds elsewhere."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from jobs.terminal.console import Console
from pipelines.render.driver import Progress

EVERY_S = 10.0
REDRAW_S = 0.2


def progress_line(progress: Progress, largest: int | None, done: str = "images") -> str:
    """`12/40 images · 3.1 images/s · 14.2 steps, 72 % saved · 1 failed · ETA 0:09`; largest: budget, in steps.

    Until the first shard is in work it says for how long the run has been starting, and what it waits for.
    """
    if progress.starting_s is not None and not progress.done:
        what = progress.waiting or "the workers start and load the model"
        return f"{progress.total:,} images to make · starting, {duration(progress.starting_s)} so far: {what}"
    parts = [f"{progress.done:,}/{progress.total:,} {done}"]
    if progress.images_per_second:
        parts.append(f"{rate(progress.images_per_second)} images/s")
    if progress.mean_steps:
        parts.append(steps_text(progress.mean_steps, largest))
    parts.append(f"{progress.failed:,} failed")
    parts += [f"{progress.filtered:,} filtered"] if progress.filtered else []
    if progress.waiting:
        parts.append(progress.waiting)
    elif progress.eta_s is not None and progress.done < progress.total:
        parts.append(f"ETA {duration(progress.eta_s)}")
    return " · ".join(parts)


def steps_text(mean_steps: float, largest: int | None) -> str:
    """Mean steps, and the share of steps saved against the largest budget."""
    saved = f", {100 * (1 - mean_steps / largest):.0f} % saved" if largest and largest > mean_steps else ""
    return f"{mean_steps:.1f} steps{saved}"


def saved_text(found: Mapping[str, Any]) -> str:
    """`5.9 steps, 1.31 pictures a row: 42 % saved against 10 steps for every row`.

    found: mean_steps, mean_tries or expected_tries, and in lane-steps a row `a_row` and the `reference`'s, if known.
    """
    steps, tries = f"{found['mean_steps']:.1f} steps", found.get("mean_tries") or found.get("expected_tries") or 1
    reference, a_row = found.get("reference"), found.get("lane_steps_a_row")
    if not reference or not a_row:
        largest = found.get("largest_budget")
        return f"{steps_text(found['mean_steps'], largest)} against {largest} steps for every row"
    head = f"{steps}, {tries:.2f} pictures a row" if tries > 1 else steps
    times = a_row / reference["lane_steps"]
    if math.isclose(times, 1, abs_tol=0.005):
        return head
    spent = f"{100 * (1 - times):.0f} % saved" if times < 1 else f"{times:.2f} times the lane-steps"
    return f"{head}{':' if tries > 1 else ','} {spent} against {reference['words']} for every row"


def rate(per_second: float) -> str:
    """Three significant digits, no exponent."""
    return f"{per_second:.3g}" if per_second < 1000 else f"{per_second:,.0f}"


def duration(seconds: float) -> str:
    """m:ss, h:mm:ss above an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressLine:
    """Call it with each Progress; it draws at most five lines a second. The first one says that pictures are made.

    Off a terminal it says one in ten seconds, and at once what is newly waited for.
    """

    def __init__(
        self,
        console: Console,
        largest: int | None,
        clock: Callable[[], float] = time.monotonic,
        done: str = "images",
    ) -> None:
        self.console = console
        self.largest = largest
        self.clock = clock
        self.done = done  # what is counted
        self._last = -math.inf
        self._shown = ""
        self._waiting: str | None = None

    def __call__(self, progress: Progress) -> None:
        """Draw this state if it is time, and the last one always."""
        self.console.started = True
        now, line = self.clock(), progress_line(progress, self.largest, self.done)
        interval = REDRAW_S if self.console.is_terminal else EVERY_S
        due = now - self._last >= interval or progress.done >= progress.total
        due = due or progress.waiting not in (None, self._waiting)
        if not due or line == self._shown:
            return
        self._last, self._shown, self._waiting = now, line, progress.waiting
        (self.console.draw if self.console.is_terminal else self.console.say)(line)
