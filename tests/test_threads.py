"""Threads of the engine and of a worker, switched at each byte-code: figures, locks, and every order of their ends.

`Every` takes all schedules with so few preemptions, `Drawn` some of all others. Each lock that a scenario is about is
left out once: a scheduler that did not notice would prove nothing.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import actors.sampler
import pipelines.render.attempt
import pipelines.render.isolation
import pipelines.render.ledger_actor
import pipelines.render.watchdog
import pipelines.render.worker
from actors.clock import DeviceClock
from actors.denoise import Denoiser, EndOfRows, ListSource
from actors.diffusion import TextEmbeds
from actors.lanes import Lanes
from actors.rows import EngineBroken, SamplerConfig
from actors.sampler import DDIMSampler, _Request, _Requests
from pipelines.render.attempt import BusySpan, Dropped, ShardAttempt, settled
from pipelines.render.ledger_actor import LedgerActor
from pipelines.render.messages import DONE, HeartbeatReply, LeasedShard, Slot, Worker
from pipelines.render.tries import RowFailed, RowTries, TryRules
from pipelines.render.watchdog import Watchdog
from pipelines.render.worker import RenderWorker
from pipelines.run.layout import Attempt
from tests.engine import CPU, SCHEDULE, SHAPE, StandIn, denoiser, flight, row
from tests.plans import typed_row
from tests.turns import Drawn, Every, Stuck, Turns

SHARD = "0001-000000"
PICTURE = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


class NoLock:
    """In a lock's place: what a scenario is about, left out."""

    def acquire(self, *_: Any, **__: Any) -> bool:
        return True

    def release(self) -> None:
        """Nothing was taken."""

    def __enter__(self) -> None:
        """As above."""

    def __exit__(self, *_: object) -> None:
        """As above."""


def without(thing: Any, lock: str, left_out: bool) -> Any:
    if left_out:
        setattr(thing, lock, NoLock())
    return thing


