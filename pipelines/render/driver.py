"""Renders the planned shards: makes pools of warm actors with one shared ledger, and watches the run to its end.

The driver makes actors while there is work for them and ends those for which none is left; the ledger decides which
shard an actor renders. While actors exist no Ray Data dataset may be started: it would wait in silence for their CPUs.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.boundary import raised_by
from pipelines.cluster.capacity import draining_nodes, resolve_gpus, waiting_for
from pipelines.render.early_worker import EarlyWorker
from pipelines.render.ledger import FailureLimit
from pipelines.render.ledger_actor import LedgerActor, RenderTask
from pipelines.render.messages import Snapshot
from pipelines.render.open_shard import ShardOrder
from pipelines.render.pool import ActorPool, RenderConfig, RenderError, precision_note
from pipelines.run.drivers import EpochId
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan

log = logging.getLogger(__name__)
POLL_S = 0.5
LOOK_S, DRAIN_S = 30.0, 1.0  # between two looks at the manifests of others, and at nodes that are drained
RATE_S, ETA_AFTER_S = 60.0, 10.0  # over which the rate is measured, and from when on it says when the end will be
CAPACITY_S = 5.0  # between two looks at what the cluster gives no actor for


class StopSignal(Protocol):
    """A threading.Event, or what looks like one."""

    def is_set(self) -> bool:
        """Whether the run should finish the shards in work and end."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run, in rows. waiting: what the run waits for. None: not known, or not waiting."""

    total: int
    done: int
    ok: int
    failed: int
    filtered: int
    mean_steps: float | None
    images_per_second: float | None
    eta_s: float | None
    waiting: str | None
    workers: int  # render actors alive
    starting_s: float | None = None  # until the first shard is in work


@dataclass(frozen=True)
class RenderResult:
    """Of this call alone; what was committed before is in the manifests.

    lane_fill: lanes used, of those offered. unet_share, busy_share: the time in the UNet, and in UNet and VAE, of the
    actors' time between their first and their last row, which is actor_seconds of all actors together. score_share: the
    time in scorers of that time, while the UNet goes on; seconds_per_score: of one of their calls.
    starting_seconds: of the seconds, until a worker that had loaded the model took a shard; the rate is of the rest.
    """

    rows: int
    unet_calls: int
    lane_fill: float | None
    unet_share: float | None
    busy_share: float | None
    score_share: float | None
    seconds_per_score: float | None
    actor_seconds: float | None
    seconds: float
    starting_seconds: float
    images_per_second: float | None
    interrupted: bool


@dataclass(frozen=True)
class RenderOrders:
    """By shard which of its rows are rendered. alone: nothing else is."""

    orders: Mapping[str, ShardOrder]
    alone: bool = True


def render(
    plan: Plan,
    config: RenderConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: StopSignal | None = None,
    only: RenderOrders | None = None,
    epoch: EpochId | None = None,
    early: EarlyWorker | None = None,
) -> RenderResult:
    """Renders every planned shard that has no manifest. Needs a connected Ray and a writable run folder.

    only: which rows, where not all. Where `stop` is set, what is in work is finished and committed. epoch: this
    driver's, by which each process proves that it sees this very folder. early: a worker that is loading its model
    already. Raises RenderError, resumable; never returns with planned shards unended, unless it was interrupted.
    """
    config = with_gpus_of_this_ray(config)
    pools = config.pools
    limit = None if config.max_failed is None else FailureLimit(config.max_failed)
    orders, alone = (only.orders, only.alone) if only else ({}, False)
    run, task = plan.run, RenderTask(plan, pools, orders, alone, epoch, limit)
    shards, done = {shard.id for shard in task.shards()}, task.done()
    undone = shards - done
    if not undone:
        return _result(None, 0.0, False, 0.0)
    if note := precision_note(config):
        log.warning("%s", note)
    ledger = _start_ledger(task)
    take_early = (early or EarlyWorker()).take
    every = [ActorPool(spec, plan, config, ledger, epoch, take_early) for spec in pools]
    try:
        with _OutsideWatcher(ledger, run, undone - orders.keys()):
            result = _RunWatcher(ledger, every, config, on_progress, stop).until_over(len(shards))
    finally:
        for pool in every:
            pool.end()
        ray.kill(ledger)
    if not result.interrupted and (left := _unended(shards, orders, run)):
        raise RenderError(
            f"{len(left):,} of {len(shards):,} planned shards have no manifest in {run.url}, though the ledger says "
            "that all are done: do the workers see another folder? The same command goes on where it stopped"
        )
    return result


def _unended(shards: Collection[str], orders: Mapping[str, ShardOrder], run: RunFolder) -> list[str]:
    open_shards = sorted({*shards} - run.done_shards())
    return [shard for shard in open_shards if shard not in orders or not orders[shard].is_done(run)]


