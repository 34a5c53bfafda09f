"""Finds the files of an input, a file, a folder or a glob on disk or in an object store, and reads their headers.

`pipelines.files.chosen` decides which names of a listing are read.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from urllib.parse import unquote

from pipelines.files.chosen import same_files, table_format_around, tables_below
from pipelines.files.readers import InputError, TableFile, TextRules, read_header, with_partition
from pipelines.files.walk import Glob
from pipelines.pipeline_error import one_line
from pipelines.storage.folder import Folder, StorageOptions

FORMATS = {"parquet": "parquet", "pq": "parquet", "csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl"}
KNOWN = ".parquet, .csv, .tsv or .jsonl (text may be .gz)"
LISTS = {"txt": "txt"}  # a prompt a line; read where it is named itself: folders have all sorts of texts
OPENERS = 16
_PARTITION = re.compile(r"([^=/]+)=([^/]*)")
_ON_THE_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?/(.+)", re.I)
HUB = "https://huggingface.co"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_ADVICE = {
    "json": "write one object a line and call it .jsonl",
    **dict.fromkeys(("xlsx", "xls", "ods"), "save the sheet as CSV"),
    **dict.fromkeys(("arrow", "feather", "orc", "avro"), "write it as Parquet"),
    "zip": "unpack it",
    **dict.fromkeys(("zst", "bz2", "xz"), "unpack it, or pack it as .gz"),
}


@dataclass(frozen=True)
class FoundFiles:
    """The files of an input, sorted by path; `notes` say what is left out beside them."""

    files: tuple[TableFile, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[TableFile]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def find_files(path: str, storage: StorageOptions, text: TextRules | None = None) -> FoundFiles:
    """The files behind a file, a folder or a glob, with their columns. InputError, StorageError."""
    found, notes = _listed(path, storage)
    with ThreadPoolExecutor(OPENERS) as pool:
        opened = [pool.submit(_opened, replace(file, text=text or TextRules())) for file in found]
    errors = [error for each in opened if isinstance(error := each.exception(), InputError)]
    if errors:
        more = f" ({len(errors) - 1} more files cannot be read)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}")
    return FoundFiles(tuple(each.result() for each in opened), tuple(map(one_line, notes)))


def _listed(path: str, storage: StorageOptions) -> tuple[list[TableFile], tuple[str, ...]]:
    parts = path.partition("?")[0].partition("://")[2].split("/")
    if "\0" in path or {".", ".."} & set(parts):
        raise InputError(f"{path!r}: no path holds a NUL, and no URL a part '.' or '..'. Correct input.path")
    if path.lower().startswith(("http://", "https://")):
        return [_on_the_web(path, storage)], ()
    if path.lower().startswith("hf://"):
        return [_on_the_web(hub_address(path), storage)], ()
    folder = Folder(path, storage)
    if os.path.isdir(folder.url):
        return _files_below(folder, path, f"{path}: the folder holds no {KNOWN} file")
    if (named := _named_file(path, folder.url, storage)) is not None:
        return [named], _note_on_partitions(path)
    if os.path.islink(folder.url):
        raise InputError(f"{path}: a symbolic link to {os.readlink(folder.url)}, which is not there. Correct it")
    if re.search(r"[*?\[]", path):
        return _globbed(folder.url, path, storage)
    missing = f"{path}: there is no such file or folder with a {KNOWN} file. Correct input.path"
    return _files_below(folder, path, missing)


def _named_file(path: str, url: str, storage: StorageOptions) -> TableFile | None:
    """The file that a path names, None where there is none; `//` in an object's key is a part of it."""
    parent, _, name = url.rpartition("/")
    if not name or path.endswith("/"):
        return None
    above = _parent(parent, storage)
    found = above.stat(name)
    if found is None:
        return None
    kind = format_of(name, named=True)
    if kind is None:
        raise InputError(f"{above.url_of(name)}: unknown kind of file. Give a {KNOWN} file{_advice(name)}")
    return TableFile(above, name, kind, *found)


def _parent(url: str, storage: StorageOptions) -> Folder:
    if "://" not in url or not url.endswith("/") or url.endswith("://"):
        return Folder(url or "/", storage)
    bare = url.rstrip("/")
    return Folder(bare, storage).below(url[len(bare) :].removesuffix("/"))


def _advice(name: str) -> str:
    advice = _ADVICE.get(name.lower().rpartition(".")[2])
    return f": {advice}" if advice else ""


