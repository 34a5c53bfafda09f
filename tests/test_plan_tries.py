"""The forecast of tries: a band from what each row may take and from how well the policy knows it."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.steps.planning import plan_text
from pipelines.plan.shards import PlannedShard
from pipelines.plan.writer import PlanWriter
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Generation, Plan
from pipelines.run.schema import CANONICAL_FIELDS, SCORE_FIELDS


def document(rows: int, mean: float, variance: float, prompts: int | None) -> dict[str, Any]:
    totals = {"rows": rows, "failed_rows": 0, "shards": 1, "lane_steps": rows, "largest_budget": 4}
    tries = {"expected_tries": mean, "tries_variance": rows * variance, "tries_deviations": rows * math.sqrt(variance)}
    return totals | tries | {"budget_histogram": {"4": rows}, "bank_prompts": prompts, "failed_rows": 0}


def plan(*documents: dict[str, Any]) -> Plan:
    return Plan(RunFolder("nowhere"), tuple(Generation(at, each) for at, each in enumerate(documents, 1)))


def test_variances_of_rows_add_and_the_error_of_the_bank_is_the_same_for_all() -> None:
    found = plan(document(400, 1.5, 0.49, 900), document(100, 2.0, 1.0, 900)).totals()["tries"]
    deviation = math.sqrt(400 * 0.49 + 100 + ((400 * 0.7 + 100) / 30) ** 2)
    assert found["expected"] == pytest.approx(800)
    assert (found["low"], found["high"]) == pytest.approx((800 - 1.96 * deviation, 800 + 1.96 * deviation))


def test_a_band_holds_what_happens_in_19_of_20_jobs() -> None:
    """Simulated: banks read from 300 prompts, jobs of 500 rows, chances of a miss that differ between prompts."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        table = rng.beta(2, 2, 300)
        mean = 1 + table.mean() + (table**2).mean()
        square = 1 + 3 * table.mean() + 5 * (table**2).mean()
        misses = rng.beta(2, 2, 500)
        made = 1 + (rng.random(500) < misses) * (1 + (rng.random(500) < misses))
        found = plan(document(500, mean, square - mean**2, 300)).totals()["tries"]
        hits += found["low"] <= made.sum() <= found["high"]
    assert 0.95 <= hits / 2000 < 1


def test_without_variances_there_is_no_band() -> None:
    old = {name: value for name, value in document(5, 1.2, 0.1, None).items() if not name.startswith("tries_")}
    assert plan(old).totals()["tries"] is None
    assert plan(old).totals()["expected_tries"] == pytest.approx(1.2)


def test_the_plan_prints_it() -> None:
    found = plan(document(100, 1.5, 0.25, 400)).totals() | {"max_tries": 3, "bar": None, "estimates": []}
    assert "1.50 expected; 150 pictures in all, 95 %: 139 to 161" in plan_text("run", found)


def test_the_writer_adds_up_what_its_rows_say() -> None:
    one = {"num_steps": 4, "recipe_name": "4"}
    rows = [one | {"expected_tries": 1.5, "tries_variance": 0.25}, one]
    table = pa.Table.from_pylist(rows, pa.schema([*CANONICAL_FIELDS, *SCORE_FIELDS]))
    writer = PlanWriter(RunFolder("nowhere"), 1)
    writer.add(PlannedShard(table, None, 2, 8, 4, (4,)))
    found = writer.totals()
    assert (found["expected_tries"], found["tries_variance"], found["tries_deviations"]) == (1.25, 0.25, 0.5)
