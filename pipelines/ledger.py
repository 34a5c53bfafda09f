"""Which shard is leased, done or failed: what the pools of one run share instead of a queue.

A plain class that runs as one small Ray actor. It holds no truth: a shard is done when its manifest exists, and a
ledger that died is built again from the run folder and from its workers' heartbeats.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

DONE, WAIT = "done", "wait"
HEARTBEAT_S, LEASE_TIMEOUT_S = 1.0, 60.0
MAX_ATTEMPTS = 3


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


@dataclass(frozen=True)
class Slot:
    """One of a worker's concurrent calls."""

    worker: Worker
    number: int


@dataclass(frozen=True)
class Lease:
    """failures: attempts at the shard that ended without a manifest, in this run and before."""

    shard: Shard
    failures: int


@dataclass(frozen=True)
class Beat:
    """What a worker says each second. images: rendered so far, by shard in work; stats: of its engine, in all."""

    worker: Worker
    images: Mapping[str, int]
    stats: Mapping[str, float]


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
    raised: int = 0  # failures reported to this ledger
    slot: Slot | None = None
    beaten_at: float = 0.0
    images: int = 0


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
    """

    def __init__(
        self,
        shards: Iterable[Shard],
        done: Iterable[str] = (),
        attempts: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock, self._stopping = clock, False
        self._fatal: str | None = None
        everything = list(shards)
        self._shards, self._rows = len(everything), sum(s.rows for s in everything)
        finished = set(done)
        self._open = {
            s.id: _State(s, (attempts or {}).get(s.id, 0))
            for s in sorted(everything, key=lambda s: (-s.lane_steps, s.id))
            if s.id not in finished
        }
        self._rows_done = self._rows - sum(state.shard.rows for state in self._open.values())
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
                return Lease(state.shard, state.failures)
        mine = [state for state in self._open.values() if slot.worker.pool in state.shard.pools]
        if self._stopping or self._fatal or not mine:
            return DONE
        if any(state.failures for state in held):
            return WAIT
        self._expire()
        free = [state for state in mine if state.slot is None and not (state.failures and held)]
        chosen = min(free, key=lambda state: state.failures > 0, default=None)
        if chosen is None:
            return WAIT
        chosen.slot, chosen.beaten_at, chosen.images = slot, self._clock(), 0
        return Lease(chosen.shard, chosen.failures)

    def finish(self, slot: Slot, shard_id: str, counts: Mapping[str, Any]) -> None:
        """The shard has a manifest, whoever wrote it. counts: ok, failed, filtered, steps of its rows."""
        self._see(slot.worker)
        state = self._open.pop(shard_id, None)
        if state is None:
            return
        self._rows_done += state.shard.rows
        for name in ("ok", "failed", "filtered", "steps"):
            setattr(self._counts, name, getattr(self._counts, name) + int(counts[name]))

    def fail(self, slot: Slot, shard_id: str, reason: str) -> None:
        """A shard raised. It is leased again; after MAX_ATTEMPTS the run ends, since no row is to blame for it."""
        self._see(slot.worker)
        state = self._open.get(shard_id)
        if state is None or state.slot != slot:
            return
        state.slot, state.failures, state.raised = None, state.failures + 1, state.raised + 1
        self._counts.errors.append(f"shard {shard_id}: {reason}")
        if state.raised >= MAX_ATTEMPTS:
            self._fatal = f"shard {shard_id} failed {state.raised} times, the last time with {reason}"

    def release(self, slot: Slot, shard_id: str) -> None:
        """The shard goes back unworked; this counts as no failure."""
        state = self._open.get(shard_id)
        if state and state.slot == slot:
            state.slot = None

    def beat(self, beat: Beat) -> bool:
        """Renews the worker's leases, and adopts those that an earlier ledger gave. -> whether the run goes on."""
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
        return not self._stopping and self._fatal is None

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
                state.slot, state.failures = None, state.failures + 1
