"""The ledger without Ray: leases, deaths, failures, the end."""

import random

import pytest

from pipelines.render.ledger import (
    ARRIVAL_S,
    LEASE_TIMEOUT_S,
    MAX_ATTEMPTS,
    MAX_DEATHS,
    MAX_LOSSES,
    FailureLimit,
    Ledger,
)
from pipelines.render.messages import DONE, WAIT, Heartbeat, HeartbeatReply, Lease, LeasedShard, Slot, Worker
from pipelines.render.repaired_shard import RepairOrder

OK = {"ok": 10, "failed": 0, "filtered": 0, "steps": 100}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shard(name, lane_steps=100, pools=("default",), rows=10):
    return LeasedShard(name, "part", 0, rows, rows, lane_steps, pools)


def slot(actor="a", number=0, pool="default", incarnation="1"):
    return Slot(Worker(actor, incarnation, pool), number)


def test_longest_first_and_the_same_slot_gets_the_same_shard():
    ledger = Ledger([shard("s1", 5), shard("s2", 9), shard("s3", 7)])
    assert ledger.lease(slot()).shard.id == "s2"
    assert ledger.lease(slot()).shard.id == "s2"
    assert ledger.lease(slot(number=1)).shard.id == "s3"
    assert ledger.lease(slot("b")).shard.id == "s1"
    assert ledger.lease(slot("b", 1)) == WAIT  # it holds one, and another may be given back
    assert ledger.lease(slot("c")) == DONE  # it holds none: no GPU is paid for while the others work


def test_done_is_judged_by_what_the_pool_may_serve():
    ledger = Ledger([shard("big", pools=("gpu",)), shard("small", pools=("gpu", "cpu"))], done=["small"])
    assert ledger.lease(slot("c", pool="cpu")) == DONE
    assert ledger.lease(slot("g", pool="gpu")).shard.id == "big"


def test_a_pool_helps_where_it_may():
    ledger = Ledger([shard("s1", pools=("gpu", "cpu")), shard("s2", pools=("gpu", "cpu"))])
    assert ledger.lease(slot("g", pool="gpu")).shard.id == "s1"
    assert ledger.lease(slot("c", pool="cpu")).shard.id == "s2"


def test_finishing_counts_once():
    ledger = Ledger([shard("s1"), shard("s2")])
    ledger.lease(slot())
    ledger.finish(slot(), "s1", OK)
    ledger.finish(slot("b"), "s1", OK)  # a zombie whose commit lost
    state = ledger.snapshot()
    assert (state.shards_done, state.rows_done, state.ok, state.steps) == (1, 10, 10, 100)
    assert not state.finished


def test_a_new_incarnation_voids_the_old_leases():
    ledger = Ledger([shard("s1")])
    assert ledger.lease(slot()).failures == 0
    again = ledger.lease(slot(incarnation="2"))
    assert (again.shard.id, again.failures) == ("s1", 1)


def test_a_silent_worker_loses_its_lease():
    clock = Clock()
    ledger = Ledger([shard("s1")], clock=clock)
    ledger.lease(slot())
    clock.now = LEASE_TIMEOUT_S - 1
    assert ledger.lease(slot("b")) == DONE
    ledger.heartbeat(Heartbeat(slot().worker, {"s1": 3}, {}))
    clock.now = LEASE_TIMEOUT_S + 1
    assert ledger.lease(slot("b")) == DONE
    clock.now = 2 * LEASE_TIMEOUT_S + 1
    assert ledger.lease(slot("b")) == Lease(shard("s1"), 0)  # silence is nobody's fault


def test_shards_that_are_lost_for_ever_end_the_run():
    clock = Clock()
    ledger = Ledger([shard("s1")], clock=clock)
    for life in range(MAX_LOSSES):
        assert ledger.lease(slot(f"a{life}")).failures == 0
        clock.now += LEASE_TIMEOUT_S + 1
    ledger.snapshot()
    assert ledger.lease(slot("b")) == DONE
    assert f"lost {MAX_LOSSES} times" in ledger.snapshot().fatal


