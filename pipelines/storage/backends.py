"""What a kind of storage must do for `pipelines.storage.folder.Folder`, and how any store that fsspec knows does it.

A backend makes one attempt and raises what its client raises; `diagnose` says what that means. Waiting, trying again
and the words of the final error are the Folder's. The disk is `pipelines.storage.disk`, S3 `pipelines.storage.s3`.
"""

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.pipeline_error import PipelineError

GRANT = "Grant this user the right to write there, or choose another folder"


@dataclass(frozen=True)
class Timeouts:
    """Seconds until a client gives up one connection or one silent read."""

    connect_s: float = 10.0
    read_s: float = 60.0


NO_CREDENTIALS, REFUSED, UNREACHABLE, NO_BUCKET = "no credentials", "refused", "unreachable", "no bucket"


@dataclass(frozen=True)
class StorageFault:
    """What an exception of a client means. `reason` and `remedy` are for people and hold no secret."""

    reason: str
    remedy: str = ""
    retryable: bool = False
    reconnect: bool = False  # a new client, with fresh credentials, before the next try
    absent: bool = False  # there is no such object
    kind: str = ""  # one of the four above, where it is one of them


@dataclass(frozen=True)
class Reach:
    """How one process gets at a folder, for people: endpoint, and where that and the credentials were found.

    It holds no secret, so that it may travel. endpoint: "" where the store has none, as a disk.
    """

    host: str
    place: str
    endpoint: str = ""
    endpoint_from: str = ""
    credentials: str = ""


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

    def diagnose(self, error: BaseException) -> StorageFault:
        """What one of `errors` means."""
        ...

    def reach(self) -> Reach:
        """How this process gets at the store. Raises nothing."""
        ...

    def unmet(self, key: str) -> list[str]:
        """Which options of a put are not seen on an object that was just put."""
        ...


class UnusableError(PipelineError, ValueError):
    """A URL that nothing here can read: one message with the reason and the remedy."""


_ELSEWHERE = "Copy it to a disk or to an object store such as s3://"
_PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    "oci": "ocifs",
    "oss": "ossfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "tos": "tosfs",
}


class FsspecBackend:
    """Any other store that fsspec knows. Only for those in `ATOMIC` is create-if-absent known to have one winner."""

    ATOMIC = ("gs", "gcs", "memory")
    errors: tuple[type[BaseException], ...] = (OSError, NotImplementedError)

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        scheme = url.partition("://")[0]
        try:
            if scheme in _NO_STORES or "::" in url:
                raise UnusableError(f"{url}: {scheme}:// is no store of files that is read here. {_ELSEWHERE}")
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise UnusableError(_missing_package(url, scheme, error)) from error
        except UnusableError:
            raise
        except (ValueError, TypeError, OSError, LookupError, AttributeError) as error:
            raise UnusableError(_not_usable(url, scheme, error, scheme in fsspec.available_protocols())) from error
        self.conditional = scheme in self.ATOMIC

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

    def unmet(self, key: str) -> list[str]:
        """Other stores than S3 take no options."""
        return []

    def reach(self) -> Reach:
        """The URL; where fsspec finds the rest is its own."""
        return Reach(socket.gethostname(), self.url)

    def diagnose(self, error: BaseException) -> StorageFault:
        """A missing object, a refusal, or something that may pass."""
        if isinstance(error, FileNotFoundError):
            return StorageFault("no such object", absent=True)
        if isinstance(error, PermissionError):
            return StorageFault("access denied", GRANT, kind=REFUSED)
        if isinstance(error, NotImplementedError):
            return StorageFault("this kind of store cannot do that", "Choose a folder on disk or in an object store")
        return StorageFault(type(error).__name__, "Check the network and the URL", retryable=True)


# What fsspec knows under a scheme and is no store of objects by key: archives, caches, other tools' addresses; and what
# its own client raises for a fault is of any class.
_ARCHIVES = ("zip", "tar", "libarchive", "cached", "blockcache", "filecache", "simplecache", "reference", "dir", "data")
_TOOLS = (
    "git",
    "github",
    "gist",
    "wandb",
    "jupyter",
    "dask",
    "root",
    "box",
    "dropbox",
    "gdrive",
    "pyscript",
    "hf",
    "ftp",
)
_NO_STORES = frozenset((*_ARCHIVES, *_TOOLS, "generic", "async_wrapper", "asynclocal", "local"))


def _missing_package(url: str, scheme: str, error: ImportError) -> str:
    package = _PACKAGES.get(scheme)
    if package is None:
        said = " ".join(str(error).split())
        return f"{url}: {scheme}:// needs a package that is not installed here: {said:.200}. Or use a disk or s3://"
    return (
        f"{url}: {scheme}:// needs the package {package}, which is not installed. "
        f"Install it here and on every node (pip install {package}), or use a disk or s3://"
    )


def _not_usable(url: str, scheme: str, error: Exception, known: bool) -> str:
    if not known:
        return f"{url}: nobody here knows {scheme}://. Write a path, s3://bucket/... or https://..., or correct it"
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{url}: {scheme}:// cannot be used: {reason:.200}. {_ELSEWHERE}"