class Model:
    """In the network's place: every latent is a tenth of what it was; 1 ms a call."""

    device, dtype, channels_last = CPU, torch.float32, False
    info = SimpleNamespace(fingerprint="f", scheduler_config={}, vae_scale_factor=2)

    def probe(self, after: Exception | None = None) -> None:
        """It works."""

    def encode(self, prompts: list[str]) -> TextEmbeds:
        return TextEmbeds(torch.zeros(len(prompts), 3, 4), None, [False] * len(prompts))

    def unconditional(self, negative_prompt: str | None) -> TextEmbeds:
        return self.encode([""])

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return SHAPE

    def noise(self, seed: int, width: int, height: int) -> torch.Tensor:
        return torch.zeros(SHAPE)

    def predict(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return 0.1 * x

    def decode(self, latents: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([PICTURE] * len(latents)), np.ones(len(latents), bool)


def modelled() -> ExitStack:
    """`DDIMSampler` with that model and with a device that takes 1 ms for all."""
    stack = ExitStack()
    for name, value in {
        "inspect_checkpoint": lambda *_: Model.info,
        "Diffusion": lambda *_: Model(),
        "noise_schedule": lambda *_: SCHEDULE,
        "keep_freed_memory": lambda: None,
    }.items():
        stack.enter_context(patch.object(actors.sampler, name, value))
    stack.enter_context(patch.object(DeviceClock, "_event", lambda self: StandIn()))
    return stack


@contextmanager
def alarm() -> Iterator[list[float]]:
    """In faulthandler's place: what the watchdog has armed and not taken back."""
    armed: list[float] = []
    faulthandler = SimpleNamespace(
        dump_traceback_later=lambda timeout_s, **_: armed.append(timeout_s),
        cancel_dump_traceback_later=armed.clear,
    )
    with patch.object(pipelines.render.watchdog, "faulthandler", faulthandler):
        yield armed


def rising(figures: list[dict[str, float]]) -> bool:
    return all(last[name] <= now.get(name, 0) for last, now in itertools.pairwise(figures) for name in last)


# Each scenario: threads, and what holds whatever the schedule. left_out: without the lock that it is about.


def clock(turns: Turns, left_out: bool) -> None:
    with turns:
        clock = without(DeviceClock(CPU), "_lock", left_out)
        clock._event = StandIn

        def render() -> None:
            for _ in range(2):
                with clock:
                    pass

        _, found = turns.run(render, lambda: [clock.seconds, clock.seconds])
        assert found == sorted(found)
        assert set(found) <= {0, 0.001, 0.002}
        assert (clock.seconds, len(clock._pending)) == (0.002, 0)


def counts(turns: Turns, left_out: bool) -> None:
    with turns:
        loop = without(denoiser(4), "figures", left_out)
        lanes, row = Lanes(SCHEDULE, 4, flight("a", 2), CPU), flight("a", 2)
        lanes.admit(row)
        _, found = turns.run(lambda: loop._call(lanes, [row]), lambda: [loop.counts, loop.counts])
        assert rising(found)
        assert all((c["lanes_filled"], c["lanes_offered"]) == (2 * c["unet_calls"], 4 * c["unet_calls"]) for c in found)


def stats(turns: Turns, left_out: bool) -> None:
    with modelled(), turns:
        sampler = DDIMSampler(SamplerConfig("", lanes=2, device="cpu"))
        sampler._load()
        sampler._ready.set_result(None)
        without(sampler.denoiser, "figures", left_out)
        requests = ListSource([_Request(row(num_steps=1), Future())])

        def render() -> None:
            sampler.denoiser.run(requests, sampler._deliver, sampler._fail, sampler._flush)

        _, found = turns.run(render, lambda: [sampler.stats(), sampler.stats()])
        assert rising(found)
        for figures in found:
            ahead = round(1000 * figures["unet_seconds"]) - figures["unet_calls"]  # a call is timed, then counted
            decoded = round(1000 * figures["vae_seconds"]) - figures["images"]
            assert {ahead, decoded} <= {0, 1}


def watchdog(turns: Turns, left_out: bool) -> None:
    with alarm() as armed, turns:
        dog = without(Watchdog(9.0, dict), "_lock", left_out)
        dog._thread = object()  # its looks are acts here

        def render() -> None:
            future: Future[Any] = Future()
            assert dog.watched(lambda row: future)(row()) is future
            future.set_result(PICTURE)

        turns.run(render, render, dog._look)
        assert (dog._in_hand, dog._settled) == (0, 2)
        dog._look()
        assert armed == []


def commit(turns: Turns, left_out: bool) -> None:
    """An attempt is committed or dropped, and not both, whatever settles meanwhile."""
    with turns:
        work = without(attempt(), "_lock", left_out)

        def commit() -> bool:
            try:
                return work.commit(lambda: not work.dropped)
            except Dropped:
                return False

        committed, dropped, _ = turns.run(commit, work.drop, lambda: work._note(settled(1)))
        assert committed != dropped == work.dropped


def failure(turns: Turns, left_out: bool) -> None:
    """What ended an attempt first is what it ended with."""
    with turns:
        work = without(attempt(), "_lock", left_out)
        dropped, _ = turns.run(work.drop, lambda: work._note(settled(ValueError())))
        assert dropped == work.dropped


def attempt(rows: int = 0) -> ShardAttempt:
    sink: Any = SimpleNamespace(shard=SHARD, attempt=Attempt(SHARD, 1, "0" * 8))
    planned = [typed_row(i) for i in range(rows)]
    locks = {name: threading.Lock() for name in ("_lock", "_counting")}
    return ShardAttempt(planned, sink, SamplerConfig(""), BusySpan(), **locks)


def images(turns: Turns, left_out: bool) -> None:
    with turns:
        work = without(attempt(2), "_counting", left_out)
        never: Any = None  # these rows have one try
        failed: Future[Any] = settled(RowFailed("Killed", "by itself"))
        turns.run(*[lambda row=row: work._store(never, RowTries(row), failed) for row in work.rows])
        assert work.images == 2


def span(turns: Turns, left_out: bool) -> None:
    """Of two shards that are in work at a time."""
    ticks = itertools.count(100)
    with patch.object(pipelines.render.attempt, "time", SimpleNamespace(monotonic=lambda: next(ticks))), turns:
        span = without(BusySpan(_lock=turns.lock()), "_lock", left_out)

        def render() -> None:
            span.begin()
            span.reach()

        *_, found = turns.run(render, render, lambda: [span.seconds, span.seconds])
        assert 0 <= found[0] <= found[1] <= span.seconds


def submit_and_close(turns: Turns, left_out: bool) -> None:
    """Whoever was taken is served, and who comes after the end is told so."""

    class Short(DDIMSampler):
        def _run(self) -> None:
            self._ready.set_result(None)
            with suppress(EndOfRows):
                while request := self._requests.take(wait=True):
                    request.future.set_result(PICTURE)

    with turns:
        sampler = without(Short(SamplerConfig("")), "_lock", left_out)

        def submit() -> bool:
            try:
                return sampler.submit(row()).result() is PICTURE
            except RuntimeError as error:
                return str(error) == "the sampler is closed"

        assert turns.run(submit, sampler.close) == [True, None]


def submit_and_abandon(turns: Turns, left_out: bool) -> None:
    """The loop ends while a row is submitted."""

    class Breaks(DDIMSampler):
        def _run(self) -> None:
            self._ready.set_result(None)
            gate.acquire()
            raise KeyError("a bug")

    with turns:
        sampler, gate = without(Breaks(SamplerConfig("")), "_lock", left_out), turns.lock()
        gate.acquire()

        def submit() -> None:
            sampler.load()
            gate.release()
            with pytest.raises(EngineBroken, match="the engine's loop ended with KeyError"):
                sampler.submit(row()).result()
            sampler._thread.join()

        turns.run(submit)
        assert sampler._open == set()


def ledger(turns: Turns, left_out: bool) -> None:
    """What is reported while the ledger is read is neither lost nor forgotten."""
    shards = [LeasedShard(name, "part", 0, 10, 10, 100, ("default",)) for name in ("s1", "s2")]
    task: Any = SimpleNamespace(
        shards=lambda: shards, done=lambda again: set(), deaths=dict, pools=(), epoch=None, orders={}, limit=None,
        adopting_s=0.0,
    )  # fmt: skip
    slot = Slot(Worker("a", "1", "default"), 0)
    with patch.object(LedgerActor, "__init__", lambda self: None), turns:
        actor = LedgerActor()  # without its process and its threads
        actor._task, actor._again, actor._ledger, actor._early = task, False, None, []
        actor._lock, actor._stopped = turns.lock(), False
        without(actor, "_lock", left_out)

        def report() -> None:
            actor.finish(slot, "s1", {"ok": 10})
            actor.stop()

        turns.run(actor._read, report)
        assert (actor.snapshot().ok, actor.lease(slot)) == (10, DONE)


def unwanted(turns: Turns, left_out: bool) -> None:
    """A shard that is another's by now is dropped, whether or not it has begun."""
    with turns:
        worker = without(render_worker(), "_handing", left_out)
        worker._works[SHARD] = None
        turns.run(
            lambda: worker._begin(LeasedShard(SHARD, "part", 0, 1, 1, 1, ()), []),
            lambda: worker._heed(HeartbeatReply(drop=(SHARD,))),
        )
        assert worker._works[SHARD].dropped


def render_worker() -> RenderWorker:
    run: Any = SimpleNamespace(begin_attempt=lambda *_: Attempt(SHARD, 1, "0" * 8))
    job: Any = SimpleNamespace(
        run=run, epoch=None, layout="files", image_format="png", sampler=SamplerConfig("", dtype="float32"), scorers=(),
        row_timeout_s=9.0, model=SimpleNamespace(local=lambda: "", variant=None), auto_dtype="float32",
        tries=TryRules(), rules="", variables={}, safety=None,
    )  # fmt: skip
    worker = RenderWorker(job)
    worker._worker = Worker("a", "1", "default", "n")
    return worker


def making_room(turns: Turns, left_out: bool) -> None:
    """Figures of an engine that makes room for isolation count once."""
    with patch("actors.allocator.give_back_memory"), turns:
        worker = without(render_worker(), "_figures", left_out)
        worker._sampler = SimpleNamespace(stats=lambda: {"images": 5.0}, close=lambda: None)
        _, found = turns.run(lambda: worker._isolated([]), lambda: [worker._stats() for _ in range(2)])
        assert [figures["images"] for figures in found] == [5, 5]
        assert worker._stats()["images"] == 5


SCENARIOS: dict[Callable[[Turns, bool], None], tuple[int, list[Any]]] = {  # preemptions, and what is switched in
    clock: (1, [DeviceClock._count, DeviceClock.seconds]),
    counts: (1, [Denoiser._call, Denoiser.counts]),
    stats: (1, [Denoiser._call, DDIMSampler.stats, DDIMSampler._decode_slice, DeviceClock._count, DeviceClock.seconds]),
    watchdog: (1, [Watchdog]),
    commit: (1, [ShardAttempt.commit, ShardAttempt.drop, ShardAttempt._note]),
    failure: (2, [ShardAttempt.drop, ShardAttempt._note]),
    images: (1, [ShardAttempt._store]),
    span: (1, [BusySpan]),
    submit_and_close: (1, [DDIMSampler, _Requests]),
    submit_and_abandon: (1, [DDIMSampler, _Requests]),
    ledger: (1, [LedgerActor]),
    unwanted: (1, [RenderWorker._begin, RenderWorker._heed]),
    making_room: (1, [RenderWorker._isolated, RenderWorker._engine_stats]),
}


def schedules(scenario: Callable[[Turns, bool], None], left_out: bool = False) -> Counter[str]:
    """All of them; raises at the first in which it does not hold."""
    preemptions, traced = SCENARIOS[scenario]
    every, tried = Every(preemptions), Counter[str]()
    for _ in every.schedules():
        turns = Turns(every, traced)
        scenario(turns, left_out)
        tried.update(schedules=1, points=turns.points, switches=turns.switches)
    return tried


EVERY = [  # that of making room has the most schedules by far
    pytest.param(scenario, id=scenario.__name__, marks=[pytest.mark.slow] if scenario is making_room else [])
    for scenario in SCENARIOS
]


@pytest.mark.parametrize("scenario", EVERY)
def test_every_schedule(scenario):
    tried = schedules(scenario)
    print(scenario.__name__, dict(tried))
    assert tried["schedules"] > 20


@pytest.mark.parametrize("scenario", EVERY)
def test_a_lock_left_out_is_noticed(scenario):
    with pytest.raises((AssertionError, IndexError, Stuck)):
        schedules(scenario, left_out=True)


class Engine:
    """A worker with its engine: what is done to it at once, and what holds when all of that has ended.

    rows: of each that submits. close_after: so many are settled.
    """

    def __init__(self, worker: RenderWorker, rows: int, close_after: int) -> None:
        self.rows, self.close_after = rows, close_after
        self.worker, self.sampler = worker, DDIMSampler(SamplerConfig("", lanes=2, device="cpu"))
        self.worker._sampler = self.sampler
        self.taken, self.refused = list[Future[Any]](), list[str]()
        self.settled, self.beats = Counter[Future[Any]](), list[dict[str, float]]()

    def submit(self) -> None:
        for number in range(self.rows):
            try:
                future = self.worker._watchdog.watched(self.sampler.submit)(row(str(number), num_steps=1 + number))
            except RuntimeError as error:
                self.refused.append(str(error))
                return
            self.taken.append(future)
            future.add_done_callback(lambda future: self.settled.update([future]))

    def beat(self) -> None:
        for _ in range(2):
            self.beats.append(dict(self.worker._news().stats))
            self.worker._heed(HeartbeatReply())

    def look(self) -> None:
        self.worker._watchdog._look()

    def close(self) -> None:
        """As it makes room for isolation."""
        while len(self.settled) < self.close_after:
            time.sleep(1)
        self.worker._isolated([])

    def check(self, armed: list[float]) -> None:
        assert set(self.refused) <= {"the sampler is closed"}
        assert [future.result().image is not None for future in self.taken] == [True] * len(self.taken)
        assert self.settled == Counter(self.taken)
        self.beat()
        assert rising(self.beats)
        last = self.beats[-1]
        assert last.get("images", 0) == len(self.taken)
        assert round(1000 * last.get("unet_seconds", 0)) == last.get("unet_calls", 0)
        assert last.get("lanes_offered", 0) == 2 * last.get("unet_calls", 0)
        assert self.worker._watchdog._in_hand == 0
        self.look()
        assert armed == []
        with pytest.raises(RuntimeError, match="the sampler is closed"):
            self.sampler.submit(row())


@contextmanager
def engine(turns: Turns, rows: int, close_after: int = 0) -> Iterator[Engine]:
    with modelled(), alarm() as armed, patch("actors.allocator.give_back_memory"), turns:
        engine = Engine(render_worker(), rows, close_after)
        yield engine
        engine.check(armed)


def test_every_order_of_whole_acts():
    """Each goes on until it ends or has to wait."""
    every, tried, refused = Every(0), 0, 0
    for _ in every.schedules():
        with engine(turns := Turns(every, []), 1) as under_test:
            turns.run(under_test.submit, under_test.beat, under_test.look, under_test.close)
        tried, refused = tried + 1, refused + len(under_test.refused)
    print(f"{tried:,} orders, {refused:,} in which the row was refused")
    assert 0 < refused < tried


@pytest.mark.parametrize("seed", range(20))
def test_acts_that_are_switched_at_any_byte_code(seed):
    worker = [RenderWorker._engine_stats, RenderWorker._isolated, RenderWorker._news]
    turns = Turns(Drawn(seed), [DDIMSampler, _Requests, Denoiser, Lanes, DeviceClock, Watchdog, *worker])
    with engine(turns, 2, close_after=seed % 5) as under_test:
        acts = [under_test.submit, under_test.submit, under_test.beat, under_test.look, under_test.close]
        turns.run(*acts)
    print(f"{turns.points:,} byte-codes, {turns.switches:,} switches")
    assert turns.switches > 20
