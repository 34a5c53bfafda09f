"""All that three workers, their ledgers and one store can do, in every order and with faults, on the code that runs.

A worker is a RenderWorker that is run again from its lease, with the answers it has had so far (its log), up to its
next call. So it can be stopped, copied and hurt between any two calls, and needs no thread. Ledgers are pickled.
A `World` is the store, the ledgers, the logs and what is under way; `Enumeration` visits all that can be reached.
"""

import hashlib
import io
import logging
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq

from actors.rows import Picture, SamplerConfig
from pipelines.cluster.pools import PoolSpec
from pipelines.render.attempt import InlineExecutor, settled
from pipelines.render.ledger import LEASE_TIMEOUT_S, Ledger, _State
from pipelines.render.ledger_actor import LedgerActor, RenderTask
from pipelines.render.messages import DONE, WAIT, Heartbeat, HeartbeatReply, Lease, Slot, Worker
from pipelines.render.pool import planned_shards
from pipelines.render.sink import encode_image
from pipelines.render.worker import RenderWorker, WorkerConfig
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.backends import StorageFault
from pipelines.storage.checkpoints import ModelSource
from tests.plans import planned_row, write_plan

ONCE, WHOLE = "each planned row ends once", "a manifest has all rows of its shard"
BYTES, KEPT = "a manifest's images are there, of one attempt", "a manifest stays as it was committed"
LEASE, DEATH = "a lease is in its worker's hands", "a death is counted only where a process died"
PROGRESS = "nobody waits for ever"
FIGURES = {"_clock", "_on_death", "_limit", "_counts", "_stats", "_stages", "_leased_ever", "_looked_at", "_actors"}
FIGURES |= {"_shards", "_rows", "_rows_done", "_deaths", "_free", "_seen", "_adopting_until", "_open_in", "_leased_in"}
FIGURES |= {"_arrived_at", "_broke", "_proved"}  # the first is for second slots, which nobody has here
STATE = [name for name in _State.__slots__ if name not in ("shard", "heard_at", "images")]
SILENCE_S, ADOPTING_S = LEASE_TIMEOUT_S + 1, 3.0
_CLOCK, _DEATHS = [0.0], []  # a ledger is pickled: its clock and its `on_death` are functions of this module


def now() -> float:
    return _CLOCK[0]


def died(shard: str, _reason: str) -> None:
    _DEATHS.append(shard)


class Pending(BaseException):
    """A worker has come to a call without an answer. No `except Exception` holds it."""


class WireError(Exception):
    """What a client of the store raises: retryable, absent."""


LOST, REFUSED, ABSENT = WireError(True, False), WireError(False, False), WireError(False, True)
EXISTS = FileExistsError("there is one")
WRITES = {"write", "create", "delete"}


class Wire:
    """A Backend whose operations a store answers, or a worker's log."""

    errors, conditional = (WireError,), True
    handler: Callable[..., Any]

    def diagnose(self, error: WireError) -> StorageFault:
        return StorageFault("a fault", retryable=error.args[0], absent=error.args[1])

    def __getattr__(self, op: str) -> Callable[..., Any]:
        return lambda *args: self.handler(op, *(tuple(arg) if isinstance(arg, list) else arg for arg in args))


def perform(store: dict[str, bytes], op: str, key: Any, *args: Any) -> Any:
    """One operation on a store, which is changed in place; -> what the client sees, a value or an exception."""
    below = [name for name in store if name.startswith(f"{key}/")]
    if op == "create" and key in store:
        return EXISTS
    if op in ("write", "create"):
        store[key] = args[0]
    elif op == "delete":
        for each in key:
            store.pop(each, None)
    elif op == "stat":
        return (len(store[key]), hashlib.sha256(store[key]).hexdigest()) if key in store else None
    elif op == "names_page":
        return tuple(sorted({name[len(key) + 1 :].split("/")[0] for name in below})), None
    elif op == "walk_page":
        return tuple(sorted((name, len(store[name])) for name in below)), None
    else:
        return store[key][slice(*(args or (None,)))] if key in store else ABSENT
    return None


def result(value: Any) -> Any:
    if isinstance(value, Exception):
        raise type(value)(*value.args)  # a new one: an exception keeps the frames of all its raises
    return value


class Painter:
    """In the sampler's place. A picture is a function of row and attempt: no two attempts have equal bytes."""

    broken = None

    def __init__(self, token: str) -> None:
        self._token = token

    def submit(self, row: Any) -> Any:
        return settled(Picture(painting(row.id, self._token), 2 * row.num_steps, 0.0, "a/b/c", False))

    def stats(self) -> dict[str, float]:
        return {}


def painting(row_id: str, token: str) -> np.ndarray:
    """(2, 2, 3) uint8."""
    return np.frombuffer(hashlib.sha256(f"{row_id} {token}".encode()).digest()[:12], np.uint8).reshape(2, 2, 3)


class Call(NamedTuple):
    """A worker's next. kind: store or ledger; in_hand: what its heartbeat would name."""

    kind: str
    name: str
    args: tuple[Any, ...]
    in_hand: tuple[str, ...]


