"""Plans a rollout: every row at every budget; all budgets of a (prompt, sample) share one seed and one shard.

The manifest of such a run, with its scores, is the reward table that a policy is trained on. No selector is asked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.plan.shards import CutRules, Place, PlannedShard
from pipelines.run.schema import CANONICAL_FIELDS, SCORE_FIELDS

_SUFFIX = "-steps"


def rollout_id(row_id: str, num_steps: int) -> str:
    """The id of a row at one budget."""
    return f"{row_id}{_SUFFIX}{num_steps}"


def base_id(row_id: str) -> str:
    """The row id in a rollout id."""
    return row_id.rpartition(_SUFFIX)[0]


def at_every_budget(table: pa.Table, choices: Sequence[int]) -> pa.Table:
    """Canonical rows -> B rows each, side by side, pinned to the budgets; bad rows stay bad at each of them."""
    budgets = np.tile(np.array(choices, np.int32), table.num_rows)
    wide = table.take(pa.array(np.repeat(np.arange(table.num_rows), len(choices))))
    ids = [rollout_id(row_id, int(steps)) for row_id, steps in zip(wide["id"].to_pylist(), budgets, strict=True)]
    wide = wide.set_column(wide.column_names.index("id"), "id", pa.array(ids, pa.string()))
    bad = np.array([bool(error) for error in wide["error_type"].to_pylist()], bool)
    for at, column in enumerate(SCORE_FIELDS):
        values = pa.nulls(wide.num_rows, column.type)
        if column.name == "num_steps":
            values = pa.array(budgets, column.type, mask=bad)
        wide = wide.add_column(len(CANONICAL_FIELDS) + at, column, values)
    return wide


@dataclass
class RolloutCutter:
    """As `Cutter`, for rows from `at_every_budget`: it never cuts between the budgets of one (prompt, sample)."""

    rules: CutRules
    num_choices: int

    def __post_init__(self) -> None:
        self._waiting: dict[Place, tuple[list[pa.Table], int, int]] = {}
        self._cut: pa.Table | None = None  # the begin of a group whose other rows are in the next table

    def add(self, table: pa.Table) -> Iterator[PlannedShard]:
        """Takes the rows of one table; call again only when this is exhausted."""
        table = table if self._cut is None else pa.concat_tables([self._cut, table])
        whole = table.num_rows - table.num_rows % self.num_choices
        self._cut = table.slice(whole)
        for start in range(0, whole, self.num_choices):
            group = table.slice(start, self.num_choices)
            place, cost = self._place(group), self._cost(group)
            tables, rows, total = self._waiting.get(place, ([], 0, 0))
            if rows and (total + cost > self.rules.target or rows + group.num_rows > self.rules.max_rows):
                yield self._shard(place, self._waiting.pop(place)[0])
                tables, rows, total = [], 0, 0
            self._waiting[place] = ([*tables, group], rows + group.num_rows, total + cost)

    def finish(self) -> Iterator[PlannedShard]:
        """The shards of the rows that still wait."""
        assert self._cut is None or not self._cut.num_rows
        for place in sorted(self._waiting):
            yield self._shard(place, self._waiting[place][0])
        self._waiting = {}

    def _place(self, group: pa.Table) -> Place:
        """Pools that serve every budget: a rollout's shard goes to one of them as a whole."""
        able = [set(self.rules.pools_of(steps)) for steps in group["num_steps"].drop_null().to_pylist()]
        pools = tuple(sorted(set.intersection(*able))) if able else ()
        return Place(group["width"][0].as_py(), group["height"][0].as_py(), pools)

    def _cost(self, group: pa.Table) -> int:
        return sum(self._costs(group))

    def _costs(self, table: pa.Table) -> list[int]:
        columns = (table[name].to_pylist() for name in ("num_steps", "guidance_scale", "negative_prompt"))
        return [
            0 if steps is None else self.rules.lane_steps(steps, scale, bool(negative))
            for steps, scale, negative in zip(*columns, strict=True)
        ]

    def _shard(self, place: Place, tables: list[pa.Table]) -> PlannedShard:
        rows = pa.concat_tables(tables).combine_chunks()
        costs = np.array(self._costs(rows))
        ordered = rows.take(pa.array(np.argsort(-costs, kind="stable")))
        good = int((costs > 0).sum())
        budgets = tuple(sorted(ordered["num_steps"].drop_null().unique().to_pylist()))
        return PlannedShard(ordered, place if good else None, good, int(costs.sum()), int(costs.max()), budgets)
