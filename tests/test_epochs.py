"""Epochs: of two drivers one works; the dead are not waited for; who is taken over notices."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.run import drivers as epochs
from pipelines.run.drivers import (
    BEAT_S,
    EXPIRY_S,
    SKEW_S,
    ActiveRunError,
    Clock,
    Process,
    claim,
    driving,
    taken_over_by,
)
from pipelines.run.layout import RunFolder
from pipelines.storage.folder import StorageOptions

HERE = Process("here", os.getpid(), "this boot", epochs._born(os.getpid()))
ELSEWHERE = Process("elsewhere", 7, "another boot", "1")


class FakeClock:
    """Time that passes only in sleep; `each` is called after every one."""

    def __init__(self, each=lambda: None):
        self.at, self.each = 1e9, each

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        self.each()

    def clock(self) -> Clock:
        return Clock(lambda: self.at, self.sleep)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def test_epochs_are_numbered_and_never_created_twice(run: RunFolder) -> None:
    for number in (1, 2, 3):
        epoch = claim(run, process=HERE)
        assert epoch.term.number == number
        epoch.end()
    assert run.names("epochs") == ["000001.json", "000002.json", "000003.json"]
    record = json.loads(run.read("epochs/000002.json"))
    assert record["host"] == "here"
    assert record["ended_at"]


def test_a_live_process_of_this_machine_is_refused_at_once(run: RunFolder) -> None:
    time = FakeClock()
    claim(run, clock=time.clock(), process=HERE)
    with pytest.raises(
        ActiveRunError, match=rf"host here, process {HERE.pid}, since 2001-09-09 01:46:40 UTC"
    ) as raised:
        claim(run, clock=time.clock(), process=HERE)
    assert "--take-over" in str(raised.value)
    assert time.at == 1e9
    assert len(run.names("epochs")) == 1


def test_a_dead_process_of_this_machine_is_not_waited_for(run: RunFolder) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    this = Process.this()
    driver = Process(this.host, child.pid, this.space, epochs._born(child.pid))
    claim(run, process=driver)
    with pytest.raises(ActiveRunError):
        claim(run)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert driver.is_gone(this)  # though nobody has reaped it yet
    child.wait()
    assert claim(run).term.number == 2
    assert Process(this.host, os.getpid(), this.space, "1").is_gone(this)  # its number is another's now


def test_a_silent_driver_elsewhere_is_watched_until_it_expires(run: RunFolder) -> None:
    time, said = FakeClock(), []
    claim(run, clock=time.clock(), process=ELSEWHERE)
    assert claim(run, clock=time.clock(), process=HERE, on_wait=said.append).term.number == 2
    assert EXPIRY_S <= time.at - 1e9 <= EXPIRY_S + 1
    assert "did not say that it ended: host elsewhere, process 7" in said[0]


@pytest.mark.parametrize("skew_s", [-600, 0, 600])
def test_a_driver_elsewhere_that_beats_is_refused_whatever_its_clock_says(run: RunFolder, skew_s: float) -> None:
    time = FakeClock()
    theirs = Clock(lambda: time.at + skew_s, time.sleep)
    first = claim(run, clock=theirs, process=ELSEWHERE)
    time.at += 3 * BEAT_S
    time.each = lambda: first.beat() if int(time.at) % BEAT_S == 0 else None
    before = time.at
    with pytest.raises(ActiveRunError, match="elsewhere"):
        claim(run, clock=time.clock(), process=HERE)
    assert time.at - before <= 2 * BEAT_S


def test_a_driver_elsewhere_that_ends_is_waited_for_no_longer(run: RunFolder) -> None:
    time = FakeClock()
    first = claim(run, clock=time.clock(), process=ELSEWHERE)
    time.each = first.end
    assert claim(run, clock=time.clock(), process=HERE).term.number == 2
    assert time.at - 1e9 < 3


def test_yesterdays_driver_is_not_waited_for(run: RunFolder) -> None:
    time = FakeClock()
    claim(run, clock=time.clock(), process=ELSEWHERE)
    time.at += EXPIRY_S + SKEW_S + 1
    before = time.at
    assert claim(run, clock=time.clock(), process=HERE).term.number == 2
    assert time.at == before


def test_the_first_notices_that_it_was_taken_over(run: RunFolder) -> None:
    first = claim(run, process=ELSEWHERE)
    assert first.beat()
    second = claim(run, take_over=True, process=HERE)
    record = run.read("epochs/000001.json")
    assert not first.beat()
    assert first.lost.is_set()
    assert "another run took over: host here" in taken_over_by(first)
    first.end()
    assert run.read("epochs/000001.json") == record  # the loser leaves all as it is
    assert second.beat()
    assert not second.lost.is_set()


def test_two_that_created_one_epoch(run: RunFolder) -> None:
    """On a store without create-if-absent: the one whose record was replaced stops."""
    first = claim(run, process=ELSEWHERE)
    other = epochs.Epoch(run, first.term.number, HERE, Clock())
    run.write("epochs/000001.json", json.dumps(other.record).encode())
    assert not first.beat()
    assert other.beat()


def test_an_epoch_folder_that_was_deleted_is_no_reason_to_stop(run: RunFolder) -> None:
    epoch = claim(run, process=HERE)
    run.delete(["epochs/000001.json"])
    assert epoch.beat()
    assert run.names("epochs") == ["000001.json"]


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_one_of_eight_at_once(where: str, run: RunFolder, request: pytest.FixtureRequest) -> None:
    if where == "s3":
        server = request.getfixturevalue("s3")
        run = RunFolder(f"s3://{server.bucket()}/run", StorageOptions(server.endpoint_url))
    start = threading.Barrier(8)

    def driver(_: int) -> bool:
        start.wait()
        try:
            claim(run, process=HERE)
        except ActiveRunError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(driver, range(8))).count(True) == 1
    assert run.names("epochs") == ["000001.json"]


def test_driving_beats_and_says_goodbye(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "BEAT_S", 0.02)
    with driving(run) as first:
        while first.record["beats"] < 3:
            pass
        with pytest.raises(ActiveRunError):
            claim(run)
        with driving(run, take_over=True) as second:
            assert first.lost.wait(10)
            assert not second.lost.is_set()
    with driving(run) as third:
        assert third.term.number == 3
    assert [bool(json.loads(run.read(f"epochs/{name}"))["ended_at"]) for name in run.names("epochs")] == [
        False,
        True,
        True,
    ]


def test_a_driver_that_raises_says_goodbye_too(run: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError):
        with driving(run):
            raise ZeroDivisionError
    assert claim(run).term.number == 2
