"""Waiting, in a test, for what another thread or process does."""

import time
from collections.abc import Callable
from typing import Any


def until(what: Callable[[], Any], seconds: float = 300.0) -> Any:
    """What it returns once that is true. Asserts that it becomes so."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"it has not become so within {seconds:.0f} s"
        time.sleep(0.05)
    return found
