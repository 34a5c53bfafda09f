"""Keeps track of which shard is leased, done or failed; the pools of one run share it instead of a queue.

A plain class that runs inside one small Ray actor (`pipelines.render.ledger_actor`). It is no source of truth: a shard
is done when its manifest exists, and a ledger that died is built again from the run folder and from its workers'
heartbeats. The cost of a call grows with the shards in work, not with those of the run.
"""

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.render.messages import DONE, WAIT, Heartbeat, HeartbeatReply, Lease, LeasedShard, Slot, Snapshot, Worker

if TYPE_CHECKING:
    from pipelines.render.open_shard import ShardOrder

HEARTBEAT_S, SLOWEST_HEARTBEAT_S, LEASE_TIMEOUT_S = 1.0, 10.0, 60.0
EXPIRY_LOOK_S = 1.0  # between two looks at all leases
WORKERS_A_HEARTBEAT_S = 100  # above so many workers they beat less often: the ledger takes a third of a ms for each
MAX_ATTEMPTS = 3
MAX_DEATHS = 12  # of workers over one shard in one run: three on the shard, the others on its isolation
MAX_LOSSES = 12  # leases of one shard that end with their node or in silence: nobody's fault, but bounded
EARLY_SHARDS, EARLY_ROWS, EARLY_TIMES = 2, 50, 10.0  # when a run of too many failures is stopped: see `FailureLimit`
EARLY_MOST = 0.9  # share of failed rows that stops any run, whatever share may fail
ARRIVAL_S = 60.0  # after a worker arrived, others of its pool may be on their way


@dataclass(frozen=True)
class FailureLimit:
    """Stops a run early where failed rows are EARLY_TIMES the share that may fail.

    Counted over rows that reached an engine, after EARLY_SHARDS shards and EARLY_ROWS such rows; not over rows that are
    repaired. A share below 1 % is taken for 1 %: one unlucky row among fifty is not far above it.
    """

    max_fraction: float

    def reason(self, counts: "_Counts") -> str | None:
        """Why the run has to stop; None where it goes on."""
        reached, failed = counts.reached, counts.engine_failed
        if counts.shards < EARLY_SHARDS or reached < EARLY_ROWS:
            return None
        if failed <= min(EARLY_MOST, EARLY_TIMES * max(self.max_fraction, 0.01)) * reached:
            return None
        most = "; ".join(f"{rows:,} times {reason}" for reason, rows in counts.reasons.most_common(3))
        return (
            f"{failed:,} of {reached:,} rows failed, more than {EARLY_TIMES:g} times failures.max_fraction "
            f"{self.max_fraction:g}: {most}. The run is stopped before more is spent; finished shards are kept. "
            "Fix the cause and run the command again, or set failures.stop_early: false"
        )


@dataclass(slots=True, eq=False)
class _State:
    shard: LeasedShard
    deaths: int = 0  # processes that died over it on a living node, in this run and before
    order: "ShardOrder | None" = None
    raised: int = 0  # failures reported to this ledger
    deaths_now: int = 0  # of those deaths, in this run
    losses: int = 0  # leases that ended with their node, or in silence
    manifest_seen: bool = False  # its manifest exists, and no worker of this ledger has reported it
    slot: Slot | None = None
    heard_at: float = 0.0
    images: int = 0
    lent_to: frozenset[Worker] = frozenset()  # by this ledger: their heartbeats adopt nothing
    died_on: frozenset[str] = frozenset()  # nodes on which processes died over it, in this run

    @property
    def failures(self) -> int:
        """Attempts that ended without a manifest because of what happened in them."""
        return self.deaths + self.raised

    @property
    def rows(self) -> int:
        """The number of rows to render."""
        return len(self.order.ids) if self.order else self.shard.rows

    @property
    def rank(self) -> tuple[int, str]:
        """Sorts the longest shards first."""
        return -self.shard.lane_steps, self.shard.id