def with_gpus_of_this_ray(config: RenderConfig) -> RenderConfig:
    """The settings with each pool's number of GPUs; what is still open is settled by what this Ray has now."""
    here = resolve_gpus({}, local=True)
    pools = tuple(replace(pool, num_gpus=here if pool.num_gpus is None else pool.num_gpus) for pool in config.pools)
    return replace(config, pools=pools)


def _start_ledger(task: RenderTask) -> Any:
    """Starts the ledger on the driver's own node, so that both live as long; it takes no CPU."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(LedgerActor).options(**options).remote(task)


class _OutsideWatcher:
    """Tells the ledger, while the body runs, what it cannot see: shards that other drivers commit, nodes that leave."""

    def __init__(self, ledger: Any, run: RunFolder, undone: Collection[str]):
        self.ledger, self.run, self.undone = ledger, run, set(undone)
        self._over = threading.Event()

    def __enter__(self) -> None:
        for look, every_s in ((self._manifests, LOOK_S), (self._drains, DRAIN_S)):
            threading.Thread(target=self._keep, args=(look, every_s), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _keep(self, look: Callable[[], None], every_s: float) -> None:
        while not self._over.wait(every_s):
            if (error := raised_by(look)) is not None and not self._over.is_set():
                log.warning("%s", error)

    def _manifests(self) -> None:
        if found := self.undone and self.undone & self.run.done_shards():
            ray.get(self.ledger.manifests_seen.remote(found))
            self.undone -= found

    def _drains(self) -> None:
        if nodes := draining_nodes():
            ray.get(self.ledger.drain.remote(list(nodes)))


class _RunWatcher:
    """Runs the main thread's loop: progress, actors, capacity, and the end of the run."""

    def __init__(
        self,
        ledger: Any,
        pools: list[ActorPool],
        config: RenderConfig,
        on_progress: Callable[[Progress], None],
        stop: StopSignal | None,
    ):
        self.ledger, self.pools, self.config, self.on_progress, self.stop = ledger, pools, config, on_progress, stop
        self.started = self.moved = time.monotonic()
        self.stopping = False
        self._hopeless: str | None = None  # why what is left can be rendered by nobody
        self._seen: object = None
        self._rate = RowRate()
        self._begun: float | None = None  # when the first shard was leased or rendered
        self._lack, self._lack_at = "", 0.0

    def until_over(self, shards: int) -> RenderResult:
        """shards: that the ledger must know of. Raises RenderError where the run cannot go on."""
        while True:
            if self.stopping or (self.stop is not None and self.stop.is_set()):
                self._stop()
            snapshot: Snapshot = self._ask("snapshot")
            if snapshot.loaded and snapshot.shards != shards:
                raise RenderError(f"the ledger sees {snapshot.shards:,} planned shards, this driver {shards:,}")
            if self._begun is None and (snapshot.leased or snapshot.images_in_work or snapshot.rows_done):
                self._begun = time.monotonic()
            waiting = self._waiting(snapshot)
            if snapshot.loaded or snapshot.errors:
                self.on_progress(self._progress(snapshot, waiting))
            if snapshot.finished:
                return self._over(snapshot)
            self._look_at_time(snapshot, waiting)
            if snapshot.loaded and not snapshot.adopting:
                for pool in self.pools:
                    pool.tend(snapshot, self.stopping or snapshot.fatal is not None)
                self._look_at_lost_pools(snapshot)
            time.sleep(POLL_S)

    def _stop(self) -> None:
        """Tells the ledger to stop, at each look: a restarted ledger has forgotten it."""
        self.stopping = True
        self._ask("stop")

    def _ask(self, method: str) -> Any:
        try:
            return ray.get(getattr(self.ledger, method).remote(), timeout=self.config.no_progress_s)
        except ray.exceptions.GetTimeoutError:
            raise RenderError(f"the ledger did not answer for {self.config.no_progress_s:.0f} s") from None

    def _over(self, snapshot: Snapshot) -> RenderResult:
        if self._hopeless or snapshot.fatal:
            raise RenderError(self._hopeless or snapshot.fatal)
        interrupted = snapshot.shards_done < snapshot.shards or not snapshot.loaded
        now = time.monotonic()
        return _result(snapshot, now - self.started, interrupted, (self._begun or now) - self.started)

    def _look_at_lost_pools(self, snapshot: Snapshot) -> None:
        """Ends a run whose remaining shards only pools without actors may serve, once the others have finished."""
        out = {pool.spec.name: pool.unfit for pool in self.pools if pool.is_out}
        stuck = [pools for pools in snapshot.free if out.keys() >= set(pools)]
        if stuck and not self._hopeless:
            shards = sum(snapshot.free[pools] for pools in stuck)
            reasons = "; ".join(f"pool {name}: {out[name]}" for name in dict.fromkeys(stuck[0]))
            self._hopeless = f"no actor is left that can render {shards:,} shards: {reasons}"
            self._stop()

    def _look_at_time(self, snapshot: Snapshot, waiting: str | None) -> None:
        """Raises RenderError where nothing went on for too long; waiting for the cluster is no reason to end."""
        if self._moves(snapshot) != self._seen or (waiting and not snapshot.leased and self._may_wait(snapshot)):
            self._seen, self.moved = self._moves(snapshot), time.monotonic()
        if time.monotonic() - self.moved > self.config.no_progress_s:
            raise RenderError(
                f"no progress in {self.config.no_progress_s:.0f} s: {snapshot.leased} shards in work at "
                f"{snapshot.workers} workers, {snapshot.deaths} workers died; "
                + (snapshot.errors[-1] if snapshot.errors else waiting or "no error was reported")
            )

    @staticmethod
    def _moves(snapshot: Snapshot) -> object:
        """A value that changes with progress. A worker's death counts as progress; the ledger bounds their number."""
        stats = [snapshot.stats.get(name, 0) for name in ("unet_calls", "images", "isolated_moves")]
        return snapshot.rows_done, snapshot.images_in_work, snapshot.deaths, stats

    def _may_wait(self, snapshot: Snapshot) -> bool:
        """Whether to wait on: for a place in the cluster without limit, for a placed actor to load only so long."""
        return not snapshot.workers and any(pool.handles for pool in self.pools)

    def _progress(self, snapshot: Snapshot, waiting: str | None) -> Progress:
        done = min(snapshot.rows, snapshot.rows_done + snapshot.images_in_work)
        rate = self._rate.of(done)
        return Progress(
            total=snapshot.rows,
            done=done,
            ok=snapshot.ok,
            failed=snapshot.failed,
            filtered=snapshot.filtered,
            mean_steps=snapshot.steps / snapshot.ok if snapshot.ok else None,
            images_per_second=rate,
            eta_s=self._rate.left(snapshot.rows - done, rate),
            starting_s=None if self._begun is not None else time.monotonic() - self.started,
            waiting=waiting,
            workers=snapshot.workers,
        )

    def _waiting(self, snapshot: Snapshot) -> str | None:
        """What a pool, or the whole run, waits for."""
        if snapshot.finished:
            return None
        if not snapshot.loaded:
            return f"waiting: {snapshot.errors[-1]}" if snapshot.errors else None
        missing = [pool for pool in self.pools if pool.unplaced(snapshot) and pool.spec.name not in snapshot.pools]
        if missing:
            return f"waiting for {missing[0].spec.wants}: {self._what_is_lacking(missing[0])}"
        stages = [] if snapshot.leased else snapshot.stages
        return f"waiting for a worker: {stages[0]}" if stages else None

    def _what_is_lacking(self, pool: ActorPool) -> str:
        """What the cluster lacks; it is asked now and then."""
        if time.monotonic() - self._lack_at > CAPACITY_S:
            self._lack, self._lack_at = waiting_for(pool.spec.request, pool.has_lived), time.monotonic()
        return self._lack


