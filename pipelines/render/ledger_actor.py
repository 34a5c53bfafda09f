"""Runs the ledger as a Ray actor: a thread reads its state from the run folder, and calls are answered meanwhile.

An actor whose `__init__` raises once at a restart is dead for ever, so nothing here can raise there: a store that is
away is asked again until it is back. Until then workers wait, and what they report is kept.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from pipelines.boundary import raised_by
from pipelines.cluster.pools import PoolSpec
from pipelines.render.ledger import HEARTBEAT_S, SLOWEST_HEARTBEAT_S, WORKERS_A_HEARTBEAT_S, FailureLimit, Ledger
from pipelines.render.messages import WAIT, Heartbeat, HeartbeatReply, Lease, LeasedShard, Slot, Snapshot, Worker
from pipelines.render.open_shard import ShardOrder
from pipelines.render.pool import planned_shards
from pipelines.run.drivers import EpochId
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan
from pipelines.run.proof import NotSharedError, prove

log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 20.0


@dataclass(frozen=True)
class RenderTask:
    """What the ledger needs of a call of `render`.

    plan: as it was when it began; epoch: of the driver; only: nothing but the orders.
    """

    plan: Plan
    pools: tuple[PoolSpec, ...]
    orders: Mapping[str, ShardOrder] = field(default_factory=dict)
    only: bool = False
    epoch: EpochId | None = None
    limit: FailureLimit | None = None

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return self.plan.run

    def shards(self) -> list[LeasedShard]:
        """All shards of the task, done or not, each with the number of the rows that are asked for."""
        shards = planned_shards(self.plan, self.pools)
        if not self.only:
            return shards
        ordered = ((shard, self.orders[shard.id]) for shard in shards if shard.id in self.orders)
        return [replace(shard, rows=len(order.ids)) for shard, order in ordered]

    def done(self, again: bool = False) -> set[str]:
        """The shards that are done. again: the task began before, so that some orders may be done."""
        repaired = {shard for shard, order in self.orders.items() if again and order.is_done(self.run)}
        return self.run.done_shards() - self.orders.keys() | repaired

    def deaths(self) -> dict[str, int]:
        """Deaths of processes over each shard, by the run folder, without those before a manifest that is repaired."""
        found = self.run.deaths()
        past = {shard: order.attempts for shard, order in self.orders.items()}
        return {shard: sum(number > past.get(shard, 0) for number in numbers) for shard, numbers in found.items()}

    @property
    def adopting_s(self) -> float:
        """How long a new ledger waits for heartbeats before it leases: two of the slowest intervals, and a little."""
        actors = sum(pool.actors for pool in self.pools)
        return 2 * min(SLOWEST_HEARTBEAT_S, max(HEARTBEAT_S, actors / WORKERS_A_HEARTBEAT_S)) + 1


class LedgerActor:
    """Offers the ledger's methods; until it is loaded, it answers as a ledger that knows nothing."""

    def __init__(self, task: RenderTask):
        self._task, self._again = task, ray.get_runtime_context().was_current_actor_reconstructed
        self._ledger: Ledger | None = None
        self._trouble: str | None = None  # why it could not be loaded so far
        self._refusal: str | None = None  # why it never can
        self._early: list[Callable[[Ledger], object]] = []  # what was reported before it was loaded, in order
        self._stopped = False
        self._lock = threading.Lock()
        self._deaths: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        threading.Thread(target=self._load, name="ledger", daemon=True).start()
        threading.Thread(target=self._write_deaths, name="deaths", daemon=True).start()

    def lease(self, slot: Slot) -> Lease | str:
        """See `Ledger.lease`."""
        return self._ledger.lease(slot) if self._ledger else WAIT

    def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """See `Ledger.heartbeat`; while the ledger is not loaded no worker has to drop anything."""
        return self._ledger.heartbeat(beat) if self._ledger else HeartbeatReply()

    def snapshot(self) -> Snapshot:
        """See `Ledger.snapshot`; errors: why the ledger is not loaded."""
        if self._ledger:
            return self._ledger.snapshot()
        errors = (self._trouble,) if self._trouble else ()
        finished = self._refusal is not None or (self._stopped and not self._again)  # then nothing is in work anywhere
        return Snapshot(loaded=False, errors=errors, fatal=self._refusal, finished=finished)

    def finish(self, slot: Slot, shard_id: str, counts: Mapping[str, Any]) -> None:
        """See `Ledger.finish`."""
        self._tell(lambda ledger: ledger.finish(slot, shard_id, counts))

    def fail(self, slot: Slot, shard_id: str, reason: str) -> None:
        """See `Ledger.fail`."""
        self._tell(lambda ledger: ledger.fail(slot, shard_id, reason))

    def release(self, slot: Slot, shard_id: str) -> None:
        """See `Ledger.release`."""
        self._tell(lambda ledger: ledger.release(slot, shard_id))

    def engine_broke(self, worker: Worker, reason: str) -> None:
        """See `Ledger.engine_broke`."""
        self._tell(lambda ledger: ledger.engine_broke(worker, reason))

    def process_ended(self, actor: str, living_nodes: Collection[str], before: int | None = None) -> None:
        """See `Ledger.process_ended`."""
        self._tell(lambda ledger: ledger.process_ended(actor, living_nodes, before))

    def manifests_seen(self, done: Iterable[str]) -> None:
        """See `Ledger.manifests_seen`."""
        self._tell(lambda ledger: ledger.manifests_seen(done))

    def drain(self, nodes: Iterable[str]) -> None:
        """See `Ledger.drain`."""
        self._tell(lambda ledger: ledger.drain(nodes))

    def stop(self) -> None:
        """See `Ledger.stop`."""
        self._stopped = True
        self._tell(lambda ledger: ledger.stop())

    def _tell(self, call: Callable[[Ledger], object]) -> None:
        with self._lock:
            if self._ledger is None:
                self._early.append(call)
                return
        call(self._ledger)

    def _load(self) -> None:
        wait_s = FIRST_WAIT_S
        while (error := raised_by(self._read)) is not None:
            absent = isinstance(error, FileNotFoundError) and not self._again  # the driver has just read it
            if absent or (isinstance(error, NotSharedError) and not error.may_pass):
                self._refusal = f"the ledger does not see this driver's plan: {error}"
                return
            self._trouble = f"the ledger cannot read the run folder: {error}"
            log.warning("%s; again in %.0f s", self._trouble, wait_s)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _read(self) -> None:
        task, again = self._task, self._again
        if task.epoch is not None:
            prove(task.run, task.epoch.proof)
        ledger = Ledger(
            task.shards(),
            task.done(again),
            task.deaths(),
            orders=task.orders,
            limit=task.limit,
            on_death=lambda shard, reason: self._deaths.put((shard, reason)),
            adopting_s=task.adopting_s if again else 0.0,
            actors={pool.name: pool.actors for pool in task.pools},
        )
        with self._lock:
            for call in self._early:
                call(ledger)
            self._ledger = ledger

    def _write_deaths(self) -> None:
        """Writes deaths into the run folder, for a later driver. One that cannot be written is lost, no more."""
        while True:
            shard, reason = self._deaths.get()
            if (error := raised_by(lambda: self._task.run.mark_death(shard, reason))) is not None:  # noqa: B023
                log.warning("a death over shard %s could not be written down: %s", shard, error)
