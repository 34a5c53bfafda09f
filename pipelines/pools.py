"""A pool of render actors: a Ray Data dataset of tickets over an actor pool, consumed on a thread of its own.

Which shard a ticket buys is the ledger's; whether the run goes on is `pipelines.render`'s.
"""

import functools
import math
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from actors.rows import SamplerConfig
from pipelines.epochs import Term
from pipelines.lease import Shard
from pipelines.models import ModelSource
from pipelines.scoring import ScorerSource
from pipelines.store import RunFolder
from pipelines.worker import RenderWorker, WorkerJob

INDEX_ROWS = 10_000  # shards of an index that are Python objects at a time


class RenderError(RuntimeError):
    """The run cannot go on; what is committed stays. The message says why, and resuming is typing the command again."""


@dataclass(frozen=True)
class PoolSpec:
    """budgets: None serves all. actors: a number or (min, max). num_gpus None: 1 where the cluster has GPUs, else 0."""

    name: str = "default"
    budgets: tuple[int, ...] | None = None
    actors: int | tuple[int, int] = 1
    num_gpus: float | None = None
    num_cpus: float = 1
    lanes: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RenderConfig:
    """sampler.model_path is not used here: `model` says where each node fetches the checkpoint from.

    no_progress_s: of the whole run, until it ends. row_timeout_s: of one engine with rows in hand, until its process
    is ended.
    """

    model: ModelSource
    sampler: SamplerConfig
    pools: tuple[PoolSpec, ...] = (PoolSpec(),)
    layout: str = "files"
    image_format: str = "png"
    scorers: tuple[ScorerSource, ...] = ()
    no_progress_s: float = 3600.0
    row_timeout_s: float | None = 900.0


def planned_shards(run: RunFolder, pools: tuple[PoolSpec, ...]) -> list[Shard]:
    """Of all generations, each with the pools that may serve it. Raises RenderError where none may."""
    names = ["shard", "part", "row_group", "rows", "good_rows", "lane_steps", "budgets"]
    able = functools.cache(functools.partial(_able_pools, pools))
    found = []
    for generation in run.generations():
        for batch in run.shard_index(generation).select(names).to_batches(INDEX_ROWS):
            found += [_shard(row, able) for row in batch.to_pylist()]
    return found


def _shard(row: dict[str, Any], able: Callable[[frozenset[int]], tuple[str, ...]]) -> Shard:
    """Their parts and pools are few: they share them."""
    numbers = (row["rows"], row["good_rows"], row["lane_steps"])
    pools = able(frozenset(row["budgets"]))
    return Shard(row["shard"], sys.intern(row["part"]), row["row_group"], *numbers, pools)


def _able_pools(pools: tuple[PoolSpec, ...], budgets: frozenset[int]) -> tuple[str, ...]:
    """Pools may have changed since the plan: a shard of several budgets then goes to those that serve its longest."""
    able = [p.name for p in pools if p.budgets is None or budgets <= set(p.budgets)]
    able = able or [p.name for p in pools if p.budgets is None or max(budgets) in p.budgets]
    if not able:
        raise RenderError(
            f"a shard has rows of {', '.join(map(str, sorted(budgets)))} steps, which no pool serves; "
            "add them to a pool's budgets, or give one pool budgets: all"
        )
    return tuple(able)


class Pool:
    """One pool's dataset of tickets, consumed on a thread of its own; what it raises is kept for the main thread."""

    def __init__(
        self,
        spec: PoolSpec,
        run: RunFolder,
        config: RenderConfig,
        schemas: Mapping[int, str],
        ledger: Any,
        undone: list[Shard],
        term: Term | None = None,
    ):
        self.spec, self.ledger, self.starts = spec, ledger, 0
        self.error: Exception | None = None
        sampler = replace(config.sampler, lanes=spec.lanes, num_threads=max(1, int(spec.num_cpus)))
        self.job = WorkerJob(
            run=run,
            model=config.model,
            sampler=sampler,
            pool=spec.name,
            layout=config.layout,
            image_format=config.image_format,
            schemas=schemas,
            scorers=config.scorers,
            row_timeout_s=config.row_timeout_s,
            term=term,
        )
        self.num_gpus = self._num_gpus()
        servable = sum(spec.name in shard.pools for shard in undone)
        self.most_actors = spec.actors if isinstance(spec.actors, int) else spec.actors[1]
        self.tickets = math.ceil(1.25 * servable) + 2 * self.most_actors if servable else 0
        self._thread: threading.Thread | None = None

    def _num_gpus(self) -> float:
        if self.spec.num_gpus is not None:
            return self.spec.num_gpus
        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    @property
    def wants(self) -> str:
        """What the pool asks the cluster for, in words."""
        each = [f"{self.spec.num_cpus:g} CPU", *([f"{self.num_gpus:g} GPU"] if self.num_gpus else [])]
        each += [f"{amount:g} {name}" for name, amount in self.spec.resources.items()]
        return f"an actor of pool {self.spec.name} ({', '.join(each)})"

    @property
    def running(self) -> bool:
        """Whether its dataset still has tickets out."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Hands out the tickets (again)."""
        self.starts += 1
        dataset = self._dataset()
        self._thread = threading.Thread(target=self._consume, args=(dataset,), name=self.spec.name, daemon=True)
        self._thread.start()

    def _dataset(self) -> Any:
        tickets = ray.data.from_items(list(range(self.tickets)), override_num_blocks=self.tickets)
        dataset = tickets.map_batches(
            RenderWorker,
            fn_constructor_args=(self.job, self.ledger),
            batch_size=1,
            compute=self._actors(),
            num_cpus=self.spec.num_cpus,
            num_gpus=self.num_gpus or None,
            resources=dict(self.spec.resources) or None,
            runtime_env={"env_vars": _thread_variables(self.spec.num_cpus)},
        )
        context = dataset.context
        context.enable_progress_bars = context.enable_operator_progress_bars = False
        context.max_consecutive_actor_init_deaths = 3  # one preemption while weights load is no reason to end
        context.execution_no_progress_timeout_s = -1  # the watch below knows better
        context.max_errored_blocks = 0
        context.autoscaling_config.actor_pool_util_upscaling_threshold = (
            1.0  # else a pool of two-call actors never grows
        )
        return dataset

    def _actors(self) -> ActorPoolStrategy:
        calls: dict[str, Any] = {"max_concurrent_calls_per_actor": 2, "enable_true_multi_threading": True}
        if isinstance(self.spec.actors, int):
            return ActorPoolStrategy(size=self.spec.actors, **calls)
        low, high = self.spec.actors
        return ActorPoolStrategy(min_size=low, max_size=high, max_tasks_in_flight_per_actor=2, **calls)

    def _consume(self, dataset: Any) -> None:
        try:
            for _ in dataset.iter_internal_ref_bundles():
                pass
        except ray.exceptions.RayError as error:
            self.error = error


def _thread_variables(num_cpus: float) -> dict[str, str]:
    """Threads that sleep when they wait: on shared cores spinning ones are many times slower."""
    return {"OMP_NUM_THREADS": str(max(1, int(num_cpus))), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
