"""Measures how long the device worked on something, without waiting for it."""

import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


class _HostEvent:
    """A moment on a CPU, with the methods of a CUDA event."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def query(self) -> bool:
        """It has passed."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end: "_HostEvent") -> float:
        """Milliseconds from here to `end`."""
        return 1000 * (end._at - self._at)


@dataclass(eq=False)
class Block:
    """What was done inside one `with clock as block`."""

    start: Any
    end: Any = None

    @cached_property
    def seconds(self) -> float:
        """Device time of the block, once it has been left. Waits until the device has passed it."""
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


class DeviceClock:
    """`with clock as block:` adds the block's device time to `seconds`; on CUDA once the device has passed it.

    One thread enters blocks, any thread reads.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._lock = threading.Lock()
        self._pending: deque[tuple[Any, Any]] = deque()  # start and end of blocks that are not yet in the sum
        self._seconds = 0.0
        self._block: Block | None = None

    @property
    def seconds(self) -> float:
        """Of the blocks that the device has finished; of a device that is lost, the last figure known."""
        self._count()
        return self._seconds

    def _count(self) -> None:
        with self._lock, suppress(RuntimeError):  # the events of a lost device answer nothing but its error
            while self._pending and self._pending[0][1].query():
                start, end = self._pending[0]
                self._seconds += start.elapsed_time(end) / 1000
                self._pending.popleft()

    def __enter__(self) -> Block:
        self._block = Block(self._event())
        return self._block

    def __exit__(self, *_: object) -> None:
        assert self._block is not None
        self._block.end = self._event()
        self._pending.append((self._block.start, self._block.end))
        self._count()  # so that few events are pending, even where nobody reads

    def _event(self) -> Any:
        """A moment of the device's work: now."""
        if not self._cuda:
            return _HostEvent()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