def _on_the_web(path: str, storage: StorageOptions) -> TableFile:
    """http and https name one file: they have no folders to list."""
    parent, name = web_address(path)
    kind = format_of(name.partition("?")[0], named=True)
    if kind is None or parent.endswith("/") or re.search(r"[*\[]", name.partition("?")[0]):
        raise InputError(f"{path}: over http(s) one {KNOWN} file is read, no folder and no glob. Name the file")
    folder = Folder(parent, storage)
    found = folder.stat(name)
    if found is None:
        raise InputError(f"{path}: the server has no such file (404). Correct input.path")
    return TableFile(folder, name, kind, *found)


def web_address(path: str) -> tuple[str, str]:
    """(folder, name with its query) of a file on the web."""
    address, mark, query = path.partition("?")
    folder, _, name = address.rpartition("/")
    return folder, name + mark + query.replace("/", "%2F")


def hub_address(path: str) -> str:
    """Where the Hugging Face hub has the file of hf://datasets/<owner>/<name>[@<revision>]/<file>. InputError."""
    found = _ON_THE_HUB.fullmatch(path)
    if found is None or format_of(path, named=True) is None or re.search(r"[*?\[#]", path):
        raise InputError(
            f"{path}: of the hub one {KNOWN} file is read, no folder and no glob. Name it as "
            "hf://datasets/<owner>/<name>/<file>, or download the files"
        )
    name, file = found[1], found[3]
    revision = (found[2] or "main").replace("/", "%2F")
    return f"{(os.environ.get('HF_ENDPOINT') or HUB).rstrip('/')}/datasets/{name}/resolve/{revision}/{file}"


def _globbed(pattern: str, path: str, storage: StorageOptions) -> tuple[list[TableFile], tuple[str, ...]]:
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    missing = f"{pattern}: no {KNOWN} file matches. Correct input.path"
    return _files_below(Folder(fixed or "/", storage), path, missing, Glob(pattern[len(fixed) + 1 :]))


def _files_below(
    folder: Folder, path: str, missing: str, glob: Glob | None = None
) -> tuple[list[TableFile], tuple[str, ...]]:
    if (lake := table_format_around(folder)) is not None:
        raise InputError(lake)
    if os.path.isabs(folder.url) and not os.path.isdir(folder.url):
        raise InputError(missing)
    lists = glob is not None and path.lower().endswith((".txt", ".txt.gz"))
    keys, left_out = tables_below(folder, path, lambda key: format_of(key, lists) is not None, glob)
    if not keys:
        beside = "; ".join(left_out.parts())
        raise InputError(f"{missing}. Not read: {beside}" if beside else missing)
    files = [_file_at(folder, key, lists) for key in keys]
    return files, (*left_out.notes(), *same_files(folder, keys), *_note_on_partitions(path))


def _file_at(folder: Folder, key: str, lists: bool) -> TableFile:
    """A file by its key, which may have empty parts; its folders may name values of columns."""
    partition = _partition(folder, key)
    above, empty, name = f"/{key}".rpartition("//")
    if empty:
        folder, key = folder.below(above), name
    return TableFile(folder, key, format_of(key, lists) or "", -1, "", partition=partition)


def _partition(folder: Folder, key: str) -> tuple[tuple[str, str | None], ...]:
    """(column, value) of each folder like `lang=en` around a file, as Hive and Spark write them."""
    parts = [_PARTITION.fullmatch(part) for part in key.split("/")[:-1]]
    found = [(unquote(part[1]), unquote(part[2])) for part in parts if part]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise InputError(f"{folder.url}/{key}: two of its folders give a value to one column. Rename one of them")
    return tuple((name, None if value == _NO_VALUE else value) for name, value in found)


def _note_on_partitions(path: str) -> tuple[str, ...]:
    """Folders like `lang=en` of the path itself are not below the input, so they are no columns."""
    fixed, *glob = re.split(r"[*?\[]", path, maxsplit=1)
    parts = (fixed.rpartition("/")[0] if glob else fixed).split("/")
    named = [part for part in parts if _PARTITION.fullmatch(part) and format_of(part) is None]
    if not named:
        return ()
    said = f"{path}: {', '.join(named)} in the path is no column: name the folder above it to have it as one"
    return (said,)


def format_of(key: str, named: bool = False) -> str | None:
    """parquet, csv, tsv or jsonl by the name's ending, txt too for a file that is named itself; None for any other."""
    parts = key.rsplit("/", 1)[-1].lower().split(".")
    packed = parts[-1] == "gz"
    kind = (FORMATS | LISTS if named else FORMATS).get(parts[-2 if packed else -1]) if len(parts) > 1 + packed else None
    return None if packed and kind == "parquet" else kind


def _opened(file: TableFile) -> TableFile:
    """The file with its size, its etag and its header."""
    found = (file.size, file.etag) if file.size >= 0 else file.folder.stat(file.key)
    if found is None:
        raise InputError(f"{file.place}: there is no such file any more. Run again")
    return with_partition(read_header(replace(file, size=found[0], etag=found[1])))
