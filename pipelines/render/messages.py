"""Defines the messages of workers, ledger and driver: leases, heartbeats and the state of a run.

Records alone; `pipelines.render.ledger` decides who gets which shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.render.open_shard import ShardOrder

DONE, WAIT = "done", "wait"


@dataclass(frozen=True, slots=True)
class LeasedShard:
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
    """One process of one actor; a restarted actor is a new incarnation, and its old leases are void.

    life: how often Ray had restarted the actor before this process; it orders late messages.
    """

    actor: str
    incarnation: str
    pool: str
    node: str = ""
    life: int = 0


@dataclass(frozen=True)
class Slot:
    """One of the places in which a worker holds a shard."""

    worker: Worker
    number: int


@dataclass(frozen=True)
class Lease:
    """failures: attempts at the shard that ended without a manifest because of what happened in them.

    isolate: processes died over it so often that its rows are to be rendered in child processes. order: which of its
    rows to render, where not all.
    """

    shard: LeasedShard
    failures: int
    order: "ShardOrder | None" = None
    isolate: bool = False


@dataclass(frozen=True)
class Heartbeat:
    """A worker's heartbeat. images: rendered so far, by shard in work; stats: of its engine since it was loaded.

    stage: what it does before its first lease, in words.
    """

    worker: Worker
    images: Mapping[str, int]
    stats: Mapping[str, float]
    stage: str = ""


@dataclass(frozen=True)
class HeartbeatReply:
    """To a heartbeat. leave: the worker's node is being drained; drop: shards that it works on and no longer holds.

    interval_s: until the next heartbeat.
    """

    leave: bool = False
    drop: tuple[str, ...] = ()
    interval_s: float = 1.0


@dataclass(frozen=True)
class UnfitWorker:
    """Why a worker process cannot render: its engine is broken, or it does not see the run folder."""

    reason: str


@dataclass(frozen=True)
class Snapshot:
    """The state of a run, in one small record for the driver. rows: planned; done: of committed shards."""

    shards: int = 0
    shards_done: int = 0
    rows: int = 0
    rows_done: int = 0
    images_in_work: int = 0
    failed: int = 0  # rows of the shards committed in this run, as the two below
    filtered: int = 0
    ok: int = 0
    steps: int = 0  # sum of num_steps over the ok rows
    leased: int = 0
    deaths: int = 0  # leases that ended with their worker
    workers: int = 0
    pools: frozenset[str] = frozenset()  # with a live worker
    heard: frozenset[str] = frozenset()  # actors with a live worker
    busy: frozenset[str] = frozenset()  # actors that hold a lease
    leased_ever: frozenset[str] = frozenset()  # actors that held one in this run
    free: Mapping[tuple[str, ...], int] = field(default_factory=dict)  # shards in nobody's hands, by the pools for them
    stages: tuple[str, ...] = ()  # what workers do that have not leased yet
    errors: tuple[str, ...] = ()  # what shards failed with in this run, latest last
    fatal: str | None = None  # why the run cannot go on
    finished: bool = False
    stats: Mapping[str, float] = field(default_factory=dict)
    loaded: bool = True  # False: the ledger has not read the run folder yet
    adopting: bool = False  # a new ledger that does not know yet what workers of an earlier one hold
    broke: Mapping[str, int] = field(default_factory=dict)  # by actor, how often since it last finished a shard
    proved: frozenset[str] = frozenset()  # actors whose present process has finished a shard
