"""The fault proxy itself, and a run folder behind it: each fault once, many at once, and what a resume costs."""

import os
import random
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.storage.backends import Timeouts
from pipelines.storage.folder import Folder, StorageOptions
from tests.fault_proxy import AFTER, FAULTS, Chance, FaultProxy, Request, Rule, can_have

pytestmark = pytest.mark.s3
CALLS = {
    "GET": lambda folder: folder.read("k"),
    "HEAD": lambda folder: folder.stat("k"),
    "PUT": lambda folder: folder.write("k", b"old" * 100),
    "CREATE": lambda folder: folder.create("new", b"mine" * 100),
    "LIST": lambda folder: folder.names(),
    "DELETE": lambda folder: folder.delete(["gone"]),
}
STATUS = {"GET": 200, "HEAD": 200, "PUT": 200, "CREATE": 200, "LIST": 200, "DELETE": 200}


@pytest.fixture
def proxy(fault_server: tuple[FaultProxy, str]) -> FaultProxy:
    running, _ = fault_server
    running.chance, running.hang_s = None, 0.4
    running.rules.clear()
    running.injected.clear()
    return running


@pytest.fixture
def folder(fault_server: tuple[FaultProxy, str], proxy: FaultProxy) -> Folder:
    made = Folder(f"s3://{fault_server[1]}/{secrets.token_hex(4)}", StorageOptions(proxy.endpoint_url))
    made.write("k", b"old" * 100)
    return made


def test_requests_are_counted_by_kind_and_room(proxy: FaultProxy, folder: Folder) -> None:
    proxy.counts.clear()
    folder.create("manifest/a", b"1")
    folder.write("images/s/1-aa/x.png", b"2")
    folder.read("images/s/1-aa/x.png")
    folder.names("manifest")
    folder.stat("job.yaml")
    folder.delete(["manifest/a"])
    assert proxy.counts == {
        ("CREATE", "manifest"): 1,
        ("PUT", "images"): 1,
        ("GET", "images"): 1,
        ("LIST", "manifest"): 1,
        ("HEAD", "job.yaml"): 1,
        ("DELETE", ""): 1,
    }
    assert proxy.injected == []


@pytest.mark.parametrize(
    ("kind", "fault"), [(kind, fault) for kind in CALLS for fault in FAULTS if can_have(kind, fault)]
)
def test_each_fault_of_each_kind_is_met_and_survived(
    proxy: FaultProxy, folder: Folder, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    """A slow answer is waited for, every other fault costs exactly one more request."""
    monkeypatch.setattr("pipelines.storage.folder.FIRST_WAIT_S", 0.01)
    first = CALLS[kind](folder) if kind != "CREATE" else True
    proxy.counts.clear()
    proxy.rules.append(Rule(fault, kind))
    assert CALLS[kind](folder) == first
    (seen,) = proxy.injected
    assert (seen.fault, seen.kind) == (fault, kind)
    assert seen.status == (STATUS[kind] if fault in AFTER else 0)
    assert proxy.total(kind) == (1 if fault == "slow" else 2)
    if kind == "CREATE":
        assert folder.read("new") == b"mine" * 100
        assert proxy.total("GET") == (2 if fault in ("lost", "lied") else 1)  # the echo of our own write is read back


def test_a_server_that_hangs_is_given_up_and_asked_again(proxy: FaultProxy, folder: Folder) -> None:
    proxy.hang_s = 600.0
    patient = Folder(folder.url, folder.options)
    patient.timeouts = Timeouts(connect_s=1.0, read_s=1.0)
    proxy.rules += [Rule("hang", "PUT"), Rule("hang", "CREATE")]
    started = time.monotonic()
    patient.write("a", b"1")
    assert patient.create("b", b"2")
    assert time.monotonic() - started < proxy.hang_s  # it has not been waited for
    assert [seen.fault for seen in proxy.injected] == ["hang", "hang"]


def test_half_a_body_leaves_nothing_under_the_final_name(proxy: FaultProxy, folder: Folder) -> None:
    proxy.rules.append(Rule("torn", "PUT", times=1000))
    failing = Folder(folder.url, folder.options, deadline_s=1.0)
    with pytest.raises(RuntimeError, match="cannot write"):
        failing.write("images/a", os.urandom(500_000))
    assert len(proxy.injected) > 1
    assert folder.stat("images/a") is None


@pytest.mark.parametrize("seed", range(2))
def test_many_faults_at_once(proxy: FaultProxy, folder: Folder, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Of three creators of each key exactly one wins, and every object is whole."""
    monkeypatch.setattr("pipelines.storage.folder.LONGEST_WAIT_S", 0.05)
    bodies = [random.Random(seed * 1000 + n).randbytes(2000) for n in range(50)]
    proxy.chance = Chance(seed, 0.3, tuple(fault for fault in FAULTS if fault not in ("hang", "slow")))

    def put(number: int) -> list[bool]:
        folder.write(f"plain/{number}", bodies[number])
        return [folder.create(f"once/{number}", bodies[number] + bytes([rival])) for rival in range(3)]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(len(bodies))))
    assert won == [[True, False, False]] * len(bodies)
    assert {seen.fault for seen in proxy.injected} >= {"500", "503", "reset", "torn", "lost", "lied"}
    with proxy.quiet():
        assert all(folder.read(f"plain/{n}") == body for n, body in enumerate(bodies))
        assert all(folder.read(f"once/{n}") == body + b"\0" for n, body in enumerate(bodies))


def test_the_same_seed_draws_the_same_faults() -> None:
    request = Request("PUT", "/b/k", [], b"", "PUT", "k")
    chances = [Chance(5, 0.5), Chance(5, 0.5), Chance(6, 0.5)]
    first, again, other = ([chance.draw(request) for _ in range(40)] for chance in chances)
    assert first == again != other
    assert 10 < first.count(None) < 35
