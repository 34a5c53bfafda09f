"""The ledger's process, without Ray's: what it asks the run folder, and what it answers before it has read it."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

import pipelines.render.ledger_actor
from pipelines.cluster.pools import PoolSpec
from pipelines.render.ledger_actor import LedgerActor, RenderTask
from pipelines.render.messages import DONE, WAIT, Heartbeat, HeartbeatReply, Slot, Worker
from pipelines.render.repaired_shard import RepairOrder
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.proof import NotSharedError
from tests.finished import render_shard
from tests.plans import planned_row, write_plan
from tests.waiting import until

FIRST, SECOND, THIRD = "0001-000000", "0001-000001", "0001-000002"
ME = Slot(Worker("a", "1", "default"), 0)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(str(tmp_path / "run"))
    write_plan(folder, [planned_row(i) for i in range(6)], 2)
    return folder


def task(run: RunFolder, *actors: int, **values: Any) -> RenderTask:
    pools = tuple(PoolSpec(f"pool{number}", actors=each) for number, each in enumerate(actors or (1,)))
    return RenderTask(read_plan(run), pools, **values)


def order(shard: str, revision: int = 1, attempts: int = 1) -> RepairOrder:
    return RepairOrder(shard, revision, ("r0000",), frozenset(), attempts=attempts)


def test_deaths_before_the_manifest_that_is_repaired_are_past(run):
    for shard in (FIRST, SECOND):
        for _ in range(2):
            run.begin_attempt(shard)
            run.mark_death(shard, "killed")
    assert task(run).deaths() == {FIRST: 2, SECOND: 2}
    assert task(run, orders={FIRST: order(FIRST)}).deaths() == {FIRST: 1, SECOND: 2}


def test_an_attempt_whose_name_has_no_number_is_no_death(run):
    run.write(f"attempts/{FIRST}/stray.died", b"{}")
    assert sum(task(run).deaths().values()) == 0


def test_what_is_repaired_is_not_done_yet(run):
    for shard in (FIRST, SECOND):
        render_shard(run, shard)
    orders = {FIRST: order(FIRST)}
    assert task(run).done() == {FIRST, SECOND}
    assert task(run, orders=orders).done() == {SECOND}
    assert task(run, orders=orders).done(again=True) == {SECOND}
    assert task(run, orders={FIRST: order(FIRST, revision=0)}).done(again=True) == {FIRST, SECOND}
    assert [shard.id for shard in task(run, orders=orders).shards()] == [FIRST, SECOND, THIRD]
    assert [shard.id for shard in task(run, orders=orders, only=True).shards()] == [FIRST]


@pytest.mark.parametrize(("actors", "seconds"), [((1,), 3), ((300, 200), 11), ((5000,), 21)])
def test_a_new_ledger_listens_for_two_heartbeats_of_the_slowest(run, actors, seconds):
    assert task(run, *actors).adopting_s == seconds


@pytest.fixture
def started(monkeypatch):
    """An actor in this process, with its threads; again: Ray has started it before."""

    def start(asked: Any, again: bool) -> LedgerActor:
        context = SimpleNamespace(was_current_actor_reconstructed=again)
        monkeypatch.setattr(pipelines.render.ledger_actor.ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(pipelines.render.ledger_actor, "FIRST_WAIT_S", 0.01)
        return LedgerActor(asked)

    return start


class Held(RenderTask):
    """Its run folder cannot be read before `may_read` is set; then `trouble`, where there is one, is raised."""

    def shards(self) -> Any:
        assert self.run.may_read.wait(30)
        if self.run.trouble:
            raise self.run.trouble
        return super().shards()


def held(run: RunFolder, trouble: Exception | None = None) -> Held:
    run.may_read, run.trouble = threading.Event(), trouble
    return Held(read_plan(run), (PoolSpec(),))


@pytest.mark.parametrize("again", [False, True])
def test_before_it_is_loaded_everybody_waits_and_what_they_say_is_kept(run, started, again):
    render_shard(run, FIRST)
    actor = started(asked := held(run), again)
    assert (actor.lease(ME), actor.heartbeat(Heartbeat(ME.worker, {FIRST: 1}, {}))) == (WAIT, HeartbeatReply())
    actor.finish(ME, SECOND, {"ok": 2})
    assert (actor.snapshot().loaded, actor.snapshot().finished) == (False, False)
    actor.stop()
    assert actor.snapshot().finished == (not again)  # an earlier ledger may have leased something
    asked.run.may_read.set()
    until(lambda: actor.snapshot().loaded, seconds=30)
    state = actor.snapshot()
    assert (state.shards, state.shards_done, state.rows_done, state.ok) == (3, 2, 4, 2)
    assert (state.adopting, state.finished) == (again, not again)
    assert actor.lease(ME) == DONE


ELSEWHERE, AWAY = NotSharedError("another folder"), NotSharedError("away", may_pass=True)


@pytest.mark.parametrize(
    ("trouble", "again", "refused"),
    [
        (FileNotFoundError("plan.json"), False, True),
        (FileNotFoundError("plan.json"), True, False),
        (ELSEWHERE, False, True),
        (ELSEWHERE, True, True),
        (AWAY, False, False),
        (OSError("busy"), False, False),
    ],
)
def test_what_can_never_be_read_ends_the_run_and_else_it_is_asked_again(run, started, trouble, again, refused):
    asked = held(run, trouble)
    asked.run.may_read.set()
    actor = started(asked, again)
    until(lambda: actor.snapshot().fatal or actor.snapshot().errors, seconds=30)
    state = actor.snapshot()
    assert (state.fatal is not None, state.finished) == (refused, refused)
    assert str(trouble) in (state.fatal or state.errors[0])
    if not refused:
        asked.run.trouble = None
        until(lambda: actor.snapshot().loaded, seconds=30)
        assert actor.snapshot().shards == 3


def test_a_death_that_counts_is_written_down(run, started):
    actor = started(task(run, 1), False)
    until(lambda: actor.snapshot().loaded, seconds=30)
    lost = Slot(Worker("a", "1", "pool0", "n1"), 0)
    shard = actor.lease(lost).shard.id
    run.begin_attempt(shard)
    actor.process_ended("a", ["n1"])
    until(run.deaths, seconds=30)
    assert run.deaths() == {shard: (1,)}
