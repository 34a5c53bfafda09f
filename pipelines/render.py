"""Shards to images and manifests, through pools of warm actors that share one ledger.

Each pool is a Ray Data dataset of tickets over an actor pool; a worker spends a ticket by leasing a shard. Ray starts,
places, restarts and scales the actors; which shard goes where is the ledger's. Only tickets pass through Ray's store.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.ledger import Ledger, Snapshot
from pipelines.pools import Pool, PoolSpec, RenderConfig, RenderError, planned_shards
from pipelines.store import RunFolder

log = logging.getLogger(__name__)
POLL_S = 0.5
RESTARTS = 5  # of a dataset that ended with shards undone


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
    actors' time between their first and their last row.
    """

    rows: int
    unet_calls: int
    lane_fill: float | None
    unet_share: float | None
    busy_share: float | None
    seconds: float
    images_per_second: float | None
    interrupted: bool


class _LedgerActor(Ledger):
    """The ledger in its process: it reads its state from the run folder, so that a restart needs nobody's help."""

    def __init__(self, run: RunFolder, pools: tuple[PoolSpec, ...]):
        super().__init__(planned_shards(run, pools), run.done_shards(), run.attempts())


def render(
    run: RunFolder,
    config: RenderConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: StopSignal | None = None,
) -> RenderResult:
    """Renders every planned shard that has no manifest. Needs a connected Ray and a writable run folder.

    Where `stop` is set, what is in work is finished and committed. Raises RenderError, resumable.
    """
    shards, done = planned_shards(run, config.pools), run.done_shards()
    undone = [shard for shard in shards if shard.id not in done]
    if not undone:
        return _result(None, 0.0, False)
    ledger = _start_ledger(run, config.pools)
    schemas = {generation: run.read_plan(generation)["manifest_schema"] for generation in run.generations()}
    pools = [Pool(spec, run, config, schemas, ledger, undone) for spec in config.pools]
    try:
        return _Watch(ledger, [pool for pool in pools if pool.tickets], config, on_progress, stop).until_over()
    finally:
        ray.kill(ledger)


def _start_ledger(run: RunFolder, pools: tuple[PoolSpec, ...]) -> Any:
    """On this node, with no CPU of its own; alive before any worker asks."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    ledger: Any = ray.remote(_LedgerActor).options(**options).remote(run, pools)
    ray.get(ledger.snapshot.remote())
    return ledger


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
        self._best = -1
        self._rate = _Rate()

    def until_over(self) -> RenderResult:
        """Raises RenderError where the run cannot go on."""
        for pool in self.pools:
            pool.start()
        while True:
            if self.stop is not None and self.stop.is_set() and not self.stopping:
                self.stopping = True
                ray.get(self.ledger.stop.remote())
            snapshot: Snapshot = ray.get(self.ledger.snapshot.remote())
            self.on_progress(self._progress(snapshot))
            if snapshot.finished:
                return self._over(snapshot)
            self._keep_going(snapshot)
            time.sleep(POLL_S)

    def _over(self, snapshot: Snapshot) -> RenderResult:
        if snapshot.fatal:
            raise RenderError(snapshot.fatal)
        return _result(snapshot, time.monotonic() - self.started, snapshot.shards_done < snapshot.shards)

    def _keep_going(self, snapshot: Snapshot) -> None:
        moved = snapshot.rows_done + snapshot.images_in_work
        if moved != self._best or not snapshot.workers:
            self._best, self.moved = moved, time.monotonic()  # waiting for capacity is not being stuck
        if time.monotonic() - self.moved > self.config.no_progress_timeout_s:
            raise RenderError(
                f"no image in {self.config.no_progress_timeout_s:.0f} s while {snapshot.leased} shards were in work; "
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
        seconds=seconds,
        images_per_second=_ratio(rows, seconds),
        interrupted=interrupted,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