def test_a_shard_that_failed_is_leased_alone():
    ledger = Ledger([shard("bad", 9), shard("good", 5)], deaths={"bad": 1})
    assert ledger.lease(slot()).shard.id == "good"
    assert ledger.lease(slot(number=1)) == WAIT
    assert ledger.lease(slot("b")).shard.id == "bad"
    assert ledger.lease(slot("b", 1)) == WAIT
    ledger.release(slot(), "good")
    assert ledger.lease(slot("b", 1)) == WAIT  # its worker holds one that failed before


def test_a_shard_is_isolated_after_three_deaths_and_not_after_other_failures():
    ledger = Ledger([shard("s1")], deaths={"s1": MAX_ATTEMPTS - 1})
    assert not ledger.lease(slot()).isolate
    ledger.fail(slot(), "s1", "StorageError: away")
    assert ledger.lease(slot()) == Lease(shard("s1"), MAX_ATTEMPTS)
    assert ledger.lease(slot(incarnation="2")) == Lease(shard("s1"), MAX_ATTEMPTS + 1, isolate=True)


def test_a_second_shard_is_leased_only_while_the_others_find_one():
    ledger = Ledger([shard(f"s{i}") for i in range(5)])
    for actor in "abc":
        assert ledger.lease(slot(actor)) != WAIT
    assert ledger.lease(slot("a", 1)) == WAIT  # two are free, for b and c
    ledger.process_ended("c", ["n"])
    assert ledger.lease(slot("a", 1)) != WAIT


@pytest.mark.parametrize(("living", "failures"), [(["n1"], 1), (["n2"], 0)])
def test_an_attempt_counts_only_where_a_process_died_on_a_living_node(living, failures):
    written = []
    ledger = Ledger([shard("s1")], on_death=lambda *death: written.append(death))
    here = Slot(Worker("a", "1", "default", "n1"), 0)
    ledger.lease(here)
    ledger.process_ended("a", living)
    assert ledger.lease(slot("b")) == Lease(shard("s1"), failures)
    assert [shard_id for shard_id, _ in written] == ["s1"] * failures
    assert ledger.lease(here) == DONE  # whatever is still heard of that life
    assert ledger.heartbeat(Heartbeat(here.worker, {"s1": 1}, {})).drop == ("s1",)


@pytest.mark.parametrize("end", ["fail", "release", "finish"])
def test_a_late_heartbeat_adopts_nothing_that_its_worker_has_ended(end):
    """A heartbeat that was under way when the worker reported: nobody would work on the shard for a minute."""
    ledger = Ledger([shard("s1"), shard("s2", 1)])
    ledger.lease(slot())
    getattr(ledger, end)(slot(), "s1", *{"fail": ("no",), "release": (), "finish": (OK,)}[end])
    assert ledger.heartbeat(Heartbeat(slot().worker, {"s1": 3}, {})).drop == ("s1",)
    assert ledger.snapshot().leased == 0
    names = [ledger.lease(slot(actor)).shard.id for actor in ("b", "c") if end != "finish" or actor == "b"]
    assert sorted(names) == (["s2"] if end == "finish" else ["s1", "s2"])
    assert ledger.snapshot().deaths == 0


def test_a_broken_engine_counts_for_all_that_its_worker_holds():
    ledger = Ledger([shard("s1"), shard("s2")])
    ledger.lease(slot())
    ledger.lease(slot(number=1))
    ledger.engine_broke(slot().worker, "EngineBroken: an illegal memory access")
    assert ledger.lease(slot("b")).failures == 1
    assert ledger.lease(slot("c")).failures == 1
    assert ledger.snapshot().errors == ("EngineBroken: an illegal memory access",)
    assert ledger.snapshot().ok == 0


def on(node, actor="a", incarnation="1"):
    return Slot(Worker(actor, incarnation, "default", node), 0)


