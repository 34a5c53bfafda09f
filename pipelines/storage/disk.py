"""Stores a folder on a local or mounted disk: whole files, and one winner of a create."""

import errno
import os
import secrets
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

from pipelines.storage.backends import GRANT, REFUSED, StorageFault, StoreAccess

TEMPORARY = ".tmp-"  # names of temporary files; no listing shows them


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
        with _opened(self._path(key)) as file:
            return file.read()

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer at the end of the object."""
        with _opened(self._path(key)) as file:
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
        if stat.S_ISDIR(found.st_mode):  # an object store has no folders
            return None
        return found.st_size, f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"

    def unmet(self, key: str) -> list[str]:
        """A disk takes no options."""
        return []

    def names_page(self, prefix: str, token: Any) -> tuple[list[str], Any]:
        """All entries at once, without temporary files."""
        return [entry.name for entry in _entries(self._path(prefix))], None

    def walk_page(self, prefix: str, token: tuple[str, ...] | None) -> tuple[list[tuple[str, int]], Any]:
        """One directory a page; the token is the stack of those still to be read."""
        *pending, at = (prefix,) if token is None else token
        files = []
        entries = sorted(_entries(self._path(at)), key=lambda entry: entry.name, reverse=True)  # the last is read first
        for entry in entries:
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

    def access(self) -> StoreAccess:
        """The path on this machine."""
        return StoreAccess(socket.gethostname(), self.root)

    def diagnose(self, error: BaseException) -> StorageFault:
        """By errno; what may pass on a network file system is retryable."""
        code = getattr(error, "errno", None)
        if code in _LOCAL_FAULTS:
            return _LOCAL_FAULTS[code]
        reason = os.strerror(code) if code else type(error).__name__
        return StorageFault(reason, "Look at the disk and its mount", retryable=code in _PASSING)


_PASSING = {errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.ENFILE, errno.EMFILE}
_SPACE = "Free some space or choose another disk, then type the same command again: what is finished is kept"
_LOCAL_FAULTS = {
    errno.ENOENT: StorageFault("no such file or folder", "Choose a folder that can be made", absent=True),
    errno.ENOTDIR: StorageFault("a part of the path is a file, not a folder", "Choose another folder"),
    errno.EISDIR: StorageFault("it is a folder, not a file", "Choose another path"),
    errno.EACCES: StorageFault("permission denied", GRANT, kind=REFUSED),
    errno.EPERM: StorageFault("operation not permitted", GRANT, kind=REFUSED),
    errno.EROFS: StorageFault("the file system is read-only", GRANT),
    errno.ENOSPC: StorageFault("the disk is full", _SPACE),
    errno.EDQUOT: StorageFault("the disk quota is used up", _SPACE),
    errno.ENAMETOOLONG: StorageFault("the path is too long", "Choose a shorter path"),
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
    """Syncs a folder, so that a new name survives a power cut; file systems that cannot are left alone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _opened(path: str) -> BinaryIO:
    """Opens a file. A folder in its place, or a file in a folder's place, is no object, as in an object store."""
    try:
        return open(path, "rb")
    except (IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return [entry for entry in found if not entry.name.startswith(TEMPORARY)]
    except (FileNotFoundError, NotADirectoryError):
        return []
