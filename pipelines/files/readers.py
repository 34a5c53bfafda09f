"""Reads one file of prompts as a stream: its header, then its rows in batches of columns. Parquet, CSV, TSV and JSONL.

`pipelines.prompts.columns` decides what a column means; `pipelines.files.tables` finds the files.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, BinaryIO, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files.csv_rows import CsvFault, Dialect, records
from pipelines.pipeline_error import PipelineError, one_line
from pipelines.storage.folder import Folder
from pipelines.storage.range_file import RangeFile

Batch = dict[str, Any]  # column -> list or pyarrow array, all of one length

BATCH_ROWS = 4096
HEAD_ROWS = 1000  # of a JSONL file, to learn its columns
BUFFER_BYTES = 4 << 20
LONGEST_LINE = LONGEST_FIELD = 1 << 24  # characters; a packed file of a megabyte may hold a line of gigabytes
MOST_COLUMNS = 10_000
_LONE = re.compile("[\ud800-\udfff]")


class InputError(PipelineError, ValueError):
    """The prompts cannot be planned: one clear message with the place and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


PROMPT = "prompt"  # the one column of a list of prompts


@dataclass(frozen=True)
class TextRules:
    """How text files are written: their encoding (by Python's name for it), and the dialect of CSV."""

    encoding: str = "utf-8"
    csv: Dialect = field(default_factory=Dialect)


@dataclass(frozen=True)
class TableFile:
    """One file of prompts. columns: its header (JSONL: the keys of its first rows). row_groups: how many rows each has.

    partition: (column, value) that the names of the folders around it give; `columns` and `schema` include them.
    """

    folder: Folder
    key: str
    format: str  # parquet, csv, tsv, jsonl, or txt: a prompt a line
    size: int  # bytes
    etag: str
    columns: tuple[str, ...] = ()
    schema: pa.Schema | None = None  # Parquet only
    row_groups: tuple[int, ...] = ()
    text: TextRules = field(default_factory=TextRules)
    partition: tuple[tuple[str, str | None], ...] = ()

    @property
    def place(self) -> str:
        """What a message calls this file."""
        return self.folder.url_of(self.key)


def read_header(file: TableFile) -> TableFile:
    """The file with its columns, types and row groups. InputError."""
    with _readable(file):
        if file.format == "parquet":
            return _opened_parquet(file)
        with _text(file) as text:
            return replace(file, columns=_head(file, text))


def with_partition(file: TableFile) -> TableFile:
    """The file with the columns that its folders name, as text."""
    added = [name for name, _ in file.partition if name not in file.columns]
    if file.schema is not None:
        file = replace(file, schema=pa.schema([*file.schema, *(pa.field(name, pa.string()) for name in added)]))
    return replace(file, columns=(*file.columns, *added))


def read_batches(
    file: TableFile, row_groups: Sequence[int] | None = None, columns: Collection[str] | None = None
) -> Iterator[Batch]:
    """The rows of a file in order, as columns of up to BATCH_ROWS; of Parquet only `columns` are read. InputError.

    Columns that the folders name are added; where the file has them as well, their values must agree.
    """
    if columns is not None:
        columns = {*columns, *(name for name, _ in file.partition)}
    with _readable(file):
        if file.format == "parquet":
            for batch, rows in _parquet_batches(file, row_groups, columns):
                yield _partitioned(file, batch, rows)
        else:
            with _text(file) as text:
                for batch in _TEXT_BATCHES[file.format](file, text):
                    yield _partitioned(file, batch, len(next(iter(batch.values()), ())))


def _partitioned(file: TableFile, batch: Batch, rows: int) -> Batch:
    for name, value in file.partition:
        if name not in batch:
            batch[name] = [value] * rows if file.schema is None else pa.array([value] * rows, pa.string())
            continue
        values = batch[name].to_pylist() if isinstance(batch[name], pa.Array) else batch[name]
        other = next((own for own in values if (None if own is None else str(own)) != value), value)
        if other != value:
            raise InputError(
                f"{file.place}: its folder says {name}={value}, a row of it {name} {other!r}. "
                "Correct one of them, or rename the column"
            )
    return batch


