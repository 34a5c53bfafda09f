"""Reads and writes one folder behind a URL: whole objects, create-if-absent, one retry wrapper.

It knows keys and bytes; `pipelines.run.layout` knows which keys a run has. There are no streamed writes on purpose: a
stream that an exception cuts short leaves a truncated object under its final name.
"""

import functools
import logging
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar, cast

from pipelines.pipeline_error import PipelineError, one_line
from pipelines.storage.backends import Backend, StorageFault, StoreAccess, Timeouts
from pipelines.storage.disk import LocalBackend
from pipelines.storage.web import WebReader

log = logging.getLogger(__name__)
T = TypeVar("T")
_CONNECTING = threading.Lock()

_S3 = ("s3://", "s3a://")
CONTAINER_FIRST = ("abfs", "abfss", "wasb", "wasbs")  # Azure: what stands before the @ is the container
_STORE = re.compile(r"[^:/]+://(?:arn:[^/]*:(?:outpost/[^/]+/)?accesspoint/[^/]+|[^/]*)")
CHAIN = "credentials come from the environment, a profile or the machine's role"
DEADLINE_ENV = "STEPTHRIFT_STORAGE_DEADLINE_S"  # seconds one call goes on trying; 0: one try
FIRST_WAIT_S, LONGEST_WAIT_S, DEADLINE_S = 0.2, 20.0, 900.0
PROBE_DEADLINE_S = 4.0


class StorageError(PipelineError, RuntimeError):
    """One clear message: place, fault and remedy, never a secret. `retryable`: the same call may work later.

    fault: what the store's client said, None if it was not asked.
    """

    def __init__(self, message: str, retryable: bool = False, fault: StorageFault | None = None) -> None:
        super().__init__(one_line(message))
        self.retryable, self.fault = retryable, fault


@dataclass(frozen=True)
class StorageOptions:
    """How to reach an object store. Credentials are never here: each process finds them by the usual chain."""

    endpoint_url: str | None = None
    region: str | None = None
    put_options: Mapping[str, Any] = field(default_factory=dict)  # added to every PUT, e.g. ServerSideEncryption
    anonymous: bool = False  # no credentials are looked for, no request is signed
    addressing_style: str | None = None  # path or virtual; None: the AWS configuration's


