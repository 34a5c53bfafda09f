"""Which files hold the prompts: a file, a folder or a glob, on disk or in an object store, with their headers."""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fsspec.utils import glob_translate

from pipelines.folder import Folder, StorageOptions
from pipelines.formats import InputError, TableFile, read_header

FORMATS = {"parquet": "parquet", "pq": "parquet", "csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl"}
KNOWN = ".parquet, .csv, .tsv or .jsonl (text may be .gz)"
OPENERS = 16


def find_files(path: str, storage: StorageOptions) -> list[TableFile]:
    """The files behind a file, a folder or a glob, sorted by path, with their columns. InputError, StorageError."""
    found = _listed(path, storage)
    with ThreadPoolExecutor(OPENERS) as pool:
        opened = list(pool.map(_opened_or_error, found))
    errors = [outcome for outcome in opened if isinstance(outcome, InputError)]
    if errors:
        more = f" ({len(errors) - 1} more files cannot be read)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}")
    return [outcome for outcome in opened if isinstance(outcome, TableFile)]


def _listed(path: str, storage: StorageOptions) -> list[TableFile]:
    folder = Folder(path, storage)
    if os.path.isdir(folder.url):
        return _files_below(
            folder, lambda key: _format_of(key) is not None, f"{path}: the folder holds no {KNOWN} file"
        )
    parent, _, name = folder.url.rpartition("/")
    if not parent.endswith("/") and name and not path.endswith("/"):
        above = Folder(parent or "/", storage)
        found = above.stat(name)
        if found is not None:
            return [_named_file(above, name, found)]
    if re.search(r"[*?\[]", path):
        return _globbed(folder.url, storage)
    missing = f"{path}: there is no such file or folder with a {KNOWN} file. Correct input.path"
    return _files_below(folder, _is_table, missing)


def _globbed(pattern: str, storage: StorageOptions) -> list[TableFile]:
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    wanted = re.compile(glob_translate(pattern[len(fixed) + 1 :]))
    return _files_below(
        Folder(fixed or "/", storage),
        lambda key: wanted.match(key) is not None and _is_table(key),
        f"{pattern}: no {KNOWN} file matches. Correct input.path",
    )


def _files_below(folder: Folder, wanted: Callable[[str], bool], missing: str) -> list[TableFile]:
    """Hidden files, and those of a `_name`, are other tools' notes: left out."""
    keys = sorted(key for key, _ in folder.walk() if wanted(key) and not re.search(r"(^|/)[._]", key))
    if not keys:
        raise InputError(missing)
    return [TableFile(folder, key, _format_of(key) or "", -1, "") for key in keys]


def _named_file(folder: Folder, key: str, found: tuple[int, str]) -> TableFile:
    kind = _format_of(key)
    if kind is None:
        raise InputError(f"{folder.url_of(key)}: unknown kind of file. Give a {KNOWN} file")
    return TableFile(folder, key, kind, *found)


def _format_of(key: str) -> str | None:
    parts = key.rsplit("/", 1)[-1].lower().split(".")
    packed = parts[-1] == "gz"
    kind = FORMATS.get(parts[-2 if packed else -1]) if len(parts) > 1 + packed else None
    return None if packed and kind == "parquet" else kind


def _is_table(key: str) -> bool:
    return _format_of(key) is not None


def _opened_or_error(file: TableFile) -> TableFile | InputError:
    try:
        return _opened(file)
    except InputError as error:
        return error


def _opened(file: TableFile) -> TableFile:
    """The file with its size, its etag and its header."""
    found = (file.size, file.etag) if file.size >= 0 else file.folder.stat(file.key)
    if found is None:
        raise InputError(f"{file.place}: there is no such file any more. Run again")
    return read_header(replace(file, size=found[0], etag=found[1]))
