"""Decides by names alone which files behind an input path are read; counts and names what is left out.

`pipelines.files.walk` lists the names; `pipelines.files.tables` knows the endings of tables and opens them.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pipelines.files.readers import InputError
from pipelines.files.walk import FOLDERS, HIDDEN, ODD, OTHER, RUNS, SPECIAL, Glob, identity, is_hidden, listed
from pipelines.pipeline_error import one_line
from pipelines.storage.folder import Folder, store_of

SHOWN = 5  # names of each kind in a note
_WORDS = {
    OTHER: ("file of another kind", "files of other kinds"),
    HIDDEN: ("hidden or underscored file", "hidden or underscored files"),
    RUNS: ("run folder of earlier jobs", "run folders of earlier jobs"),
    FOLDERS: ("folder that the glob matches beside files", "folders that the glob matches beside files"),
    SPECIAL: ("thing that is no file", "things that are no files"),
    ODD: ("object whose key no path can name", "objects whose keys no path can name"),
}
_MARKS = ("job.yaml", "epochs/", "plan/", "_delta_log", ".hoodie", "metadata")
_RUN = re.compile(r"(?:(.*)/)?(?:(job\.yaml|epochs/\d{6}\.json)|plan/\d{4}/[^/]+)")
_LAKES = {
    "a Delta Lake table": re.compile(r"(?:(.*?)/)?_delta_log(?:/.*)?"),
    "an Apache Hudi table": re.compile(r"(?:(.*?)/)?\.hoodie(?:/.*)?"),
    "an Apache Iceberg table": re.compile(r"(?:(.*?)/)?metadata/[^/]+\.metadata\.json"),
    "a table of Spark's structured streaming": re.compile(r"(?:(.*?)/)?_spark_metadata(?:/.*)?"),
}


@dataclass
class LeftOut:
    """Counts what is not read, by kind, with the first names of each."""

    place: str
    counts: dict[int, int] = field(default_factory=dict)
    names: dict[int, list[str]] = field(default_factory=dict)

    def add(self, kind: int, names: Iterable[str], count: int = 1) -> None:
        """`count` things, of which these are the first names."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        shown = self.names.setdefault(kind, [])
        shown += [name for name in map(one_line, names) if name not in shown][: SHOWN - len(shown)]

    def parts(self) -> list[str]:
        """One phrase per kind."""
        found = []
        for kind in sorted(self.counts):
            count, names = self.counts[kind], self.names[kind]
            more = ", ..." if count > len(names) else ""
            found.append(f"{count:,} {_WORDS[kind][count > 1]} ({', '.join(names)}{more})")
        return found

    def notes(self) -> tuple[str, ...]:
        """One sentence per kind, for the report of `validate` and `plan`."""
        return tuple(f"{one_line(self.place)}: not read: {part}" for part in self.parts())


@dataclass
class _SortedNames:
    """The names of a listing, sorted by what they are. folders: tables below folders that the glob names."""

    left_out: LeftOut
    tables: list[str] = field(default_factory=list)
    folders: dict[str, list[str]] = field(default_factory=dict)
    others: dict[tuple[str, int], list[str]] = field(default_factory=dict)  # folder, kind: the first names
    counts: dict[tuple[str, int], int] = field(default_factory=dict)  # and how many there are
    pruned: set[str] = field(default_factory=set)  # run folders that were not looked into
    lakes: dict[str, str] = field(default_factory=dict)  # folder: kind of table
    planned: set[str] = field(default_factory=set)  # folders with plan/
    driven: set[str] = field(default_factory=set)  # folders with job.yaml or epochs/

    def mark(self, key: str) -> None:
        """Notes what a key says of the folders above it."""
        if not any(word in key for word in _MARKS):
            return
        if (run := _RUN.fullmatch(key)) is not None:
            (self.driven if run[2] else self.planned).add(run[1] or "")
        for kind, pattern in _LAKES.items():
            if (lake := pattern.fullmatch(key)) is not None:
                self.lakes[lake[1] or ""] = kind

    def leave(self, kind: int, key: str) -> None:
        """Counts a name that is not read, by its folder: that folder may later turn out to be a run folder."""
        where = key.rpartition("/")[0], kind
        self.counts[where] = self.counts.get(where, 0) + 1
        names = self.others.setdefault(where, [])
        name = _shown(key) if kind == HIDDEN else key
        if len(names) < SHOWN and name not in names:
            names.append(name)

    def runs(self) -> set[str]:
        """The outermost run folders."""
        found = (self.planned & self.driven) | self.pruned
        return {run for run in found if not any(other != run and _is_below(run, other) for other in found)}


def _shown(key: str) -> str:
    """A hidden file, or the hidden folder around it."""
    hidden = re.match(r"(?:[^/]*/)*?[._][^/]*/?", key)
    return hidden[0] if hidden else key


def _is_below(key: str, folder: str) -> bool:
    return not folder or key.startswith(f"{folder}/")


