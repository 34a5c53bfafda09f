"""Who drives a run: numbered epochs in its folder, each created once by one driver, with a heartbeat.

A courtesy, not a lock: it spares two drivers the same work. That each row ends in one manifest rests on the commit of
its shard alone, and holds with this switched off. No two clocks are compared: a driver lives if its heartbeat moves.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.boundary import raised_by
from pipelines.pipeline_error import PipelineError
from pipelines.run.layout import RunFolder
from pipelines.run.proof import Proof, describe
from pipelines.storage.backends import Reach
from pipelines.storage.folder import StorageError

log = logging.getLogger(__name__)
BEAT_S, EXPIRY_S, POLL_S = 5.0, 30.0, 1.0
SKEW_S = 900.0  # clocks differ by less: an object store refuses the requests of others
DEADLINE_S = 10.0  # of one heartbeat; the next comes soon


class ActiveRunError(PipelineError, RuntimeError):
    """Another driver is at work in the run folder; the message says where and since when."""


@dataclass(frozen=True)
class Clock:
    """now: seconds since 1970. Tests have others."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def text(self) -> str:
        """Now, for a record."""
        return datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Process:
    """A driver's process. space: what its id counts in, one boot and one namespace; born: tells it from a successor."""

    host: str
    pid: int
    space: str
    born: str

    @classmethod
    def this(cls) -> "Process":
        """The process that asks."""
        host = socket.gethostname()
        return cls(host, os.getpid(), _space(host), _born(os.getpid()))

    def is_gone(self, here: "Process") -> bool | None:
        """None: it is on another machine or in another container, where `here` cannot look."""
        if self.space != here.space:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return _born(self.pid) not in (self.born, "")


@dataclass(frozen=True)
class EpochId:
    """An epoch by its number and its driver's token: what other processes need to ask whether it still holds.

    driver: how its driver gets at the run folder, for the message of a process that does not see it.
    """

    number: int
    token: str
    driver: Reach | None = None

    @property
    def proof(self) -> Proof:
        """The epoch's record, which whoever works for this driver must be able to read."""
        return Proof(_key(self.number), self.token, self.driver)

    def successor(self, run: RunFolder) -> dict[str, Any] | None:
        """The record of the driver that took over; its own number where a store let two drivers create one epoch."""
        ours = _read(run, self.number)
        if ours and ours["token"] != self.token:
            return ours
        return _read(run, self.number + 1)


class Epoch:
    """One driver's term. `lost` is set once another took over; methods raise StorageError as the folder's do."""

    def __init__(self, run: RunFolder, number: int, process: Process, clock: Clock) -> None:
        self.run = RunFolder(run.url, run.options, min(run.deadline_s, DEADLINE_S))
        self.term, self.clock = EpochId(number, secrets.token_hex(8), describe(self.run)), clock
        self.lost = threading.Event()
        self._lock = threading.Lock()  # the last record that is written says that it ended
        self.record: dict[str, Any] = {
            "token": self.term.token,
            "host": process.host,
            "pid": process.pid,
            "space": process.space,
            "born": process.born,
            "started_at": clock.text(),
            "beat_at": clock.text(),
            "beats": 0,
            "ended_at": None,
        }

    def create(self) -> bool:
        """Begin it; False: another driver did."""
        return self.run.create(_key(self.term.number), _bytes(self.record))

    def beat(self) -> bool:
        """Say that this driver lives. False: another took over, and the record is left as it is."""
        if self.term.successor(self.run) is not None:
            self.lost.set()
            return False
        with self._lock:
            if not self.record["ended_at"]:
                self.record |= {"beat_at": self.clock.text(), "beats": self.record["beats"] + 1}
                self.run.write(_key(self.term.number), _bytes(self.record))
        return True

    def end(self) -> None:
        """Say that this driver is done; the next need not wait for its silence."""
        if self.term.successor(self.run) is None:
            with self._lock:
                self.record["ended_at"] = self.clock.text()
                self.run.write(_key(self.term.number), _bytes(self.record))


