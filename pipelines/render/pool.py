"""Keeps a pool of render actors: makes them, calls them, and reads what a call that ended means.

Which shard an actor renders is the ledger's; whether the run goes on is `pipelines.render.driver`'s.
"""

import functools
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray

from actors.rows import SamplerConfig
from pipelines.boundary import raised_by
from pipelines.cluster.capacity import actor_states, draining_nodes, living_nodes
from pipelines.cluster.pools import PoolSpec, serving
from pipelines.pipeline_error import PipelineError
from pipelines.render.messages import LeasedShard, Snapshot, UnfitWorker
from pipelines.render.provenance import ProvenanceConfig
from pipelines.render.quality import ScorerSource
from pipelines.render.safety import SafetyRule
from pipelines.render.tries import TryRules
from pipelines.render.worker import RenderWorker, WorkerConfig
from pipelines.run.drivers import EpochId
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan
from pipelines.storage.checkpoints import ModelSource

log = logging.getLogger(__name__)
SHARD_COLUMNS = ("shard", "part", "row_group", "rows", "good_rows", "lane_steps")  # of a LeasedShard, in its order
MOST_UNFIT = 3  # processes of one actor that could not render: then it is not made again
MOST_DEAD = 3  # actors in a row that ended for good and had never leased: then the pool is given up
PAUSE_S = 1.0  # before an actor is called again
TELL_LEDGER_S = 30.0  # for a ledger that is being restarted; then it is told again
CALLS = 4  # at a time: `serve`, one that joins it after a cut connection, and some to spare


class RenderError(PipelineError, RuntimeError):
    """The run cannot go on; what is committed stays. The message says why, and resuming is typing the command again."""

    began = True


@dataclass(frozen=True)
class RenderConfig:
    """sampler.model_path is not used here: `model` says where each node fetches the checkpoint from.

    no_progress_s: of the whole run, until it ends. row_timeout_s: of one engine with rows in hand, until its process
    is ended. max_failed: share of rows that may fail; where by far more do, the run stops early; None: it never does.
    """

    model: ModelSource
    sampler: SamplerConfig
    pools: tuple[PoolSpec, ...] = (PoolSpec(),)
    layout: str = "files"
    image_format: str = "png"
    scorers: tuple[ScorerSource, ...] = ()
    safety: SafetyRule | None = None
    tries: TryRules = field(default_factory=TryRules)
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)
    no_progress_s: float = 3600.0
    row_timeout_s: float | None = 900.0
    max_failed: float | None = None


def planned_shards(plan: Plan, pools: tuple[PoolSpec, ...]) -> list[LeasedShard]:
    """All shards of a plan, each with the pools that may serve it. Raises RenderError where none may."""
    able = functools.cache(functools.partial(_able_pools, pools))
    return [_shard(entry, able) for _, entry in plan.shards(*SHARD_COLUMNS, "budgets")]


def _shard(entry: dict[str, Any], able: Callable[[frozenset[int]], tuple[str, ...]]) -> LeasedShard:
    """One shard; shards share the few distinct objects of parts and pools."""
    shard, part, row_group, rows, good_rows, lane_steps = (entry[name] for name in SHARD_COLUMNS)
    pools = able(frozenset(entry["budgets"]))
    return LeasedShard(shard, sys.intern(part), row_group, rows, good_rows, lane_steps, pools)


def _able_pools(pools: tuple[PoolSpec, ...], budgets: frozenset[int]) -> tuple[str, ...]:
    """Pools may have changed since the plan: a shard of several budgets then goes to those that serve its longest."""
    able = serving(pools, *budgets) or serving(pools, max(budgets))
    if not able:
        raise RenderError(
            f"a shard has rows of {', '.join(map(str, sorted(budgets)))} steps, which no pool serves; "
            "add them to a pool's budgets, or give one pool budgets: all"
        )
    return able


def device_of(spec: PoolSpec, device: str) -> str:
    """cpu or cuda: what a pool's engines run on, said openly, so that an actor on the wrong device fails.

    An actor that asks for no GPU touches none, unless the job file names the device.
    """
    if device != "auto":
        return device
    return "cuda" if spec.num_gpus else "cpu"


def auto_dtype(config: RenderConfig) -> str:
    """What `dtype: auto` means, by the devices that the pools ask for."""
    devices = [device_of(spec, config.sampler.device) for spec in config.pools]
    return "float16" if any(device.startswith("cuda") for device in devices) else "float32"


