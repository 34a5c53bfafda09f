"""What workers, ledger and driver say to each other: leases, heartbeats and the state of a run.

Records alone; who gets which shard is `pipelines.ledger`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.repair import Order

DONE, WAIT = "done", "wait"


@dataclass(frozen=True, slots=True)
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
