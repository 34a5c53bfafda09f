"""Chooses torch's number of threads while a long run goes on beside other work.

On a busy machine two threads that wait for each other can be slower than one; who else is busy changes by the minute,
so it is measured.
"""

import time

import torch

PROBE_STEPS, HOLD_STEPS = 6, 240


class ThreadTuner:
    """Called before each step; every HOLD_STEPS it times PROBE_STEPS with each number of threads, keeps the fastest."""

    def __init__(self, most: int) -> None:
        self.choices, self.step, self.started = range(1, most + 1), 0, 0.0
        self.seconds: list[float] = []

    def __call__(self) -> None:
        """Sets torch's threads where a probe starts or ends."""
        position = self.step % (HOLD_STEPS + PROBE_STEPS * len(self.choices))
        if position % PROBE_STEPS == 0 and position <= PROBE_STEPS * len(self.choices):
            now = time.monotonic()
            self.seconds = [*self.seconds, now - self.started] if position else []
            self.started = now
            fastest = (
                min(self.choices, key=lambda n: self.seconds[n - 1]) if len(self.seconds) == len(self.choices) else 0
            )
            torch.set_num_threads(fastest or len(self.seconds) + 1)
        self.step += 1
