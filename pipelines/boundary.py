"""Runs a call and returns what it raised, for what must go on: a worker after one shard, a thread that has to live.

The one broad `except` of this room. The caller decides what an error means.
"""

from collections.abc import Callable


def raised_by(call: Callable[[], object]) -> Exception | None:
    """What the call raised; None where it returned."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - what it means is said by the caller, which must go on
        return error
    return None
