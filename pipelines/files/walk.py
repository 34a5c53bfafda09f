"""Lists the names behind an input path: a local folder through its symbolic links, or an object store.

`pipelines.files.chosen` decides what becomes of a name.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from stat import S_ISDIR, S_ISREG

from fsspec.utils import glob_translate

from pipelines.files.readers import InputError
from pipelines.storage.folder import Folder, store_of

OTHER, HIDDEN, RUNS, FOLDERS, SPECIAL, ODD = range(6)  # what is not read
LOG_FOLDERS = ("_delta_log", ".hoodie", "metadata", "_spark_metadata")  # looked into, whatever a glob says


@dataclass(frozen=True)
class Glob:
    """A pattern below a fixed folder. InputError where it is none."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            _compiled(self.pattern)
        except (ValueError, re.error) as error:
            raise InputError(f"{self.pattern}: no glob ({error}). Correct input.path") from error

    def matches(self, key: str) -> bool:
        """Whether it names this file or folder."""
        return _compiled(self.pattern).match(key) is not None

    def folder_of(self, key: str) -> str | None:
        """The outermost folder around a key that the glob names."""
        parts = key.split("/")
        folders = ("/".join(parts[:length]) for length in range(1, len(parts)))
        return next((folder for folder in folders if self.matches(folder)), None)

    def may_hold(self, folder: str) -> bool:
        """Whether something that the glob names may lie below a folder."""
        patterns = self.pattern.split("/")
        for pattern, part in zip(patterns, folder.split("/"), strict=False):
            if pattern == "**":
                return True
            if not _compiled(pattern).match(part):
                return False
        return True


@functools.lru_cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(glob_translate(pattern))


def listed(folder: Folder, is_table: Callable[[str], bool], glob: Glob | None) -> Iterator[tuple[str, int | None]]:
    """(key, None for a plain file, else what it is)."""
    if os.path.isabs(folder.url):
        yield from _Disk(folder.url, is_table, glob).files()
        return
    for key, _ in folder.walk():
        parts = key.split("/")
        odd = {".", ".."} & set(parts) or "\0" in key or key.endswith("/")
        bare = key.startswith("/") and folder.url == store_of(folder.url)
        yield key, ODD if odd or bare else None


@dataclass(frozen=True)
class _Disk:
    """A walk over a local folder that follows symbolic links. InputError where one leads nowhere or back."""

    root: str
    is_table: Callable[[str], bool]
    glob: Glob | None

    def files(self) -> Iterator[tuple[str, int | None]]:
        """(key, kind) in no promised order."""
        pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (identity(os.stat(self.root)),))]
        while pending:
            key, above = pending.pop()
            entries = self._entries(key)
            if _is_run({entry.name for entry in entries}, self._path(key)):
                yield key, RUNS
                continue
            for entry in entries:
                inner = f"{key}/{entry.name}" if key else entry.name
                found = self._stat(entry, inner)
                if found is None:
                    yield inner, SPECIAL
                elif S_ISDIR(found.st_mode) and not (is_hidden(inner) and entry.is_symlink()):
                    if self.glob is None or self.glob.may_hold(inner) or entry.name in LOG_FOLDERS:
                        pending.append((inner, self._without_loop(inner, identity(found), above)))
                else:
                    yield inner, None if S_ISREG(found.st_mode) else SPECIAL

    def _path(self, key: str) -> str:
        return os.path.join(self.root, key) if key else self.root

    def _entries(self, key: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._path(key)) as found:
                return sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise InputError(f"{self._path(key)}: the folder cannot be read ({reason}). Grant the right to") from error

    def _stat(self, entry: os.DirEntry[str], key: str) -> os.stat_result | None:
        """None: a link to nothing that is not read anyway, or a file that went meanwhile."""
        try:
            return entry.stat()
        except OSError as error:
            if entry.is_symlink() and self._would_be_read(key):
                target = os.readlink(self._path(key))
                raise InputError(
                    f"{self._path(key)}: a symbolic link to {target}, which {_why_broken(error)}. Fix or remove it"
                ) from error
            return None

    def _would_be_read(self, key: str) -> bool:
        """A table by its name, or by its lack of an ending a folder."""
        if is_hidden(key) or not (self.is_table(key) or "." not in key.rpartition("/")[2]):
            return False
        return self.glob is None or self.glob.matches(key) or self.glob.folder_of(key) is not None

    def _without_loop(
        self, key: str, folder: tuple[int, int], above: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[int, int], ...]:
        if folder in above:
            raise InputError(
                f"{self._path(key)}: symbolic links lead back to this folder from within. Remove the one that does, or "
                "name the folders to read by a glob"
            )
        return (*above, folder)


def identity(found: os.stat_result) -> tuple[int, int]:
    """What is one for all names of a file or folder on disk."""
    return found.st_dev, found.st_ino


def _why_broken(error: OSError) -> str:
    return "is not there" if isinstance(error, FileNotFoundError) else f"cannot be followed ({error.strerror})".lower()


def _is_run(names: set[str], path: str) -> bool:
    """Whether a local folder is a run folder of ours."""
    if "plan" not in names or not names & {"job.yaml", "epochs"}:
        return False
    try:
        return any(re.fullmatch(r"\d{4}", name) for name in os.listdir(os.path.join(path, "plan")))
    except OSError:
        return False


def is_hidden(key: str) -> bool:
    """Whether a part of a key begins with a dot or an underscore, as other tools' private files do."""
    return re.search(r"(^|/)[._]", key) is not None