def precision_note(config: RenderConfig) -> str | None:
    """Says that pools on CPUs, whose num_gpus are known, would render in half precision."""
    slow = [pool.name for pool in config.pools if device_of(pool, config.sampler.device) == "cpu"]
    dtype = config.sampler.dtype if config.sampler.dtype != "auto" else auto_dtype(config)
    if not slow or dtype == "float32":
        return None
    what = "the float16 of the GPU pools" if config.sampler.dtype == "auto" else f"{dtype} (model.dtype)"
    return f"pool {', '.join(slow)} renders on CPUs in {what}, many times slower than in float32"


def worker_config(
    spec: PoolSpec, config: RenderConfig, run: RunFolder, epoch: EpochId | None, schema: pa.Schema
) -> WorkerConfig:
    """What a worker of a pool needs. schema: the plan's, of all manifests; where there is no plan yet, an empty one."""
    device = device_of(spec, config.sampler.device)
    threads = max(1, int(spec.num_cpus))
    return WorkerConfig(
        run=run,
        model=config.model,
        sampler=replace(config.sampler, lanes=spec.lanes, num_threads=threads, device=device),
        pool=spec.name,
        layout=config.layout,
        image_format=config.image_format,
        schema=schema,
        scorers=config.scorers,
        safety=config.safety,
        tries=config.tries,
        provenance=config.provenance,
        row_timeout_s=config.row_timeout_s,
        epoch=epoch,
        auto_dtype=auto_dtype(config),
        variables=_variables(spec, device),
    )


def start_worker(spec: PoolSpec, job: WorkerConfig) -> Any:
    """A render actor, once there is a place for it."""
    options: dict[str, Any] = {
        "num_cpus": spec.num_cpus,
        "num_gpus": spec.num_gpus or 0,
        "resources": dict(spec.resources) or None,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": CALLS,
    }
    return ray.remote(RenderWorker).options(**options).remote(job)


@dataclass(eq=False)
class _PooledActor:
    """One actor. restarts: of its process, as far as is known here; call: of `serve`, None while it is not called."""

    actor: Any
    id: str
    call: Any = None
    call_at: float = 0.0
    restarts: int = 0
    unfit: int = 0