def test_a_shard_is_not_given_back_to_the_node_it_died_on_while_there_are_others():
    ledger = Ledger([shard("s1"), shard("s2", 5)])
    bad, good = on("n1"), on("n2", "b")
    assert ledger.lease(bad).shard.id == "s1"
    assert ledger.lease(good).shard.id == "s2"
    ledger.engine_broke(bad.worker, "EngineBroken")
    again = on("n1", incarnation="2")
    assert ledger.lease(again) == WAIT  # it may be needed if the other goes
    ledger.finish(good, "s2", OK)
    assert ledger.lease(good) == Lease(shard("s1"), 1)


def test_a_shard_is_given_back_to_its_node_where_that_is_the_only_one():
    ledger = Ledger([shard("s1")])
    ledger.lease(on("n1"))
    ledger.engine_broke(on("n1").worker, "EngineBroken")
    assert ledger.lease(on("n1", incarnation="2")) == Lease(shard("s1"), 1)


def test_how_often_an_engine_broke_is_counted_until_it_finishes_a_shard():
    ledger = Ledger([shard("s1"), shard("s2", 5)])
    for life in "123":
        ledger.lease(on("n1", incarnation=life))
        ledger.engine_broke(on("n1", incarnation=life).worker, "EngineBroken")
    assert ledger.snapshot().broke == {"a": 3}
    last = on("n1", incarnation="4")
    ledger.finish(last, ledger.lease(last).shard.id, OK)
    assert (ledger.snapshot().broke, ledger.snapshot().proved) == ({}, {"a"})
    ledger.process_ended("a", ["n1"])
    assert ledger.snapshot().proved == frozenset()


def test_a_new_life_on_another_node_says_nothing_of_the_old_one():
    ledger = Ledger([shard("s1")])
    ledger.lease(on("n1"))
    assert ledger.lease(on("n2", incarnation="2")).failures == 0


def test_a_new_ledger_that_is_to_stop_waits_for_what_is_in_work():
    clock = Clock()
    reborn = Ledger([shard("s1")], clock=clock, adopting_s=3)
    reborn.stop()
    assert (reborn.snapshot().adopting, reborn.snapshot().finished) == (True, False)
    reborn.heartbeat(Heartbeat(slot().worker, {"s1": 4}, {}))
    clock.now = 4
    assert not reborn.snapshot().finished
    reborn.finish(slot(), "s1", OK)
    assert reborn.snapshot().finished


def test_a_pool_that_gets_no_more_workers_still_has_two_shards_in_hand():
    clock = Clock()
    ledger = Ledger([shard(f"s{i}") for i in range(9)], clock=clock, actors={"default": 1000})
    ledger.lease(slot())
    assert ledger.lease(slot(number=1)) == WAIT  # the others may be on their way
    clock.now = ARRIVAL_S + 1
    assert ledger.lease(slot(number=1)) != WAIT


def counts(ok, failed, bad=0, filtered=0):
    reasons = {"NotFinite: nan": failed}
    return {
        "ok": ok,
        "failed": failed + bad,
        "filtered": filtered,
        "steps": 0,
        "engine_failed": failed,
        "reasons": reasons,
    }


@pytest.mark.parametrize(
    ("shards", "fraction", "stops"),
    [
        ([counts(20, 10), counts(20, 10)], 0.01, True),
        ([counts(20, 40)], 0.01, False),  # one shard may be an odd one
        ([counts(20, 2), counts(20, 3)], 0.01, False),  # fewer than 50 rows
        ([counts(55, 0, bad=200), counts(55, 5)], 0.01, False),  # bad rows never reached an engine
        ([counts(30, 0, filtered=300), counts(30, 0, filtered=300)], 0.01, False),
        ([counts(90, 10), counts(90, 10)], 0.01, False),  # ten times, and not more
        ([counts(89, 11), counts(89, 11)], 0.01, True),
        ([counts(89, 11), counts(89, 11)], 0.2, False),
        ([counts(99, 1), counts(99, 1)], 0.0, False),
        ([counts(0, 100), counts(0, 100)], None, False),
        ([counts(4, 96), counts(4, 96)], 0.5, True),  # whatever may fail: not the whole night
    ],
)
def test_a_run_of_far_too_many_failures_stops_while_it_is_cheap(shards, fraction, stops):
    limit = None if fraction is None else FailureLimit(fraction)
    ledger = Ledger([shard(f"s{i}") for i in range(9)], limit=limit)
    for done in shards:
        ledger.finish(slot(), ledger.lease(slot()).shard.id, done)
    state = ledger.snapshot()
    assert (state.fatal is not None) == stops
    assert state.finished == stops
    if stops:
        assert "NotFinite: nan" in state.fatal
        assert "stop_early: false" in state.fatal


