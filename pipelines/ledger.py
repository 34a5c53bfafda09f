"""Which shard is leased, done or failed: what the pools of one run share instead of a queue.

A plain class that runs as one small Ray actor. It holds no truth: a shard is done when its manifest exists, and a
ledger that died is built again from the run folder and from its workers' heartbeats.
What a call costs does not grow with the shards of the run, but with those in work.
"""

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.lease import DONE, WAIT, Answer, Beat, Lease, Shard, Slot, Snapshot, Worker

if TYPE_CHECKING:
    from pipelines.repair import Order

HEARTBEAT_S, LEASE_TIMEOUT_S = 1.0, 60.0
MAX_ATTEMPTS = 3
MAX_DEATHS = 12  # of workers over one shard in one run: three on the shard, the others on its isolation


@dataclass(slots=True, eq=False)
class _State:
    shard: Shard
    failures: int = 0  # attempts before this ledger, deaths and failures since
    order: "Order | None" = None
    raised: int = 0  # failures reported to this ledger
    deaths: int = 0
    found: bool = False  # its manifest was seen, written by nobody here as far as is known
    slot: Slot | None = None
    beaten_at: float = 0.0
    images: int = 0

    @property
    def rows(self) -> int:
        """What is to be rendered."""
        return len(self.order.ids) if self.order else self.shard.rows

    @property
    def rank(self) -> tuple[int, str]:
        """The longest first."""
        return -self.shard.lane_steps, self.shard.id


@dataclass
class _Counts:
    rows: int = 0
    ok: int = 0
    failed: int = 0
    filtered: int = 0
    steps: int = 0
    errors: list[str] = field(default_factory=list)