def tables_below(
    folder: Folder, place: str, is_table: Callable[[str], bool], glob: Glob | None = None
) -> tuple[list[str], LeftOut]:
    """(keys of the tables, sorted; what is left out). A run folder's own files are never prompts.

    InputError: a table format whose log says which files count, a symbolic link that leads nowhere or back.
    """
    found = _SortedNames(LeftOut(place))
    for key, kind in listed(folder, is_table, glob):
        found.mark(key)
        _sort_in(found, key, kind, is_table, glob)
    _choose_folders(found, is_table)
    runs = found.runs()
    _tell_of_runs(found, runs, place)
    keys = sorted(key for key in found.tables if not any(_is_below(key, run) for run in runs))
    for key in keys:
        for lake, table in found.lakes.items():
            if _is_below(key, lake):
                raise InputError(is_a_lake(folder.url_of(lake), table))
    for (inside, kind), names in sorted(found.others.items()):
        if not any(_is_below(f"{inside}/", run) for run in runs):
            found.left_out.add(kind, names, found.counts[inside, kind])
    return keys, found.left_out


def _tell_of_runs(found: _SortedNames, runs: set[str], place: str) -> None:
    """Report run folders that were not looked into, or in which something would have been read."""
    inside = [*found.tables, *(f"{folder}/" for folder, _ in found.others)]
    for run in sorted(runs):
        if run in found.pruned or any(_is_below(key, run) for key in inside):
            found.left_out.add(RUNS, [f"{run}/" if run else place])


def is_a_lake(place: str, table: str) -> str:
    """Why such a table is not read, and what to do."""
    return (
        f"{place}: {table}: its log says which of the files count, and that is not read here. "
        "Export its rows to plain Parquet files, or name one live file in input.path"
    )


def _sort_in(
    found: _SortedNames, key: str, kind: int | None, is_table: Callable[[str], bool], glob: Glob | None
) -> None:
    """Sorts one file in. kind: what the listing already knows of it."""
    named = glob is None or glob.matches(key)
    folder = None if glob is None or named else glob.folder_of(key)
    if kind == RUNS:
        found.pruned.add(key)
    elif not named and folder is None:
        return
    elif is_hidden(key) and kind != ODD:
        found.leave(HIDDEN, key)
    elif kind is not None:
        found.leave(kind, key)
    elif not is_table(key):
        found.leave(OTHER, key)
    elif named:
        found.tables.append(key)
    else:
        found.folders.setdefault(folder or "", []).append(key)


def _choose_folders(found: _SortedNames, is_table: Callable[[str], bool]) -> None:
    """Reads folders that the glob names if they are called like a table, as Spark's are, or if it names nothing else.

    Other folders are reported.
    """
    alone = not found.tables
    for folder, keys in found.folders.items():
        if alone or is_table(folder):
            found.tables += keys
        else:
            found.left_out.add(FOLDERS, [f"{folder}/"])


def would_hold(path: str, place: str) -> bool:
    """Whether a place lies in the folder that an input path names; a glob names none, and skips run folders."""
    if re.search(r"[*?\[]", path) and not os.path.isdir(path):
        return False
    root, inside = _spelt_out(path), _spelt_out(place)
    return inside == root or inside.startswith(root.rstrip("/") + "/")


def _spelt_out(path: str) -> str:
    """A place in one spelling: on disk with links resolved, in a store with one scheme and no empty parts."""
    scheme, separator, rest = path.partition("://")
    if not separator or scheme.lower() == "file":
        return os.path.realpath(os.path.expanduser(rest if separator else path))
    return f"{scheme.lower().replace('s3a', 's3')}://" + "/".join(part for part in rest.split("/") if part)


def same_files(folder: Folder, keys: Iterable[str]) -> tuple[str, ...]:
    """A note if two names are one file on disk, by a symbolic or a hard link: its rows are read twice."""
    if not os.path.isabs(folder.url):
        return ()
    first: dict[tuple[int, int], str] = {}
    twice = []
    for key in keys:
        try:
            file = identity(os.stat(os.path.join(folder.url, key)))
        except OSError:
            continue
        if first.setdefault(file, key) != key:
            twice.append(f"{key} is {first[file]}")
    if not twice:
        return ()
    more = f" and {len(twice) - SHOWN:,} more" if len(twice) > SHOWN else ""
    said = f"{folder.url}: files are there under two names, and read twice: {', '.join(twice[:SHOWN])}{more}"
    return (said,)


def table_format_around(folder: Folder) -> str | None:
    """The message if a folder lies inside a table format: it is one partition, or its data/."""
    at, name = _above(folder.url)
    while "=" in name and at:
        if (found := _lake_at(Folder(at, folder.options))) is not None:
            return found
        at, name = _above(at)
    return _lake_at(Folder(at, folder.options)) if name == "data" and at else None


def _above(url: str) -> tuple[str, str]:
    """(the folder around it, its own name); nothing is around a bucket."""
    at, _, name = url.rpartition("/")
    return ("", "") if "://" in url and url == store_of(url) else (at, name)


def _lake_at(folder: Folder) -> str | None:
    for table, name in (("a Delta Lake table", "_delta_log"), ("an Apache Hudi table", ".hoodie")):
        if _names(folder, name):
            return is_a_lake(folder.url, table)
    iceberg = any(name.endswith(".metadata.json") for name in _names(folder, "metadata"))
    return is_a_lake(folder.url, "an Apache Iceberg table") if iceberg else None


def _names(folder: Folder, name: str) -> list[str]:
    if os.path.isabs(folder.url) and not os.path.isdir(os.path.join(folder.url, name)):
        return []
    return folder.names(name)