def test_a_shard_that_keeps_raising_ends_the_run_with_its_reason():
    ledger = Ledger([shard("s1"), shard("s2")])
    for _ in range(MAX_ATTEMPTS):
        assert ledger.lease(slot()).shard.id in ("s1", "s2")
        held = ledger.lease(slot()).shard.id
        if held == "s2":
            ledger.finish(slot(), "s2", OK)
            held = ledger.lease(slot()).shard.id
        ledger.fail(slot(), held, "StorageError: bucket is gone")
    state = ledger.snapshot()
    assert state.finished
    assert "s1 failed 3 times, the last time with StorageError: bucket is gone" in state.fatal
    assert ledger.lease(slot("b")) == DONE


def test_deaths_do_not_end_the_run():
    ledger = Ledger([shard("s1")])
    for life in range(7):
        assert ledger.lease(slot(incarnation=str(life))).failures == life
    assert ledger.snapshot().fatal is None


def test_stop_lets_what_is_in_work_finish():
    ledger = Ledger([shard("s1"), shard("s2")])
    ledger.lease(slot())
    ledger.stop()
    assert not ledger.snapshot().finished
    assert ledger.lease(slot("b")) == DONE
    assert ledger.heartbeat(Heartbeat(slot().worker, {"s1": 1}, {})) == HeartbeatReply()
    ledger.finish(slot(), "s1", OK)
    assert ledger.snapshot().finished
    assert ledger.snapshot().shards_done == 1


def test_a_new_ledger_adopts_leases_from_heartbeats():
    reborn = Ledger([shard("s1"), shard("s2")])
    reborn.heartbeat(Heartbeat(slot().worker, {"s1": 4}, {"images": 4}))
    assert reborn.lease(slot("b")).shard.id == "s2"
    assert reborn.snapshot().images_in_work == 4
    reborn.finish(slot(), "s1", OK)
    assert reborn.snapshot().shards_done == 1


def test_a_new_ledger_listens_before_it_leases():
    clock = Clock()
    reborn = Ledger([shard("s1"), shard("s2")], clock=clock, adopting_s=3)
    assert reborn.lease(slot("b")) == WAIT
    reborn.heartbeat(Heartbeat(slot().worker, {"s1": 4}, {}))
    clock.now = 3
    assert reborn.lease(slot("b")).shard.id == "s2"
    assert reborn.heartbeat(Heartbeat(slot("z").worker, {"s2": 4}, {})).drop == ("s2",)  # too late


def test_workers_beat_less_often_where_there_are_many():
    ledger = Ledger([shard("s1")])
    for i in range(400):
        answer = ledger.heartbeat(Heartbeat(slot(f"a{i}").worker, {}, {}))
    assert answer.interval_s == 4
    for i in range(2000):
        answer = ledger.heartbeat(Heartbeat(slot(f"a{i}").worker, {}, {}))
    assert answer.interval_s == 10


def test_released_shards_count_as_no_failure():
    ledger = Ledger([shard("s1")])
    ledger.lease(slot())
    ledger.release(slot(), "s1")
    assert ledger.lease(slot("b")).failures == 0


def test_stats_are_summed_over_workers():
    ledger = Ledger([shard("s1")])
    for actor in ("a", "b"):
        ledger.heartbeat(Heartbeat(slot(actor).worker, {}, {"unet_calls": 5}))
        ledger.heartbeat(Heartbeat(slot(actor).worker, {}, {"unet_calls": 7}))
    assert ledger.snapshot().stats == {"unet_calls": 14}
    assert ledger.snapshot().workers == 2