class ActorPool:
    """Handles of render actors with one long call each; `tend` looks after them, twice a second.

    lost: actors that are not made again; unfit: why. take_early: an actor that is there already, if any.
    Raises RenderError where Ray ends each actor that it makes.
    """

    def __init__(
        self,
        spec: PoolSpec,
        plan: Plan,
        config: RenderConfig,
        ledger: Any,
        epoch: EpochId | None = None,
        take_early: Callable[[PoolSpec], Any] = lambda spec: None,
    ):
        self.spec, self.ledger, self._take_early = spec, ledger, take_early
        self.job = worker_config(spec, config, plan.run, epoch, plan.manifest_schema)
        self.handles: list[_PooledActor] = []
        self.lost, self.unfit = 0, ""
        self._dead_in_a_row = 0
        self._leased_ever: set[str] = set()

    @property
    def is_out(self) -> bool:
        """Whether it has no actor any more and makes none."""
        return not self.handles and self.lost >= self.spec.actors

    @property
    def has_lived(self) -> bool:
        """Whether one of its actors ever had a place: then the cluster has nodes of that kind."""
        return bool(self._leased_ever)

    def unplaced(self, snapshot: Snapshot) -> list[_PooledActor]:
        """Actors that the ledger has not heard of yet."""
        return [handle for handle in self.handles if handle.id not in snapshot.heard]

    def tend(self, snapshot: Snapshot, stopping: bool) -> None:
        """Looks at calls that ended, and makes as many actors as there is work for; ends those that wait for none."""
        self._look_at_figures(snapshot)
        self._look_at_ended_calls()
        self._call_again()
        free = 0 if stopping else sum(count for pools, count in snapshot.free.items() if self.spec.name in pools)
        busy = sum(handle.id in snapshot.busy for handle in self.handles)
        unplaced = self.unplaced(snapshot)
        placed_idle = len(self.handles) - len(unplaced) - busy  # they take what is free
        for handle in unplaced[max(0, free - placed_idle) :]:
            self._end(handle)
        wanted = min(self.spec.actors - self.lost, busy + free)
        while len(self.handles) < wanted:
            self._make()

    def _look_at_figures(self, snapshot: Snapshot) -> None:
        """Reads what the ledger knows of each actor: whether it renders, or its engine breaks over every shard."""
        for handle in list(self.handles):
            if handle.id in snapshot.leased_ever and handle.id not in self._leased_ever:
                self._leased_ever.add(handle.id)
                self._dead_in_a_row = 0
            if handle.id in snapshot.proved:
                handle.unfit = 0
            if snapshot.broke.get(handle.id, 0) >= MOST_UNFIT:
                self._give_up(handle, snapshot.errors[-1] if snapshot.errors else "its engine breaks")

    def end(self) -> None:
        """Ends all its actors at once; the ledger ends with them and need not be told."""
        for handle in self.handles:
            ray.kill(handle.actor)
        self.handles.clear()

    def _make(self) -> None:
        actor = self._take_early(self.spec) or start_worker(self.spec, self.job)
        self.handles.append(_PooledActor(actor, actor._actor_id.hex(), actor.serve.remote(self.ledger, self.job)))

    def _end(self, handle: _PooledActor) -> None:
        self.handles.remove(handle)
        ray.kill(handle.actor)  # no restart
        self.ledger.process_ended.remote(handle.id, ())

    def _look_at_ended_calls(self) -> None:
        calls = {handle.call: handle for handle in self.handles if handle.call is not None}
        ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0) if calls else ([], [])
        for call in ended:
            handle, handle.call = calls[call], None
            try:
                outcome = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                outcome = UnfitWorker(str(error.cause))
            except ray.exceptions.RayError as error:
                self._look_at_lost_call(handle, error)
                continue
            if outcome is None:
                self._end(handle)
            else:
                self._look_at_unfit(handle, outcome)

    def _look_at_unfit(self, handle: _PooledActor, outcome: UnfitWorker) -> None:
        """A process that cannot render is replaced, by Ray where there is room; after some the actor is given up."""
        handle.unfit, self.unfit = handle.unfit + 1, outcome.reason
        log.warning("an actor of pool %s cannot render: %s", self.spec.name, outcome.reason)
        if handle.unfit >= MOST_UNFIT:
            self._give_up(handle, outcome.reason)
            return
        ray.kill(handle.actor, no_restart=False)
        handle.restarts += 1
        self.ledger.process_ended.remote(handle.id, (), handle.restarts)
        handle.call_at = time.monotonic() + PAUSE_S

    def _give_up(self, handle: _PooledActor, reason: str) -> None:
        """Makes the pool one actor smaller from now on."""
        self.lost, self.unfit = self.lost + 1, reason
        self._end(handle)

    def _look_at_lost_call(self, handle: _PooledActor, error: Exception) -> None:
        """What it means is read from the actor's state: the exception does not tell.

        Dead: another handle. Restarted: its old leases are void. Else (not yet known, or the connection broke) nothing
        is void. All but the dead are called again, and all where Ray cannot be asked at the moment.
        """
        handle.call_at = time.monotonic() + PAUSE_S
        trouble = raised_by(lambda: self._judge_lost_call(handle, str(error)))
        if isinstance(trouble, RenderError):
            raise trouble
        if trouble is not None:
            log.warning("what became of an actor of pool %s is not known yet: %s", self.spec.name, trouble)

    def _judge_lost_call(self, handle: _PooledActor, error: str) -> None:
        state = actor_states([handle.id]).get(handle.id)
        if state and state.state == "DEAD":
            self._look_at_dead(handle, state.death or error)
        elif state and state.restarts > handle.restarts:
            ray.get(
                self.ledger.process_ended.remote(handle.id, _nodes_that_stay(), state.restarts), timeout=TELL_LEDGER_S
            )
            handle.restarts = state.restarts

    def _look_at_dead(self, handle: _PooledActor, reason: str) -> None:
        log.warning("an actor of pool %s is dead: %s", self.spec.name, reason)
        ray.get(self.ledger.process_ended.remote(handle.id, _nodes_that_stay()), timeout=TELL_LEDGER_S)
        self.handles.remove(handle)
        self._dead_in_a_row = 0 if handle.id in self._leased_ever else self._dead_in_a_row + 1
        if self._dead_in_a_row >= MOST_DEAD:
            raise RenderError(f"Ray ends the actors of pool {self.spec.name} before they render: {reason}")

    def _call_again(self) -> None:
        for handle in self.handles:
            if handle.call is None and time.monotonic() >= handle.call_at:
                handle.call = handle.actor.serve.remote(self.ledger, self.job)


def _nodes_that_stay() -> list[str]:
    """Living nodes that stay; a process that ends on a drained node is nobody's fault."""
    leaving = draining_nodes()
    return [node.id for node in living_nodes() if node.id not in leaving]


def _variables(spec: PoolSpec, device: str) -> dict[str, str]:
    """Threads that sleep when they wait: on shared cores spinning ones are many times slower. No GPU not asked for."""
    threads = {"OMP_NUM_THREADS": str(max(1, int(spec.num_cpus))), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return threads | ({} if device.startswith("cuda") or spec.num_gpus else {"CUDA_VISIBLE_DEVICES": ""})
