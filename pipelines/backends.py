"""What a kind of storage must do for `pipelines.folder.Folder`, and the local disk's way of doing it.

A backend makes one attempt and raises what its client raises; `diagnose` says what that means. Waiting, trying again
and the words of the final error are the Folder's.
"""

import errno
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

CHAIN = "credentials come from the environment, a profile or the machine's role"
TEMPORARY = ".tmp-"  # files under this name are half-written; no listing shows them


@dataclass(frozen=True)
class Timeouts:
    """Seconds until a client gives up one connection or one silent read."""

    connect_s: float = 10.0
    read_s: float = 60.0


@dataclass(frozen=True)
class Fault:
    """What an exception of a client means. `reason` and `remedy` are for people and hold no secret."""

    reason: str
    remedy: str = ""
    retryable: bool = False
    reconnect: bool = False  # a new client, with fresh credentials, before the next try
    absent: bool = False  # there is no such object


class Backend(Protocol):
    """One attempt at each operation of a Folder. Keys are checked before; a page's next token is None at the end."""

    errors: tuple[type[BaseException], ...]
    conditional: bool

    def read(self, key: str) -> bytes:
        """All bytes of the object."""
        ...

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer at the end of the object."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put the whole object, over what was there."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Put the whole object; FileExistsError where there is one."""
        ...

    def stat(self, key: str) -> tuple[int, str] | None:
        """(size in bytes, etag), None where there is no object."""
        ...

    def names_page(self, prefix: str, token: Any) -> tuple[list[str], Any]:
        """Names of direct children and the token of the next page."""
        ...

    def walk_page(self, prefix: str, token: Any) -> tuple[list[tuple[str, int]], Any]:
        """(key, size in bytes) of objects below, and the token of the next page."""
        ...

    def delete(self, keys: list[str]) -> None:
        """Delete up to 1,000 objects; a missing one is no error."""
        ...

    def diagnose(self, error: BaseException) -> Fault:
        """What one of `errors` means."""
        ...


class StorageError(RuntimeError):
    """One clear message: place, fault and remedy, never a secret. `retryable`: the same call may work later."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True)
class StorageOptions:
    """How to reach an object store. Credentials are never here: each process finds them by the usual chain."""

    endpoint_url: str | None = None
    region: str | None = None
    put_options: Mapping[str, Any] = field(default_factory=dict)  # added to every PUT, e.g. ServerSideEncryption

    def __post_init__(self) -> None:
        place = urlsplit(self.endpoint_url) if self.endpoint_url else None
        if place and "@" in place.netloc:
            raise StorageError("storage.endpoint_url has a user or a password in it. Take them out: " + CHAIN)
        if place and (place.scheme not in ("http", "https") or not place.hostname):
            raise StorageError(
                f"storage.endpoint_url {self.endpoint_url!r} is no URL: write http://HOST:PORT or https://HOST"
            )


def connect(url: str, options: StorageOptions, timeouts: Timeouts) -> Backend:
    """The backend of a URL; an absolute path is the local disk. Nothing is sent yet."""
    if os.path.isabs(url):
        return LocalBackend(url)
    if url.startswith(("s3://", "s3a://")):
        from pipelines.s3 import S3Backend  # a second of imports that a local run is spared

        return S3Backend(url, options.endpoint_url, options.region, options.put_options, timeouts)
    return FsspecBackend(url)


