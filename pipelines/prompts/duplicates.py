"""Finds equal rows: ids that were given twice, and the ordinal of a row among equal rows.

Pure numpy, 16 bytes a row. It sorts one share of the keys at a time, those with the same beginning; so it needs memory
for one share and for the rows that equal others.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHARE_ROWS, MOST_SHARES = 1 << 16, 64  # rows sorted at once, about; passes over the keys at most
MAX_PAIRS = 3
Part = tuple[np.ndarray, np.ndarray]  # keys (r,) S16 of a run of rows, which of their ids were given (r,) bool


@dataclass(frozen=True)
class EqualRows:
    """`rows` that equal earlier ones, ascending, and the ordinal of each (`numbers`, from 1) that tells it apart.

    `given_twice`: pairs of rows that were given one id, the first MAX_PAIRS by the second's place.
    """

    rows: np.ndarray  # (N,) int64
    numbers: np.ndarray  # (N,) int32
    num_given_twice: int
    given_twice: tuple[tuple[int, int], ...]


def find_equal_rows(parts: Sequence[Part]) -> EqualRows:
    """Finds equal rows. parts: all rows in order; a key is of a row's id, or of the id its first equal would get."""
    counted = [_count(*share) for share in _shares(parts)]
    rows = np.concatenate([np.empty(0, np.int64), *(found.rows for found in counted)])
    numbers = np.concatenate([np.empty(0, np.int32), *(found.numbers for found in counted)])
    rising = np.argsort(rows)
    twice = heapq.nsmallest(MAX_PAIRS, (pair for found in counted for pair in found.given_twice), key=_second)
    return EqualRows(rows[rising], numbers[rising], sum(found.num_given_twice for found in counted), tuple(twice))


def _shares(parts: Sequence[Part]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, keys and `given` by share: rows whose keys begin alike, so that equal keys are in one share."""
    num_shares = min(MOST_SHARES, -(-sum(len(keys) for keys, _ in parts) // SHARE_ROWS))
    starts = np.cumsum([0, *(len(keys) for keys, _ in parts)])
    for share in range(num_shares):
        inside = [np.flatnonzero(_share_of(keys, num_shares) == share) for keys, _ in parts]
        rows = np.concatenate([start + at for start, at in zip(starts, inside, strict=False)])
        keys, given = ([part[i][at] for part, at in zip(parts, inside, strict=True)] for i in (0, 1))
        yield rows, np.concatenate(keys), np.concatenate(given)


def _share_of(keys: np.ndarray, num_shares: int) -> np.ndarray:
    """(r,) the share of each key, by its first two bytes: keys are hashes, so shares are of equal size."""
    first = keys.view(np.dtype((">u2", keys.dtype.itemsize // 2)))[:, 0]
    return (first.astype(np.uint32) * num_shares) >> 16


def _count(share: np.ndarray, keys: np.ndarray, given: np.ndarray) -> EqualRows:
    """Counts the equal rows of one share. share: the rows' places among all, ascending."""
    order = np.argsort(keys, kind="stable")  # equal rows stay in the order of the input
    keys, share, given = keys[order], share[order], given[order]
    equal = keys[1:] == keys[:-1]
    member, later = np.zeros(len(keys), bool), np.zeros(len(keys), bool)
    member[:-1] = later[1:] = equal
    member |= later
    starts, rows, was_given = ~later[member], share[member], given[member]
    kind = np.cumsum(starts) - 1
    derived = ~was_given
    count = np.cumsum(derived)
    before = (count - derived)[starts]  # derived rows ahead of each kind
    givens = np.bincount(kind[was_given], minlength=len(before))
    numbers = count - 1 - before[kind] + (givens[kind] > 0)
    counted = derived & (numbers > 0)
    twice = _pairs(rows[was_given], kind[was_given])
    shown = heapq.nsmallest(MAX_PAIRS, twice, key=_second)
    return EqualRows(rows[counted], numbers[counted].astype(np.int32), len(twice), tuple(shown))


def _pairs(rows: np.ndarray, kind: np.ndarray) -> list[tuple[int, int]]:
    """The first two rows of each kind that has two."""
    again = np.flatnonzero(kind[1:] == kind[:-1]) + 1
    second = again[np.insert(kind[again][1:] != kind[again][:-1], 0, True)] if len(again) else again
    return [(int(rows[at - 1]), int(rows[at])) for at in second]


def _second(pair: tuple[int, int]) -> int:
    return pair[1]