class Replay:
    """Answers a worker's calls from its log: (value,), and what its heartbeat's thread did before: (name, drop)."""

    def __init__(self, worker: RenderWorker, log: tuple[tuple[Any, ...], ...], plan: dict[str, bytes]) -> None:
        self.worker, self._entries, self._plan = worker, deque(log), plan
        self.call: Call | None = None

    def store(self, op: str, *args: Any) -> Any:
        if str(args[0]).startswith("plan/"):  # nobody changes it: when it is read decides nothing
            return result(perform(self._plan, op, *args))
        return self._next("store", op, args)

    def ask(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        return self._next("ledger", method, (plain(*args),) if method == "heartbeat" else args)

    def _next(self, kind: str, name: str, args: tuple[Any, ...]) -> Any:
        while self._entries and self.call is None:
            entry = self._entries.popleft()
            if len(entry) == 1:
                return result(entry[0])
            self._meanwhile(*entry)
        self.call = self.call or Call(kind, name, args, tuple(self.worker._news().images))
        raise Pending

    def _meanwhile(self, name: str, drop: tuple[str, ...]) -> None:
        if name == "heed":
            self.worker._heed(HeartbeatReply(drop=drop))
        else:
            self.worker._answered_at = float("-inf")
            self.worker._drop_if_cut_off()


def plain(beat: Heartbeat) -> Heartbeat:
    """Without figures."""
    return Heartbeat(beat.worker, dict.fromkeys(beat.images, 0), {})


class Loading(LedgerActor):
    """LedgerActor without its process and its threads."""

    def __init__(self, task: RenderTask, again: bool) -> None:
        self._task, self._again, self._ledger = task, again, None
        self._early, self._lock, self._deaths = [], nullcontext(), SimpleQueue()

    def loaded(self, early: list[tuple[str, tuple[Any, ...]]]) -> Ledger:
        for method, args in early:
            getattr(self, method)(*args)
        self._read()
        while not self._deaths.empty():
            died(*self._deaths.get())
        self._ledger._on_death = died
        return self._ledger


def frozen(value: Any) -> Any:
    """Hashable, and equal where nothing that is decided differs: empty entries of a table are as none."""
    if isinstance(value, Mapping):
        return frozenset((frozen(key), frozen(each)) for key, each in value.items() if each or each is False)
    if isinstance(value, set | frozenset):
        return frozenset(map(frozen, value))
    if isinstance(value, tuple | list):
        return tuple(map(frozen, value))
    if isinstance(value, _State):
        heard_at = value.heard_at if value.slot else None
        return heard_at, tuple(frozen(getattr(value, name)) for name in STATE)
    if isinstance(value, Heartbeat):
        return value.worker, frozen(tuple(value.images))
    if isinstance(value, Ledger):
        free = {rank for heap in value._free.values() for rank in heap if value._is_free(rank[1])}
        rest = {name: each for name, each in vars(value).items() if name not in FIGURES}
        return frozenset(free), frozenset(value._seen), value._adopting_until, frozen(rest)
    return value


@dataclass(frozen=True)
class Code:
    """What is run: the product, or a mutation of it. patches: of the product's names."""

    worker: type[RenderWorker] = RenderWorker
    ledger: type[Ledger] = Ledger
    patches: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """Runs the product's code on stores and ledgers that are numbers here, each equal one once; every call is kept."""

    def __init__(self, code: Code) -> None:
        self.code, self._wire = code, Wire()
        self._stores: list[dict[str, bytes]] = []
        self._ledgers: list[bytes] = []
        self._logs: list[tuple[Any, ...]] = [()]
        self._numbers: dict[Any, int] = {}
        self._kept: dict[Any, Any] = {}
        self._args: dict[Any, tuple[Any, ...]] = {}
        self._token = "0" * 8
        self._time = 0.0

    @contextmanager
    def ready(self) -> Iterator["Bench"]:
        """With the product's clocks, chances and store replaced. One call is tried twice."""
        clock = SimpleNamespace(monotonic=lambda: self._time, sleep=self._sleep)
        ledger = partial(self.code.ledger, clock=now)
        patches = {
            "pipelines.storage.folder._connect": lambda *_: self._wire,
            "pipelines.storage.folder.time": clock,
            "pipelines.storage.folder.random": SimpleNamespace(uniform=lambda _, most: most),
            "pipelines.run.layout.secrets": SimpleNamespace(token_hex=lambda _: self._token),
            "pipelines.run.layout._now": lambda: "now",
            "pipelines.render.manifest_rows.datetime": SimpleNamespace(now=lambda _: datetime(2026, 1, 1, tzinfo=UTC)),
            "pipelines.render.ledger_actor.Ledger": ledger,
        }
        with ExitStack() as stack:
            for name, value in (patches | dict(self.code.patches)).items():
                stack.enter_context(patch(name, value))
            for name in ("pipelines.render.worker", "pipelines.storage.folder"):
                stack.enter_context(patch.object(logging.getLogger(name), "disabled", True))
            self._plan()
            yield self

    def _sleep(self, seconds: float) -> None:
        self._time += seconds

    def _plan(self) -> None:
        """Two shards of two rows."""
        self.run, self.plan = RunFolder("s3://run", deadline_s=0.1), {}
        self._wire.handler = lambda op, *args: result(perform(self.plan, op, *args))
        write_plan(self.run, [planned_row(i, num_steps=4 - i) for i in range(4)], 2)
        self.pools = (PoolSpec(actors=3),)
        self.shards = planned_shards(read_plan(self.run), self.pools)
        self.rows = {s.id: set(self.run.read_shard(s.part, s.row_group)["id"].to_pylist()) for s in self.shards}
        schema = read_plan(self.run).manifest_schema
        self.job = WorkerConfig(self.run, ModelSource(""), SamplerConfig(""), "default", "files", "png", schema)
        self.empty = self._store_of({})

    def _number(self, kept: list[Any], key: Any, value: Any) -> int:
        if (number := self._numbers.get(key)) is None:
            number = self._numbers[key] = len(kept)
            kept.append(value)
        return number

    def _store_of(self, store: dict[str, bytes]) -> int:
        return self._number(self._stores, ("store", frozenset(store.items())), store)

    def content(self, store: int) -> dict[str, bytes]:
        return self._stores[store]

    def keep(self, key: Any, call: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = call()
        return self._kept[key]

    def perform(self, store: int, op: str, args: tuple[Any, ...]) -> tuple[int, Any]:
        """-> the store after it, and what the client sees."""

        def call() -> tuple[int, Any]:
            content = dict(self.content(store))
            seen = perform(content, op, *args)
            return self._store_of(content), seen

        return self.keep(("perform", store, op, args), call)

    def direct(self, store: int, name: str, *args: Any) -> tuple[int, Any]:
        """A whole method of the run folder; -> the store after it, and its result."""

        def call() -> tuple[int, Any]:
            content = dict(self.content(store))
            self._wire.handler = lambda op, *args: result(perform(content, op, *args))
            found = getattr(self.run, name)(*args)
            return self._store_of(content), found

        return self.keep(("direct", store, name, args), call)

    def done(self, store: int) -> frozenset[str]:
        return frozenset(self.direct(store, "done_shards")[1])

    def logged(self, log: int, entry: tuple[Any, ...]) -> int:
        """A log with one entry more; 0 is the empty one."""
        return self._number(self._logs, ("log", log, entry), (*self._logs[log], entry))

    def shard_of(self, log: int) -> str:
        """Of the lease, with which it begins."""
        return self._logs[log][0][0].shard.id

    def next_call(self, worker: Worker, ordinal: int, log: int) -> Call:
        """Of a worker at its ordinal-th lease."""
        return self.keep(("next", worker, ordinal, log), lambda: self._next_call(worker, ordinal, self._logs[log]))

    def _next_call(self, identity: Worker, ordinal: int, log: tuple[Any, ...]) -> Call:
        self._token = self.token(identity, ordinal)
        worker = self.code.worker(self.job)
        replay = Replay(worker, log, self.plan)
        worker._worker, worker._writers, worker._ask = identity, InlineExecutor(), replay.ask
        worker._sampler = Painter(self._token)
        self._wire.handler = replay.store
        with suppress(Pending):
            worker._serve_slot(0)
        return replay.call

    def token(self, worker: Worker, ordinal: int) -> str:
        """Of its attempt."""
        return self.keep(
            ("token", worker, ordinal), lambda: hashlib.sha256(f"{worker}{ordinal}".encode()).hexdigest()[:8]
        )

    def swept(self, store: int, token: str) -> int:
        """The store without the images of an attempt that is over and that no manifest names."""

        def call() -> int:
            content = self.content(store)
            named = any(token in row["uri"] for rows in self.manifests(content) for row in rows)
            left = {
                key: data for key, data in content.items() if named or not key.startswith("images/") or token not in key
            }
            return self._store_of(left)

        return self.keep(("swept", store, token), call)

    def args_of(self, args: tuple[Any, ...]) -> Any:
        """A key from which `early` has them back."""
        key = frozen(args)
        self._args.setdefault(key, args)
        return key

    def report_error(self, ledger: int, clock: float, method: str, *args: Any) -> tuple[int, Any, tuple[str, ...]]:
        """-> the ledger after it, its answer, and the shards of the deaths that it counted."""

        def call() -> tuple[int, Any, tuple[str, ...]]:
            told = pickle.loads(self._ledgers[ledger])
            _CLOCK[0] = clock
            answer = getattr(told, method)(*args)
            return self._ledger_of(told), answer, self._deaths()

        return self.keep(("tell", ledger, clock, method, frozen(args)), call)

    def load(self, store: int, clock: float, seen: frozenset[str], again: bool, early: tuple[Any, ...]) -> Any:
        """As `tell`: a ledger that listed the manifests it has `seen` earlier, and was told `early` meanwhile."""

        def call() -> tuple[int, Any, tuple[str, ...]]:
            _CLOCK[0] = clock
            deaths = {shard: len(numbers) for shard, numbers in self.direct(store, "deaths")[1].items()}
            task = SimpleNamespace(
                shards=lambda: self.shards, done=lambda again: set(seen), deaths=lambda: deaths, pools=self.pools,
                epoch=None, run=self.run, orders={}, limit=None, adopting_s=ADOPTING_S,
            )  # fmt: skip
            loaded = Loading(task, again).loaded([(method, self._args[key]) for method, key in early])
            return self._ledger_of(loaded), None, self._deaths()

        return self.keep(("load", store, clock, seen, again, early), call)

    def _deaths(self) -> tuple[str, ...]:
        deaths = tuple(_DEATHS)
        _DEATHS.clear()
        return deaths

    def _ledger_of(self, ledger: Ledger) -> int:
        """Its times that are past are forgotten: it stands for all that are equal, also at an earlier hour."""
        ledger._looked_at = -1.0
        if ledger._adopting_until <= now():
            ledger._adopting_until = 0.0
        return self._number(self._ledgers, ("ledger", frozen(ledger)), pickle.dumps(ledger))

    def leases(self, ledger: int) -> tuple[tuple[str, Worker], ...]:
        def call() -> tuple[tuple[str, Worker], ...]:
            return tuple((id, state.slot.worker) for id, state in pickle.loads(self._ledgers[ledger])._leased.items())

        return self.keep(("leases", ledger), call)

    def listens(self, ledger: int, clock: float) -> bool:
        return self.keep(("until", ledger), lambda: pickle.loads(self._ledgers[ledger])._adopting_until) > clock

    def faults_of(self, store: int) -> set[str]:
        """The invariants that a store violates, whatever else is under way."""
        return self.keep(("faults", store), lambda: set(self._faults_of(self.content(store))))

    def _faults_of(self, content: dict[str, bytes]) -> Iterator[str]:
        ended: Counter[str] = Counter()
        for rows in self.manifests(content):
            ended.update(row["id"] for row in rows)
            if {row["id"] for row in rows} != self.rows[rows[0]["shard"]]:
                yield WHOLE
            if len({row["uri"].rpartition("/")[0] for row in rows}) > 1 or not all(
                content.get(row["uri"]) == drawn(row) for row in rows
            ):
                yield BYTES
        if ended and max(ended.values()) > 1:
            yield ONCE

    def manifests(self, content: dict[str, bytes]) -> list[list[dict[str, Any]]]:
        """The rows of each."""
        found = [data for key, data in content.items() if key.startswith("manifest/")]
        return [
            self.keep(("rows", data), lambda data=data: pq.read_table(io.BytesIO(data)).to_pylist()) for data in found
        ]

    def complete(self, store: int) -> bool:
        """Whether every planned row has ended: read from the manifests, not by the code under test."""
        ended = {row["id"] for rows in self.manifests(self.content(store)) for row in rows}
        return ended == set().union(*self.rows.values())

    def changed(self, before: int, after: int) -> bool:
        """Whether a manifest is not what it was."""
        new = self.content(after)
        return any(new.get(key) != data for key, data in self.content(before).items() if key.startswith("manifest/"))


def drawn(row: dict[str, Any]) -> bytes:
    """What the attempt that a manifest's row names has drawn for it."""
    return encode_image(painting(row["id"], row["uri"].split("/")[2].partition("-")[2]), "png")


class Left(NamedTuple):
    """What may still go wrong on a path: the bounds of an enumeration. beats: by a worker's heartbeat, each late."""

    faults: int = 0
    kills: int = 0
    silences: int = 0
    rebuilds: int = 0
    beats: int = 0
    takeovers: int = 0

    def less(self, name: str) -> "Left":
        return self._replace(**{name: getattr(self, name) - 1})


class Driver(NamedTuple):
    """loading: what its ledger was told before it was there; dying: deaths that are not written down yet."""

    alive: bool = True
    ledger: int | None = None
    loading: tuple[Any, ...] | None = None
    undone: frozenset[str] = frozenset()
    dying: tuple[str, ...] = ()
    stop: str = ""


class Hand(NamedTuple):
    """A worker. state: new, alive, dead, lost (dead with its node) or ended; log: from its lease on, else 0."""

    driver: int
    worker: Worker
    state: str = "new"
    ordinal: int = 0
    log: int = 0


class World(NamedTuple):
    """mail: (hand, sent | answer, shards, its worker); late: writes that still may land; owed: shards over which a
    process died, and whose driver may count that."""

    store: int
    clock: float
    drivers: tuple[Driver, ...]
    hands: tuple[Hand, ...]
    left: Left
    mail: tuple[Any, ...] = ()
    late: tuple[Any, ...] = ()
    owed: tuple[str, ...] = ()


Moves = Iterator[tuple[str, World]]


def put(items: tuple[Any, ...], at: int, **values: Any) -> tuple[Any, ...]:
    return (*items[:at], items[at]._replace(**values), *items[at + 1 :])


def without(items: tuple[Any, ...], item: Any) -> tuple[Any, ...]:
    at = items.index(item)
    return items[:at] + items[at + 1 :]


def is_image(op: tuple[str, tuple[Any, ...]]) -> bool:
    return op[0] == "write" and op[1][0].startswith("images/")


class Rules:
    """What can happen next in a world: steps, which happen if nothing goes wrong, and mishaps, which need not."""

    def __init__(self, bench: Bench, takers: int = 1, superseded: bool = False) -> None:
        self.bench, self.takers, self.superseded = bench, takers, superseded

    def first(self, workers: int, left: Left, store: int | None = None, name: str = "") -> World:
        world = World(self.bench.empty if store is None else store, 1000.0, (), (), left)
        world = self._driver(world, workers, name)
        world = self._load(world, 0)
        for hand in world.hands:  # while they load their models
            world, _ = self._tell(world, 0, "heartbeat", Heartbeat(hand.worker, {}, {}))
        return world

    def _driver(self, world: World, workers: int, name: str = "") -> World:
        at, seen = len(world.drivers), self.bench.done(world.store)
        driver = Driver(loading=(seen, False, ()), undone=frozenset(s.id for s in self.bench.shards) - seen)
        hands = tuple(Hand(at, Worker(f"{name}{at}{i}", "1", "default", f"n{at}{i}")) for i in range(workers))
        return world._replace(drivers=(*world.drivers, driver), hands=world.hands + hands)

    def steps(self, world: World) -> Moves:
        """In none of them the world stays as it is: who polls in vain waits."""
        if (alone := self._alone(world)) is not None:
            yield from self._hand_steps(world, alone)
            return
        moves = [*self._hands_steps(world), *self._drivers_steps(world), *self._mail_steps(world)]
        moves = [(name, after) for name, after in moves if after != world]
        if not moves and (after := self._time(world)) != world:
            moves = [("a minute passes", after)]
        yield from moves

    def _alone(self, world: World) -> int | None:
        """A worker whose next is to write an image: nobody else sees it, so what others do may as well come after.

        Not where it may be told to drop its attempt: whether that is before or after the image makes a difference.
        """
        if world.left.beats or world.left.silences or world.mail:
            return None
        writes = ((i, self._call(hand)) for i, hand in enumerate(world.hands) if hand.state == "alive" and hand.log)
        return next((i for i, call in writes if is_image((call.name, call.args))), None)

    def mishaps(self, world: World) -> Moves:
        left = world.left
        if (alone := self._alone(world)) is not None:
            yield from self._hand_mishaps(world, alone, self._call(world.hands[alone]))
            return
        for op in world.late:
            store, _ = self.bench.perform(world.store, *op)
            yield f"a late {op[0]} lands", world._replace(store=store, late=without(world.late, op))
        for i, hand in enumerate(world.hands):
            if hand.state == "alive" and hand.log:
                yield from self._hand_mishaps(world, i, self._call(hand))
        if left.silences:
            yield "all fall silent", self._pass(world, SILENCE_S, ())._replace(left=left.less("silences"))
        for d, driver in enumerate(world.drivers):
            if driver.alive and driver.ledger is not None and left.rebuilds:
                yield f"ledger {d} dies", self._forget(world, d)._replace(left=left.less("rebuilds"))
        if left.takeovers:
            yield "a take-over", self._take_over(world._replace(left=left.less("takeovers")))

    def _call(self, hand: Hand) -> Call:
        if not hand.log:
            return Call("ledger", "lease", (Slot(hand.worker, 0),), ())
        return self.bench.next_call(hand.worker, hand.ordinal, hand.log)

    def _hands_steps(self, world: World) -> Moves:
        waiting = set()  # equal workers begin in their order
        for i, hand in enumerate(world.hands):
            if hand.driver not in waiting:
                yield from self._hand_steps(world, i)
            if hand.state == "new":
                waiting.add(hand.driver)

    def _hand_steps(self, world: World, i: int) -> Moves:
        hand = world.hands[i]
        if hand.state in ("dead", "lost") and world.drivers[hand.driver].alive:
            yield f"{hand.worker.actor} is buried", self._bury(world, i)
        elif hand.state in ("new", "alive"):
            call = self._call(hand)
            yield f"{hand.worker.actor}: {call.name}", self._step(world, i, call)

    def _step(self, world: World, i: int, call: Call) -> World:
        hand = world.hands[i]
        if call.kind == "store":
            store, seen = self.bench.perform(world.store, call.name, call.args)
            if call.name == "names_page":  # of attempts: how many there are decides, not whose they are
                seen = tuple(sorted("0-0" + name[name.find(".") :] * ("." in name) for name in seen[0])), None
            return self._log(world._replace(store=store), i, (seen,))
        if not world.drivers[hand.driver].alive:
            return world._replace(hands=put(world.hands, i, state="ended", log=0))
        world, answer = self._tell(world, hand.driver, call.name, *call.args)
        world = world._replace(hands=put(world.hands, i, state="alive"))
        if call.name != "lease" or isinstance(answer, Lease):
            return self._log(world, i, (answer,))
        return self._made_again(world, i) if answer == DONE else world

    def _made_again(self, world: World, i: int) -> World:
        """A worker that gets nothing ends, and its pool makes another while there is something free."""
        driver = world.drivers[world.hands[i].driver]
        snapshot = self.bench.report_error(driver.ledger, world.clock, "snapshot")[1]
        if driver.stop or snapshot.finished or not snapshot.free:
            return world
        return self._next_life(
            self._tell(world, world.hands[i].driver, "process_ended", world.hands[i].worker.actor, ())[0], i
        )

    def _log(self, world: World, i: int, entry: tuple[Any, ...]) -> World:
        hand = world.hands[i]
        hand = hand._replace(log=self.bench.logged(hand.log, entry))
        call = self._call(hand)
        if call.name == "lease":
            world = self._sweep(world, hand)
            hand = hand._replace(log=0, ordinal=hand.ordinal + 1)
        world = world._replace(hands=(*world.hands[:i], hand, *world.hands[i + 1 :]))
        return self._step(world, i, call) if call.name == "heartbeat" else world

    def _sweep(self, world: World, hand: Hand) -> World:
        """Without what an attempt that is over has left: nobody reads it, if no manifest names it or still may."""
        token = self.bench.token(hand.worker, hand.ordinal)
        if any(op == "create" for op, _ in world.late):
            return world
        late = tuple(op for op in world.late if token not in op[1][0] or not is_image(op))
        return world._replace(store=self.bench.swept(world.store, token), late=late)

    def _tell(self, world: World, d: int, method: str, *args: Any) -> tuple[World, Any]:
        """As LedgerActor does it: before its ledger is there it keeps what it is told."""
        driver = world.drivers[d]
        if driver.ledger is None:
            if method in ("lease", "heartbeat", "snapshot"):
                return world, {"lease": WAIT, "heartbeat": HeartbeatReply(), "snapshot": None}[method]
            seen, again, early = driver.loading
            loading = (seen, again, (*early, (method, self.bench.args_of(args))))
            return world._replace(drivers=put(world.drivers, d, loading=loading)), None
        ledger, answer, deaths = self.bench.report_error(driver.ledger, world.clock, method, *args)
        if deaths and self._living(world) & {w for s, w in self.bench.leases(driver.ledger) if s in deaths}:
            world = world._replace(owed=(*world.owed, "none died"))
        return self._count(world._replace(drivers=put(world.drivers, d, ledger=ledger)), d, deaths), answer

    def _living(self, world: World) -> set[Worker]:
        return {hand.worker for hand in world.hands if hand.state == "alive"}

    def _count(self, world: World, d: int, deaths: tuple[str, ...]) -> World:
        for shard in deaths:
            owed = without(world.owed, shard) if shard in world.owed else (*world.owed, "none died")
            world = world._replace(owed=owed)
        return world._replace(drivers=put(world.drivers, d, dying=world.drivers[d].dying + deaths))

    def _bury(self, world: World, i: int) -> World:
        """The driver has seen its end; then Ray's next life of the actor is called."""
        hand = world.hands[i]
        nodes = tuple(each.worker.node for each in world.hands if each.state != "lost")
        world, _ = self._tell(world, hand.driver, "process_ended", hand.worker.actor, nodes, hand.worker.life + 1)
        return self._next_life(world, i)

    def _next_life(self, world: World, i: int) -> World:
        """On another node where its own was lost."""
        hand = world.hands[i]
        node = hand.worker.node + ("+" if hand.state == "lost" else "")
        life = Worker(hand.worker.actor, hand.worker.incarnation + "+", "default", node, hand.worker.life + 1)
        return world._replace(hands=put(world.hands, i, worker=life, state="alive"))

    def _drivers_steps(self, world: World) -> Moves:
        for d, driver in enumerate(world.drivers):
            if not driver.alive:
                continue
            if driver.ledger is None:
                yield f"ledger {d} is loaded", self._load(world, d)
            elif self.bench.listens(driver.ledger, world.clock):
                yield "seconds pass", world._replace(clock=world.clock + ADOPTING_S)
            if driver.dying:
                store, _ = self.bench.direct(world.store, "mark_death", driver.dying[0], "it died")
                yield (
                    "a death is written",
                    world._replace(store=store, drivers=put(world.drivers, d, dying=driver.dying[1:])),
                )
            if driver.stop == "told":
                told, _ = self._tell(world, d, "stop")
                yield f"{d} gives way", told._replace(drivers=put(told.drivers, d, stop="stopping"))
            if len(world.drivers) > 1 and (found := driver.undone & self.bench.done(world.store)):
                told, _ = self._tell(world, d, "manifests_seen", tuple(sorted(found)))
                yield f"{d} looks", told._replace(drivers=put(told.drivers, d, undone=driver.undone - found))

    def _load(self, world: World, d: int) -> World:
        ledger, _, deaths = self.bench.load(world.store, world.clock, *world.drivers[d].loading)
        return self._count(world._replace(drivers=put(world.drivers, d, ledger=ledger, loading=None)), d, deaths)

    def _mail_steps(self, world: World) -> Moves:
        for letter in world.mail:
            i, kind, what, worker = letter
            rest = world._replace(mail=without(world.mail, letter))
            if kind == "sent":
                after, answer = self._tell(
                    rest, world.hands[i].driver, "heartbeat", Heartbeat(worker, dict.fromkeys(what, 0), {})
                )
                if answer.drop and worker == world.hands[i].worker and world.hands[i].state == "alive":
                    after = after._replace(mail=(*after.mail, (i, "answer", answer.drop, worker)))
                yield f"a beat of {worker.actor} is heard", after
            elif kind == "answer":
                yield f"{worker.actor} heeds", self._heed(rest, i, worker, "heed", what)

    def _heed(self, world: World, i: int, worker: Worker, name: str, drop: tuple[str, ...]) -> World:
        hand = world.hands[i]
        if hand.state != "alive" or hand.worker != worker or not set(drop) & set(self._call(hand).in_hand):
            return world
        return self._log(world, i, (name, drop))

    def _time(self, world: World) -> World:
        """Where nobody moves any more: a minute, in which all that live are heard. Leases of others run out."""
        after = self._pass(world, SILENCE_S, tuple(range(len(world.hands))))
        for d, driver in enumerate(world.drivers):
            if driver.alive:
                after, _ = self._tell(after, d, "snapshot")
        return world if self._leased(after) == self._leased(world) and after.store == world.store else after

    def _leased(self, world: World) -> list[Any]:
        return [self.bench.leases(driver.ledger) for driver in world.drivers if driver.alive]

    def _pass(self, world: World, seconds: float, heard: tuple[int, ...]) -> World:
        world = world._replace(clock=world.clock + seconds)
        for i in heard:
            hand = world.hands[i]
            if hand.state == "alive" and world.drivers[hand.driver].alive:
                in_hand = self._call(hand).in_hand
                world, answer = self._tell(
                    world, hand.driver, "heartbeat", Heartbeat(hand.worker, dict.fromkeys(in_hand, 0), {})
                )
                world = self._heed(world, i, hand.worker, "heed", answer.drop)
        return world

    def _hand_mishaps(self, world: World, i: int, call: Call) -> Moves:
        hand, left = world.hands[i], world.left
        name, alive = hand.worker.actor, world.drivers[hand.driver].alive
        if left.faults and call.kind == "store":
            yield from self._faults(world._replace(left=left.less("faults")), i, call)
        if left.kills and alive:
            killed = self._sweep(world, hand)._replace(left=left.less("kills"))
            mail = tuple(letter for letter in world.mail if letter[3] != hand.worker or letter[1] == "sent")
            killed, shard = killed._replace(mail=mail), self.bench.shard_of(hand.log)
            yield (
                f"{name} is killed",
                killed._replace(
                    hands=put(world.hands, i, state="dead", log=0), owed=tuple(sorted((*world.owed, shard)))
                ),
            )
            yield f"{name} is lost", killed._replace(hands=put(world.hands, i, state="lost", log=0))
        if left.beats and alive and call.in_hand and all(letter[0] != i for letter in world.mail):
            letter = (i, "sent", call.in_hand, hand.worker)
            yield f"{name} beats", world._replace(left=left.less("beats"), mail=(*world.mail, letter))
        if left.silences and alive:
            others = tuple(j for j in range(len(world.hands)) if j != i)
            silent = self._pass(world._replace(left=left.less("silences")), SILENCE_S, others)
            yield f"{name} is silent", silent
            yield f"{name} is cut off", self._heed(silent, i, hand.worker, "cut off", call.in_hand)

    def _faults(self, world: World, i: int, call: Call) -> Moves:
        """refused: nothing happens; lost: it happened, and is tried again; unknown: it happened; late: it will."""
        name = f"{world.hands[i].worker.actor}: {call.name}"
        yield f"{name} refused", self._log(world, i, (REFUSED,))
        if call.name in WRITES:
            store, _ = self.bench.perform(world.store, call.name, call.args)
            written = world._replace(store=store)
            yield f"{name} lost", self._log(written, i, (LOST,))
            yield f"{name} unknown", self._log(written, i, (REFUSED,))
            late = world._replace(late=(*world.late, (call.name, call.args)))
            yield f"{name} late", self._log(late, i, (REFUSED,))

    def _forget(self, world: World, d: int) -> World:
        """The ledger's process dies. Beats under way are lost with it: they are asked once (max_task_retries=0)."""
        mail = tuple(letter for letter in world.mail if world.hands[letter[0]].driver != d or letter[1] != "sent")
        loading = (self.bench.done(world.store), True, ())
        return world._replace(drivers=put(world.drivers, d, ledger=None, loading=loading, dying=()), mail=mail)

    def _take_over(self, world: World) -> World:
        """The first driver is dead, and its workers go on to their next call of its ledger; or it is to give way."""
        if self.superseded:
            world = world._replace(drivers=put(world.drivers, 0, stop="told"))
        else:
            world = world._replace(drivers=put(world.drivers, 0, alive=False, dying=()), mail=(), owed=())
        return self._driver(world, self.takers)


@dataclass
class Found:
    """worlds, moves and paths from the first world to where nothing moves; seconds; violated: invariant -> a path."""

    worlds: int = 0
    moves: int = 0
    paths: int = 0
    ends: int = 0
    stores: int = 0
    seconds: float = 0.0
    violated: dict[str, list[str]] = field(default_factory=dict)


class Enumeration:
    """Visits every world once, breadth first, so that the path to a violation is the shortest.

    cut: in each world all processes may also end at once, and a fresh driver is to finish what they left.
    """

    def __init__(self, rules: Rules, cut: bool = True) -> None:
        self.rules, self.bench, self.cut, self.found = rules, rules.bench, cut, Found()
        self._numbers: dict[World, int] = {}
        self._worlds: list[World] = []
        self._from: list[tuple[int, str]] = []
        self._next: list[list[int]] = []

    def run(self, first: World, until: str = "") -> Found:
        """until: the invariant whose first violation ends it."""
        started = time.perf_counter()
        self._visit(first, -1, "")
        while len(self._next) < len(self._worlds) and until not in self.found.violated:
            self._expand(len(self._next))
        self._sum_up(time.perf_counter() - started, complete=len(self._next) == len(self._worlds))
        return self.found

    def _expand(self, number: int) -> None:
        world = self._worlds[number]
        steps = list(self.rules.steps(world))
        if not steps:
            self.found.ends += 1
            self._look_at_end(world, number)
        self._next.append([self._visit(after, number, name) for name, after in (*steps, *self.rules.mishaps(world))])

    def _visit(self, world: World, parent: int, name: str) -> int:
        number = self._numbers.get(world)
        if number is None:
            number = self._numbers[world] = len(self._worlds)
            self._worlds.append(world)
            self._from.append((parent, name))
            for invariant in self._violations(world):
                self._note(invariant, number)
        if parent >= 0 and self.bench.changed(self._worlds[parent].store, world.store):
            self._note(KEPT, number)
        return number

    def _violations(self, world: World) -> Iterator[str]:
        yield from self.bench.faults_of(world.store)
        if self.cut and not self.resumes(world.store):
            yield PROGRESS
        if "none died" in world.owed:
            yield DEATH
        hands = {hand.worker: hand for hand in world.hands if hand.state == "alive"}
        for driver in world.drivers:
            if driver.alive and driver.ledger is not None:
                for shard, worker in self.bench.leases(driver.ledger):
                    hand = hands.get(worker)
                    if hand and not (hand.log and self.bench.shard_of(hand.log) == shard):
                        yield LEASE

    def _look_at_end(self, world: World, number: int) -> None:
        """All is done, and each living driver knows it; or the run was stopped, and another driver can end it."""
        every = self.bench.complete(world.store)
        for driver in world.drivers:
            if driver.alive:
                snapshot = self.bench.report_error(driver.ledger, world.clock, "snapshot")[1]
                if not snapshot.finished or not (every or snapshot.fatal or driver.stop):
                    self._note(PROGRESS, number)
        if not self.resumes(world.store):
            self._note(PROGRESS, number)

    def resumes(self, store: int) -> bool:
        """Whether a fresh driver with one worker ends a run that is left like this."""
        return self.bench.keep(("resumes", store), lambda: self._resumes(store))

    def _resumes(self, store: int) -> bool:
        world = self.rules.first(1, Left(), store, "fresh ")
        while move := next(self.rules.steps(world), None):
            world = move[1]
        return (
            self.bench.complete(world.store)
            and not self.bench.faults_of(world.store)
            and not self.bench.changed(store, world.store)
        )

    def _note(self, invariant: str, number: int) -> None:
        if invariant not in self.found.violated:
            path = []
            while number > 0:
                number, name = self._from[number]
                path.append(name)
            self.found.violated[invariant] = path[::-1]

    def _sum_up(self, seconds: float, complete: bool) -> None:
        found = self.found
        found.worlds, found.moves = len(self._worlds), sum(map(len, self._next))
        found.stores, found.seconds = len({world.store for world in self._worlds}), seconds
        if complete:
            found.paths = paths(self._next)


def paths(following: list[list[int]]) -> int:
    """From the first to those that nothing follows. AssertionError where a path comes back to where it was."""
    counts, open_, stack = {}, set(), [0]
    while stack:
        at = stack[-1]
        if at in counts:
            stack.pop()
        elif at in open_:
            stack.pop()
            counts[at] = sum(counts[each] for each in following[at]) or 1
        else:
            open_.add(at)
            for each in following[at]:
                assert each in counts or each not in open_, "a path without an end"
                if each not in counts:
                    stack.append(each)
    return counts[0]