def test_workers_that_die_over_one_shard_for_ever_end_the_run():
    ledger = Ledger([shard("s1"), shard("s2", 1)])
    for life in range(MAX_DEATHS):
        assert ledger.lease(slot(incarnation=str(life), actor="a")) != DONE
        ledger.finish(slot(incarnation=str(life)), "s2", OK)
    assert ledger.lease(slot(incarnation="last")) == DONE
    assert f"s1: {MAX_DEATHS} workers died" in ledger.snapshot().fatal
    assert ledger.snapshot().deaths == MAX_DEATHS


def test_a_shard_that_another_driver_committed_is_not_leased():
    ledger = Ledger([shard("s1", 9), shard("s2", 5)])
    ledger.manifests_seen(["s1", "unknown"])
    assert ledger.lease(slot()).shard.id == "s2"
    assert (ledger.snapshot().shards_done, ledger.snapshot().rows_done, ledger.snapshot().ok) == (1, 10, 0)


def test_a_worker_hears_that_its_shard_was_committed_by_another():
    ledger = Ledger([shard("s1")])
    ledger.lease(slot())
    ledger.manifests_seen(["s1"])
    assert ledger.snapshot().shards_done == 0  # it may be this worker's own commit, not yet told
    assert ledger.heartbeat(Heartbeat(slot().worker, {"s1": 1}, {})) == HeartbeatReply(drop=("s1",))
    ledger.release(slot(), "s1")
    assert ledger.snapshot().finished
    assert ledger.heartbeat(Heartbeat(slot().worker, {"s1": 1}, {})) == HeartbeatReply(drop=("s1",))


def test_a_worker_whose_own_commit_was_found_is_counted():
    ledger = Ledger([shard("s1")])
    ledger.lease(slot())
    ledger.manifests_seen(["s1"])
    ledger.finish(slot(), "s1", OK)
    assert (ledger.snapshot().ok, ledger.snapshot().shards_done) == (10, 1)


def test_a_found_shard_whose_worker_dies_is_done():
    ledger = Ledger([shard("s1")])
    ledger.lease(slot())
    ledger.manifests_seen(["s1"])
    assert ledger.lease(slot(incarnation="2")) == DONE


def test_workers_of_a_drained_node_are_told_to_leave_and_get_nothing():
    ledger = Ledger([shard("s1"), shard("s2")])
    here, there = Slot(Worker("a", "1", "default", "n1"), 0), Slot(Worker("b", "1", "default", "n2"), 0)
    ledger.lease(here)
    ledger.drain(["n1"])
    assert ledger.heartbeat(Heartbeat(here.worker, {"s1": 1}, {})).leave
    ledger.release(here, "s1")
    assert ledger.lease(here) == WAIT
    assert not ledger.heartbeat(Heartbeat(there.worker, {}, {})).leave
    assert ledger.lease(there) == Lease(shard("s1"), 0)


def test_a_shard_that_fails_under_an_adopted_lease_is_leased_again():
    reborn = Ledger([shard("s1")])
    reborn.heartbeat(Heartbeat(slot().worker, {"s1": 4}, {}))
    reborn.fail(slot(), "s1", "no")
    assert reborn.lease(slot("b")) == Lease(shard("s1"), 1)


def test_what_is_repaired_counts_the_rows_that_are_rendered_again():
    order = RepairOrder("s1", 1, ("r1", "r2"), frozenset(), attempts=2)
    ledger = Ledger([shard("s1"), shard("s2")], ["s2"], orders={"s1": order})
    ledger.manifests_seen(["s1"])  # its manifest is the one that is repaired
    assert (ledger.snapshot().rows, ledger.snapshot().rows_done) == (20, 18)
    assert ledger.lease(slot()) == Lease(shard("s1"), 0, order)
    ledger.finish(slot(), "s1", OK | {"ok": 2})
    assert (ledger.snapshot().rows_done, ledger.snapshot().ok) == (20, 2)


