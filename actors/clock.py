"""How long the device worked on something, without waiting for it.

Not a profiler: one sum. On a CPU the wall time of the block; on CUDA the time between two events of the stream.
"""

import time
from collections import deque
from typing import Any

import torch


class DeviceClock:
    """`with clock:` adds the block's device time to `seconds`; on CUDA once the device has passed it."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._pending: deque[tuple[Any, Any]] = deque()
        self._seconds = self._started = 0.0

    @property
    def seconds(self) -> float:
        """Of the blocks that the device has finished."""
        while self._pending and self._pending[0][1].query():
            start, end = self._pending.popleft()
            self._seconds += start.elapsed_time(end) / 1000
        return self._seconds

    def __enter__(self) -> None:
        if self._cuda:
            self._pending.append((self._event(), torch.cuda.Event(enable_timing=True)))
        else:
            self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self._pending[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
