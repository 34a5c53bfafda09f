"""Makes one new generation of the plan from prompts: read, select steps, cut into shards, write, commit.

A plan only grows: rows that an earlier generation has are left out. The driver holds 24 bytes a planned row and the
rows that wait for their shard to fill. What a shard is made of is `pipelines.plan.shards`, which rows are left out or
planned again `pipelines.plan.earlier`, where the bytes lie `pipelines.run.layout`.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from actors.recipe import MAX_STEPS, Recipe, lane_steps_of, step_counts
from pipelines.cluster.pools import PoolSpec, menu_faults, served_budgets, serving
from pipelines.files.readers import InputError
from pipelines.plan.budgets import ScoreActor, SelectorSource, score
from pipelines.plan.carried_columns import ColumnFacts, one_schema
from pipelines.plan.earlier import EarlierRows, earlier_rows
from pipelines.plan.recipes import JobSampling
from pipelines.plan.rollout_plan import RolloutCutter, at_every_recipe, base_id
from pipelines.plan.selector_process import Call, SelectorProcess
from pipelines.plan.shards import CutRules, Cutter, PlannedShard
from pipelines.plan.writer import PlanWriter, commit
from pipelines.prompts.canonical_rows import id_key
from pipelines.prompts.inspection import Inspection, PromptSource, pinned_notes
from pipelines.prompts.slices import are_small
from pipelines.prompts.two_passes import are_in, inspect, raise_aborted, rows, small_tables
from pipelines.run.drivers import EpochId
from pipelines.run.plan import Plan
from pipelines.run.schema import carried_types, schema_to_json
from pipelines.storage.checkpoints import ModelSource

if TYPE_CHECKING:
    from actors.selector import SelectorConfig

VERSION = 1
SCORE_ROWS = 1024  # of one call of the selector
SMALL_ROWS = 4096  # of a plan that is made in this process
MOST_LANE_STEPS, SHARDS_A_WORKER, FEWEST_ROWS = 20_000, 8, 32

Progress = Callable[[int, int], None]  # rows scored, rows in all (an upper bound where the plan grows)


@dataclass(frozen=True)
class PlanConfig:
    """What a plan is made of. `shard_lane_steps` None: about a minute's worth, less where `num_workers` would idle.

    `fingerprint` is kept with the plan, as is `lanes`. `selector_class` None: actors.selector.StepSelector.
    """

    source: PromptSource
    selector: "SelectorConfig"
    pools: tuple[PoolSpec, ...]
    fingerprint: dict[str, Any] = field(default_factory=dict)
    selector_actors: int = 1
    selector_num_gpus: float = 0
    num_workers: int = 1
    shard_lane_steps: int | None = None
    shard_rows: int = 2000
    lanes: int | None = None
    sampling: JobSampling = field(default_factory=JobSampling)  # what recipes leave open
    selector_class: type | None = None
    model: ModelSource | None = None  # for a policy: the checkpoint whose text encoder it reads
    bar: float | None = None  # below this quality another seed is tried; None: every picture is taken
    expected_tries: float | None = None  # of a row with that bar, where it is known; so is tries_variance
    tries_variance: float | None = None
    rollout: bool = False  # every row at every recipe of the menu, instead of the selector's choice
    keep_changed: bool = False  # rows that changed since they were planned keep their old pictures


@dataclass(frozen=True)
class PlanSummary:
    """The result of planning."""

    plan: Plan
    generation: int | None
    rows: int
    failed_rows: int
    shards: int
    seconds: float
    notes: tuple[str, ...] = ()


def check_pools(menu: Iterable[Recipe], pools: Iterable[PoolSpec], pinned: frozenset[int] = frozenset()) -> None:
    """InputError names each number of steps in the menu that no pool serves, and each pool that serves none of them.

    A pool for steps that only rows pin (`pinned`) is no mistake.
    """
    if faults := menu_faults(step_counts(menu), pools, pinned):
        raise InputError(f"pools: {'; '.join(faults)}")


def make_plan(
    plan: Plan,
    config: PlanConfig,
    on_progress: Progress | None = None,
    inspection: Inspection | None = None,
    earlier: EarlierRows | None = None,
    epoch: EpochId | None = None,
    call: Call | None = None,
) -> PlanSummary:
    """The plan with one new generation, or as it is where nothing is new. InputError, StorageError; needs a Ray.

    A row that was bad when it was planned, and is mended, is planned again; one that changed is an InputError.
    epoch: of the driver; SupersededError where it is over when the plan is committed. Of two planners one commits.
    call: runs a function in a process that is there, for a policy's torch.
    """
    started = time.monotonic()
    selector = SelectorProcess(_scoring(config), config.selector_num_gpus, call)
    menu, policy_version, bank_prompts = _menu(config, selector)
    inspection = inspection or inspect(config.source)
    check_pools(menu, config.pools, inspection.pinned_steps)
    run, generation = plan.run, plan.next_number
    earlier = earlier or earlier_rows(plan, inspection)
    if earlier.changes.changed and not config.keep_changed:
        raise InputError(earlier.changes.refusal(run.url))
    pins = () if config.rollout else inspection.pinned_steps
    notes = (*inspection.notes, *pinned_notes(pins, step_counts(menu)), *earlier.changes.notes())
    bad_keys = earlier.known.bad_keys
    writer = PlanWriter(run, generation, functools.partial(_replaces, bad_keys=bad_keys, rollout=config.rollout))
    carried, facts = inspection.carried_schema, ColumnFacts()
    for shard in _shards(config, selector, inspection, menu, (earlier.known.keys, bad_keys), on_progress):
        writer.add(shard)
        facts.add(shard.rows, carried.names)
    writer.flush()
    if not writer.parts:
        return PlanSummary(plan, None, 0, 0, 0, time.monotonic() - started, notes)
    schema = one_schema(plan, carried, facts)
    document = {
        "version": VERSION,
        "generation": generation,
        **writer.totals(),
        "largest_budget": max(step_counts(menu)),
        "reference": _reference(menu, config),
        "price": config.selector.price if config.selector.selector == "policy" else None,
        "policy_version": policy_version,
        "selector": "rollout" if config.rollout else config.selector.selector,
        "choices": [recipe.plain() for recipe in menu],
        "lanes": config.lanes,
        "bar": None if config.bar is None else _bar(config),
        "bank_prompts": bank_prompts,
        "fingerprint": config.fingerprint,
        "input_files": inspection.input_files(),
        "input_place": inspection.place,
        "input_limit": config.source.limit,
        "changed_rows": earlier.changes.changed,  # whose old pictures stay
        "notes": list(notes),
        "manifest_schema": schema_to_json(schema),
        **facts.document(carried_types(schema)),
        "created_at": datetime.now(UTC).isoformat(),
    }
    document = commit(writer, json.loads(json.dumps(document)), epoch)
    numbers = (document["rows"], document["failed_rows"], document["shards"])
    return PlanSummary(plan.grown(generation, document), generation, *numbers, time.monotonic() - started, notes)


def _reference(menu: tuple[Recipe, ...], config: PlanConfig) -> dict[str, Any]:
    """What savings are counted against: the largest step budget of the menu for all, or its dearest recipe."""
    recipe = max((each for each in menu if each.is_plain), key=lambda each: each.num_steps, default=menu[-1])
    cost = lane_steps_of(recipe, config.source.defaults.guidance_scale, config.sampling.guidance_interval)
    return {"words": recipe.words, "lane_steps": cost}


def _replaces(table: pa.Table, bad_keys: np.ndarray, rollout: bool) -> np.ndarray:
    """(n,) bool: rows that were planned before as bad rows."""
    if not len(bad_keys):
        return np.zeros(table.num_rows, bool)
    ids = [base_id(row_id) if rollout else row_id for row_id in table["id"].to_pylist()]
    return are_in(np.array([id_key(row_id) for row_id in ids], bad_keys.dtype), bad_keys)


def _scoring(config: PlanConfig) -> SelectorSource:
    again = (config.bar, config.expected_tries, config.tries_variance)
    served = served_budgets(config.pools)
    return SelectorSource(config.selector, served, config.selector_class, config.model, *again, config.sampling)


def _bar(config: PlanConfig) -> dict[str, float | None]:
    known = {"expected_tries": config.expected_tries, "tries_variance": config.tries_variance}
    return {"quality": config.bar, **known}


def _menu(config: PlanConfig, selector: SelectorProcess) -> tuple[tuple[Recipe, ...], str | None, int | None]:
    """The recipes that may be chosen, the policy's version, and the prompts that its bars were learned from."""
    choices, version, prompts = selector.describe()
    low, high = config.selector.min or 0, config.selector.max or MAX_STEPS
    return tuple(each for each in choices if low <= each.num_steps <= high) or choices, version, prompts


