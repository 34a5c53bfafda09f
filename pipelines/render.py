"""Shards to images and manifests, through pools of warm actors that share one ledger.

Each pool is a Ray Data dataset of tickets over an actor pool; a worker spends a ticket by leasing a shard. Ray starts,
places, restarts and scales the actors; which shard goes where is the ledger's. Only tickets pass through Ray's store.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray._private.state import state as cluster  # the only place that tells of a drain
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.epochs import Term
from pipelines.folder import StorageError
from pipelines.lease import Shard, Snapshot
from pipelines.ledger import Ledger
from pipelines.pools import Pool, PoolSpec, RenderConfig, RenderError, planned_shards
from pipelines.repair import Order
from pipelines.store import RunFolder

log = logging.getLogger(__name__)
POLL_S = 0.5
RESTARTS = 5  # of a dataset that ended with shards undone
LOOK_S, DRAIN_S = 30.0, 5.0  # between two looks at the manifests of others, and at nodes that are drained


class StopSignal(Protocol):
    """A threading.Event, or what looks like one."""

    def is_set(self) -> bool:
        """Whether the run is to finish what is in work and end."""


@dataclass(frozen=True)
class Progress:
    """total, done, ok, failed, filtered: rows. waiting: what the run waits for. None: not known, or not waiting."""

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


@dataclass(frozen=True)
class RenderResult:
    """Of this call alone; what was committed before is in the manifests.

    lane_fill: lanes used, of those offered. unet_share, busy_share: the time in the UNet, and in UNet and VAE, of the
    actors' time between their first and their last row, which is actor_seconds of all actors together.
    """

    rows: int
    unet_calls: int
    lane_fill: float | None
    unet_share: float | None
    busy_share: float | None
    actor_seconds: float | None
    seconds: float
    images_per_second: float | None
    interrupted: bool


@dataclass(frozen=True)
class Repair:
    """What is to be rendered again, by shard, by the driver of `term`. alone: nothing else is rendered."""

    orders: Mapping[str, Order]
    term: Term | None = None
    alone: bool = True


@dataclass(frozen=True)
class _Task:
    """A call of `render`, as far as its ledger has to know it."""

    run: RunFolder
    pools: tuple[PoolSpec, ...]
    repair: Repair = field(default_factory=lambda: Repair({}, alone=False))

    def shards(self) -> list[Shard]:
        """All that the task is about, done or not."""
        shards = planned_shards(self.run, self.pools)
        return [shard for shard in shards if shard.id in self.repair.orders] if self.repair.alone else shards

    def done(self, again: bool = False) -> set[str]:
        """By their manifests. again: it began before, so that some of what it repairs may be done."""
        orders = self.repair.orders
        repaired = {shard for shard, order in orders.items() if again and order.is_done(self.run)}
        return self.run.done_shards() - orders.keys() | repaired


class _LedgerActor(Ledger):
    """The ledger in its process: it reads its state from the run folder, so that a restart needs nobody's help."""

    def __init__(self, task: _Task):
        again = ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(task.shards(), task.done(again), task.run.attempts(), orders=task.repair.orders)


def render(
    run: RunFolder,
    config: RenderConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: StopSignal | None = None,
    repair: Repair | None = None,
) -> RenderResult:
    """Renders every planned shard that has no manifest. Needs a connected Ray and a writable run folder.

    Where `stop` is set, what is in work is finished and committed. Raises RenderError, resumable.
    """
    task = _Task(run, config.pools, repair) if repair else _Task(run, config.pools)
    done = task.done()
    undone = [shard for shard in task.shards() if shard.id not in done]
    if not undone:
        return _result(None, 0.0, False)
    ledger = _start_ledger(task)
    schemas = {generation: run.read_plan(generation)["manifest_schema"] for generation in run.generations()}
    pools = [Pool(spec, run, config, schemas, ledger, undone, task.repair.term) for spec in config.pools]
    lookout = _Lookout(ledger, run, {shard.id for shard in undone} - task.repair.orders.keys())
    try:
        with lookout:
            return _Watch(ledger, [pool for pool in pools if pool.tickets], config, on_progress, stop).until_over()
    finally:
        ray.kill(ledger)