def _opened_parquet(file: TableFile) -> TableFile:
    with pq.ParquetFile(RangeFile(file.folder, file.key, file.size), memory_map=False) as table:
        counts = tuple(table.metadata.row_group(group).num_rows for group in range(table.num_row_groups))
        schema = table.schema_arrow.remove_metadata()
    _unique(file, schema.names)
    return replace(file, columns=tuple(schema.names), schema=schema, row_groups=counts)


def _head(file: TableFile, text: TextIO) -> tuple[str, ...]:
    if file.format == "txt":
        return (PROMPT,)
    if file.format == "jsonl":
        names = tuple(dict.fromkeys(name for row in islice(_json_rows(file, text), HEAD_ROWS) for name in row))
        _not_too_many(file, names)
        return names
    header = next(_records(file, text), None)
    if header is None:
        raise InputError(f"{file.place}: the file is empty, it has no header line")
    if any("\0" in name for name in header[1]) and file.text.encoding == "utf-8":
        raise InputError(f"{file.place}: its header holds NUL characters. If it is UTF-16, set input.encoding: utf-16")
    return _header(file, header[1])


def _header(file: TableFile, fields: list[str]) -> tuple[str, ...]:
    names = [name.strip() or f"column_{number}" for number, name in enumerate(fields, 1)]
    _unique(file, names)
    return tuple(names)


def _unique(file: TableFile, names: list[str]) -> None:
    _not_too_many(file, names)
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise InputError(
            f"{file.place}: column {', '.join(map(repr, twice))} is there more than once. Rename one of them"
        )


