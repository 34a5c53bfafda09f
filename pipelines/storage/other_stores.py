"""Reads prompts and checkpoints from any store that fsspec knows, beside S3 and the web. No run is written there."""

import socket
from typing import Any

import fsspec

from pipelines.storage.backends import REFUSED, StorageFault, StoreAccess
from pipelines.storage.folder import StorageError

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
# What fsspec knows under a scheme and is no store of objects by key: archives, caches, other tools' addresses. Their
# clients raise any class of error for a fault.
_ARCHIVES = ("zip", "tar", "libarchive", "cached", "blockcache", "filecache", "simplecache", "reference", "dir", "data")
_CODE = ("git", "github", "gist", "wandb", "jupyter", "dask", "pyscript", "hf")
_DRIVES = ("root", "box", "dropbox", "gdrive", "ftp", "generic", "async_wrapper", "asynclocal", "local")
_NO_STORES = frozenset((*_ARCHIVES, *_CODE, *_DRIVES))


class FsspecReader:
    """One place in a store that fsspec knows."""

    errors: tuple[type[BaseException], ...] = (OSError, NotImplementedError)

    def __init__(self, url: str) -> None:
        self.url = url
        scheme = url.partition("://")[0]
        if scheme in _NO_STORES or "::" in url:
            raise StorageError(f"{url}: {scheme}:// is no store of files that is read here. {_ELSEWHERE}")
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise StorageError(_missing_package(url, scheme, error)) from error
        except (ValueError, TypeError, OSError, LookupError, AttributeError) as error:
            raise StorageError(_not_usable(url, scheme, error, scheme in fsspec.available_protocols())) from error

    def _path(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}" if key else self.root

    def read(self, key: str) -> bytes:
        """All bytes of the object."""
        return self.fs.cat_file(self._path(key))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer at the end of the object."""
        return self.fs.cat_file(self._path(key), start=start, end=end)

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

    def access(self) -> StoreAccess:
        """The URL; where fsspec finds the rest is its own."""
        return StoreAccess(socket.gethostname(), self.url)

    def diagnose(self, error: BaseException) -> StorageFault:
        """A missing object, a refusal, or something that may pass."""
        if isinstance(error, FileNotFoundError):
            return StorageFault("no such object", absent=True)
        if isinstance(error, PermissionError):
            return StorageFault("access denied", "Grant this user the right to read there", kind=REFUSED)
        if isinstance(error, NotImplementedError):
            return StorageFault("this kind of store cannot do that", _ELSEWHERE)
        return StorageFault(type(error).__name__, "Check the network and the URL", retryable=True)


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
