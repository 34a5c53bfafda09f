"""Says which driver has a run: numbered epochs in its folder, each created once, with a heartbeat.

It spares two drivers the same work; correctness does not depend on it: each row ends in one manifest by the commit of
its shard alone. A driver lives if its record changes while it is watched, so no two clocks are compared.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.boundary import raised_by
from pipelines.pipeline_error import PipelineError
from pipelines.run.layout import RunFolder
from pipelines.run.proof import Proof
from pipelines.storage.backends import StoreAccess
from pipelines.storage.folder import StorageError

log = logging.getLogger(__name__)
HEARTBEAT_S, EXPIRY_S, POLL_S = 5.0, 30.0, 1.0
SAID = ("host", "pid", "started_at", "beat_at", "ended_at")  # what a record says of its driver
DEADLINE_S = 10.0  # of one heartbeat; the next comes soon


class ActiveRunError(PipelineError, RuntimeError):
    """Another driver is at work in the run folder; the message says where and since when."""


class SupersededError(PipelineError, RuntimeError):
    """Another driver has the run; nothing was overwritten."""

    began = True


@dataclass(frozen=True)
class EpochId:
    """An epoch's number and its driver's token: by these other processes ask whether it still holds.

    driver: how its driver gets at the run folder, for the message of a process that does not see it.
    """

    number: int
    token: str
    driver: StoreAccess | None = None

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
    """One driver's time with a run. lost: another took over. Methods raise StorageError as the folder's do."""

    def __init__(self, run: RunFolder, number: int) -> None:
        self.run = RunFolder(run.url, run.options, min(run.deadline_s, DEADLINE_S))
        self.id = EpochId(number, secrets.token_hex(8), self.run.access())
        self.lost = threading.Event()
        self._lock = threading.Lock()  # the last record that is written says that it ended
        self.record: dict[str, Any] = {
            "token": self.id.token,
            "host": socket.gethostname(),
            "machine": f"{uuid.getnode():012x}",  # its network address: two machines may have one host name
            "pid": os.getpid(),
            "started_at": _now(),
            "beat_at": _now(),
            "beats": 0,
            "ended_at": None,
            "progress": None,  # what `tell` was given last
        }

    def tell(self, progress: Mapping[str, Any]) -> None:
        """How far the run is: it is written with the next heartbeat, for who asks from elsewhere."""
        self.record["progress"] = dict(progress)

    def create(self) -> bool:
        """Begins the epoch. False: another driver did."""
        return self.run.create(_key(self.id.number), _bytes(self.record))

    def heartbeat(self) -> bool:
        """Writes that this driver lives. False: another took over, and the record is left as it is."""
        if self.id.successor(self.run) is not None:
            self.lost.set()
            return False
        with self._lock:
            if not self.record["ended_at"]:
                self.record |= {"beat_at": _now(), "beats": self.record["beats"] + 1}
                self.run.write(_key(self.id.number), _bytes(self.record))
        return True

    def end(self) -> None:
        """Writes that this driver has ended, so that the next one need not wait."""
        if self.id.successor(self.run) is None:
            with self._lock:
                self.record["ended_at"] = _now()
                self.run.write(_key(self.id.number), _bytes(self.record))


def claim(
    run: RunFolder,
    take_over: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] = log.info,
) -> Epoch:
    """Makes a new epoch. ActiveRunError where another driver lives, unless it is taken over.

    A driver that did not say that it ended is watched for a heartbeat, and `on_wait` told so.
    """
    while True:
        number = _last_number(run)
        record = _read(run, number) if number else None
        if record and not (record["ended_at"] or take_over or is_dead(record)):
            on_wait(
                f"an earlier run did not say that it ended: {_who(record)}; looking for its heartbeat, {EXPIRY_S:.0f} s"
            )
            if _lives(run, number, record, sleep):
                raise ActiveRunError(
                    f"another run is active in {run.url}: {_who(record)}. Let it finish, or stop it there and "
                    "run this again; with --take-over the other one stops when it notices"
                )
        epoch = Epoch(run, number + 1)
        if epoch.create():
            return epoch


def last_record(run: RunFolder) -> dict[str, Any] | None:
    """What the last driver wrote of itself; None where there was none, or it is not whole."""
    number = _last_number(run)
    record = _read(run, number) if number else None
    return record if record and set(SAID) <= record.keys() else None


def _last_number(run: RunFolder) -> int:
    return max((int(name[:-5]) for name in run.names("epochs") if _is_epoch(name)), default=0)


def is_dead(record: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is gone: then nobody need watch it.

    A process that got the id of a dead driver makes the next one wait, no more. Two containers that share a host's name
    and network have ids of their own: there the second takes the run over, and the first one stops.
    """
    here = (socket.gethostname(), f"{uuid.getnode():012x}")
    gone = (record["host"], record.get("machine")) == here and raised_by(lambda: os.kill(record["pid"], 0))
    return isinstance(gone, ProcessLookupError)


def _lives(run: RunFolder, number: int, record: dict[str, Any], sleep: Callable[[float], None]) -> bool:
    for _ in range(round(EXPIRY_S / POLL_S)):
        sleep(POLL_S)
        again = _read(run, number)
        if again is None or again["ended_at"]:
            return False
        if again != record:
            return True
    return False


@contextmanager
def driving(run: RunFolder, take_over: bool = False, on_wait: Callable[[str], None] = log.info) -> Iterator[Epoch]:
    """`claim`, and heartbeats on a thread of its own while the body runs."""
    epoch, over = claim(run, take_over, on_wait=on_wait), threading.Event()
    threading.Thread(target=_keep_alive, args=(epoch, over), name="epoch", daemon=True).start()
    try:
        yield epoch
    finally:
        over.set()
        try:
            epoch.end()
        except StorageError as error:
            log.warning("%s", error)


def _keep_alive(epoch: Epoch, over: threading.Event) -> None:
    """Writes heartbeats. One that fails is skipped: the run itself deals with a store that is away."""
    while not over.wait(HEARTBEAT_S) and not epoch.lost.is_set():
        if (error := raised_by(epoch.heartbeat)) is not None:
            log.warning("no heartbeat of this run: %s", error)


def demand_driver(run: RunFolder, epoch: EpochId | None) -> None:
    """Raises SupersededError where another driver has the run. epoch None: the caller claimed no epoch."""
    if epoch is not None and epoch.successor(run) is not None:
        raise SupersededError(f"another run has taken over {run.url}; nothing more is changed by this one")


def taken_over_by(epoch: Epoch) -> str:
    """The message of a driver that lost its epoch."""
    by = epoch.id.successor(epoch.run)
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
