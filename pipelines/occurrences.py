"""Equal rows, found by sorting 16 bytes a row: which ids were given twice, and the how-manieth of its kind each row is.

Pure numpy. Beside the keys it needs 12 bytes a row for a moment, and more only for the rows that are equal to others.
"""

from dataclasses import dataclass

import numpy as np

COMPARED_ROWS = 1 << 16
MAX_PAIRS = 3


@dataclass(frozen=True)
class Occurrences:
    """`rows` that are equal to earlier ones, rising, with the `numbers` (from 1) that tell them apart.

    `given_twice`: pairs of rows that were given one id, the first MAX_PAIRS by the second's place.
    """

    rows: np.ndarray  # (N,) int64
    numbers: np.ndarray  # (N,) int32
    num_given_twice: int
    given_twice: tuple[tuple[int, int], ...]


def count_occurrences(keys: np.ndarray, given: np.ndarray) -> Occurrences:
    """keys (R,) S16, of the id a row was given (`given` (R,) bool) or would get as the first of its kind."""
    order = np.argsort(keys, kind="stable")  # equal rows stay in the order of the input
    equal = _equal_to_next(keys, order)
    member, later = np.zeros(len(keys), bool), np.zeros(len(keys), bool)
    member[:-1] = later[1:] = equal
    member |= later
    starts, rows = ~later[member], order[member]
    kind = np.cumsum(starts) - 1
    was_given = given[rows]
    derived = ~was_given
    count = np.cumsum(derived)
    before = (count - derived)[starts]  # derived rows ahead of each kind
    givens = np.bincount(kind[was_given], minlength=len(before))
    numbers = count - 1 - before[kind] + (givens[kind] > 0)
    counted = derived & (numbers > 0)
    found, found_numbers = rows[counted], numbers[counted]
    rising = np.argsort(found)
    twice = _pairs(rows[was_given], kind[was_given])
    return Occurrences(
        found[rising], found_numbers[rising].astype(np.int32), len(twice), tuple(sorted(twice, key=_second)[:MAX_PAIRS])
    )


def _equal_to_next(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(R - 1,) bool along the sorted order, without a sorted copy."""
    equal = np.empty(max(0, len(order) - 1), bool)
    for start in range(0, len(equal), COMPARED_ROWS):
        part = keys[order[start : start + COMPARED_ROWS + 1]]
        equal[start : start + COMPARED_ROWS] = part[1:] == part[:-1]
    return equal


def _pairs(rows: np.ndarray, kind: np.ndarray) -> list[tuple[int, int]]:
    """The first two rows of each kind that has two."""
    again = np.flatnonzero(kind[1:] == kind[:-1]) + 1
    second = again[np.insert(kind[again][1:] != kind[again][:-1], 0, True)] if len(again) else again
    return [(int(rows[at - 1]), int(rows[at])) for at in second]


def _second(pair: tuple[int, int]) -> int:
    return pair[1]
