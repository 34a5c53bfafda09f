"""Holds the plan of a run as one object that a command reads once and passes on.

A plan is a row of generations, each written whole by one planner and never changed. `pipelines.plan.make` makes it;
`pipelines.run.layout` has its keys.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.recipe import named
from pipelines.run.layout import RunFolder
from pipelines.run.schema import manifest_schema, merged_carried, schema_from_json

EMPTY, WIDE = "empty_columns", "wide_columns"  # in plan.json: carried ones without a value, with integers past 2^53
Z95 = 1.96
INDEX_ROWS = 10_000  # shards of an index that are Python objects at a time


@dataclass(frozen=True)
class Generation:
    """What one planner added to a run. document: its plan.json."""

    number: int
    document: Mapping[str, Any]

    @cached_property
    def manifest_schema(self) -> pa.Schema:
        """The schema of its manifests when it was planned."""
        return schema_from_json(self.document["manifest_schema"])

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The picture keys of its job; empty in plans of versions that kept none."""
        return self.document.get("fingerprint", {})

    @property
    def is_rollout(self) -> bool:
        """Whether every prompt is there at every budget, for a reward table."""
        return self.document.get("selector") == "rollout" or bool(self.fingerprint.get("rollout"))

    @property
    def stores_images(self) -> bool:
        """False where only scores are kept."""
        return self.fingerprint.get("output.layout", "none") != "none"

    @property
    def names_all_columns(self) -> bool:
        """Whether its schema has the columns of the generations before it; those of earlier versions do not."""
        return EMPTY in self.document


@dataclass(frozen=True)
class Plan:
    """All generations of a run, rising; false where nothing is planned. The indexes of shards are read when asked for.

    Methods raise StorageError as the folder's do, DamagedRun for what cannot be read.
    """

    run: RunFolder
    generations: tuple[Generation, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.generations)

    @property
    def newest(self) -> Generation:
        """The last one; there must be one."""
        return self.generations[-1]

    @property
    def next_number(self) -> int:
        """The number of the next generation."""
        return self.newest.number + 1 if self else 1

    def grown(self, number: int, document: Mapping[str, Any]) -> "Plan":
        """This plan and one generation more."""
        return replace(self, generations=(*self.generations, Generation(number, document)))

    @cached_property
    def manifest_schema(self) -> pa.Schema:
        """The schema of all manifests of the run, with this version's own columns."""
        return manifest_schema(pa.schema(list(self.carried.items())))

    @property
    def carried(self) -> dict[str, pa.DataType]:
        """The user's own columns, of all generations."""
        return merged_carried((each.manifest_schema, each.names_all_columns) for each in self.generations)

    def shards(self, *columns: str) -> Iterator[tuple[Generation, dict[str, Any]]]:
        """Every planned shard with these columns of its index, in the order of the plan."""
        for generation in self.generations:
            for batch in self.run.shard_index(generation.number).select(columns).to_batches(INDEX_ROWS):
                for entry in batch.to_pylist():
                    yield generation, entry

    def parts(self, generation: Generation, *columns: str) -> Iterator[pa.Table]:
        """The rows of a generation, a part at a time; of these columns those that its version kept."""
        for part in generation.document["parts"]:
            with pq.ParquetFile(pa.BufferReader(self.run.read(part))) as file:
                yield file.read(columns=[name for name in columns if name in file.schema_arrow.names])

    @cached_property
    def replaced_ids(self) -> dict[str, int]:
        """Ids that were bad when they were planned, mended since, and planned again -> the generation that did.

        Of such an id the row of that generation counts; the earlier one is a failed row that was never rendered.
        """
        found: dict[str, int] = {}
        for generation in self.generations:
            if generation.document.get("replaced_rows"):
                for part in self.parts(generation, "id", "replaces"):
                    found |= dict.fromkeys(part.filter(part["replaces"])["id"].to_pylist(), generation.number)
        return found

    def _expected_tries(self) -> float | None:
        """Of a row with steps, over all generations; plans of earlier versions have one try a row."""
        good = [(each.document["rows"] - each.document["failed_rows"], each.document) for each in self.generations]
        rows = sum(count for count, _ in good)
        tries = sum(count * (document.get("expected_tries") or 1.0) for count, document in good)
        return tries / rows if rows else None

    def _tries(self, rows: int) -> dict[str, float] | None:
        """All pictures that the plan expects, and between which bounds 95 % of such jobs end; None: not known."""
        expected, deviation = self._expected_tries(), self._tries_sd()
        if expected is None or deviation is None:
            return None
        return {"expected": rows * expected, "low": rows * expected - Z95 * deviation} | {
            "high": rows * expected + Z95 * deviation
        }

    def _tries_sd(self) -> float | None:
        """Standard deviation of all tries; None where it is not known of every generation.

        Rows are independent given the bank, so their variances add. The bank is itself read from so many prompts, and
        its errors are the same for all rows: at most as if each prompt had shown one picture.
        """
        documents = [each.document for each in self.generations]
        if not all(document.get("tries_deviations") for document in documents):
            return None
        variance = sum(document["tries_variance"] for document in documents)
        prompts = [document.get("bank_prompts") for document in documents]
        shared = sum(d["tries_deviations"] / math.sqrt(n) for d, n in zip(documents, prompts, strict=True) if n)
        return math.sqrt(variance + shared**2)

    def totals(self) -> dict[str, Any]:
        """What is planned in all: rows, failed_rows, shards, lane_steps, mean_steps, largest, budget_histogram."""
        documents, budgets = [each.document for each in self.generations], Counter[int]()
        for document in documents:
            budgets.update({int(steps): rows for steps, rows in document["budget_histogram"].items()})
        again = sum(document.get("replaced_rows", 0) for document in documents)  # of these the newest counts
        return {
            "rows": sum(document["rows"] for document in documents) - again,
            "failed_rows": sum(document["failed_rows"] for document in documents) - again,
            "shards": sum(document["shards"] for document in documents),
            "generations": len(documents),
            "mean_steps": _mean(budgets),
            "expected_tries": self._expected_tries(),
            "tries": self._tries(budgets.total()),
            "lane_steps": sum(document["lane_steps"] for document in documents),
            "largest": max([*(document["largest_budget"] for document in documents), *budgets], default=None),
            "reference": self.newest.document.get("reference") if self else None,
            "recipe_histogram": _named(documents),
            "budget_histogram": {str(steps): budgets[steps] for steps in sorted(budgets)},
        }


def _named(documents: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Rows by recipe; plans of earlier versions have numbers of steps."""
    found = Counter[str]()
    for document in documents:
        found.update(document.get("recipe_histogram") or document["budget_histogram"])
    return {recipe.name: found[recipe.name] for recipe in sorted(map(named, found), key=lambda each: each.num_steps)}


def _mean(budgets: Counter[int]) -> float | None:
    rows = budgets.total()
    return sum(steps * count for steps, count in budgets.items()) / rows if rows else None


def read_plan(run: RunFolder) -> Plan:
    """What is planned in a run folder at this moment. StorageError; DamagedRun names a plan.json that is none."""
    return Plan(run, tuple(Generation(number, run.read_plan(number)) for number in run.generations()))