class LocalBackend:
    """A folder on disk. A file is finished under a hidden name, synced, then renamed (write) or linked (create)."""

    errors: tuple[type[BaseException], ...] = (OSError,)

    def __init__(self, root: str) -> None:
        self.root = root
        self.conditional = True

    def _path(self, key: str) -> str:
        return os.path.join(self.root, *key.split("/")) if key else self.root

    def read(self, key: str) -> bytes:
        """All bytes of the object."""
        with open(self._path(key), "rb") as file:
            return file.read()

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer at the end of the object."""
        with open(self._path(key), "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def write(self, key: str, data: bytes) -> None:
        """A finished file renamed over the old one."""
        self._place(key, data, os.replace)

    def create(self, key: str, data: bytes) -> None:
        """One hard link of a finished file: the kernel lets exactly one creator win."""
        if os.path.lexists(self._path(key)):
            raise FileExistsError(self._path(key))
        self._place(key, data, self._link)

    def _place(self, key: str, data: bytes, place: Callable[[str, str], None]) -> None:
        path = self._path(key)
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, TEMPORARY + secrets.token_hex(8))
        try:
            _write_synced(temporary, data)
            place(temporary, path)
        finally:
            with suppress(OSError):
                os.unlink(temporary)
        _sync_folder(folder)

    def _link(self, temporary: str, path: str) -> None:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            self.conditional = False  # a file system without hard links: look, then rename, is the best there is
            if os.path.lexists(path):
                raise FileExistsError(path) from None
            os.replace(temporary, path)

    def stat(self, key: str) -> tuple[int, str] | None:
        """(size in bytes, etag), None where there is no object."""
        try:
            found = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size, f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"

    def names_page(self, prefix: str, token: Any) -> tuple[list[str], Any]:
        """All entries at once, without half-written files."""
        return [entry.name for entry in _entries(self._path(prefix))], None

    def walk_page(self, prefix: str, token: tuple[str, ...] | None) -> tuple[list[tuple[str, int]], Any]:
        """One directory a page; the token is the stack of those still to be read."""
        *pending, at = (prefix,) if token is None else token
        files = []
        for entry in _entries(self._path(at)):
            key = f"{at}/{entry.name}" if at else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(key)
                continue
            with suppress(FileNotFoundError):  # deleted meanwhile
                files.append((key, entry.stat().st_size))
        return files, tuple(pending) or None

    def delete(self, keys: list[str]) -> None:
        """Unlink, then drop the folders that became empty, as an object store would."""
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(self._path(key))
            self._prune(os.path.dirname(self._path(key)))

    def _prune(self, folder: str) -> None:
        """Empty folders go, as they do in an object store."""
        while len(folder) > len(self.root):
            try:
                os.rmdir(folder)
            except OSError:
                return
            folder = os.path.dirname(folder)

    def diagnose(self, error: BaseException) -> Fault:
        """By errno; what may pass on a network file system is retryable."""
        code = getattr(error, "errno", None)
        if code in _LOCAL_FAULTS:
            return _LOCAL_FAULTS[code]
        reason = os.strerror(code) if code else type(error).__name__
        return Fault(reason, "Look at the disk and its mount", retryable=code in _PASSING)


class FsspecBackend:
    """Any other store that fsspec knows. Only for those in `ATOMIC` is create-if-absent known to have one winner."""

    ATOMIC = ("gs", "gcs", "memory")
    errors: tuple[type[BaseException], ...] = (OSError,)

    def __init__(self, url: str) -> None:
        import fsspec

        self.fs, self.root = fsspec.core.url_to_fs(url)
        self.conditional = url.partition("://")[0] in self.ATOMIC

    def _path(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}" if key else self.root

    def read(self, key: str) -> bytes:
        """All bytes of the object."""
        return self.fs.cat_file(self._path(key))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer at the end of the object."""
        return self.fs.cat_file(self._path(key), start=start, end=end)

    def write(self, key: str, data: bytes) -> None:
        """One whole put."""
        self.fs.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> None:
        """One whole put in fsspec's mode `create`."""
        self.fs.pipe_file(self._path(key), data, mode="create")

    def stat(self, key: str) -> tuple[int, str] | None:
        """(size in bytes, fsspec's fingerprint of the file)."""
        try:
            return int(self.fs.info(self._path(key))["size"]), str(self.fs.ukey(self._path(key)))
        except FileNotFoundError:
            return None

    def names_page(self, prefix: str, token: Any) -> tuple[list[str], Any]:
        """All names at once, past fsspec's cache of listings."""
        self.fs.invalidate_cache()
        try:
            return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(self._path(prefix), detail=False)], None
        except FileNotFoundError:
            return [], None

    def walk_page(self, prefix: str, token: Any) -> tuple[list[tuple[str, int]], Any]:
        """All objects at once."""
        self.fs.invalidate_cache()
        skip = len(self.fs._strip_protocol(self.root).rstrip("/")) + 1
        found = self.fs.find(self._path(prefix), detail=True)
        return [(path[skip:], int(info["size"])) for path, info in found.items()], None

    def delete(self, keys: list[str]) -> None:
        """One by one."""
        for key in keys:
            with suppress(FileNotFoundError):
                self.fs.rm_file(self._path(key))

    def diagnose(self, error: BaseException) -> Fault:
        """A missing object, a refusal, or something that may pass."""
        if isinstance(error, FileNotFoundError):
            return Fault("no such object", absent=True)
        if isinstance(error, PermissionError):
            return Fault("access denied", _GRANT)
        return Fault(type(error).__name__, "Check the network and the URL", retryable=True)


_PASSING = {errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.ENFILE, errno.EMFILE}
_GRANT = "Grant this user the right to write there, or choose another folder"
_SPACE = "Free some space or choose another disk, then type the same command again: what is finished is kept"
_LOCAL_FAULTS = {
    errno.ENOENT: Fault("no such file", absent=True),
    errno.ENOTDIR: Fault("a part of the path is a file, not a folder", "Choose another folder"),
    errno.EISDIR: Fault("it is a folder, not a file", "Choose another path"),
    errno.EACCES: Fault("permission denied", _GRANT),
    errno.EPERM: Fault("operation not permitted", _GRANT),
    errno.EROFS: Fault("the file system is read-only", _GRANT),
    errno.ENOSPC: Fault("the disk is full", _SPACE),
    errno.EDQUOT: Fault("the disk quota is used up", _SPACE),
    errno.ENAMETOOLONG: Fault("the path is too long", "Choose a shorter path"),
}


def _write_synced(path: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for tries_left in reversed(range(10)):  # a folder just made may be pruned by a neighbour's delete
        try:
            descriptor = os.open(path, flags, 0o666)
            break
        except FileNotFoundError:
            if not tries_left:
                raise
            os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: str) -> None:
    """The name itself must survive a power cut; a file system that cannot sync a folder is left alone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return [entry for entry in found if not entry.name.startswith(TEMPORARY)]
    except FileNotFoundError:
        return []
