"""Which shard is leased, done or failed: what the pools of one run share instead of a queue.

A plain class that runs as one small Ray actor. It holds no truth: a shard is done when its manifest exists, and a
ledger that died is built again from the run folder and from its workers' heartbeats.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.repair import Order

DONE, WAIT = "done", "wait"
HEARTBEAT_S, LEASE_TIMEOUT_S = 1.0, 60.0
MAX_ATTEMPTS = 3
MAX_DEATHS = 12  # of workers over one shard in one run: three on the shard, the others on its isolation


@dataclass(frozen=True)
class Shard:
    """One row of a plan's shard index. pools: who may serve it."""

    id: str
    part: str
    row_group: int
    rows: int
    good_rows: int
    lane_steps: int
    pools: tuple[str, ...]


@dataclass(frozen=True)
class Worker:
    """One life of one actor; a restarted actor is a new incarnation, and its old leases are void."""

    actor: str
    incarnation: str
    pool: str
    node: str = ""


@dataclass(frozen=True)
class Slot:
    """One of a worker's concurrent calls."""

    worker: Worker
    number: int


@dataclass(frozen=True)
class Lease:
    """failures: attempts at the shard that ended without a manifest, in this run and before. order: what to repair."""

    shard: Shard
    failures: int
    order: "Order | None" = None


@dataclass(frozen=True)
class Beat:
    """What a worker says each second. images: rendered so far, by shard in work; stats: of its engine, in all."""

    worker: Worker
    images: Mapping[str, int]
    stats: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """To a heartbeat. leave: the worker's node is being drained; done: shards in its hands that another committed."""

    leave: bool = False
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The state of a run, in one small record for the driver. rows: planned; done: of committed shards."""

    shards: int
    shards_done: int
    rows: int
    rows_done: int
    images_in_work: int
    failed: int  # rows of the shards committed in this run, as the two below
    filtered: int
    ok: int
    steps: int  # sum of num_steps over the ok rows
    leased: int
    deaths: int  # leases that ended with their worker
    workers: int
    pools: frozenset[str]  # with a live worker
    errors: tuple[str, ...]  # what shards failed with in this run, latest last
    fatal: str | None  # why the run cannot go on
    finished: bool
    stats: Mapping[str, float]


@dataclass
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
        everything = list(shards)
        self._shards, self._rows = len(everything), sum(s.rows for s in everything)
        finished = set(done)
        self._open = {
            s.id: _state(s, (attempts or {}).get(s.id, 0), (orders or {}).get(s.id))
            for s in sorted(everything, key=lambda s: (-s.lane_steps, s.id))
            if s.id not in finished
        }
        self._rows_done = self._rows - sum(state.rows for state in self._open.values())
        self._counts = _Counts()
        self._seen: dict[Worker, float] = {}
        self._stats: dict[Worker, Mapping[str, float]] = {}

    def lease(self, slot: Slot) -> Lease | str:
        """A lease, WAIT (others hold all that is left) or DONE (nothing is left for this pool, or the run is stopping).

        The same slot asking twice gets the same shard. A shard that has failed before is leased to a worker that holds
        nothing else, and its worker gets nothing else meanwhile: it must not burn its neighbour's attempts.
        """
        self._see(slot.worker)
        held = [state for state in self._open.values() if state.slot and state.slot.worker == slot.worker]
        for state in held:
            if state.slot == slot:
                return Lease(state.shard, state.failures, state.order)
        mine = [state for state in self._open.values() if slot.worker.pool in state.shard.pools]
        if self._stopping or self._fatal or not mine:
            return DONE
        if any(state.failures for state in held) or slot.worker.node in self._draining:
            return WAIT
        self._expire()
        free = [state for state in mine if state.slot is None and not state.found and not (state.failures and held)]
        chosen = min(free, key=lambda state: state.failures > 0, default=None)
        if chosen is None:
            return WAIT
        chosen.slot, chosen.beaten_at, chosen.images = slot, self._clock(), 0
        return Lease(chosen.shard, chosen.failures, chosen.order)

    def finish(self, slot: Slot, shard_id: str, counts: Mapping[str, Any]) -> None:
        """The shard has a manifest, whoever wrote it. counts: ok, failed, filtered, steps of its rows."""
        self._see(slot.worker)
        state = self._open.pop(shard_id, None)
        if state is None:
            return
        self._rows_done += state.rows
        for name in ("ok", "failed", "filtered", "steps"):
            setattr(self._counts, name, getattr(self._counts, name) + int(counts[name]))

    def fail(self, slot: Slot, shard_id: str, reason: str) -> None:
        """A shard raised. It is leased again; after MAX_ATTEMPTS the run ends, since no row is to blame for it."""
        self._see(slot.worker)
        state = self._open.get(shard_id)
        if state is None or not _holds(slot, state):
            return
        state.slot, state.failures, state.raised = None, state.failures + 1, state.raised + 1
        self._counts.errors.append(f"shard {shard_id}: {reason}")
        if state.raised >= MAX_ATTEMPTS:
            self._fatal = f"shard {shard_id} failed {state.raised} times, the last time with {reason}"

    def release(self, slot: Slot, shard_id: str) -> None:
        """The shard goes back unworked; this counts as no failure."""
        state = self._open.get(shard_id)
        if state and _holds(slot, state):
            state.slot = None
            self._drop_found()

    def found(self, done: Iterable[str]) -> None:
        """Shards whose manifests are there, whoever wrote them. One that is in work here is left to its worker."""
        for shard_id in done:
            state = self._open.get(shard_id)
            if state is not None and state.order is None:
                state.found = True
        self._drop_found()

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
                state.slot = Slot(beat.worker, -1 - number)
            if state.slot.worker == beat.worker:
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
        leased = [state for state in self._open.values() if state.slot]
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
        for state in self._open.values():
            if state.slot and gone(state):
                state.slot, state.failures, state.deaths = None, state.failures + 1, state.deaths + 1
                self._deaths += 1
                if state.deaths >= MAX_DEATHS:
                    self._fatal = f"shard {state.shard.id}: {state.deaths} workers died over it, even in isolation"
        self._drop_found()

    def _drop_found(self) -> None:
        """Shards that another committed and nobody here works at; what became of their rows is not counted."""
        for shard_id in [id for id, state in self._open.items() if state.found and state.slot is None]:
            self._rows_done += self._open.pop(shard_id).rows


def _state(shard: Shard, attempts: int, order: "Order | None") -> _State:
    """The attempts that led to the manifest that is repaired were no failures."""
    return _State(shard, max(0, attempts - order.attempts) if order else attempts, order)


def _holds(slot: Slot, state: _State) -> bool:
    """By its worker: a lease that a new ledger adopted has another number."""
    return state.slot is not None and state.slot.worker == slot.worker
