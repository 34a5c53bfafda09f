"""The plan of a reward table: every row at every budget, one noise, one shard."""

import random
from collections import defaultdict

import pyarrow as pa
import pytest

from actors.recipe import Recipe, menu_of
from actors.selector import SelectorConfig
from pipelines.cluster.pools import PoolSpec, serving
from pipelines.plan.make import PlanConfig, make_plan
from pipelines.plan.recipes import JobSampling
from pipelines.plan.rollout_plan import RolloutCutter, at_every_recipe, base_id, rollout_id
from pipelines.plan.shards import CutRules
from pipelines.prompts.canonical_rows import RowDefaults
from pipelines.prompts.inspection import PromptSource
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.schema import CANONICAL_FIELDS

STEPS = (2, 5, 9)
MENU = menu_of(STEPS)


def canonical(n: int, **values) -> pa.Table:
    rows = [
        {
            "id": f"r{i}",
            "prompt_id": f"p{i // 2}",
            "sample": i % 2,
            "prompt": f"fox {i}",
            "seed": i,
            "width": 16,
            "height": 16,
            "guidance_scale": 5.0,
            "guidance_pinned": False,
            "error_type": "",
            "error_message": "",
        }
        | values
        for i in range(n)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(CANONICAL_FIELDS))


def expanded(n: int, **values) -> pa.Table:
    return at_every_recipe(canonical(n, **values), MENU, JobSampling())


ANY = (PoolSpec("p"),)


def cut(table: pa.Table, target: int, pieces: int = 1, pools=ANY):
    rules = CutRules(target, lambda steps: serving(pools, steps))
    cutter = RolloutCutter(rules, len(MENU))
    bounds = sorted(random.Random(pieces).sample(range(1, table.num_rows), pieces - 1))
    shards = []
    for start, end in zip([0, *bounds], [*bounds, table.num_rows], strict=True):
        shards += cutter.add(table.slice(start, end - start))
    return [*shards, *cutter.finish()]


def test_ids_go_there_and_back():
    assert rollout_id("a-steps3", Recipe(12)) == "a-steps3-steps12"
    assert base_id("a-steps3-steps12") == "a-steps3"


def test_every_row_at_every_recipe_with_one_seed():
    rows = expanded(3).to_pylist()
    assert [r["num_steps"] for r in rows] == list(STEPS) * 3
    assert len({r["id"] for r in rows}) == 9
    by_row = defaultdict(set)
    for r in rows:
        by_row[base_id(r["id"])].add(r["seed"])
        assert r["action_probability"] is None
    assert by_row == {"r0": {0}, "r1": {1}, "r2": {2}}


def test_a_bad_row_is_bad_at_each_budget():
    rows = expanded(1, error_type="InvalidPrompt", error_message="empty").to_pylist()
    assert [(r["num_steps"], r["error_type"]) for r in rows] == [(None, "InvalidPrompt")] * 3
    (shard,) = cut(expanded(1, error_type="InvalidPrompt"), 100)
    assert (shard.place, shard.good_rows, shard.lane_steps) == (None, 0, 0)


@pytest.mark.parametrize("pieces", [1, 2, 7, 20])
def test_shards_hold_whole_groups_whatever_the_tables(pieces):
    shards = cut(expanded(14), target=70, pieces=pieces)
    assert [s.rows.num_rows for s in shards] == [6] * 7  # a group costs 2 x (2 + 5 + 9) = 32 lane-steps
    for shard in shards:
        steps = defaultdict(list)
        for r in shard.rows.to_pylist():
            steps[(r["prompt_id"], r["sample"])].append(r["num_steps"])
        assert all(sorted(found) == list(STEPS) for found in steps.values())
        assert shard.rows["num_steps"].to_pylist() == sorted(shard.rows["num_steps"].to_pylist(), reverse=True)
        assert (shard.lane_steps, shard.budgets, shard.longest) == (64, STEPS, 18)


def test_a_shard_goes_to_a_pool_that_serves_all_its_budgets():
    (shard,) = cut(expanded(1), 100, pools=(PoolSpec("few", (2, 5)), PoolSpec("all"), PoolSpec("x", STEPS)))
    assert shard.place.pools == ("all", "x")


@pytest.mark.ray
def test_a_rollout_is_planned_and_grows(ray_cluster, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text("prompt\nfox\nboat\nsnow\n")
    defaults = RowDefaults(guidance_scale=5.0, width=16, height=16, allowed_steps=frozenset(range(1, 100)))
    run = RunFolder(str(tmp_path / "run"))

    def plan(limit):
        source = PromptSource(str(table), defaults=defaults, images_per_prompt=2, limit=limit)
        selector = SelectorConfig("words", MENU)
        return make_plan(read_plan(run), PlanConfig(source, selector, (PoolSpec("p"),), rollout=True))

    assert (plan(1).rows, plan(None).rows, plan(None).generation) == (6, 12, None)
    rows = []
    for generation in run.generations():
        for entry in run.shard_index(generation).to_pylist():
            rows += run.read_shard(entry["part"], entry["row_group"]).to_pylist()
    assert len({r["id"] for r in rows}) == 18
    seeds = defaultdict(set)
    for r in rows:
        seeds[(r["prompt_id"], r["sample"])].add((r["seed"], r["shard"]))
    assert len(seeds) == 6
    assert all(len(found) == 1 for found in seeds.values())
    assert run.read_plan(1)["selector"] == "rollout"