def _not_too_many(file: TableFile, names: Collection[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise InputError(f"{file.place}: {len(names):,} columns, more than {MOST_COLUMNS:,}. Is it a table of prompts?")


@contextmanager
def _readable(file: TableFile) -> Iterator[None]:
    """Turns what the readers raise for a broken file into an InputError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{file.place}: there is no such file any more. Run again") from error
    except UnicodeError as error:
        raise InputError(f"{file.place}: {_not_decoded(file, error)}") from error
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{file.place}: not a complete {file.format} file ({reason}). It is torn or of another kind: write it again"
        ) from error


def _not_decoded(file: TableFile, error: UnicodeError) -> str:
    """That a text is not in its encoding, and which it looks like."""
    reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
    if file.text.encoding != "utf-8":
        return f"not {file.text.encoding} ({reason}). Correct input.encoding, or save the file as UTF-8"
    marked = isinstance(error, UnicodeDecodeError) and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    guess = "it looks like UTF-16: set input.encoding: utf-16" if marked else "say what it is: input.encoding: latin-1"
    return f"not UTF-8 ({reason}). Save the file as UTF-8, or {guess}"


def _parquet_batches(
    file: TableFile, row_groups: Sequence[int] | None, columns: Collection[str] | None
) -> Iterator[tuple[Batch, int]]:
    groups = range(len(file.row_groups)) if row_groups is None else row_groups
    with pq.ParquetFile(RangeFile(file.folder, file.key, file.size), memory_map=False, pre_buffer=True) as table:
        wanted = [name for name in table.schema_arrow.names if columns is None or name in columns]
        for group in groups:  # one at a time, so that no more than one is buffered
            for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=wanted):
                yield {name: batch.column(name) for name in wanted}, batch.num_rows


def _csv_batches(file: TableFile, text: TextIO) -> Iterator[Batch]:
    records = _records(file, text)
    header = next(records, None)
    if header is None:
        return
    names = _header(file, header[1])
    for rows in _chunks(_checked(file, records, len(names))):
        yield dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _checked(file: TableFile, records: Iterator[tuple[int, list[str]]], width: int) -> Iterator[list[str]]:
    for line, fields in records:
        if len(fields) != width:
            raise InputError(
                f"{file.place}:{line}: {len(fields)} fields where the header has {width}. "
                f"Quote fields that hold a {_separator(file)}, or end the row properly"
            )
        yield fields


def _separator(file: TableFile) -> str:
    mark = "\t" if file.format == "tsv" else file.text.csv.delimiter
    return {"\t": "tab", ",": "comma"}.get(mark, repr(mark))


def _records(file: TableFile, text: TextIO) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each row that is not blank."""
    return _tsv_records(file, text) if file.format == "tsv" else _csv_records(file, text)


def _lines(file: TableFile, text: TextIO) -> Iterator[str]:
    """The lines with their ends. InputError where one is longer than any row of prompts."""
    number = 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise InputError(f"{file.place}:{number}: a line of more than {LONGEST_LINE:,} characters. Is it a table?")
        yield line


def _csv_records(file: TableFile, text: TextIO) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from records(_lines(file, text), file.text.csv, LONGEST_FIELD)
    except CsvFault as fault:
        raise InputError(f"{file.place}:{fault.line}: {fault.message}") from fault


def _tsv_records(file: TableFile, text: TextIO) -> Iterator[tuple[int, list[str]]]:
    """One row a line. Quotes are text, save around a field whose inner quotes are doubled, as spreadsheets write."""
    for number, line in enumerate(_lines(file, text), 1):
        line = line.rstrip("\r\n")
        if line:
            yield number, [_unquoted(field) if '"' in field else field for field in line.split("\t")]


def _unquoted(field: str) -> str:
    inner = field[1:-1]
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner.replace('""', ""):
        return field
    return inner.replace('""', '"')


def _jsonl_batches(file: TableFile, text: TextIO) -> Iterator[Batch]:
    for rows in _chunks(_json_rows(file, text)):
        names = dict.fromkeys(name for row in rows for name in row)
        _not_too_many(file, names)
        yield {name: [row.get(name) for row in rows] for name in names}


def _line_batches(file: TableFile, text: TextIO) -> Iterator[Batch]:
    """A prompt a line; blank lines are none."""
    for prompts in _chunks(_prompt_lines(file, text)):
        yield {PROMPT: prompts}


def _prompt_lines(file: TableFile, text: TextIO) -> Iterator[str]:
    for number, line in enumerate(_lines(file, text), 1):
        if "\0" in line:
            raise InputError(
                f"{file.place}:{number}: holds NUL characters. If it is UTF-16, set input.encoding: utf-16"
            )
        yield from (part for part in re.split(r"[\r\n]+", line) if part and not part.isspace())


def _json_rows(file: TableFile, text: TextIO) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(file, text), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{file.place}:{number}: not a JSON object ({error}). Correct it, or the file is torn"
            ) from error
        if not isinstance(row, dict):
            raise InputError(f'{file.place}:{number}: not a JSON object. Write one object a line: {{"prompt": "..."}}')
        yield _without_lone_surrogates(row) if "\\u" in line else row


def _without_lone_surrogates(row: dict[str, Any]) -> dict[str, Any]:
    """Half a character cannot be stored as UTF-8: it becomes U+FFFD."""
    text = json.dumps(row, ensure_ascii=False)
    return json.loads(_LONE.sub("\ufffd", text)) if _LONE.search(text) else row


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while chunk := list(islice(rows, BATCH_ROWS)):
        yield chunk


@contextmanager
def _text(file: TableFile) -> Iterator[TextIO]:
    """UTF-8 with or without a byte order mark, or as it was said; lines end as each format wants it."""
    with io.BufferedReader(RangeFile(file.folder, file.key, file.size), BUFFER_BYTES) as stored:
        packed = file.key.partition("?")[0].lower().endswith(".gz")
        binary = cast(BinaryIO, gzip.GzipFile(fileobj=stored)) if packed else stored
        newline = "" if file.format == "csv" else "\n"
        encoding = "utf-8-sig" if file.text.encoding == "utf-8" else file.text.encoding
        with io.TextIOWrapper(binary, encoding=encoding, newline=newline) as text:
            yield text


_TEXT_BATCHES = {"csv": _csv_batches, "tsv": _csv_batches, "jsonl": _jsonl_batches, "txt": _line_batches}
