"""The plan: how rows are cut into shards, what is written, how a plan grows, and two planners at once."""

import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from actors.recipe import Recipe, menu_of
from actors.selector import SelectorConfig
from actors.solver import lane_steps
from pipelines.cluster.pools import PoolSpec, serving
from pipelines.files.readers import InputError
from pipelines.plan.budgets import SelectorSource, score
from pipelines.plan.earlier import known_rows
from pipelines.plan.make import PlanConfig, PlanSummary, check_pools, make_plan
from pipelines.plan.shards import CutRules, Cutter, PlannedShard
from pipelines.prompts.canonical_rows import derived_seed, id_key
from pipelines.prompts.inspection import PromptSource
from pipelines.prompts.two_passes import inspect
from pipelines.run.drivers import SupersededError, claim
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.schema import CANONICAL_FIELDS, INDEX_SCHEMA, MANIFEST_FIELDS, SCORE_FIELDS, schema_from_json
from pipelines.storage.folder import StorageOptions
from tests.inputs import DEFAULTS

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
ALL = (PoolSpec("default"),)


@dataclass(frozen=True)
class FakeConfig:
    """The fields of actors.selector.SelectorConfig that planning reads."""

    selector: str = "words"
    choices: tuple[Recipe, ...] = menu_of((5, 10, 20))
    price: float = 0.3
    min: int | None = None
    max: int | None = None


class WordSelector:
    """One more budget a word; scores and a probability where it plays the policy."""

    def __init__(self, config: FakeConfig) -> None:
        if config.choices == ():
            raise ValueError("the policy has no budgets")
        self.config = config
        self.choices = config.choices
        self.policy_version = "fake-1" if config.selector == "policy" else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = len(batch["prompt"])
        policy = self.config.selector == "policy"
        chosen = [
            None
            if error
            else Recipe(int(pin))
            if not math.isnan(pin)
            else self.choices[len(prompt.split()) % len(self.choices)]
            for prompt, pin, error in zip(
                batch["prompt"], batch["num_inference_steps"], batch["error_type"], strict=True
            )
        ]
        scores = np.tile(np.arange(len(self.choices), dtype=np.float32), (rows, 1))
        free = np.isnan(batch["num_inference_steps"]) & (batch["error_type"] == "")
        return batch | {
            "budget_scores": scores if policy else np.full(rows, None),
            "recipe_name": np.array([recipe and recipe.name for recipe in chosen], object),
            "action_probability": np.where(free, np.float32(0.5), np.float32("nan")) if policy else np.full(rows, None),
            "policy_version": np.full(rows, self.policy_version, object),
            "price": np.full(rows, self.config.price) if policy else np.full(rows, None),
        }


# ---- the cutter


def planned_table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema(
        [("n", pa.int64()), ("width", pa.int32()), ("height", pa.int32()), ("guidance_scale", pa.float64()),
         ("guidance_interval", pa.list_(pa.float64())), ("num_steps", pa.int32()), ("error_type", pa.string())]
    )  # fmt: skip
    defaults = {"width": 64, "height": 64, "guidance_scale": 7.5, "num_steps": 10, "error_type": ""}
    return pa.Table.from_pylist([{"n": number} | defaults | row for number, row in enumerate(rows)], schema)


def cut(table: pa.Table, rules: CutRules, table_rows: int = 10**9) -> list[PlannedShard]:
    cutter = Cutter(rules)
    shards = []
    for start in range(0, table.num_rows, table_rows):
        shards += cutter.add(table.slice(start, table_rows))
    return shards + list(cutter.finish())


def cost(row: dict[str, Any]) -> int:
    return lane_steps(row["num_steps"], row["guidance_scale"], row["guidance_interval"])


def random_rows(random: random.Random) -> list[dict[str, Any]]:
    sizes = random.choice([[64], [64, 128], [64, 96, 128, 256]])
    return [
        {
            "width": random.choice(sizes),
            "height": random.choice(sizes),
            "guidance_scale": random.choice([1.0, 7.5]),
            "num_steps": random.choice([5, 10, 20, 50]),
            "error_type": "InvalidPrompt" if bad else "",
        }
        | ({"num_steps": None} if bad else {})
        for bad in (random.random() < 0.1 for _ in range(random.randint(1, 400)))
    ]


