"""Calls a user's function that changes a picture before it is stored: a logo, a watermark.

It must give the same pixels each time, since a picture's bytes are a function of its row: a worker calls it twice for
its first picture, and the command once more before anything starts.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.boundary import raised_by
from pipelines.pipeline_error import PipelineError

StampFunction = Callable[[np.ndarray], np.ndarray]
PROBE = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)


class StampFailed(Exception):
    """The function raised for a picture, or gave none: its row fails, and no other."""


class StampError(PipelineError, RuntimeError):
    """The function gives other pixels each time: no picture can be rendered again to the same bytes."""

    began = True


@dataclass(frozen=True)
class StampConfig:
    """name: module:function, a part of the picture's keys."""

    name: str
    function: StampFunction


class Stamp:
    """A worker's use of the function. image -> image, both (H, W, 3) uint8. StampFailed, StampError."""

    def __init__(self, config: StampConfig) -> None:
        self.config = config
        self._is_tried, self._trying = False, threading.Lock()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The function gets a copy of the picture, and may keep or change it."""
        stamped = self._called(image)
        with self._trying:
            if not self._is_tried and not np.array_equal(stamped, self._called(image)):
                raise StampError(f"{self.config.name} gave other pixels for the same picture: it must give the same")
            self._is_tried = True
        return stamped

    def _called(self, image: np.ndarray) -> np.ndarray:
        found: list[np.ndarray] = []
        error = raised_by(lambda: found.append(self.config.function(image.copy())))
        if error is not None:
            raise StampFailed(f"{self.config.name} raised {type(error).__name__}: {error}") from error
        made = found[0]
        if not isinstance(made, np.ndarray) or made.shape != image.shape or made.dtype != np.uint8:
            raise StampFailed(f"{self.config.name} gave {_kind(made)}, not {_kind(image)}")
        return made.copy()  # the function may keep what it gave


def _kind(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__}"
    return f"an array of {value.dtype} {'x'.join(map(str, value.shape))}"