def claim(
    run: RunFolder,
    take_over: bool = False,
    clock: Clock | None = None,
    process: Process | None = None,
    on_wait: Callable[[str], None] = log.info,
) -> Epoch:
    """A new epoch of this process. ActiveRunError where another driver lives, unless told to take over.

    A driver of this machine is known to live or not; of one elsewhere that did not say goodbye the heartbeat is watched
    for up to EXPIRY_S, and `on_wait` told so.
    """
    clock, process = clock or Clock(), process or Process.this()
    while True:
        number = max((int(name[:-5]) for name in run.names("epochs") if _is_epoch(name)), default=0)
        record = _read(run, number) if number else None
        if record and not take_over and _lives(run, number, record, clock, process, on_wait):
            raise ActiveRunError(
                f"another run is active in {run.url}: {_who(record)}. Let it finish, or stop it there and "
                "run this again; with --take-over the other one stops when it notices"
            )
        epoch = Epoch(run, number + 1, process, clock)
        if epoch.create():
            return epoch


def _lives(
    run: RunFolder, number: int, record: dict[str, Any], clock: Clock, here: Process, on_wait: Callable[[str], None]
) -> bool:
    gone = Process(*(record[name] for name in ("host", "pid", "space", "born"))).is_gone(here)
    if record["ended_at"] or gone is not None:
        return not (record["ended_at"] or gone)
    if clock.now() - datetime.fromisoformat(record["beat_at"]).timestamp() > EXPIRY_S + SKEW_S:
        return False
    on_wait(f"an earlier run did not say that it ended: {_who(record)}; looking for a sign of life, {EXPIRY_S:.0f} s")
    until = clock.now() + EXPIRY_S
    while clock.now() < until:
        clock.sleep(POLL_S)
        again = _read(run, number)
        if again is None or again["ended_at"]:
            return False
        if (again["token"], again["beats"]) != (record["token"], record["beats"]):
            return True
    return False


@contextmanager
def driving(run: RunFolder, take_over: bool = False, on_wait: Callable[[str], None] = log.info) -> Iterator[Epoch]:
    """`claim`, and a heartbeat on a thread of its own while the body runs."""
    epoch, over = claim(run, take_over, on_wait=on_wait), threading.Event()
    threading.Thread(target=_keep, args=(epoch, over), name="epoch", daemon=True).start()
    try:
        yield epoch
    finally:
        over.set()
        try:
            epoch.end()
        except StorageError as error:
            log.warning("%s", error)


def _keep(epoch: Epoch, over: threading.Event) -> None:
    """A heartbeat that fails is missed, no more: the run has its own ways to meet a store that is away."""
    while not over.wait(BEAT_S) and not epoch.lost.is_set():
        if (error := raised_by(epoch.beat)) is not None:
            log.warning("no heartbeat of this run: %s", error)


def taken_over_by(epoch: Epoch) -> str:
    """What a driver that lost its epoch says."""
    by = epoch.term.successor(epoch.run)
    return f"another run took over: {_who(by)}" if by else "another run took over"


def _who(record: dict[str, Any]) -> str:
    since, heard = (record[name].replace("T", " ").replace("+00:00", " UTC") for name in ("started_at", "beat_at"))
    return f"host {record['host']}, process {record['pid']}, since {since}, last heard of {heard}"


def _key(number: int) -> str:
    return f"epochs/{number:06d}.json"


def _is_epoch(name: str) -> bool:
    return name.endswith(".json") and name[:-5].isdecimal()


def _read(run: RunFolder, number: int) -> dict[str, Any] | None:
    try:
        return run.read_json(_key(number))
    except FileNotFoundError:
        return None


def _bytes(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode()


def _space(host: str) -> str:
    """Process ids mean the same process where this is equal."""
    with suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return host


def _born(pid: int) -> str:
    """When a process started, in the kernel's own count; "dead" of one that only waits to be reaped, "" unknown."""
    with suppress(OSError):
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *rest = file.read().rpartition(")")[2].split()
        return "dead" if state == "Z" else rest[18]
    return ""
