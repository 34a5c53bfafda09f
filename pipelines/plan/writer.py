"""Writes the files of one plan generation; the commit of plan.json makes it exist.

A part is named by its content; shards.parquet and plan.json are created and never overwritten. So a planner continues
where another with the same rows died, and one whose epoch ended cannot change another's plan.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.files.readers import InputError
from pipelines.plan.shards import PlannedShard
from pipelines.run.drivers import EpochId, demand_driver
from pipelines.run.layout import RunFolder, parquet_bytes
from pipelines.run.schema import CANONICAL_FIELDS, INDEX_SCHEMA, PLACE_FIELDS, SCORE_FIELDS

PART_ROWS = 20_000
PART_SHARDS = 100  # a part's footer is read for each of its shards
PART_BYTES = 64 << 20
PLACE_AT = len(CANONICAL_FIELDS) + len(SCORE_FIELDS)  # the carried columns come after it


class PlanWriter:
    """Puts parts of about PART_ROWS rows, or of PART_SHARDS shards, one row group each; keeps what plan.json needs.

    replaces: says which rows of a table an earlier generation has as bad ones.
    """

    def __init__(
        self, run: RunFolder, generation: int, replaces: Callable[[pa.Table], np.ndarray] | None = None
    ) -> None:
        self.run, self.generation, self._replaces = run, generation, replaces
        self.parts: list[str] = []
        self._open: list[pa.Table] = []
        self._open_rows = self._open_bytes = 0
        self._entries: list[dict[str, Any]] = []  # of the index, of the open shards
        self._index: list[pa.Table] = []  # of the parts that are put
        self._totals: Counter[str] = Counter()
        self._budgets: Counter[int] = Counter()
        self._recipes: Counter[str] = Counter()
        self._tries = 0.0
        self._variances = np.zeros(2)  # of tries: their sum, and that of the roots

    def add(self, shard: PlannedShard) -> None:
        """One more shard; a part is put when it is full."""
        name = f"{self.generation:04d}-{self._totals['shards']:06d}"
        place = shard.place
        entry = {
            "shard": name,
            "row_group": len(self._open),
            "rows": shard.rows.num_rows,
            "good_rows": shard.good_rows,
            "lane_steps": shard.lane_steps,
            "width": place.width if place else None,
            "height": place.height if place else None,
            "pools": list(place.pools) if place else [],
            "longest": shard.longest,
            "budgets": list(shard.budgets),
        }
        self._entries.append(entry)
        self._totals.update({"shards": 1, **{name: entry[name] for name in ("rows", "good_rows", "lane_steps")}})
        self._budgets.update(shard.rows["num_steps"].drop_null().to_pylist())
        self._recipes.update(shard.rows["recipe_name"].drop_null().to_pylist())
        self._tries += sum(shard.rows["expected_tries"].fill_null(1.0).to_pylist()[: shard.good_rows])
        variances = shard.rows["tries_variance"].fill_null(0.0).to_numpy().astype(np.float64)
        self._variances += variances.sum(), np.sqrt(variances).sum()
        self._hold(shard.rows, name)

    def _hold(self, rows: pa.Table, shard: str) -> None:
        again = self._replaces(rows) if self._replaces else np.zeros(rows.num_rows, bool)
        table = rows
        for at, (column, values) in enumerate(zip(PLACE_FIELDS, ([shard] * rows.num_rows, again), strict=True)):
            table = table.add_column(PLACE_AT + at, column, pa.array(values, column.type))
        self._totals["replaced_rows"] += int(again.sum())
        self._open.append(table)
        self._open_rows, self._open_bytes = self._open_rows + table.num_rows, self._open_bytes + table.nbytes
        if self._open_rows >= PART_ROWS or self._open_bytes >= PART_BYTES or len(self._open) >= PART_SHARDS:
            self.flush()

    def flush(self) -> None:
        """Puts the part that is not full yet."""
        if self._open:
            part = self.run.write_part(self.generation, len(self.parts), self._open)
            self.parts.append(part)
            entries = [entry | {"part": part} for entry in self._entries]
            self._index.append(pa.Table.from_pylist(entries, INDEX_SCHEMA))
            self._open, self._open_rows, self._open_bytes, self._entries = [], 0, 0, []

    def index(self) -> pa.Table:
        """shards.parquet, of the parts that are put."""
        return pa.concat_tables(self._index).combine_chunks() if self._index else INDEX_SCHEMA.empty_table()

    def totals(self) -> dict[str, Any]:
        """What plan.json says of all rows; mean_steps is of the good ones, None where there are none."""
        rows, good = self._totals["rows"], self._totals["good_rows"]
        steps = sum(count * number for count, number in self._budgets.items())
        return {
            "rows": rows,
            "failed_rows": rows - good,
            "replaced_rows": self._totals["replaced_rows"],  # of earlier generations, bad there and planned again here
            "shards": self._totals["shards"],
            "budget_histogram": {str(count): self._budgets[count] for count in sorted(self._budgets)},
            "recipe_histogram": dict(sorted(self._recipes.items())),
            "mean_steps": steps / good if good else None,
            "lane_steps": self._totals["lane_steps"],
            "expected_tries": self._tries / good if good else None,  # a row; one where it is not known
            "tries_variance": float(self._variances[0]),  # of all rows, given the policy's bank
            "tries_deviations": float(self._variances[1]),  # the sum of each row's own
        }


def commit(writer: PlanWriter, plan: dict[str, Any], epoch: EpochId | None = None) -> dict[str, Any]:
    """Makes the generation exist, and returns its plan.

    Raises SupersededError where the driver of `epoch` was taken over, InputError where the generation is another's.
    """
    run, generation, index = writer.run, writer.generation, writer.index()
    folder, plan = f"plan/{generation:04d}", plan | {"parts": writer.parts}
    demand_driver(run, epoch)
    if run.create(f"{folder}/shards.parquet", parquet_bytes([index])) or run.shard_index(generation) == index:
        demand_driver(run, epoch)
        if run.commit_plan(generation, plan):
            return plan
    raise InputError(
        f"{run.url_of(folder)}: another planner was first, with another plan. Run again to plan on top of it; "
        "where it left no plan.json there, and none is at work, delete that folder before"
    )
