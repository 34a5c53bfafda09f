"""The boundary of what must go on whatever is raised inside it: a worker's shard, a thread that has to live.

The one broad `except` of this room. Who calls it says what an error means there.
"""

from collections.abc import Callable


def raised_by(call: Callable[[], object]) -> Exception | None:
    """What the call raised; None where it returned."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - what it means is said by the caller, which must go on
        return error
    return None
