"""Cuts planned rows into shards of about equal cost, as a bounded stream.

Rows wait in one buffer per (size, pools that serve their budget, budget) until it is worth a shard. Which row goes into
which shard follows from the rows in their order alone, never from how they were cut into tables.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.plan.recipes import lane_steps_of_rows


class Place(NamedTuple):
    """What all good rows of a shard share. `pools`: the names of those that serve their budgets."""

    width: int
    height: int
    pools: tuple[str, ...]


@dataclass(frozen=True)
class PlannedShard:
    """Rows that are rendered together, the most lane-steps first. `place`: None where all of them are bad."""

    rows: pa.Table
    place: Place | None
    good_rows: int
    lane_steps: int
    longest: int  # lane-steps of its first row
    budgets: tuple[int, ...]  # rising


@dataclass(frozen=True)
class CutRules:
    """`target`: the most lane-steps of a shard, unless one row has more. `max_waiting`: rows held back at most."""

    target: int
    pools_of: Callable[[int], tuple[str, ...]]  # budget -> names of the pools that serve it
    max_rows: int = 2000
    max_waiting: int = 50_000


@dataclass
class _Buffer:
    """Rows that wait: those of earlier tables copied out, those of the table at hand by index."""

    tables: list[pa.Table] = field(default_factory=list)
    costs: list[int] = field(default_factory=list)
    here: list[int] = field(default_factory=list)
    total: int = 0

    def add(self, index: int, cost: int) -> None:
        self.here.append(index)
        self.costs.append(cost)
        self.total += cost

    def settle(self, table: pa.Table) -> None:
        if self.here:
            self.tables.append(table.take(pa.array(self.here)))
            self.here = []

    def rows(self) -> pa.Table:
        return pa.concat_tables(self.tables).combine_chunks()


class Cutter:
    """Feed it tables of planned rows with `add`, then `finish`; both give the shards that are full.

    Tables have at least width, height, num_steps (null: not chosen), guidance_scale, guidance_interval and error_type.
    """

    def __init__(self, rules: CutRules) -> None:
        self.rules = rules
        self._buffers: dict[tuple[Place, int], _Buffer] = {}
        self._waiting: Counter[Place] = Counter()
        self._bad = _Buffer()
        self._known_pools: dict[int, tuple[str, ...]] = {}

    def add(self, table: pa.Table) -> Iterator[PlannedShard]:
        """Takes the rows of one table; call again only when this is exhausted."""
        rules = self.rules
        for index, (place, num_steps, cost) in enumerate(self._read(table)):
            if place is None:
                self._bad.add(index, 0)
                if len(self._bad.costs) == rules.max_rows:
                    self._settle(table)
                    yield self._bad_shard()
                continue
            buffer = self._buffers.setdefault((place, num_steps), _Buffer())
            if self._is_full(buffer, cost):
                self._settle(table)
                yield self._close((place, num_steps))
                buffer = self._buffers.setdefault((place, num_steps), _Buffer())
            elif self._waiting.total() >= rules.max_waiting:
                self._settle(table)
                yield from self._mix(max(self._waiting, key=lambda known: (self._waiting[known], known)))
                buffer = self._buffers.setdefault((place, num_steps), _Buffer())
            buffer.add(index, cost)
            self._waiting[place] += 1
        self._settle(table)

    def finish(self) -> Iterator[PlannedShard]:
        """The rest: tails of several budgets together, within one place; bad rows that found no shard in their own."""
        for place in sorted(self._waiting):
            yield from self._mix(place)
        if self._bad.costs:
            yield self._bad_shard()

    def _read(self, table: pa.Table) -> Iterator[tuple[Place | None, int, int]]:
        """(place, num_steps, lane-steps) of each row; no place for a bad one."""
        names, costs = ("width", "height", "num_steps", "error_type"), lane_steps_of_rows(table).tolist()
        columns = (table[name].to_pylist() for name in names)
        for width, height, steps, error, cost in zip(*columns, costs, strict=True):
            if error:
                yield None, 0, 0
                continue
            if steps not in self._known_pools:
                self._known_pools[steps] = self.rules.pools_of(steps)
            yield Place(width, height, self._known_pools[steps]), steps, cost

    def _is_full(self, buffer: _Buffer, cost: int) -> bool:
        rows = len(buffer.costs)
        return rows > 0 and (buffer.total + cost > self.rules.target or rows >= self.rules.max_rows)

    def _settle(self, table: pa.Table) -> None:
        """Copies waiting rows out of a table, so that its memory is freed."""
        for buffer in (*self._buffers.values(), self._bad):
            buffer.settle(table)

    def _close(self, key: tuple[Place, int]) -> PlannedShard:
        buffer = self._buffers.pop(key)
        self._waiting[key[0]] -= len(buffer.costs)
        return self._shard(key[0], buffer.rows(), np.array(buffer.costs))

    def _mix(self, place: Place) -> Iterator[PlannedShard]:
        """All that waits in a place, largest budget first, cut by the same rule."""
        keys = sorted(
            (key for key, waiting in self._buffers.items() if key[0] == place and waiting.costs), key=_longest
        )
        buffers = [self._buffers.pop(key) for key in keys]
        del self._waiting[place]
        if not buffers:
            return
        rows = pa.concat_tables([buffer.rows() for buffer in buffers])
        costs = [cost for buffer in buffers for cost in buffer.costs]
        start, group = 0, _Buffer()
        for end, cost in enumerate(costs):
            if self._is_full(group, cost):
                yield self._shard(place, rows.slice(start, end - start), np.array(group.costs))
                start, group = end, _Buffer()
            group.add(end, cost)
        yield self._shard(place, rows.slice(start), np.array(group.costs))

    def _shard(self, place: Place, rows: pa.Table, costs: np.ndarray) -> PlannedShard:
        """The longest rows first, then bad ones for which there is room."""
        order = np.argsort(-costs, kind="stable")
        good = rows.take(pa.array(order))
        room = max(0, self.rules.max_rows - len(costs))
        budgets = tuple(sorted(good["num_steps"].unique().to_pylist()))
        table = pa.concat_tables([good, *self._take_bad(room)]).combine_chunks()
        return PlannedShard(table, place, len(costs), int(costs.sum()), int(costs.max()), budgets)

    def _bad_shard(self) -> PlannedShard:
        rows = pa.concat_tables(self._take_bad(self.rules.max_rows)).combine_chunks()
        return PlannedShard(rows, None, 0, 0, 0, ())

    def _take_bad(self, room: int) -> list[pa.Table]:
        taken = min(room, len(self._bad.costs))
        if not taken:
            return []
        waiting = self._bad.rows()
        rest = waiting.slice(taken)
        self._bad = _Buffer([rest] if rest.num_rows else [], [0] * rest.num_rows)
        return [waiting.slice(0, taken)]


def _longest(key: tuple[Place, int]) -> int:
    """Sorts the largest budget first."""
    return -key[1]