POOLS = [
    ALL,
    (PoolSpec("short", (5, 10)), PoolSpec("long", (20, 50))),
    (PoolSpec("short", (5, 10)), PoolSpec("middle", (10, 20)), PoolSpec("any")),
]


@pytest.mark.parametrize("seed", range(60))
def test_cut_holds_every_row_once_within_cost_size_and_pools(seed: int) -> None:
    draw = random.Random(seed)
    table = planned_table(random_rows(draw))
    pools = POOLS[seed % 3]
    rules = CutRules(
        target=draw.choice([50, 200, 1000]),
        pools_of=lambda count: serving(pools, count),
        max_rows=draw.choice([3, 10, 1000]),
        max_waiting=draw.choice([20, 10**6]),
    )
    shards = cut(table, rules, table_rows=draw.choice([7, 64, 10**9]))
    assert sorted(n for shard in shards for n in shard.rows["n"].to_pylist()) == list(range(table.num_rows))
    for shard in shards:
        rows = shard.rows.to_pylist()
        good = [row for row in rows if not row["error_type"]]
        costs = [cost(row) for row in good]
        assert rows[: len(good)] == good, "bad rows come last"
        assert costs == sorted(costs, reverse=True)
        assert len(rows) <= rules.max_rows
        assert sum(costs) <= rules.target or len(good) == 1
        assert (shard.good_rows, shard.lane_steps) == (len(good), sum(costs))
        assert shard.longest == max(costs, default=0)
        assert shard.budgets == tuple(sorted({row["num_steps"] for row in good}))
        assert len({(row["width"], row["height"], serving(pools, row["num_steps"])) for row in good}) <= 1
        if good:
            assert shard.place == (good[0]["width"], good[0]["height"], serving(pools, good[0]["num_steps"]))


@pytest.mark.parametrize("seed", range(10))
def test_cut_does_not_depend_on_how_rows_come_in_tables(seed: int) -> None:
    table = planned_table(random_rows(random.Random(seed)))
    rules = CutRules(300, lambda count: serving(POOLS[1], count), max_rows=20, max_waiting=50)
    whole = [shard.rows for shard in cut(table, rules)]
    assert [shard.rows for shard in cut(table, rules, 1)] == whole
    assert [shard.rows for shard in cut(table, rules, 13)] == whole


def test_only_tails_mix_budgets_and_full_shards_are_nearly_full() -> None:
    draw = random.Random(1)
    table = planned_table([{"num_steps": draw.choice([5, 10, 20])} for _ in range(3000)])
    shards = cut(table, CutRules(1000, lambda count: ("default",)))
    pure, mixed = [s for s in shards if len(s.budgets) == 1], [s for s in shards if len(s.budgets) > 1]
    assert len(mixed) <= 3
    assert all(shard.lane_steps > 1000 - shard.longest for shard in pure[:-1])
    assert len(shards) <= math.ceil(sum(shard.lane_steps for shard in shards) / 960) + 1


def test_bad_rows_ride_along_or_have_shards_of_their_own() -> None:
    bad = {"num_steps": None, "error_type": "InvalidPrompt"}
    rules = CutRules(1000, lambda count: ("default",), max_rows=4)
    (shard,) = cut(planned_table([bad, {}, bad]), rules)
    assert shard.rows["n"].to_pylist() == [1, 0, 2]
    shards = cut(planned_table([bad] * 10), rules)
    assert [(s.rows.num_rows, s.place, s.good_rows, s.budgets) for s in shards] == [
        (4, None, 0, ()), (4, None, 0, ()), (2, None, 0, ())
    ]  # fmt: skip


def test_a_guided_interval_saves_lane_steps() -> None:
    half = {"guidance_interval": [0.5, 1.0]}
    shards = cut(planned_table([{}, half, {}, half]), CutRules(35, lambda count: ("default",)))
    assert [shard.lane_steps for shard in shards] == [20 + 15, 20 + 15]


