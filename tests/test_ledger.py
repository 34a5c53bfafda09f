"""The ledger without Ray: leases, deaths, failures, the end."""

import random

import pytest

from pipelines.ledger import DONE, LEASE_TIMEOUT_S, MAX_ATTEMPTS, WAIT, Beat, Lease, Ledger, Shard, Slot, Worker

OK = {"ok": 10, "failed": 0, "filtered": 0, "steps": 100}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shard(name, lane_steps=100, pools=("default",), rows=10):
    return Shard(name, "part", 0, rows, rows, lane_steps, pools)


def slot(actor="a", number=0, pool="default", incarnation="1"):
    return Slot(Worker(actor, incarnation, pool), number)


def test_longest_first_and_the_same_slot_gets_the_same_shard():
    ledger = Ledger([shard("s1", 5), shard("s2", 9), shard("s3", 7)])
    assert ledger.lease(slot()).shard.id == "s2"
    assert ledger.lease(slot()).shard.id == "s2"
    assert ledger.lease(slot(number=1)).shard.id == "s3"
    assert ledger.lease(slot("b")).shard.id == "s1"
    assert ledger.lease(slot("c")) == WAIT


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
    assert ledger.lease(slot("b")) == WAIT
    ledger.beat(Beat(slot().worker, {"s1": 3}, {}))
    clock.now = LEASE_TIMEOUT_S + 1
    assert ledger.lease(slot("b")) == WAIT
    clock.now = 2 * LEASE_TIMEOUT_S + 1
    assert ledger.lease(slot("b")) == Lease(shard("s1"), 1)


def test_a_shard_that_failed_is_leased_alone():
    ledger = Ledger([shard("bad", 9), shard("good", 5)], attempts={"bad": 1})
    assert ledger.lease(slot()).shard.id == "good"
    assert ledger.lease(slot(number=1)) == WAIT
    assert ledger.lease(slot("b")).shard.id == "bad"
    assert ledger.lease(slot("b", 1)) == WAIT
    ledger.finish(slot(), "good", OK)
    assert ledger.lease(slot("b", 1)) == WAIT


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
    assert ledger.beat(Beat(slot().worker, {"s1": 1}, {})) is False
    ledger.finish(slot(), "s1", OK)
    assert ledger.snapshot().finished
    assert ledger.snapshot().shards_done == 1


def test_a_new_ledger_adopts_leases_from_heartbeats():
    reborn = Ledger([shard("s1"), shard("s2")])
    reborn.beat(Beat(slot().worker, {"s1": 4}, {"images": 4}))
    assert reborn.lease(slot("b")).shard.id == "s2"
    assert reborn.snapshot().images_in_work == 4
    reborn.finish(slot(), "s1", OK)
    assert reborn.snapshot().shards_done == 1


def test_released_shards_count_as_no_failure():
    ledger = Ledger([shard("s1")])
    ledger.lease(slot())
    ledger.release(slot(), "s1")
    assert ledger.lease(slot("b")).failures == 0


def test_stats_are_summed_over_workers():
    ledger = Ledger([shard("s1")])
    for actor in ("a", "b"):
        ledger.beat(Beat(slot(actor).worker, {}, {"unet_calls": 5}))
        ledger.beat(Beat(slot(actor).worker, {}, {"unet_calls": 7}))
    assert ledger.snapshot().stats == {"unet_calls": 14}
    assert ledger.snapshot().workers == 2


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
        if lease == DONE:
            break
        if lease != WAIT and rng.random() < 0.5:
            committed.append(lease.shard.id)
            ledger.finish(mine, lease.shard.id, OK)
    assert sorted(committed) == sorted(names)
    assert ledger.snapshot().finished
    assert ledger.snapshot().ok == 120