def _start_ledger(task: _Task) -> Any:
    """On this node, with no CPU of its own; alive before any worker asks."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    ledger: Any = ray.remote(_LedgerActor).options(**options).remote(task)
    ray.get(ledger.snapshot.remote())
    return ledger


class _Lookout:
    """Tells the ledger, while the body runs, what it cannot see: shards that other drivers commit, nodes that go."""

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
            try:
                look()
            except (StorageError, ray.exceptions.RayError) as error:
                log.warning("%s", error)

    def _manifests(self) -> None:
        if found := self.undone and self.undone & self.run.done_shards():
            ray.get(self.ledger.found.remote(found))
            self.undone -= found

    def _drains(self) -> None:
        with suppress(ray.exceptions.RaySystemError):  # a driver behind ray:// is not told
            if nodes := cluster.get_draining_nodes():
                ray.get(self.ledger.drain.remote(list(nodes)))


class _Watch:
    """The main thread's loop: progress, capacity, restarts of a dataset that ended early, and the end of the run."""

    def __init__(
        self,
        ledger: Any,
        pools: list[Pool],
        config: RenderConfig,
        on_progress: Callable[[Progress], None],
        stop: StopSignal | None,
    ):
        self.ledger, self.pools, self.config, self.on_progress, self.stop = ledger, pools, config, on_progress, stop
        self.started = self.moved = time.monotonic()
        self.stopping = False
        self._seen: object = None
        self._rate = _Rate()

    def until_over(self) -> RenderResult:
        """Raises RenderError where the run cannot go on."""
        for pool in self.pools:
            pool.start()
        while True:
            if self.stop is not None and self.stop.is_set() and not self.stopping:
                self.stopping = True
                self._ask("stop")
            snapshot: Snapshot = self._ask("snapshot")
            self.on_progress(self._progress(snapshot))
            if snapshot.finished:
                return self._over(snapshot)
            self._keep_going(snapshot)
            time.sleep(POLL_S)

    def _ask(self, method: str) -> Any:
        try:
            return ray.get(getattr(self.ledger, method).remote(), timeout=self.config.no_progress_s)
        except ray.exceptions.GetTimeoutError:
            raise RenderError(f"the ledger did not answer for {self.config.no_progress_s:.0f} s") from None

    def _over(self, snapshot: Snapshot) -> RenderResult:
        if snapshot.fatal:
            raise RenderError(snapshot.fatal)
        return _result(snapshot, time.monotonic() - self.started, snapshot.shards_done < snapshot.shards)

    def _keep_going(self, snapshot: Snapshot) -> None:
        if self._moves(snapshot) != self._seen or self._lacks_capacity(snapshot):
            self._seen, self.moved = self._moves(snapshot), time.monotonic()
        if time.monotonic() - self.moved > self.config.no_progress_s:
            raise RenderError(
                f"no progress in {self.config.no_progress_s:.0f} s: {snapshot.leased} shards in work at "
                f"{snapshot.workers} workers, {snapshot.deaths} workers died; "
                + (snapshot.errors[-1] if snapshot.errors else "no error was reported")
            )
        for pool in self.pools:
            if pool.running or self.stopping:
                continue
            if pool.starts > RESTARTS:
                raise RenderError(f"pool {pool.spec.name} ended {pool.starts} times with shards undone: {pool.error}")
            if pool.error:
                log.warning("pool %s is started again: %s", pool.spec.name, pool.error)
            pool.start()

    @staticmethod
    def _moves(snapshot: Snapshot) -> object:
        """Equal while nothing goes on. A worker's death is a move: how many there can be is the ledger's to bound."""
        stats = [snapshot.stats.get(name, 0) for name in ("unet_calls", "images", "isolated_moves")]
        return snapshot.rows_done, snapshot.images_in_work, snapshot.deaths, stats

    def _lacks_capacity(self, snapshot: Snapshot) -> bool:
        """Whether nothing is in work because a pool waits for the cluster: that is no reason to end."""
        return not snapshot.workers or (not snapshot.leased and self._waiting(snapshot) is not None)

    def _progress(self, snapshot: Snapshot) -> Progress:
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
            eta_s=(snapshot.rows - done) / rate if rate else None,
            waiting=self._waiting(snapshot),
            workers=snapshot.workers,
        )

    def _waiting(self, snapshot: Snapshot) -> str | None:
        missing = [pool.wants for pool in self.pools if pool.spec.name not in snapshot.pools and pool.running]
        return f"waiting for {missing[0]}" if missing and not snapshot.finished else None


class _Rate:
    """Rows a second over the last minute."""

    def __init__(self) -> None:
        self._points: list[tuple[float, int]] = []

    def of(self, done: int) -> float | None:
        """None until rows have arrived."""
        now = time.monotonic()
        if not self._points or done > self._points[-1][1] or len(self._points) == 1:
            self._points.append((now, done))
        self._points = [p for p in self._points if now - p[0] < 60] or self._points[-1:]
        (start, first), rows = self._points[0], done - self._points[0][1]
        return rows / (now - start) if rows > 0 and now > start and first < done else None


def _result(snapshot: Snapshot | None, seconds: float, interrupted: bool) -> RenderResult:
    stats = snapshot.stats if snapshot else {}
    rows = snapshot.ok + snapshot.failed + snapshot.filtered if snapshot else 0
    span, unet = stats.get("span_seconds", 0), stats.get("unet_seconds", 0)
    return RenderResult(
        rows=rows,
        unet_calls=int(stats.get("unet_calls", 0)),
        lane_fill=_ratio(stats.get("lanes_filled", 0), stats.get("lanes_offered", 0)),
        unet_share=_ratio(unet, span),
        busy_share=_ratio(unet + stats.get("vae_seconds", 0), span),
        actor_seconds=span or None,
        seconds=seconds,
        images_per_second=_ratio(rows, seconds),
        interrupted=interrupted,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
