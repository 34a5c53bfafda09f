"""Epochs: of two drivers one works; a dead one is found by its heartbeat; who is taken over notices."""

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.run import drivers as epochs
from pipelines.run.drivers import (
    EXPIRY_S,
    HEARTBEAT_S,
    ActiveRunError,
    SupersededError,
    claim,
    demand_driver,
    driving,
    taken_over_by,
)
from pipelines.run.layout import RunFolder
from pipelines.storage.folder import StorageOptions
from tests.waiting import until

HERE = (socket.gethostname(), os.getpid())
ELSEWHERE = ("elsewhere", 7)


class Passing:
    """Time that passes only in sleep; `each` is called after every one."""

    def __init__(self, each=lambda: None):
        self.seconds, self.each = 0.0, each

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.each()


def driver(run: RunFolder, process: tuple[str, int]) -> epochs.Epoch:
    """A driver that this process stands for."""
    epoch = claim(run, take_over=True)
    epoch.record |= dict(zip(("host", "pid"), process, strict=True))
    assert epoch.heartbeat()
    return epoch


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def test_epochs_are_numbered_and_never_created_twice(run: RunFolder) -> None:
    for number in (1, 2, 3):
        epoch = claim(run)
        assert epoch.id.number == number
        epoch.end()
    assert run.names("epochs") == ["000001.json", "000002.json", "000003.json"]
    record = json.loads(run.read("epochs/000002.json"))
    assert record["host"] == socket.gethostname()
    assert record["ended_at"]


@pytest.mark.parametrize("process", [HERE, ELSEWHERE])
def test_a_driver_with_a_heartbeat_is_refused(run: RunFolder, process: tuple[str, int]) -> None:
    first, time = driver(run, process), Passing()
    time.each = lambda: time.seconds % HEARTBEAT_S or first.heartbeat()
    said = rf"host {process[0]}, process {process[1]}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC, last heard of "
    with pytest.raises(ActiveRunError, match=said) as raised:
        claim(run, sleep=time.sleep)
    assert "--take-over" in str(raised.value)
    assert time.seconds == HEARTBEAT_S
    assert len(run.names("epochs")) == 1


@pytest.mark.parametrize("process", [HERE, ELSEWHERE])
def test_a_silent_driver_is_watched_until_it_expires(run: RunFolder, process: tuple[str, int]) -> None:
    """HERE lives: its number may be another's now."""
    time, said = Passing(), []
    driver(run, process)
    assert claim(run, sleep=time.sleep, on_wait=said.append).id.number == 2
    assert time.seconds == EXPIRY_S
    assert f"did not say that it ended: host {process[0]}, process {process[1]}" in said[0]


@pytest.fixture
def dead() -> tuple[str, int]:
    """As this machine sees it."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return socket.gethostname(), child.pid


def test_a_dead_process_of_this_machine_is_not_waited_for(run: RunFolder, dead: tuple[str, int]) -> None:
    time, said = Passing(), []
    driver(run, dead)
    assert claim(run, sleep=time.sleep, on_wait=said.append).id.number == 2
    assert (time.seconds, said) == (0, [])


def test_a_dead_number_with_a_heartbeat_lives_on_another_machine(run: RunFolder, dead: tuple[str, int]) -> None:
    """Two machines, or containers, of one host name."""
    first, time = driver(run, dead), Passing()
    first.record["machine"] = "0242ac110002"
    first.heartbeat()
    time.each = lambda: time.seconds % HEARTBEAT_S or first.heartbeat()
    with pytest.raises(ActiveRunError):
        claim(run, sleep=time.sleep)


def test_the_number_of_a_process_elsewhere_says_nothing(run: RunFolder, dead: tuple[str, int]) -> None:
    time = Passing()
    driver(run, ("elsewhere", dead[1]))
    claim(run, sleep=time.sleep)
    assert time.seconds == EXPIRY_S


def test_the_record_of_an_earlier_version_is_read(run: RunFolder) -> None:
    """It has a boot and the start of its process, too."""
    epoch, time = driver(run, ELSEWHERE), Passing()
    run.write("epochs/000001.json", json.dumps(epoch.record | {"space": "boot pid:[1]", "born": "17"}).encode())
    assert claim(run, sleep=time.sleep).id.number == 2
    assert time.seconds == EXPIRY_S


def test_a_driver_that_ends_is_waited_for_no_longer(run: RunFolder) -> None:
    first = driver(run, ELSEWHERE)
    time = Passing(first.end)
    assert claim(run, sleep=time.sleep).id.number == 2
    assert time.seconds < 3


def test_the_first_notices_that_it_was_taken_over(run: RunFolder) -> None:
    first = driver(run, ELSEWHERE)
    assert first.heartbeat()
    second = claim(run, take_over=True)
    record = run.read("epochs/000001.json")
    assert not first.heartbeat()
    assert first.lost.is_set()
    assert f"another run took over: host {socket.gethostname()}" in taken_over_by(first)
    with pytest.raises(SupersededError, match="another run has taken over"):
        demand_driver(run, first.id)
    demand_driver(run, second.id)
    first.end()
    assert run.read("epochs/000001.json") == record  # the loser leaves all as it is
    assert second.heartbeat()
    assert not second.lost.is_set()


def test_two_that_created_one_epoch(run: RunFolder) -> None:
    """On a store without create-if-absent: the one whose record was replaced stops."""
    first = driver(run, ELSEWHERE)
    other = epochs.Epoch(run, first.id.number)
    run.write("epochs/000001.json", json.dumps(other.record).encode())
    assert not first.heartbeat()
    assert other.heartbeat()


def test_an_epoch_folder_that_was_deleted_is_no_reason_to_stop(run: RunFolder) -> None:
    epoch = claim(run)
    run.delete(["epochs/000001.json"])
    assert epoch.heartbeat()
    assert run.names("epochs") == ["000001.json"]


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_one_of_eight_at_once(where: str, run: RunFolder, request: pytest.FixtureRequest) -> None:
    if where == "s3":
        server = request.getfixturevalue("s3")
        run = RunFolder(f"s3://{server.bucket()}/run", StorageOptions(server.endpoint_url))
    start, claimed = threading.Barrier(8), list[epochs.Epoch]()

    def heartbeat(_: float) -> None:
        until(lambda: claimed)[0].heartbeat()

    def driver(_: int) -> bool:
        start.wait()
        try:
            claimed.append(claim(run, sleep=heartbeat))
        except ActiveRunError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(driver, range(8))).count(True) == 1
    assert run.names("epochs") == ["000001.json"]


def test_driving_beats_and_says_goodbye(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "HEARTBEAT_S", 0.02)
    with driving(run) as first:
        while first.record["beats"] < 3:
            pass
        with pytest.raises(ActiveRunError):
            claim(run)
        with driving(run, take_over=True) as second:
            assert first.lost.wait(10)
            assert not second.lost.is_set()
    with driving(run) as third:
        assert third.id.number == 3
    assert [bool(json.loads(run.read(f"epochs/{name}"))["ended_at"]) for name in run.names("epochs")] == [
        False,
        True,
        True,
    ]


def test_a_driver_that_raises_says_goodbye_too(run: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError):
        with driving(run):
            raise ZeroDivisionError
    assert claim(run).id.number == 2