@dataclass
class _Counts:
    """Counts of the rows committed in this run; the last four counts leave repaired shards out.

    reached: rows that reached an engine; engine_failed: those that failed there.
    """

    ok: int = 0
    failed: int = 0
    filtered: int = 0
    steps: int = 0
    shards: int = 0
    reached: int = 0
    engine_failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def add(self, counts: Mapping[str, Any], repaired: bool = False) -> None:
        """Adds one shard's counts. repaired: its rows failed or were lost before; they tell nothing of others."""
        for name in ("ok", "failed", "filtered", "steps"):
            setattr(self, name, getattr(self, name) + int(counts.get(name, 0)))
        if not repaired:
            failed = int(counts.get("engine_failed", 0))
            self.shards, self.engine_failed = self.shards + 1, self.engine_failed + failed
            self.reached += int(counts.get("ok", 0)) + int(counts.get("filtered", 0)) + failed
            self.reasons.update(counts.get("reasons", {}))


class Ledger:
    """Leases shards to slots, longest first. Never blocks; every call is cheap.

    done: shards with a manifest. deaths: of processes over a shard, before this ledger. orders: of shards of which not
    all rows are rendered. on_death: called for each death that counts, to write it down. adopting_s: how long no shard
    is leased, so that workers of an earlier ledger can report what they hold. actors: the most actors of each pool.
    """

    def __init__(
        self,
        shards: Iterable[LeasedShard],
        done: Iterable[str] = (),
        deaths: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        orders: "Mapping[str, ShardOrder] | None" = None,
        limit: FailureLimit | None = None,
        on_death: Callable[[str, str], None] = lambda shard, reason: None,
        adopting_s: float = 0.0,
        actors: Mapping[str, int] | None = None,
    ):
        self._actors = actors or {}
        self._clock, self._stopping, self._limit, self._on_death = clock, False, limit, on_death
        self._adopting_until = clock() + adopting_s
        self._fatal: str | None = None
        self._draining: frozenset[str] = frozenset()
        self._deaths = 0
        self._shards = self._rows = 0
        self._open: dict[str, _State] = {}  # without a manifest
        self._open_in: Counter[tuple[str, ...]] = Counter()  # of them, by the pools that may serve them
        self._leased_in: Counter[tuple[str, ...]] = Counter()  # and of those the leased ones
        self._leased: dict[str, _State] = {}
        self._held: defaultdict[Worker, dict[str, _State]] = defaultdict(dict)  # the same, by their worker
        self._failed: dict[str, _State] = {}  # free, and failed before
        self._free: dict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)  # heaps of the others' ranks
        self._take_in(shards, set(done), deaths or {}, orders or {})
        self._rows_done = self._rows - sum(state.rows for state in self._open.values())
        self._counts = _Counts()
        self._seen: dict[Worker, float] = {}
        self._seen_in: Counter[str] = Counter()  # of them, by pool
        self._arrived_at: dict[str, float] = {}  # when the newest worker of a pool was first heard
        self._broke: Counter[str] = Counter()  # actors: how often their engine broke since they last finished a shard
        self._proved: set[str] = set()  # actors whose present process has finished a shard
        self._looked_at = -EXPIRY_LOOK_S  # for leases that ran out
        self._gone: set[Worker] = set()  # lives that have ended; later calls of theirs are ignored
        self._leased_ever: set[str] = set()
        self._stages: dict[Worker, str] = {}
        self._stats: dict[Worker, Mapping[str, float]] = {}

    def _take_in(
        self,
        shards: Iterable[LeasedShard],
        done: set[str],
        deaths: Mapping[str, int],
        orders: "Mapping[str, ShardOrder]",
    ) -> None:
        for shard in shards:
            self._shards, self._rows = self._shards + 1, self._rows + shard.rows
            if shard.id not in done:
                state = _State(shard, deaths.get(shard.id, 0), orders.get(shard.id))
                self._open[shard.id] = state
                self._open_in[shard.pools] += 1
                self._put_back(state)

    def lease(self, slot: Slot) -> Lease | str:
        """A lease, WAIT, or DONE: nothing is left that this worker could take, or the run is stopping.

        The same slot asking twice gets the same shard. A shard that has failed before is leased to a worker that holds
        nothing else, and its worker gets nothing else meanwhile: it must not burn its neighbour's attempts. A second
        shard is leased only while there is one for each other worker of the pool, so that none idles at the end.
        """
        self._see(slot.worker)
        if slot.worker in self._gone:
            return DONE
        held = list(self._held[slot.worker].values())
        for state in held:
            if state.slot == slot:
                state.heard_at = self._clock()
                return _lease_of(state)
        if self._stopping or self._fatal:
            return DONE
        if slot.worker.node in self._draining or self._clock() < self._adopting_until:
            return WAIT
        self._expire()
        chosen = None
        if not held or (not any(state.failures for state in held) and self._has_one_for_each_other(slot.worker)):
            chosen = self._next(slot.worker, may_have_failed=not held)
        if chosen is None:
            return WAIT if held or self._has_failed_ones(slot.worker.pool) else DONE
        self._lend(chosen, slot)
        chosen.images = 0
        return _lease_of(chosen)

    def _has_one_for_each_other(self, worker: Worker) -> bool:
        """Whether every other worker of its pool, there or on its way, could have a free shard too."""
        arriving = self._clock() - self._arrived_at.get(worker.pool, 0.0) < ARRIVAL_S
        others = max(self._seen_in[worker.pool], self._actors.get(worker.pool, 1) if arriving else 1) - 1
        return sum(count for pools, count in self._free_in().items() if worker.pool in pools) > others

    def _free_in(self) -> dict[tuple[str, ...], int]:
        return {pools: count - self._leased_in[pools] for pools, count in self._open_in.items()}

    def _next(self, worker: Worker, may_have_failed: bool) -> _State | None:
        """The longest free shard of its pool, those that failed after all others.

        A shard over which a process died on this worker's node is for other nodes, while there are any.
        """
        pool = worker.pool
        heaps = [heap for pools, heap in self._free.items() if pool in pools]
        for heap in heaps:
            while heap and not self._is_free(heap[0][1]):
                heapq.heappop(heap)
        if first := min((heap[0] for heap in heaps if heap), default=None):
            return self._open[first[1]]
        failed = (state for state in self._failed.values() if may_have_failed and pool in state.shard.pools)
        return min((s for s in failed if not self._is_for_others(s, worker)), key=lambda s: s.rank, default=None)

    def _has_failed_ones(self, pool: str) -> bool:
        """Whether free shards have failed before: a worker that may not have them waits, in case other nodes leave."""
        return any(pool in state.shard.pools for state in self._failed.values())

    def _is_for_others(self, state: _State, worker: Worker) -> bool:
        if worker.node not in state.died_on:
            return False
        others = (other for other in self._alive() if other.pool in state.shard.pools)
        return any(other.node not in state.died_on for other in others)

    def _is_free(self, shard_id: str) -> bool:
        """Entries of a heap may be stale: leased, done and failed shards are skipped when they are popped."""
        state = self._open.get(shard_id)
        return state is not None and state.slot is None and not state.failures

    def _lend(self, state: _State, slot: Slot) -> None:
        state.slot, state.heard_at = slot, self._clock()
        state.lent_to |= {slot.worker}
        self._leased[state.shard.id] = self._held[slot.worker][state.shard.id] = state
        self._leased_in[state.shard.pools] += 1
        self._leased_ever.add(slot.worker.actor)
        self._stages.pop(slot.worker, None)
        self._failed.pop(state.shard.id, None)

    def _put_back(self, state: _State) -> None:
        """Makes the shard free. If another driver committed it, it is closed, and its rows are not counted."""
        self._take_from(state)
        if state.manifest_seen:
            self._close(state)
        elif state.failures:
            self._failed[state.shard.id] = state
        else:
            heapq.heappush(self._free[state.shard.pools], state.rank)

    def _take_from(self, state: _State) -> None:
        if state.slot is not None:
            del self._leased[state.shard.id], self._held[state.slot.worker][state.shard.id]
            self._leased_in[state.shard.pools] -= 1
        state.slot = None

    def _close(self, state: _State) -> None:
        """The shard has a manifest."""
        self._take_from(state)
        self._open.pop(state.shard.id, None)
        self._failed.pop(state.shard.id, None)
        self._open_in[state.shard.pools] -= 1
        self._rows_done += state.rows

    def finish(self, slot: Slot, shard_id: str, counts: Mapping[str, Any]) -> None:
        """The shard has a manifest, whoever wrote it. counts: what became of its rows, as `_Counts` has it."""
        self._see(slot.worker)
        state = self._open.get(shard_id)
        if state is None:
            return
        self._close(state)
        self._proved.add(slot.worker.actor)
        del self._broke[slot.worker.actor]
        self._counts.add(counts, repaired=state.order is not None and state.order.repairs)
        if self._limit and not self._fatal:
            self._fatal = self._limit.reason(self._counts)

    def fail(self, slot: Slot, shard_id: str, reason: str) -> None:
        """A shard raised. It is leased again; after MAX_ATTEMPTS the run ends, since no single row is at fault."""
        self._see(slot.worker)
        state = self._ended_by(slot, shard_id)
        if state is None:
            return
        state.raised += 1
        self._put_back(state)
        self._counts.errors.append(f"shard {shard_id}: {reason}")
        if state.raised >= MAX_ATTEMPTS:
            self._fatal = f"shard {shard_id} failed {state.raised} times, the last time with {reason}"

    def release(self, slot: Slot, shard_id: str) -> None:
        """The shard goes back before it was rendered; this is no failure."""
        if state := self._ended_by(slot, shard_id):
            self._put_back(state)

    def _ended_by(self, slot: Slot, shard_id: str) -> _State | None:
        """The shard, if the worker holds it. If not, a heartbeat that is still under way must not adopt it."""
        state = self._open.get(shard_id)
        if state is None or _holds(slot, state):
            return state
        state.lent_to |= {slot.worker}
        return None

    def engine_broke(self, worker: Worker, reason: str) -> None:
        """The worker's engine is broken and its process ends: each of its leases counts as a death."""
        self._counts.errors.append(reason)
        self._broke[worker.actor] += 1
        self._end_life(worker, reason, on_living_node=True)

    def process_ended(self, actor: str, living_nodes: Collection[str], before: int | None = None) -> None:
        """The actor's process has ended. Its leases count as deaths only if its node lives.

        before: only lives of the actor before this one are meant; None: all.
        """
        lives = [w for w in self._seen if w.actor == actor and (before is None or w.life < before)]
        for worker in lives:
            self._end_life(worker, "its process died", worker.node in living_nodes)

    def manifests_seen(self, done: Iterable[str]) -> None:
        """Shards whose manifests are there, whoever wrote them. One that is in work here is left to its worker."""
        for shard_id in done:
            state = self._open.get(shard_id)
            if state is not None and state.order is None:
                state.manifest_seen = True
                if state.slot is None:
                    self._close(state)

    def drain(self, nodes: Iterable[str]) -> None:
        """Takes the nodes that will leave: their workers get no lease, and are told to leave."""
        self._draining = frozenset(nodes)

    def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Renews the worker's leases, and adopts those that an earlier ledger gave.

        A heartbeat may be late: what this ledger itself once leased to the worker is never adopted from one.
        """
        worker = beat.worker
        if worker in self._gone:
            return HeartbeatReply(drop=tuple(beat.images))
        self._see(worker)
        if worker in self._gone:
            return HeartbeatReply(drop=tuple(beat.images))
        self._stats[worker] = beat.stats
        if beat.stage and worker.actor not in self._leased_ever:
            self._stages[worker] = beat.stage
        for number, (shard_id, images) in enumerate(beat.images.items()):
            state = self._open.get(shard_id)
            if state is None:
                continue
            if state.slot is None and worker not in state.lent_to:
                self._lend(state, Slot(worker, -1 - number))
            if state.slot and state.slot.worker == worker:
                state.heard_at, state.images = self._clock(), images
        drop = tuple(shard_id for shard_id in beat.images if not self._is_held(worker, shard_id))
        return HeartbeatReply(worker.node in self._draining, drop, self._interval_s())

    def _is_held(self, worker: Worker, shard_id: str) -> bool:
        """Whether the worker should continue with the shard."""
        state = self._open.get(shard_id)
        return state is not None and not state.manifest_seen and state.slot is not None and state.slot.worker == worker

    def _interval_s(self) -> float:
        return min(SLOWEST_HEARTBEAT_S, max(HEARTBEAT_S, len(self._seen) / WORKERS_A_HEARTBEAT_S))

    def stop(self) -> None:
        """Gives no more leases: shards in work are finished and committed, then the run is over."""
        self._stopping = True

    def snapshot(self) -> Snapshot:
        """The run's state, for the driver, twice a second."""
        self._expire()
        alive = self._alive()
        leased = self._leased.values()
        counts, adopting = self._counts, self._clock() < self._adopting_until
        return Snapshot(
            shards=self._shards,
            shards_done=self._shards - len(self._open),
            rows=self._rows,
            rows_done=self._rows_done,
            images_in_work=sum(state.images for state in leased),
            failed=counts.failed,
            filtered=counts.filtered,
            ok=counts.ok,
            steps=counts.steps,
            leased=len(leased),
            deaths=self._deaths,
            workers=len(alive),
            pools=frozenset(worker.pool for worker in alive),
            heard=frozenset(worker.actor for worker in alive),
            busy=frozenset(state.slot.worker.actor for state in leased if state.slot),
            leased_ever=frozenset(self._leased_ever),
            free={pools: count for pools, count in self._free_in().items() if count},
            stages=tuple(sorted({self._stages[worker] for worker in alive if worker in self._stages})),
            errors=tuple(counts.errors[-5:]),
            fatal=self._fatal,
            finished=not self._open or bool((self._stopping or self._fatal) and not leased and not adopting),
            adopting=adopting,
            broke=dict(self._broke),
            proved=frozenset(self._proved),
            stats=self._summed_stats(),
        )

    def _alive(self) -> list[Worker]:
        return [worker for worker, at in self._seen.items() if self._clock() - at < LEASE_TIMEOUT_S]

    def _summed_stats(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for stats in self._stats.values():
            for name, value in stats.items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def _see(self, worker: Worker) -> None:
        """Notes a worker. A new life of an actor ends the old one; later calls of the old one are ignored."""
        if worker in self._gone:
            return
        if worker not in self._seen:
            others = [other for other in self._seen if other.actor == worker.actor]
            if any(other.life > worker.life for other in others):
                self._gone.add(worker)
                return
            for old in others:
                self._end_life(old, "its process died", on_living_node=old.node == worker.node)
            self._seen_in[worker.pool] += 1
            self._arrived_at[worker.pool] = self._clock()
        self._seen[worker] = self._clock()

    def _end_life(self, worker: Worker, reason: str, on_living_node: bool) -> None:
        self._gone.add(worker)
        self._proved.discard(worker.actor)
        self._stages.pop(worker, None)
        if self._seen.pop(worker, None) is not None:
            self._seen_in[worker.pool] -= 1
        for state in list(self._held[worker].values()):
            if on_living_node:
                state.died_on |= {worker.node}
            self._void(state, reason, counts=on_living_node)
        del self._held[worker]

    def _expire(self) -> None:
        """Ends leases of workers that fell silent; as far as is known that is nobody's fault."""
        now = self._clock()
        if now - self._looked_at < EXPIRY_LOOK_S:
            return
        self._looked_at = now
        for state in [state for state in self._leased.values() if now - state.heard_at > LEASE_TIMEOUT_S]:
            self._void(state, "its worker fell silent", counts=False)

    def _void(self, state: _State, reason: str, counts: bool) -> None:
        """Ends a lease with its worker. counts: the attempt is one of those that lead to isolation."""
        shard_id = state.shard.id
        self._deaths += 1
        if counts:
            state.deaths, state.deaths_now = state.deaths + 1, state.deaths_now + 1
            self._on_death(shard_id, reason)
        else:
            state.losses += 1
        self._put_back(state)
        if state.deaths_now >= MAX_DEATHS:
            self._fatal = f"shard {shard_id}: {state.deaths_now} workers died over it, even in isolation"
        elif state.losses >= MAX_LOSSES:
            self._fatal = f"shard {shard_id} was lost {state.losses} times with its node, or with a worker in silence"


def _lease_of(state: _State) -> Lease:
    return Lease(state.shard, state.failures, state.order, state.deaths >= MAX_ATTEMPTS)


def _holds(slot: Slot, state: _State) -> bool:
    """Whether the slot's worker holds the shard; an adopted lease has another slot number."""
    return state.slot is not None and state.slot.worker == slot.worker
