"""Compares what is planned with the rows of the input now: which rows changed, were fixed, or are gone.

The driver holds 24 bytes a planned row: a key, a hash of what the row said, and whether it was bad. The rows of the
input are compared in Ray tasks, which report numbers and the ids of a few.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipelines.plan.rollout_plan import base_id
from pipelines.prompts.canonical_rows import KEY_BYTES, id_key
from pipelines.prompts.inspection import Inspection
from pipelines.prompts.two_passes import is_aborted, keys_of, raise_aborted, rows
from pipelines.run.plan import Plan

SHOWN = 5
KEY = f"S{KEY_BYTES}"


@dataclass(frozen=True)
class KnownRows:
    """Planned rows, sorted by key: keys (R,) S16; states (R,) uint64, twice the content's hash (0: none) plus 1 if bad.

    An id that was planned again, since it was bad, is there once, as its newest generation has it.
    """

    keys: np.ndarray
    states: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def bad_keys(self) -> np.ndarray:
        """(B,) S16, sorted: rows that were bad when they were planned, so that nothing was rendered of them."""
        return self.keys[(self.states & np.uint64(1)) == 1]

    def look_up(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of the keys are known (n,), their states (n,), of no meaning where they are not)."""
        if not len(self.keys):
            return np.zeros(len(keys), bool), np.zeros(len(keys), np.uint64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[at] == keys, self.states[at]


_NUMBERS = ("seen", "changed", "mended", "unknown")
_REPORT = pa.schema(
    [
        *(pa.field(name, pa.int64()) for name in _NUMBERS),
        ("ids", pa.list_(pa.string())),
        ("error_type", pa.string()),  # with its message, as raise_aborted wants it
        ("error_message", pa.string()),
    ]
)


@dataclass(frozen=True)
class Changes:
    """How the input differs from the plan; `ids` are the first few changed rows.

    seen: planned rows that the input has; changed: of them those with other content now; mended: bad rows that are good
    now; gone: rows that are no longer there; unknown: rows planned by earlier versions, which kept no hash; moved: the
    input's place then and now, if they differ.
    """

    seen: int = 0
    changed: int = 0
    ids: tuple[str, ...] = ()
    mended: int = 0
    gone: int = 0
    unknown: int = 0
    moved: tuple[str, str] | None = None

    @property
    def is_refused(self) -> bool:
        """Whether the run is refused: rows changed, or the input is elsewhere and lacks rows, so it is another list."""
        return bool(self.changed or (self.moved and self.gone))

    def refusal(self, url: str) -> str:
        """Why the run does not go on, and the ways on."""
        if not self.changed and self.moved:
            return (
                f"the input was {self.moved[0]} in {url} and is {self.moved[1]} now, where {_rows(self.gone)} of its "
                "earlier plans are missing. Take a new output.path, set input.path back, or set input.changed: keep"
            )
        return (
            f"{self._what()} since they were planned in {url}, which keeps their old pictures. Take a new output.path, "
            "set them back, or set input.changed: keep to go on with the old pictures"
        )

    def notes(self) -> tuple[str, ...]:
        """Notes for the user where the run goes on."""
        notes = []
        if self.moved:
            notes.append("this run was planned from {}, and is planned from another place now: {}".format(*self.moved))
        if self.changed:
            notes.append(f"{self._what()} since they were planned: their old pictures stay (input.changed: keep)")
        if self.mended:
            notes.append(f"{_rows(self.mended)} that could not be rendered {_is(self.mended)} good now: planned again")
        if self.gone:
            notes.append(
                f"{_rows(self.gone)} of earlier plans {_is(self.gone)} no longer in the input: what they have stays"
            )
        if self.unknown:
            notes.append(
                f"{_rows(self.unknown)} were planned by an earlier version, which kept no hash of them: whether they "
                "changed since is not known"
            )
        return tuple(notes)

    def _what(self) -> str:
        more = ", ..." if self.changed > len(self.ids) else ""
        return f"{_rows(self.changed)} changed ({', '.join(map(repr, self.ids))}{more})"


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def known_rows(plan: Plan) -> KnownRows:
    """The rows of all generations, with keys and states. StorageError."""
    keys, states = [np.empty(0, KEY)], [np.empty(0, np.uint64)]
    for generation in plan.generations:
        for part in plan.parts(generation, "id", "error_type", "content_hash"):
            ids = part["id"].to_pylist()
            if generation.is_rollout:
                ids = [base_id(row_id) for row_id in ids]
            keys.append(np.array([id_key(row_id) for row_id in ids], KEY))
            states.append(_states(part))
    return _newest(np.concatenate(keys), np.concatenate(states))


def _states(part: pa.Table) -> np.ndarray:
    bad = np.array([bool(error) for error in part["error_type"].to_pylist()], np.uint64)
    if "content_hash" not in part.column_names:
        return bad
    hashes = part["content_hash"].fill_null(0).to_numpy().astype(np.uint64)
    return (hashes << np.uint64(1)) | bad


def _newest(keys: np.ndarray, states: np.ndarray) -> KnownRows:
    """The last state of each key, since later generations come later."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]
    return KnownRows(keys[last], states[order][last])


@dataclass(frozen=True)
class EarlierRows:
    """The planned rows, and how the input differs from them."""

    known: KnownRows
    changes: Changes


def earlier_rows(plan: Plan, inspection: Inspection) -> EarlierRows:
    """Reads both, before a plan grows. InputError, StorageError."""
    known = known_rows(plan)
    return EarlierRows(known, find_changes(plan, inspection, known))


def find_changes(plan: Plan, inspection: Inspection, known: KnownRows) -> Changes:
    """The rows of the input against those that are planned, by a pass over the input. InputError, StorageError.

    There is no pass where nothing is planned, or the files are those of the newest plan, which then saw no change.
    """
    if not len(known):
        return Changes()
    newest = plan.newest.document
    if _same_files(newest, inspection):
        return Changes(seen=inspection.num_planned)
    compare = functools.partial(_compared, known=ray.put(known))
    dataset = rows(inspection, carried=()).map_batches(compare, batch_size=None, batch_format="pyarrow")
    sums = dict.fromkeys(_NUMBERS, 0)
    ids: list[str] = []
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(table, pa.Table)
        for found in raise_aborted(table).to_pylist():
            sums = {name: number + found[name] for name, number in sums.items()}
            ids += found["ids"][: SHOWN - len(ids)]
    is_whole = inspection.source.limit is None or inspection.num_planned >= len(known)
    gone = len(known) - sums["seen"] if is_whole else 0
    places = (newest.get("input_place", inspection.place), inspection.place)
    moved = places if places[0] != places[1] else None
    return Changes(**sums, ids=tuple(ids), gone=gone, moved=moved)


def _same_files(newest: Mapping[str, Any], inspection: Inspection) -> bool:
    whole = newest.get("input_limit") is None
    return whole and newest.get("input_files") == inspection.input_files() and not newest.get("changed_rows")


def _compared(table: pa.Table, known: ray.ObjectRef) -> pa.Table:
    """One row of _REPORT for a block of canonical rows, or the error of a failed read."""
    if is_aborted(table):
        errors = table.select(["error_type", "error_message"]).to_pylist()
        return pa.Table.from_pylist([dict.fromkeys(_NUMBERS, 0) | {"ids": []} | row for row in errors], _REPORT)
    planned: KnownRows = ray.get(known)
    is_known, states = planned.look_up(keys_of(table))
    was_bad = (states & np.uint64(1)) == 1
    is_bad = np.array([bool(error) for error in table["error_type"].to_pylist()], bool)
    before, now = states >> np.uint64(1), table["content_hash"].to_numpy().astype(np.uint64)
    changed = is_known & ~was_bad & (before != 0) & (before != now)
    report = {
        "seen": int(is_known.sum()),
        "changed": int(changed.sum()),
        "mended": int((is_known & was_bad & ~is_bad).sum()),
        "unknown": int((is_known & ~was_bad & (before == 0)).sum()),
        "ids": table.filter(pa.array(changed)).slice(0, SHOWN)["id"].to_pylist(),
        "error_type": "",
        "error_message": "",
    }
    return pa.Table.from_pylist([report], _REPORT)