@pytest.mark.parametrize("seed", range(20))
def test_random_lives_finish_every_shard_once(seed):
    rng, clock = random.Random(seed), Clock()
    names = [f"s{i}" for i in range(12)]
    ledger = Ledger([shard(n, rng.randrange(1, 50)) for n in names], clock=clock)
    lives, committed = dict.fromkeys("abc", 0), []
    for _ in range(2000):
        clock.now += 1
        actor = rng.choice("abc")
        mine = slot(actor, rng.randrange(2), incarnation=str(lives[actor]))
        if rng.random() < 0.05:
            lives[actor] += 1
            continue
        lease = ledger.lease(mine)
        if lease == DONE and ledger.snapshot().finished:
            break
        if lease not in (WAIT, DONE) and rng.random() < 0.5:
            committed.append(lease.shard.id)
            ledger.finish(mine, lease.shard.id, OK)
    assert sorted(committed) == sorted(names)
    assert ledger.snapshot().finished
    assert ledger.snapshot().ok == 120


def test_the_longest_free_shard_whatever_became_of_the_others():
    """Against the plain reading of the rule: the first by rank that is free, those that failed last."""
    draw, clock = random.Random(7), Clock()
    pools = [("gpu",), ("cpu", "gpu"), ("cpu",)]
    shards = [shard(f"s{i:03}", draw.randrange(20), draw.choice(pools)) for i in range(120)]
    ledger, failures, lent = Ledger(shards, clock=clock), dict.fromkeys((s.id for s in shards), 0), {}
    slots = [slot(f"{pool}{i}", pool=pool) for pool in ("gpu", "cpu") for i in range(3)]
    leases = 0
    for _ in range(2000):
        each = draw.choice(slots)
        if each not in lent:
            free = [s for s in shards if each.worker.pool in s.pools and s.id not in lent.values()]
            answer = ledger.lease(each)
            if not [s for s in shards if each.worker.pool in s.pools]:
                assert answer == DONE
            elif not free:
                assert answer == DONE  # it holds nothing
            else:
                best = min(free, key=lambda s: (failures[s.id] > 0, -s.lane_steps, s.id))
                assert (answer.shard, answer.failures) == (best, failures[best.id])
                lent[each], leases = best.id, leases + 1
            continue
        ended = lent.pop(each)
        fate = draw.choice(("finish", "finish", "release", "reborn"))
        if fate == "finish":
            ledger.finish(each, ended, OK)
            shards = [s for s in shards if s.id != ended]
        elif fate == "release":
            ledger.release(each, ended)
        elif failures[ended] < MAX_DEATHS - 1:
            failures[ended] += 1
            reborn = slot(each.worker.actor, pool=each.worker.pool, incarnation=f"{leases}-{ended}-{failures[ended]}")
            slots[slots.index(each)] = reborn
            ledger.heartbeat(Heartbeat(reborn.worker, {}, {}))
        else:
            ledger.release(each, ended)
    assert leases > 200
    assert not shards
    assert ledger.snapshot().finished


def test_rows_that_are_repaired_do_not_stop_a_run_early():
    """They failed before: that they fail again says nothing of the others."""
    orders = {
        name: RepairOrder(name, 1, tuple(f"r{i}" for i in range(50)), frozenset(), attempts=1) for name in ("s1", "s2")
    }
    ledger = Ledger([shard("s1"), shard("s2"), shard("s3")], orders=orders, limit=FailureLimit(0.01))
    for _ in orders:
        lease = ledger.lease(slot())
        ledger.finish(slot(), lease.shard.id, counts(0, 50))
    assert ledger.snapshot().fatal is None
    assert ledger.lease(slot()).shard.id == "s3"