# ---- pools


def test_pools_and_menu_must_meet() -> None:
    check_pools(menu_of((5, 10)), ALL)
    check_pools(menu_of((5, 10)), (PoolSpec("a", (5,)), PoolSpec("b", (10, 99))))
    with pytest.raises(InputError, match=r"no pool serves 20, 50 steps: add them to a pool's budgets"):
        check_pools(menu_of((5, 20, 50)), (PoolSpec("a", (5,)),))
    with pytest.raises(InputError, match=r"pool b, c serves none of the budgets 5, 10"):
        check_pools(menu_of((5, 10)), (*ALL, PoolSpec("b", (7,)), PoolSpec("c", ())))
    check_pools(menu_of((5, 10)), (*ALL, PoolSpec("b", (7,))), pinned=frozenset({7}))


# ---- scores


def canonical(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema([*CANONICAL_FIELDS, pa.field("n", pa.int16())])
    return pa.Table.from_pylist([{"id": "x", "error_type": "", "error_message": ""} | row for row in rows], schema)


def test_score_keeps_columns_types_pins_and_faults() -> None:
    table = canonical(
        [{"prompt": "a b", "n": 1}, {"prompt": "a", "num_inference_steps": 7}, {"error_type": "InvalidPrompt"}]
    )
    scored = score(table, SelectorSource(FakeConfig("policy"), None, WordSelector))
    assert scored.schema == pa.schema([*CANONICAL_FIELDS, *SCORE_FIELDS, pa.field("n", pa.int16())])
    assert scored["num_steps"].to_pylist() == [20, 7, None]
    assert scored["action_probability"].to_pylist() == [0.5, None, None]
    assert scored["budget_scores"][0].as_py() == [0.0, 1.0, 2.0]
    assert scored["n"].to_pylist() == [1, None, None]
    without = score(table, SelectorSource(FakeConfig(), None, WordSelector))
    assert without["budget_scores"].null_count == without["price"].null_count == 3


def test_row_whose_pin_no_pool_serves_is_bad() -> None:
    table = canonical([{"prompt": "a b"}, {"prompt": "a", "num_inference_steps": 7}])
    scored = score(table, SelectorSource(FakeConfig(), frozenset({5, 10, 20}), WordSelector))
    assert scored["error_type"].to_pylist() == ["", "NoPool"]
    assert scored["num_steps"].to_pylist() == [20, None]
    assert "no pool serves 7 steps. Add 7 to a pool's budgets" in scored["error_message"][1].as_py()


# ---- on Ray


def config(path: Path | str, **changes: Any) -> PlanConfig:
    source = PromptSource(str(path), defaults=DEFAULTS, **changes.pop("source", {}))
    given = {"selector": FakeConfig(), "pools": ALL, "selector_class": WordSelector, "fingerprint": {"model.path": "m"}}
    return PlanConfig(source, **(given | changes))


def prompts(rows: int, words: int = 9) -> pa.Table:
    return pa.table(
        {"prompt": [f"{i} " + "word " * (i * 7 % words) for i in range(rows)], "n": pa.array(range(rows), pa.int16())}
    )


def planned_rows(run: RunFolder, generation: int) -> list[dict[str, Any]]:
    """All rows of a generation through its index, which must agree with them."""
    found = []
    for entry in run.shard_index(generation).to_pylist():
        rows = run.read_shard(entry["part"], entry["row_group"]).to_pylist()
        good = [row for row in rows if not row["error_type"]]
        assert {row["shard"] for row in rows} == {entry["shard"]}
        assert (entry["rows"], entry["good_rows"]) == (len(rows), len(good))
        assert entry["lane_steps"] == sum(cost(row) for row in good)
        assert set(entry["budgets"]) == {row["num_steps"] for row in good}
        found += rows
    return found


@pytest.mark.ray
def test_plan_is_complete_and_the_same_again(ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(prompts(3000), tmp_path / "in" / "a.parquet", row_group_size=700)
    (tmp_path / "in" / "b.jsonl").write_text(
        '{"prompt": ""}\n{"prompt": "pinned", "num_inference_steps": 7, "id": "P"}\n'
    )
    calls: list[tuple[int, int]] = []
    runs = [RunFolder(str(tmp_path / name)) for name in ("one", "two")]
    made = config(tmp_path / "in", shard_lane_steps=2000, source={"images_per_prompt": 2})
    summaries = [make_plan(read_plan(run), made, lambda done, total: calls.append((done, total))) for run in runs]
    rows = planned_rows(runs[0], 1)
    assert len({row["id"] for row in rows}) == len(rows) == 6004
    assert calls[-1] == (6004, 6004)
    assert {row["num_steps"] for row in rows} == {5, 7, 10, 20, None}
    assert [row["n"] for row in rows if row["prompt"].startswith("17 ")] == [17, 17]

    plan = runs[0].read_plan(1)
    assert plan == summaries[0].plan.newest.document
    assert (plan["rows"], plan["failed_rows"], plan["shards"]) == (6004, 2, len(runs[0].shard_index(1)))
    histogram = Counter(row["num_steps"] for row in rows if row["num_steps"])
    assert plan["budget_histogram"] == {str(count): histogram[count] for count in sorted(histogram)}
    assert plan["mean_steps"] == pytest.approx(sum(k * v for k, v in histogram.items()) / 6002)
    assert plan["lane_steps"] == 2 * sum(k * v for k, v in histogram.items())
    assert (plan["choices"], plan["largest_budget"], plan["selector"]) == ([5, 10, 20], 20, "words")
    assert (plan["price"], plan["policy_version"], plan["input_limit"]) == (None, None, None)
    assert [Path(file["path"]).name for file in plan["input_files"]] == ["a.parquet", "b.jsonl"]
    manifest = schema_from_json(plan["manifest_schema"])
    assert manifest == pa.schema([*MANIFEST_FIELDS, pa.field("n", pa.int16())])

    assert runs[0].shard_index(1).schema == INDEX_SCHEMA
    assert runs[0].shard_index(1) == runs[1].shard_index(1)  # names and hashes of the parts, too
    assert planned_rows(runs[1], 1) == rows


@pytest.mark.ray
def test_limited_plan_then_the_full_one(ray_cluster: Any, tmp_path: Path) -> None:
    table = pa.concat_tables([prompts(30), prompts(30)])  # each prompt twice
    pq.write_table(table, tmp_path / "a.parquet")
    full = config(tmp_path / "a.parquet")
    limited = replace(full, source=replace(full.source, limit=10))
    once, run = RunFolder(str(tmp_path / "once")), RunFolder(str(tmp_path / "grown"))
    make_plan(read_plan(once), full)
    assert make_plan(read_plan(run), limited).rows == 10
    assert run.read_plan(1)["input_limit"] == 10
    assert make_plan(read_plan(run), limited).generation is None
    second = make_plan(read_plan(run), full)
    assert (second.generation, second.rows) == (2, 50)
    assert make_plan(read_plan(run), full) == replace(
        second, generation=None, rows=0, shards=0, plan=second.plan, seconds=pytest.approx(0, abs=99)
    )
    first, rest = planned_rows(run, 1), planned_rows(run, 2)
    assert {row["n"] for row in first} == set(range(10))
    assert not {row["id"] for row in first} & {row["id"] for row in rest}
    seeds = {row["id"]: row["seed"] for row in planned_rows(once, 1)}
    assert {row["id"]: row["seed"] for row in first + rest} == seeds
    assert len(seeds) == len(set(seeds.values())) == 60
    assert all(seed == derived_seed(row_id) for row_id, seed in seeds.items())
    assert np.array_equal(
        known_rows(read_plan(run)).keys, np.sort(np.array([id_key(row_id) for row_id in seeds], "S16"))
    )


@pytest.mark.ray
def test_new_files_grow_the_plan(ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    run = RunFolder(str(tmp_path / "run"))
    (tmp_path / "in" / "b.csv").write_text("prompt\ncat\ndog\n")
    assert make_plan(read_plan(run), config(tmp_path / "in")).rows == 2
    (tmp_path / "in" / "a.csv").write_text("prompt\ncat\nbird\n")
    assert make_plan(read_plan(run), config(tmp_path / "in")).rows == 2
    assert sorted(row["prompt"] for row in planned_rows(run, 2)) == ["bird", "cat"]


@pytest.mark.ray
def test_policy_runs_in_actors_in_order(ray_cluster: Any, tmp_path: Path) -> None:
    pq.write_table(prompts(5000), tmp_path / "a.parquet", row_group_size=1000)
    run = RunFolder(str(tmp_path / "run"))
    pools = (PoolSpec("short", (10,)), PoolSpec("long", (20,)))
    selector = FakeConfig("policy", min=10, choices=menu_of((10, 20, 20)))
    made = config(tmp_path / "a.parquet", selector=selector, pools=pools, selector_actors=2, shard_lane_steps=3000)
    plan = make_plan(read_plan(run), made).plan.newest.document
    assert (plan["policy_version"], plan["price"], plan["choices"]) == ("fake-1", 0.3, [10, 20, 20])
    rows = planned_rows(run, 1)
    assert sorted(row["n"] for row in rows) == list(range(5000))
    assert all(row["budget_scores"] == [0.0, 1.0, 2.0] and row["price"] == 0.3 for row in rows)
    index = run.shard_index(1).to_pylist()
    assert {(*entry["pools"], *entry["budgets"]) for entry in index} == {("short", 10), ("long", 20)}
    again = RunFolder(str(tmp_path / "again"))
    make_plan(read_plan(again), made)
    assert planned_rows(again, 1) == rows


@pytest.mark.ray
@pytest.mark.parametrize(
    ("selector", "steps", "menu"),
    [
        (SelectorConfig("fixed", fixed=Recipe(12)), [12, 12, None, 7], [12]),
        (SelectorConfig("words", min=10, max=40), [10, 40, None, 7], list(range(10, 41, 5))),
    ],
)
def test_real_selectors(ray_cluster: Any, tmp_path: Path, selector: SelectorConfig, steps: list, menu: list) -> None:
    (tmp_path / "a.csv").write_text(f'prompt,num_inference_steps\ncat,\n{"cat " * 40},\n"",\ncat,7\n')
    run = RunFolder(str(tmp_path / "run"))
    plan = make_plan(
        read_plan(run), config(tmp_path / "a.csv", selector=selector, selector_class=None)
    ).plan.newest.document
    assert Counter(row["num_steps"] for row in planned_rows(run, 1)) == Counter(steps)
    assert (plan["choices"], plan["failed_rows"]) == (menu, 1)


@pytest.mark.ray
def test_only_bad_rows(ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,seed\n"",1\ncat,-1\n')
    run = RunFolder(str(tmp_path / "run"))
    summary = make_plan(read_plan(run), config(tmp_path / "a.csv"))
    assert (summary.rows, summary.failed_rows, summary.shards) == (2, 2, 1)
    assert summary.plan.newest.document["mean_steps"] is None
    assert [row["error_type"] for row in planned_rows(run, 1)] == ["InvalidPrompt", "InvalidSeed"]


@pytest.mark.ray
def test_mistakes_are_found_before_anything_is_written(ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\ncat\n")
    run = RunFolder(str(tmp_path / "run"))
    with pytest.raises(InputError, match="no pool serves 20 steps"):
        make_plan(read_plan(run), config(tmp_path / "a.csv", pools=(PoolSpec("a", (5, 10)),)))
    with pytest.raises(InputError, match="pool b serves none of the budgets 5, 10, 20"):
        make_plan(read_plan(run), config(tmp_path / "a.csv", pools=(*ALL, PoolSpec("b", (7,)))))
    with pytest.raises(InputError, match=r"steps\.selector: the policy has no budgets"):
        make_plan(read_plan(run), config(tmp_path / "a.csv", selector=FakeConfig(choices=())))
    with pytest.raises(InputError, match="there is no such file or folder"):
        make_plan(read_plan(run), config(tmp_path / "no.csv"))
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_file_that_changed_after_the_inspection(ray_cluster: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt\ncat\n")
    made = config(file)
    found = inspect(made.source)
    file.write_text("prompt\ncat\ndog\n")
    run = RunFolder(str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"a\.csv: the file changed while it was being planned. Plan again"):
        make_plan(read_plan(run), made, inspection=found)
    assert run.generations() == []


class Overtaken(RunFolder):
    """A run folder in which something happens just before a key is created."""

    def __init__(self, url: str, key: str, meanwhile: Callable[[], Any]) -> None:
        super().__init__(url)
        self.key, self.meanwhile = key, meanwhile

    def create(self, key: str, data: bytes) -> bool:
        if key.endswith(self.key):
            self.meanwhile()
        return super().create(key, data)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("key", "limit"), [("shards.parquet", None), ("plan.json", None), ("shards.parquet", 1)], ids=str
)
def test_of_two_planners_one_commits(ray_cluster: Any, tmp_path: Path, key: str, limit: int | None) -> None:
    """Without epochs: the second finds the first one's plan, and changes nothing of it."""
    (tmp_path / "a.csv").write_text("prompt\ncat\ndog\n")
    made = config(tmp_path / "a.csv")
    others: list[PlanSummary] = []
    run = RunFolder(str(tmp_path / "run"))
    first = replace(made, source=replace(made.source, limit=limit))
    slow = Overtaken(run.url, key, lambda: others.append(make_plan(read_plan(run), first)))
    with pytest.raises(InputError, match=r"plan/0001: another planner was first, with another plan\. Run again to"):
        make_plan(read_plan(slow), made)
    assert others[0].plan.generations == read_plan(run).generations
    assert len(planned_rows(run, 1)) == (limit or 2)
    assert make_plan(read_plan(run), made).rows == 2 - (limit or 2)


@pytest.mark.ray
@pytest.mark.parametrize("late", [False, True])
def test_a_planner_that_was_taken_over_commits_nothing(ray_cluster: Any, tmp_path: Path, late: bool) -> None:
    (tmp_path / "a.csv").write_text("prompt\ncat\ndog\n")
    made = config(tmp_path / "a.csv")
    run = RunFolder(str(tmp_path / "run"))
    epoch, others = claim(run).id, []

    def take_over() -> None:
        others.append(claim(run, take_over=True))

    zombie = Overtaken(run.url, "shards.parquet", take_over) if late else run
    if not late:
        take_over()
    with pytest.raises(SupersededError, match="another run has taken over"):
        make_plan(read_plan(zombie), made, epoch=epoch)
    assert run.generations() == []
    assert ("shards.parquet" in run.names("plan/0001")) == late
    assert make_plan(read_plan(run), made, epoch=others[0].id).rows == len(planned_rows(run, 1)) == 2


@pytest.mark.ray
def test_plan_that_was_left_unfinished(ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\ncat\ndog\n")
    made = config(tmp_path / "a.csv")
    run = RunFolder(str(tmp_path / "run"))

    def dies() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_plan(read_plan(Overtaken(run.url, "plan.json", dies)), made)
    assert run.generations() == []
    (tmp_path / "a.csv").write_text("prompt\ncat\nfox\n")
    with pytest.raises(InputError, match=r"left no plan\.json there, and none is at work, delete that folder"):
        make_plan(read_plan(run), made)
    (tmp_path / "a.csv").write_text("prompt\ncat\ndog\n")
    assert make_plan(read_plan(run), made).rows == len(planned_rows(run, 1)) == 2
    assert sorted(row["prompt"] for row in planned_rows(run, 1)) == ["cat", "dog"]


@pytest.mark.ray
@pytest.mark.s3
def test_plan_on_s3(ray_cluster: Any, s3: Any) -> None:
    run = RunFolder(f"s3://{s3.bucket()}/runs/spring", StorageOptions(endpoint_url=s3.endpoint_url))
    run.write("in.csv", b"prompt\ncat\ndog\n")
    made = config(run.url_of("in.csv"), source={"storage": run.options})
    assert make_plan(read_plan(run), made).rows == 2
    assert make_plan(read_plan(run), made).generation is None
    assert sorted(row["prompt"] for row in planned_rows(run, 1)) == ["cat", "dog"]