def _shards(
    config: PlanConfig,
    selector: SelectorProcess,
    inspection: Inspection,
    menu: tuple[Recipe, ...],
    known: tuple[np.ndarray, np.ndarray],
    on_progress: Progress | None,
) -> Iterator[PlannedShard]:
    """Read -> score -> cut. known: keys of planned rows, and of those of them that were bad."""
    target = config.shard_lane_steps or _target(config, inspection, menu)
    rules = CutRules(target, functools.partial(serving, config.pools), config.shard_rows)
    cutter = RolloutCutter(rules, len(menu)) if config.rollout else Cutter(rules)
    done = 0
    for table in _scored(config, selector, inspection, menu, known):
        yield from cutter.add(table)
        done += table.num_rows // (len(menu) if config.rollout else 1)
        if on_progress:
            on_progress(done, inspection.num_planned)
    yield from cutter.finish()


def _target(config: PlanConfig, inspection: Inspection, menu: tuple[Recipe, ...]) -> int:
    """Lane-steps of a shard, from the middle of the menu: some shards for each worker, none of a few rows only."""
    scale, interval = config.source.defaults.guidance_scale, config.sampling.guidance_interval
    row = lane_steps_of(menu[len(menu) // 2], scale, interval)
    fair = row * inspection.num_planned // (SHARDS_A_WORKER * config.num_workers)
    return max(FEWEST_ROWS * row, min(MOST_LANE_STEPS, fair))


def _scored(
    config: PlanConfig,
    selector: SelectorProcess,
    inspection: Inspection,
    menu: tuple[Recipe, ...],
    known: tuple[np.ndarray, np.ndarray],
) -> Iterator[pa.Table]:
    """Rows with their recipes, in input order; ends the selector's process."""
    if is_small(inspection):
        found = _scored_here(config, selector, inspection, menu, known)
    else:
        selector.end()  # a pool of actors takes its place
        found = _scored_by_tasks(config, inspection, menu, known)
    for table in found:
        table = _without_still_bad(table, known[1], config.rollout)
        if table.num_rows:
            yield table
    selector.end()


def is_small(inspection: Inspection) -> bool:
    """Whether a plan of it is made without a dataset."""
    return inspection.num_planned <= SMALL_ROWS and are_small(inspection.slices)


def _scored_here(
    config: PlanConfig,
    selector: SelectorProcess,
    inspection: Inspection,
    menu: tuple[Recipe, ...],
    known: tuple[np.ndarray, np.ndarray],
) -> Iterator[pa.Table]:
    """The same rows without a dataset, whose start would take longer than reading and scoring a small list."""
    for table in filter(len, small_tables(inspection, *known)):
        yield at_every_recipe(table, menu, config.sampling) if config.rollout else selector.score(table)


def _scored_by_tasks(
    config: PlanConfig, inspection: Inspection, menu: tuple[Recipe, ...], known: tuple[np.ndarray, np.ndarray]
) -> Iterator[pa.Table]:
    """Only a network needs actors; other selectors run where rows are read."""
    from ray.data import ActorPoolStrategy  # half a second of imports, and pandas, that a small list does without

    scoring = _scoring(config)
    dataset = rows(inspection, known[0], retry=known[1])
    if config.rollout:
        expand = functools.partial(at_every_recipe, choices=menu, sampling=config.sampling)
        dataset = dataset.map_batches(expand, batch_size=None, batch_format="pyarrow")
    elif config.selector.selector == "policy":
        dataset = dataset.repartition(target_num_rows_per_block=SCORE_ROWS)  # equal calls, and the reader stays outside
        dataset = dataset.map_batches(
            ScoreActor,
            fn_constructor_args=(scoring,),
            batch_size=SCORE_ROWS,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=config.selector_actors),
            num_cpus=_actor_cpus(config.selector_actors),
            num_gpus=config.selector_num_gpus or None,
        )
    else:
        dataset = dataset.map_batches(
            functools.partial(score, scoring=scoring), batch_size=None, batch_format="pyarrow"
        )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        assert isinstance(table, pa.Table)
        yield raise_aborted(table)


def _without_still_bad(table: pa.Table, bad_keys: np.ndarray, rollout: bool) -> pa.Table:
    """Without rows that were bad, and are bad again once they are scored: no pool serves their steps, as before."""
    if not len(bad_keys) or not table.num_rows:
        return table
    bad = np.array([bool(error) for error in table["error_type"].to_pylist()], bool)
    return table.filter(pa.array(~(bad & _replaces(table, bad_keys, rollout))))


def _actor_cpus(actors: int) -> float:
    """CPUs of one selector actor: they hold theirs to the end, so one CPU is left for the tasks that feed them."""
    left = ray.cluster_resources().get("CPU", 0.0) - 1
    return max(0.0, min(1.0, math.floor(100 * left / actors) / 100))