class Ledger:
    """Leases shards to slots, longest first. Never blocks; every call is cheap.

    done: shards with a manifest. attempts: counted in the run folder, so that no driver's death makes one forgotten.
    orders: of shards that are repaired, whose manifests are there already.
    """

    def __init__(
        self,
        shards: Iterable[Shard],
        done: Iterable[str] = (),
        attempts: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        orders: "Mapping[str, Order] | None" = None,
    ):
        self._clock, self._stopping = clock, False
        self._fatal: str | None = None
        self._draining: frozenset[str] = frozenset()
        self._deaths = 0
        self._shards = self._rows = 0
        self._open: dict[str, _State] = {}  # without a manifest
        self._open_in: Counter[tuple[str, ...]] = Counter()  # of them, by the pools that may serve them
        self._leased: dict[str, _State] = {}
        self._failed: dict[str, _State] = {}  # free, and failed before
        self._free: dict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)  # heaps of the others' ranks
        self._take_in(shards, set(done), attempts or {}, orders or {})
        self._rows_done = self._rows - sum(state.rows for state in self._open.values())
        self._counts = _Counts()
        self._seen: dict[Worker, float] = {}
        self._stats: dict[Worker, Mapping[str, float]] = {}

    def _take_in(
        self, shards: Iterable[Shard], done: set[str], attempts: Mapping[str, int], orders: "Mapping[str, Order]"
    ) -> None:
        for shard in shards:
            self._shards, self._rows = self._shards + 1, self._rows + shard.rows
            if shard.id not in done:
                state = _state(shard, attempts.get(shard.id, 0), orders.get(shard.id))
                self._open[shard.id] = state
                self._open_in[shard.pools] += 1
                self._put_back(state)

    def lease(self, slot: Slot) -> Lease | str:
        """A lease, WAIT (others hold all that is left) or DONE (nothing is left for this pool, or the run is stopping).

        The same slot asking twice gets the same shard. A shard that has failed before is leased to a worker that holds
        nothing else, and its worker gets nothing else meanwhile: it must not burn its neighbour's attempts.
        """
        self._see(slot.worker)
        held = [state for state in self._leased.values() if state.slot and state.slot.worker == slot.worker]
        for state in held:
            if state.slot == slot:
                return Lease(state.shard, state.failures, state.order)
        mine = any(count and slot.worker.pool in pools for pools, count in self._open_in.items())
        if self._stopping or self._fatal or not mine:
            return DONE
        if any(state.failures for state in held) or slot.worker.node in self._draining:
            return WAIT
        self._expire()
        chosen = self._next(slot.worker.pool, may_have_failed=not held)
        if chosen is None:
            return WAIT
        self._lend(chosen, slot)
        chosen.images = 0
        return Lease(chosen.shard, chosen.failures, chosen.order)

    def _next(self, pool: str, may_have_failed: bool) -> _State | None:
        """The longest free shard of this pool, those that failed after all others."""
        heaps = [heap for pools, heap in self._free.items() if pool in pools]
        for heap in heaps:
            while heap and not self._is_free(heap[0][1]):
                heapq.heappop(heap)
        if first := min((heap[0] for heap in heaps if heap), default=None):
            return self._open[first[1]]
        failed = (state for state in self._failed.values() if may_have_failed and pool in state.shard.pools)
        return min(failed, key=lambda state: state.rank, default=None)

    def _is_free(self, shard_id: str) -> bool:
        """Heaps keep what was leased, adopted or committed since; what has failed is not theirs."""
        state = self._open.get(shard_id)
        return state is not None and state.slot is None and not state.failures

    def _lend(self, state: _State, slot: Slot) -> None:
        state.slot, state.beaten_at = slot, self._clock()
        self._leased[state.shard.id] = state
        self._failed.pop(state.shard.id, None)

    def _put_back(self, state: _State) -> None:
        """It is in nobody's hands now. What another committed is over: how its rows ended is not counted."""
        state.slot = None
        self._leased.pop(state.shard.id, None)
        if state.found:
            self._close(state)
        elif state.failures:
            self._failed[state.shard.id] = state
        else:
            heapq.heappush(self._free[state.shard.pools], state.rank)

    def _close(self, state: _State) -> None:
        """The shard has a manifest."""
        for shards in (self._open, self._leased, self._failed):
            shards.pop(state.shard.id, None)
        self._open_in[state.shard.pools] -= 1
        self._rows_done += state.rows

    def finish(self, slot: Slot, shard_id: str, counts: Mapping[str, Any]) -> None:
        """The shard has a manifest, whoever wrote it. counts: ok, failed, filtered, steps of its rows."""
        self._see(slot.worker)
        state = self._open.get(shard_id)
        if state is None:
            return
        self._close(state)
        for name in ("ok", "failed", "filtered", "steps"):
            setattr(self._counts, name, getattr(self._counts, name) + int(counts[name]))

    def fail(self, slot: Slot, shard_id: str, reason: str) -> None:
        """A shard raised. It is leased again; after MAX_ATTEMPTS the run ends, since no row is to blame for it."""
        self._see(slot.worker)
        state = self._open.get(shard_id)
        if state is None or not _holds(slot, state):
            return
        state.failures, state.raised = state.failures + 1, state.raised + 1
        self._put_back(state)
        self._counts.errors.append(f"shard {shard_id}: {reason}")
        if state.raised >= MAX_ATTEMPTS:
            self._fatal = f"shard {shard_id} failed {state.raised} times, the last time with {reason}"

    def release(self, slot: Slot, shard_id: str) -> None:
        """The shard goes back unworked; this counts as no failure."""
        state = self._open.get(shard_id)
        if state and _holds(slot, state):
            self._put_back(state)

    def found(self, done: Iterable[str]) -> None:
        """Shards whose manifests are there, whoever wrote them. One that is in work here is left to its worker."""
        for shard_id in done:
            state = self._open.get(shard_id)
            if state is not None and state.order is None:
                state.found = True
                if state.slot is None:
                    self._close(state)

    def drain(self, nodes: Iterable[str]) -> None:
        """Nodes that are about to go: their workers get no lease, and are told to leave."""
        self._draining = frozenset(nodes)

    def beat(self, beat: Beat) -> Answer:
        """Renews the worker's leases, and adopts those that an earlier ledger gave."""
        self._see(beat.worker)
        self._stats[beat.worker] = beat.stats
        for number, (shard_id, images) in enumerate(beat.images.items()):
            state = self._open.get(shard_id)
            if state is None:
                continue
            if state.slot is None:
                self._lend(state, Slot(beat.worker, -1 - number))
            if state.slot and state.slot.worker == beat.worker:
                state.beaten_at, state.images = self._clock(), images
        done = [id for id in beat.images if id not in self._open or self._open[id].found]
        return Answer(beat.worker.node in self._draining, tuple(done))

    def stop(self) -> None:
        """No more leases: what is in work is finished and committed, then the run is over."""
        self._stopping = True

    def snapshot(self) -> Snapshot:
        """For the driver, twice a second."""
        self._expire()
        alive = [w for w, at in self._seen.items() if self._clock() - at < LEASE_TIMEOUT_S]
        leased = self._leased.values()
        counts = self._counts
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
            pools=frozenset(w.pool for w in alive),
            errors=tuple(counts.errors[-5:]),
            fatal=self._fatal,
            finished=not self._open or bool((self._stopping or self._fatal) and not leased),
            stats=self._summed_stats(),
        )

    def _summed_stats(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for stats in self._stats.values():
            for name, value in stats.items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def _see(self, worker: Worker) -> None:
        if worker not in self._seen:
            for old in [w for w in self._seen if w.actor == worker.actor]:
                del self._seen[old]
                self._void(lambda state, old=old: state.slot.worker == old)  # type: ignore[misc]
        self._seen[worker] = self._clock()

    def _expire(self) -> None:
        now = self._clock()
        self._void(lambda state: now - state.beaten_at > LEASE_TIMEOUT_S)

    def _void(self, gone: Callable[[_State], bool]) -> None:
        """A lease whose worker died or fell silent counts as a failure of its shard."""
        for state in [state for state in self._leased.values() if gone(state)]:
            state.failures, state.deaths = state.failures + 1, state.deaths + 1
            self._put_back(state)
            self._deaths += 1
            if state.deaths >= MAX_DEATHS:
                self._fatal = f"shard {state.shard.id}: {state.deaths} workers died over it, even in isolation"


def _state(shard: Shard, attempts: int, order: "Order | None") -> _State:
    """The attempts that led to the manifest that is repaired were no failures."""
    return _State(shard, max(0, attempts - order.attempts) if order else attempts, order)


def _holds(slot: Slot, state: _State) -> bool:
    """By its worker: a lease that a new ledger adopted has another number."""
    return state.slot is not None and state.slot.worker == slot.worker