@pytest.mark.parametrize("end", ["fail", "release"])
def test_a_rebuilt_ledger_adopts_nothing_that_its_worker_has_ended(end):
    """The worker ended it before the new ledger had heard of the lease; a heartbeat from before that comes after."""
    reborn = Ledger([shard("s1")])
    getattr(reborn, end)(slot(), "s1", *(("no",) if end == "fail" else ()))
    assert reborn.heartbeat(Heartbeat(slot().worker, {"s1": 3}, {})).drop == ("s1",)
    assert reborn.lease(slot("b")).shard.id == "s1"


def test_a_late_heartbeat_of_a_dead_process_does_not_end_its_successor():
    ledger = Ledger([shard("s1"), shard("s2")])
    dead, living = Worker("a", "1", "default", "n1", life=0), Worker("a", "2", "default", "n1", life=1)
    held = ledger.lease(Slot(living, 0))
    assert ledger.heartbeat(Heartbeat(dead, {held.shard.id: 3}, {})).drop == (held.shard.id,)
    assert ledger.lease(Slot(dead, 0)) == DONE
    ledger.process_ended("a", ["n1"], before=1)  # said again, after the new life was heard
    assert ledger.heartbeat(Heartbeat(living, {held.shard.id: 4}, {})).drop == ()
    assert ledger.snapshot().deaths == 0
    ledger.process_ended("a", ["n1"])
    assert ledger.snapshot().deaths == 1


def test_asking_again_renews_the_lease():
    clock = Clock()
    ledger = Ledger([shard("s1")], clock=clock)
    held = ledger.lease(slot())
    clock.now = LEASE_TIMEOUT_S - 1
    assert ledger.lease(slot()) == held
    clock.now = LEASE_TIMEOUT_S + 1
    assert ledger.lease(slot("b")) == DONE
    assert ledger.snapshot().deaths == 0


def test_a_lone_worker_has_two_shards_in_hand_to_the_end():
    clock = Clock()
    ledger = Ledger([shard("s1"), shard("s2")], clock=clock)
    ledger.lease(slot())
    clock.now = ARRIVAL_S - 1
    ledger.heartbeat(Heartbeat(slot().worker, {"s1": 1}, {}))
    clock.now = ARRIVAL_S + 1
    assert ledger.lease(slot(number=1)).shard.id == "s2"


def test_a_worker_that_is_gone_is_one_less_to_leave_a_shard_for():
    ledger = Ledger([shard(name) for name in ("s1", "s2", "s3")])
    for actor in "abc":
        ledger.lease(slot(actor))
    ledger.process_ended("c", [])
    assert ledger.lease(slot("a", 1)) == WAIT  # what c gave back is for b
    ledger.process_ended("b", [])
    assert ledger.lease(slot("a", 1)) != WAIT


def test_nothing_is_leased_to_a_life_that_has_ended():
    ledger = Ledger([shard("s1"), shard("s2")])
    ledger.lease(slot())
    ledger.process_ended("a", [])
    assert ledger.lease(slot()) == DONE
    assert ledger.heartbeat(Heartbeat(slot().worker, {"s2": 1}, {})).drop == ("s2",)
    assert ledger.snapshot().workers == 0


def test_who_is_silent_does_not_count_as_alive():
    clock = Clock()
    ledger = Ledger([shard("s1")], clock=clock)
    ledger.lease(slot())
    clock.now = LEASE_TIMEOUT_S - 1
    assert ledger.snapshot().heard == {"a"}
    for clock.now in (LEASE_TIMEOUT_S, LEASE_TIMEOUT_S + 1):
        assert (ledger.snapshot().heard, ledger.snapshot().workers) == (frozenset(), 0)
    ledger.fail(slot(), "s1", "no")
    assert ledger.snapshot().heard == {"a"}  # whatever is said is a sign of life


def test_what_a_worker_does_before_its_first_lease_is_told_until_then():
    ledger = Ledger([shard("s1")])
    ledger.heartbeat(Heartbeat(slot().worker, {}, {}, "loading the model"))
    assert ledger.snapshot().stages == ("loading the model",)
    ledger.lease(slot())
    assert ledger.snapshot().stages == ()
