"""Decides whose fault an error is: a row's, the engine's, or nobody's for lack of memory.

Not a handler: what becomes of a row or of the engine is its caller's.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from actors.rows import EngineBroken


def each_alone(call: Callable[[list], None], items: list, fail: Callable[[Any, Exception], None]) -> None:
    """call(items); where it raises, each item alone, so that only the one at fault fails.

    Passes on what is no item's fault: out of memory, and EngineBroken (also where `fail` raises it).
    """
    try:
        call(items)
        return
    except (torch.OutOfMemoryError, EngineBroken):
        raise
    except Exception as error:  # noqa: BLE001 - the boundary around one row: whatever it raises is that row's result
        if len(items) == 1:
            fail(items[0], error)
            return
    for item in items:
        each_alone(call, [item], fail)


def check_engine(probe: Callable[[], None], after: Exception | None = None) -> None:
    """Raises EngineBroken where `probe`, a known-good input, fails too. Out of memory proves nothing.

    after: what a row alone has failed with.
    """
    found: list[Exception] = []
    with suppress(torch.OutOfMemoryError):
        each_alone(lambda _: probe(), [None], lambda _, error: found.append(error))
    if found and not is_out_of_memory(found[0]):
        first = f"{type(after).__name__}: {after}; then " if after else ""
        raise EngineBroken(f"{first}a known-good input failed: {type(found[0]).__name__}: {found[0]}") from (
            after or found[0]
        )


def is_out_of_memory(error: Exception) -> bool:
    """Of the device's memory or of the host's, for which torch has no class of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def check_finite(output: torch.Tensor, name: str) -> None:
    """FloatingPointError for inf or nan. Waits for the device."""
    if not bool(output.isfinite().all()):
        raise FloatingPointError(f"{name} for a known-good input holds inf or nan")