class Folder:
    """A folder of objects under one URL: a local path, `file://`, `s3://`; read only, `https://` and what fsspec knows.

    Keys are relative, with `/` between their parts; a key that could leave the folder is a ValueError. Each process
    connects at its first call; a pickle holds the URL and the options only. Every call tries again on what may pass
    (5xx, throttling, resets, expired credentials; full jitter, `deadline_s` in all) and raises StorageError on what
    will not. Thread-safe.
    """

    def __init__(self, url: str, options: StorageOptions | None = None, deadline_s: float | None = None) -> None:
        self.url = _absolute(url)
        self.options = options or StorageOptions()
        self.deadline_s = float(os.environ.get(DEADLINE_ENV, DEADLINE_S)) if deadline_s is None else deadline_s
        self.timeouts = Timeouts()
        self._retry_level = logging.WARNING
        self._connection: Backend | None = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None, "_pid": 0}

    def url_of(self, key: str) -> str:
        """The full URL (or local path) of a key."""
        return f"{self.url}/{_checked(key)}" if key else self.url

    def below(self, prefix: str) -> "Folder":
        """The folder whose URL is this one's, a prefix and `/`; an object store allows empty parts in the prefix."""
        inner = Folder(self.url, self.options, self.deadline_s)
        inner.url = f"{self.url}{prefix}/"
        return inner

    def read(self, key: str) -> bytes:
        """All bytes of an object; FileNotFoundError where there is none."""
        return self._call("read", key, lambda backend: backend.read(_checked(key)))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of an object, fewer where it ends before; FileNotFoundError where there is none."""
        if end <= start:
            return b""
        return self._call("read", key, lambda backend: backend.read_range(_checked(key), start, end))

    def write(self, key: str, data: bytes) -> None:
        """Put the whole object, over what was there; a reader sees the old bytes or the new, never a part."""
        self._refuse_read_only()
        self._call("write", key, lambda backend: backend.write(_checked(key), data))

    def create(self, key: str, data: bytes) -> bool:
        """Put the whole object if there is none. True: the object holds these bytes; False: it holds another's.

        A refusal may be the echo of our own write whose answer was lost, so it is decided by reading back.
        """

        def attempt(backend: Backend) -> bool:
            try:
                backend.create(_checked(key), data)
            except FileExistsError:
                return backend.read(key) == data
            return True

        self._refuse_read_only()
        return self._call("write", key, attempt, retry_absent=True)

    def names(self, prefix: str = "") -> list[str]:
        """The direct children of a folder, files and folders alike, sorted; [] where there is no such folder."""
        found: list[str] = []
        for page in self._pages(prefix, lambda token, backend: backend.names_page(_checked(prefix), token)):
            found += page
        return sorted(found)

    def walk(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(key, size in bytes) of every object below a folder, page by page.

        Folders come in the order of their names.
        """
        for page in self._pages(prefix, lambda token, backend: backend.walk_page(_checked(prefix), token)):
            yield from page

    def stat(self, key: str) -> tuple[int, str] | None:
        """(size in bytes, etag) of an object, None where there is none. The etag changes whenever the bytes do."""
        return self._call("read", key, lambda backend: backend.stat(_checked(key)))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a key that is not there is no error."""
        self.delete_listed([_checked(key) for key in keys])

    def delete_listed(self, keys: Iterable[str]) -> None:
        """Delete keys as a listing gave them: in an object store some may be no plain relative paths."""
        self._refuse_read_only()
        keys = iter(keys)
        while batch := list(islice(keys, 1000)):
            self._delete(batch)

    def check_reading(self) -> None:
        """One listing. StorageError says in a few seconds why the folder cannot be read and what to do."""
        self.quick()._call("read", "", lambda backend: backend.names_page("", None))

    def probe(self) -> bool:
        """Whether of several creators of one key exactly one wins. StorageError where the folder cannot be written.

        It answers in a few seconds and leaves nothing behind, save where the store grants no deletes.
        """
        quick = self.quick()
        key = f".probe/{secrets.token_hex(8)}.png"  # with the options that a picture is put with
        first = quick.create(key, b"one")
        second = quick.create(key, b"two")
        stored = quick.read(key)
        if stored not in (b"one", b"two"):
            raise StorageError(
                f"{self.url} does not keep what is written. Is that a store? Check the URL and storage.endpoint_url"
            )
        unmet = quick._call("read", key, lambda backend: backend.unmet(key)) if self.options.put_options else []
        try:
            quick.delete([key])
        except StorageError as error:
            log.warning("%s", error)
        if unmet:
            raise StorageError(
                f"storage.put_options are not applied at {self.url}: {'; '.join(unmet)}. "
                "Correct them, or allow them in the store"
            )
        return first and not second and stored == b"one" and quick._backend().conditional

    def quick(self) -> "Folder":
        """The same folder with a deadline of four seconds; it does not log each try."""
        quick = Folder(self.url, self.options, min(self.deadline_s, PROBE_DEADLINE_S))
        quick._retry_level = logging.DEBUG
        quick.timeouts = Timeouts(connect_s=PROBE_DEADLINE_S, read_s=PROBE_DEADLINE_S)
        return quick

    def access(self) -> StoreAccess:
        """How this process gets at the folder. Nothing is asked of the store."""
        return self._backend().access()

    def _refuse_read_only(self) -> None:
        if not os.path.isabs(self.url) and not self.url.startswith(_S3):
            scheme = self.url.partition("://")[0]
            raise StorageError(f"{self.url}: {scheme}:// is only read here. Choose a folder on disk or on s3://")

    def _delete(self, keys: list[str]) -> None:
        named = "" if is_odd(keys[0]) else keys[0]
        self._call("delete", named, lambda backend: backend.delete(keys))

    def _pages(self, prefix: str, page: Callable[[Any, Backend], tuple[list, Any]]) -> Iterator[list]:
        token: Any = None
        while True:
            found, token = self._call("list", prefix, functools.partial(page, token))
            yield found
            if token is None:
                return

    def _backend(self) -> Backend:
        with _CONNECTING:
            if self._connection is None or self._pid != os.getpid():  # a client does not survive a fork
                self._connection = _connect(self.url, self.options, self.timeouts)
                self._pid = os.getpid()
            return self._connection

    def _call(self, verb: str, key: str, call: Callable[[Backend], T], retry_absent: bool = False) -> T:
        backend = self._backend()
        deadline = time.monotonic() + self.deadline_s
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return call(backend)
            except backend.errors as error:
                fault = backend.diagnose(error)
            if fault.absent and not retry_absent:
                raise FileNotFoundError(f"{self.url_of(key)}: no such object")
            if not (fault.retryable or fault.absent) or time.monotonic() >= deadline:
                message = f"cannot {verb} {self.url_of(key)}: {fault.reason}. {fault.remedy}"
                raise StorageError(message, fault.retryable, fault)
            if fault.reconnect:
                backend = self._reconnect(backend)
            pause_s = random.uniform(0.0, wait_s)
            log.log(
                self._retry_level, "cannot %s %s: %s; again in %.1f s", verb, self.url_of(key), fault.reason, pause_s
            )
            time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    def _reconnect(self, worn: Backend) -> Backend:
        if self._connection is worn:  # else another thread has done it
            self._connection = None
        return self._backend()


def _absolute(url: str) -> str:
    """Local paths are made absolute, since workers run in folders of their own."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme == "file":
        return os.path.abspath(os.path.expanduser(rest if separator else url))
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and (scheme not in CONTAINER_FIRST or ":" in user):
        raise StorageError(f"the {scheme}:// URL has a user or a password in it. Take them out: {CHAIN}")
    return f"{scheme}://{rest}".rstrip("/")


def store_of(url: str) -> str:
    """The outermost place of a URL: a bucket, which may be an access point's ARN, a container or a server."""
    found = _STORE.match(url)
    return found[0] if found else url


def is_odd(key: str) -> bool:
    """Whether a key is no plain relative path; only other tools put such keys into an object store."""
    return any(part in ("", ".", "..") or "\0" in part for part in key.split("/"))


def _checked(key: str) -> str:
    """The key itself; ValueError where it is not a plain relative path."""
    if key and is_odd(key):
        raise ValueError(f"{key!r} is no key: it must be a relative path without empty parts, '.' or '..'")
    return key


def _connect(url: str, options: StorageOptions, timeouts: Timeouts) -> Backend:
    """The backend of a URL; an absolute path is the local disk. Nothing is sent yet.

    What only reads is given as a whole backend, too: the Folder refuses to write there before it asks.
    """
    if os.path.isabs(url):
        return LocalBackend(url)
    if url.startswith(("http://", "https://")):
        return cast("Backend", WebReader(url, timeouts))
    if url.startswith(_S3):
        from pipelines.storage.put_options import wrong_put_options  # a second of imports that a local run is spared
        from pipelines.storage.s3 import S3Backend

        if options.put_options and (wrong := wrong_put_options(options.put_options)):
            raise StorageError(f"storage.put_options: {wrong}. Correct it: an option that is dropped is not applied")
        return S3Backend(url, options, timeouts)
    from pipelines.storage.other_stores import FsspecReader

    return cast("Backend", FsspecReader(url))
