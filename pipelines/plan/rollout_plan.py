"""Plans a rollout: every row at every recipe; all recipes of a (prompt, sample) share one seed and one shard.

The manifest of such a run, with its scores, is the reward table that a policy is trained on. No selector is asked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.recipe import Recipe
from pipelines.plan.budgets import with_score_fields
from pipelines.plan.recipes import JobSampling, lane_steps_of_rows, recipe_columns
from pipelines.plan.shards import CutRules, Place, PlannedShard

_SUFFIX = "-steps"


def rollout_id(row_id: str, recipe: Recipe) -> str:
    """The id of a row at one recipe."""
    return f"{row_id}{_SUFFIX}{recipe.name}"


def base_id(row_id: str) -> str:
    """The row id in a rollout id."""
    return row_id.rpartition(_SUFFIX)[0]


def at_every_recipe(table: pa.Table, choices: Sequence[Recipe], sampling: JobSampling) -> pa.Table:
    """Canonical rows -> K rows each, side by side, one a recipe; bad rows stay bad at each of them."""
    menu = [*choices] * table.num_rows
    wide = table.take(pa.array(np.repeat(np.arange(table.num_rows), len(choices))))
    ids = [rollout_id(row_id, recipe) for row_id, recipe in zip(wide["id"].to_pylist(), menu, strict=True)]
    good = [not error for error in wide["error_type"].to_pylist()]
    recipes = [recipe if fine else None for recipe, fine in zip(menu, good, strict=True)]
    names = [recipe.name for recipe in menu]
    return with_score_fields(wide, recipe_columns(wide, recipes, names, sampling) | {"id": pa.array(ids, pa.string())})


@dataclass
class RolloutCutter:
    """As `Cutter`, for rows from `at_every_recipe`: it never cuts between the recipes of one (prompt, sample)."""

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
            place, cost = self._place(group), int(lane_steps_of_rows(group).sum())
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
        """Pools that serve all of its steps: a rollout's shard goes to one of them as a whole."""
        able = [set(self.rules.pools_of(steps)) for steps in group["num_steps"].drop_null().to_pylist()]
        pools = tuple(sorted(set.intersection(*able))) if able else ()
        return Place(group["width"][0].as_py(), group["height"][0].as_py(), pools)

    def _shard(self, place: Place, tables: list[pa.Table]) -> PlannedShard:
        rows = pa.concat_tables(tables).combine_chunks()
        costs = lane_steps_of_rows(rows)
        ordered = rows.take(pa.array(np.argsort(-costs, kind="stable")))
        good = int((costs > 0).sum())
        budgets = tuple(sorted(ordered["num_steps"].drop_null().unique().to_pylist()))
        return PlannedShard(ordered, place if good else None, good, int(costs.sum()), int(costs.max()), budgets)