class RowRate:
    """Measures rows a second over the last minute; the time before the first rows came is no part of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._last: int | None = None
        self._points: list[tuple[float, int]] = []  # (when, rows), where more had come

    def of(self, done: int) -> float | None:
        """The rate; None until rows have come twice."""
        now = self.clock()
        if self._last is not None and done > self._last:
            self._points.append((now, done))
        self._last = done
        self._points = [p for p in self._points if now - p[0] < RATE_S] or self._points[-1:]
        if not self._points or done == self._points[0][1]:
            return None
        start, first = self._points[0]
        return (done - first) / (now - start)

    def left(self, rows: int, rate: float | None) -> float | None:
        """Seconds for as many rows; None while too little was measured for that to mean something."""
        measured = self.clock() - self._points[0][0] if self._points else 0.0
        return rows / rate if rate and measured >= ETA_AFTER_S else None


def _result(snapshot: Snapshot | None, seconds: float, interrupted: bool, starting: float) -> RenderResult:
    stats = snapshot.stats if snapshot else {}
    rows = snapshot.ok + snapshot.failed + snapshot.filtered if snapshot else 0
    span, unet = stats.get("span_seconds", 0), stats.get("unet_seconds", 0)
    return RenderResult(
        rows=rows,
        unet_calls=int(stats.get("unet_calls", 0)),
        lane_fill=_ratio(stats.get("lanes_filled", 0), stats.get("lanes_offered", 0)),
        unet_share=_ratio(unet, span),
        busy_share=_ratio(unet + stats.get("vae_seconds", 0), span),
        score_share=_ratio(stats.get("score_seconds", 0), span),
        seconds_per_score=_ratio(stats.get("score_seconds", 0), stats.get("score_calls", 0)),
        actor_seconds=span or None,
        seconds=seconds,
        starting_seconds=starting,
        images_per_second=_ratio(rows, seconds - starting),
        interrupted=interrupted,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
