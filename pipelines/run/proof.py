"""Proves that a process sees the same run folder as its driver: it reads an object that the driver has just written.

A local path, a bucket's name and an endpoint mean something else on another machine, or in another environment. What a
process without the driver's folder would find is an empty one: nothing planned, nothing to do, nothing wrong.
"""

import json
import logging
import os
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.storage.backends import NO_BUCKET, NO_CREDENTIALS, REFUSED, UNREACHABLE, StorageFault, StoreAccess
from pipelines.storage.folder import Folder, StorageError

log = logging.getLogger(__name__)
LOOKS, BETWEEN_S = 3, 0.5
ABSENT = StorageFault("it is not there", absent=True)
ON_EVERY_NODE = "on every node, for example in the cluster's YAML or runtime_env"
ENDPOINT = f"Write storage.endpoint_url into the job file, or set AWS_ENDPOINT_URL {ON_EVERY_NODE}"
KEYS = f"Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY {ON_EVERY_NODE}, or give the nodes a role"
DISK = "Put output.path on a disk that every machine mounts at the same path, or on s3://..."
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class NotSharedError(StorageError):
    """This process cannot use its driver's run folder. finding: what it sees and the remedy, without its own name.

    may_pass: the store cannot be reached from here at this moment.
    """

    def __init__(self, message: str, host: str = "", finding: str = "", may_pass: bool = False) -> None:
        super().__init__(message)
        self.host, self.finding, self.may_pass = host, finding, may_pass


@dataclass(frozen=True)
class Proof:
    """An object of the run folder and the token in its JSON. driver: how the process that wrote it gets at it."""

    key: str
    token: str
    driver: StoreAccess | None = None


@contextmanager
def probe_object(run: Folder) -> Iterator[Proof]:
    """A proof for who claims no epoch: written here, and deleted at the end. Raises StorageError."""
    quick, proof = run.quick(), Proof(f".probe/{secrets.token_hex(8)}", secrets.token_hex(8), run.access())
    quick.write(proof.key, json.dumps({"token": proof.token}).encode())
    try:
        yield proof
    finally:
        try:
            quick.delete([proof.key])
        except StorageError as error:
            log.warning("%s", error)


def prove(run: Folder, proof: Proof) -> None:
    """Reads the object, in some four seconds. NotSharedError says what this process sees instead, and the remedy.

    A store that is there and busy (5xx, throttling) is a StorageError that is retryable: it proves nothing.
    """
    quick = run.quick()
    try:
        found = _token(quick, proof.key)
    except StorageError as error:
        fault = error.fault or StorageFault(str(error))
        if fault.retryable and not fault.kind:
            raise
        raise _not_shared(quick, proof, fault) from None
    if found != proof.token:
        raise _not_shared(quick, proof, ABSENT)


def prove_in_time(run: Folder, proof: Proof) -> None:
    """`prove`, again and again while a store is away or busy, for as long as the folder's own calls try."""
    deadline = time.monotonic() + run.deadline_s
    while True:
        try:
            return prove(run, proof)
        except StorageError as error:
            passing = error.may_pass if isinstance(error, NotSharedError) else error.retryable
            if not passing or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(BETWEEN_S, 2.0))


def _token(run: Folder, key: str) -> str | None:
    """The token; None where the object is absent, asked twice: a network file system caches an absence."""
    for looks_left in reversed(range(LOOKS)):
        try:
            return str(json.loads(run.read(key))["token"])
        except (ValueError, KeyError, TypeError):
            return ""
        except FileNotFoundError:
            run.names(key.rpartition("/")[0])  # opening the folder renews what is remembered of it
            time.sleep(BETWEEN_S if looks_left else 0)
    return None


def _not_shared(run: Folder, proof: Proof, fault: StorageFault) -> NotSharedError:
    here = run.access()
    told = finding(here, proof, fault, in_it=os.path.isdir(run.url))
    return NotSharedError(message(here.place, f"host {here.host}", told), here.host, told, fault.retryable)


def message(place: str, who: str, finding: str) -> str:
    """The whole message. who: one host or several."""
    return f"the run folder {place} is not shared with {who}: {finding}"


def finding(here: StoreAccess, proof: Proof, fault: StorageFault, in_it: bool = False) -> str:
    """What this process sees, and the remedy. in_it: there is a folder, without the proof in it."""
    driver = proof.driver or here
    if not here.endpoint:
        return _on_a_disk(here, proof, fault, in_it)
    if fault.absent or fault.kind == NO_BUCKET:
        return _elsewhere(here, driver, proof, fault)
    if fault.kind == NO_CREDENTIALS:
        theirs = f"the driver's, from {driver.credentials}, do not travel with a job"
        return f"it has no credentials, neither in the environment nor by a profile or a role; {theirs}. " + _with(
            KEYS, here, driver
        )
    if fault.kind == UNREACHABLE:
        return _unreachable(here, driver, fault)
    if fault.kind == REFUSED:
        sees = f"{_where(here)} refuses its credentials, from {here.credentials}: {fault.reason}"
        return f"{sees}; the driver's are from {driver.credentials}. " + _with(fault.remedy, here, driver)
    return f"{_where(here)}: {fault.reason}. " + _with(fault.remedy, here, driver)


def _on_a_disk(here: StoreAccess, proof: Proof, fault: StorageFault, in_it: bool) -> str:
    """The finding for a disk, and for a store of which no endpoint is known."""
    if not fault.absent:
        return f"{fault.reason} there. {fault.remedy}"
    driver = f"the driver's on host {proof.driver.host}" if proof.driver else "the driver's"
    sees = f"the folder of that path is another one there than {driver}" if in_it else "there is no such folder there"
    return f"{sees}. {DISK}"


def _elsewhere(here: StoreAccess, driver: StoreAccess, proof: Proof, fault: StorageFault) -> str:
    lacks = f"there is no {proof.key} of it" if fault.absent else "there is no such bucket"
    if here.endpoint != driver.endpoint:
        return f"{lacks} at {_where(here)}; the driver uses {_where(driver)}. {ENDPOINT}"
    means = "what that URL means there is another store than the driver's"
    return f"{lacks} at {_where(here)}: {means}. Give the store a name that means the same on every machine"


def _unreachable(here: StoreAccess, driver: StoreAccess, fault: StorageFault) -> str:
    sees = f"{fault.reason}; it was found as {here.endpoint_from}"
    if here.endpoint != driver.endpoint:
        return f"{sees}, and the driver uses {_where(driver)}. {ENDPOINT}"
    if urlsplit(here.endpoint).hostname in LOOPBACK:
        return f"{sees}. That address is each machine itself: give the store's own name"
    return f"{sees}. The driver does reach it: look at that node's network, name resolution and firewall"


def _with(remedy: str, here: StoreAccess, driver: StoreAccess) -> str:
    """The remedy, and another one where the endpoints differ too."""
    if here.endpoint == driver.endpoint:
        return remedy
    return f"{remedy}. It also uses {_where(here)} where the driver uses {_where(driver)}. {ENDPOINT}"


def _where(access: StoreAccess) -> str:
    return f"{access.endpoint} ({access.endpoint_from})"
