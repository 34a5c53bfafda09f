"""Finds the rows to render of shards that are rendered in parts: under `--limit` those of the input's first prompts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jobs.job_file.settings import Settings
from jobs.steps.checking import read_input
from pipelines.plan.rollout_plan import base_id
from pipelines.prompts.canonical_rows import KEY_BYTES, id_key
from pipelines.prompts.slices import are_small
from pipelines.prompts.two_passes import are_in, keys_of, raise_aborted, rows, small_tables
from pipelines.render.driver import RenderOrders
from pipelines.render.open_shard import FirstRows, rendered_rows
from pipelines.render.repaired_shard import RepairOrder
from pipelines.run.plan import Plan


def within_limit(settings: Settings, plan: Plan, again: RenderOrders | None = None) -> RenderOrders | None:
    """What is rendered within the job's limit; None: all that is not done. again: rows to render once more."""
    given = settings.job.config.input
    if given.limit is None or _num_planned(plan) <= given.limit * given.images_per_prompt:
        begun = {order.shard: order for order in _rest_of_begun(plan)}
        return RenderOrders(begun | dict(again.orders if again else {}), alone=False) if begun else again
    keys = _first_keys(settings)
    repairs = again.orders if again else {}
    done, orders = plan.run.done_shards(), dict[str, RepairOrder | FirstRows]()
    for shard, ids in _planned(plan, keys):
        if isinstance(order := repairs.get(shard), RepairOrder):
            if named := tuple(each for each in order.ids if each in ids):
                orders[shard] = replace(order, ids=named, replanned=order.replanned & set(named))
        elif shard not in done:
            there = rendered_rows(plan.run, shard)
            orders[shard] = FirstRows(shard, tuple(id for id in ids if id not in there))
    return RenderOrders({shard: order for shard, order in orders.items() if order.ids})


def _rest_of_begun(plan: Plan) -> Iterator[FirstRows]:
    """What an earlier limit left of its shards."""
    begun = set(plan.run.partly_done())
    for _, entry in plan.shards("shard", "part", "row_group") if begun else ():
        if entry["shard"] in begun:
            there = rendered_rows(plan.run, entry["shard"])
            ids = plan.run.read_shard(entry["part"], entry["row_group"], ["id"])["id"].to_pylist()
            yield FirstRows(entry["shard"], tuple(id for id in ids if id not in there))


def _num_planned(plan: Plan) -> int:
    """Planned rows, those of a rollout at one budget."""
    budgets = (
        (each.document["rows"], len(each.document["choices"]) if each.is_rollout else 1) for each in plan.generations
    )
    return sum(rows // count for rows, count in budgets)


def _first_keys(settings: Settings) -> np.ndarray:
    """(n,) S16, sorted: the keys of the rows of the first prompts."""
    inspection = read_input(settings.job, settings.source)
    nothing = np.empty(0, f"S{KEY_BYTES}")
    if are_small(list(inspection.slices)):  # no Ray Data: a worker may be up already, and have the CPUs
        tables: Iterable[Any] = small_tables(inspection, nothing, nothing)
    else:
        tables = rows(inspection, carried=()).iter_batches(batch_size=None, batch_format="pyarrow")
    return np.sort(np.concatenate([nothing, *(keys_of(raise_aborted(table)) for table in tables)]))


def _planned(plan: Plan, keys: np.ndarray) -> Iterator[tuple[str, Mapping[str, None]]]:
    """(shard, ids of its rows among the keys, in their order) of each shard that has some."""
    for generation in plan.generations:
        for part in plan.parts(generation, "id", "shard"):
            bases = map(base_id, part["id"].to_pylist()) if generation.is_rollout else part["id"].to_pylist()
            named = part.filter(are_in(np.array([id_key(each) for each in bases], keys.dtype), keys))
            found: dict[str, dict[str, None]] = {}
            for shard, row_id in zip(named["shard"].to_pylist(), named["id"].to_pylist(), strict=True):
                found.setdefault(shard, {})[row_id] = None
            yield from found.items()
