"""Cuts prompt files into slices, and reads a slice: once to find faults, once more for the rows. No Ray here.

A slice is a text file or some row groups of a Parquet file; a task gets several small slices or one large slice.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.files.readers import Batch, InputError, TableFile, read_batches
from pipelines.prompts.canonical_rows import (
    RawBatch,
    RowDefaults,
    RowFault,
    Rules,
    canonical_table,
    content_id,
    id_key,
    read_raw,
)
from pipelines.prompts.columns import CarriedColumn, carried_array, json_type, resolve_columns
from pipelines.prompts.remarks import Remarks, add_remarks, remarks

TASK_ROWS = 50_000
TASK_BYTES = 16 << 20  # of text, where rows are not known
SMALL_BYTES, SMALL_FILES = 1 << 20, 16  # in all: read here before a task's process would have started
CHUNK_BATCHES = 16
MAX_SHOWN = 5


@dataclass(frozen=True)
class ReadingRules:
    """How rows are read. columns: canonical name -> the user's, from the job file. samples: images per prompt."""

    columns: Mapping[str, str]
    defaults: RowDefaults
    samples: int

    def rules(self, file: TableFile) -> Rules:
        """The rules for the rows of one file."""
        return Rules(self.defaults, self.samples, blank_is_null=file.format in ("csv", "tsv"))


@dataclass(frozen=True)
class FileSlice:
    """`rows` rows of a file from `first_row` on; None: as many as there are. `row_groups`: of Parquet only."""

    file: TableFile
    first_row: int
    rows: int | None
    row_groups: tuple[int, ...] | None = None

    def place(self, row: int) -> str:
        """What a message calls a row of this slice (from 0); people count from 1, without the header."""
        return f"{self.file.place} row {self.first_row + row + 1}"


@dataclass
class Chunk:
    """What the first pass reports of consecutive rows: keys, which ids were given, which rows are bad."""

    rows: int = 0
    keys: bytes = b""  # KEY_BYTES per row
    given: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # (rows,) the id was
    bad_rows: list[int] = field(default_factory=list)  # from the chunk's first
    faults: list[RowFault] = field(default_factory=list)  # of the first MAX_SHOWN of them
    json_types: list[tuple[str, pa.DataType | None]] = field(default_factory=list)  # JSONL only
    names: set[str] = field(default_factory=set)
    pinned_steps: set[int] = field(default_factory=set)
    pins_seeds: bool = False
    remarks: Remarks = field(default_factory=dict)
    error: Exception | None = None


def cut_slices(files: Iterable[TableFile], limit: int | None) -> list[FileSlice]:
    """Cuts files into slices, in order; with a limit only as many as may hold the first `limit` rows."""
    slices: list[FileSlice] = []
    known = 0  # rows that are certainly before the next slice
    for file in files:
        for file_slice in _slices_of(file, limit):
            if limit is not None and known >= limit:
                return slices
            slices.append(file_slice)
            known += (file_slice.rows or 0) if file.format == "parquet" else 0
    return slices


def _slices_of(file: TableFile, limit: int | None) -> Iterator[FileSlice]:
    if file.format != "parquet":
        yield FileSlice(file, 0, limit)
        return
    first, rows, groups = 0, 0, []
    for group, count in enumerate(file.row_groups):
        groups.append(group)
        rows += count
        if rows >= TASK_ROWS or (group == len(file.row_groups) - 1 and rows):
            yield FileSlice(file, first, rows, tuple(groups))
            first, rows, groups = first + rows, 0, []


def are_small(slices: Collection[FileSlice]) -> bool:
    """Whether this process may read them itself. Text alone: a torn Parquet file may end who reads it (pyarrow 26)."""
    plain = all(part.file.format != "parquet" and not part.file.key.lower().endswith(".gz") for part in slices)
    return plain and len(slices) <= SMALL_FILES and sum(part.file.size for part in slices) <= SMALL_BYTES


def task_lists(slices: list[FileSlice]) -> list[list[int]]:
    """Indices of slices, in order, in lists that are each large enough for a task."""
    lists: list[list[int]] = []
    weight = 1.0
    for index, file_slice in enumerate(slices):
        if weight >= 1:
            lists.append([])
            weight = 0.0
        lists[-1].append(index)
        weight += file_slice.rows / TASK_ROWS if file_slice.rows is not None else file_slice.file.size / TASK_BYTES
        weight += 0.02  # opening a file is work too
    return lists


def _batches(file_slice: FileSlice, columns: Collection[str] | None = None) -> Iterator[tuple[Batch, int]]:
    """(batch, its rows), cut at the slice's rows."""
    left = file_slice.rows
    for batch in read_batches(file_slice.file, file_slice.row_groups, columns):
        rows = len(next(iter(batch.values()), ()))
        if left is not None and rows >= left:
            yield {name: values[:left] for name, values in batch.items()}, left
            return
        left = None if left is None else left - rows
        yield batch, rows


def _canonical(file_slice: FileSlice, batch: Batch, reading: ReadingRules) -> dict[str, Any]:
    """The canonical columns of a batch. JSONL may show new keys at any row, so each batch is looked at."""
    meaning = resolve_columns(batch, reading.columns, file_slice.file.place, needs_prompt=False)
    return {ours: batch[theirs] for theirs, ours in meaning.items()}


def scan(file_slice: FileSlice, reading: ReadingRules) -> Iterator[Chunk]:
    """The first pass over a slice. InputError, StorageError."""
    meaning = resolve_columns(file_slice.file.columns, reading.columns, file_slice.file.place, needs_prompt=False)
    chunk = Chunk()
    for number, (batch, rows) in enumerate(_batches(file_slice, meaning)):
        given = read_raw(_canonical(file_slice, batch, reading), rows, reading.rules(file_slice.file))
        add_remarks(chunk.remarks, remarks(given, reading.defaults), chunk.rows)
        _add(chunk, file_slice, batch, given)
        if number % CHUNK_BATCHES == CHUNK_BATCHES - 1:
            yield chunk
            chunk = Chunk()
    yield chunk


def _add(chunk: Chunk, file_slice: FileSlice, batch: Batch, given: RawBatch) -> None:
    ids = [name or content_id(given, row, 0) for row, name in enumerate(given.id)]
    chunk.keys += b"".join(map(id_key, ids))
    chunk.given = np.append(chunk.given, np.array([name is not None for name in given.id], bool))
    bad = sorted(given.faults)
    chunk.faults += [given.faults[row] for row in bad[: max(0, MAX_SHOWN - len(chunk.faults))]]
    chunk.bad_rows += [chunk.rows + row for row in bad]
    chunk.pinned_steps |= {
        count for row, count in enumerate(given.num_inference_steps) if count is not None and row not in given.faults
    }
    chunk.pins_seeds |= any(seed is not None for seed in given.seed)
    chunk.names |= set(batch)
    if file_slice.file.format == "jsonl":
        chunk.json_types += [(name, json_type(values)) for name, values in batch.items()]
    chunk.rows += given.rows


def canonical_tables(
    file_slice: FileSlice,
    reading: ReadingRules,
    carried: Collection[CarriedColumn],
    equal_rows: tuple[np.ndarray, np.ndarray],
) -> Iterator[pa.Table]:
    """The second pass: canonical rows with the carried columns; `equal_rows`: (rows, rising, their numbers).

    InputError where the file is not what it was.
    """
    changed = InputError(f"{file_slice.file.place}: the file changed while it was being planned. Plan again")
    if file_slice.file.folder.stat(file_slice.file.key) != (file_slice.file.size, file_slice.file.etag):
        raise changed
    rules = reading.rules(file_slice.file)
    meaning = resolve_columns(file_slice.file.columns, reading.columns, file_slice.file.place, needs_prompt=False)
    wanted, first = [*meaning, *(column.theirs for column in carried)], 0
    for batch, rows in _batches(file_slice, wanted):
        start, end = np.searchsorted(equal_rows[0], [first, first + rows])
        at = (equal_rows[0][start:end] - first).tolist()
        numbers = dict(zip(at, equal_rows[1][start:end].tolist(), strict=True))
        own = pa.table({column.ours: carried_array(batch.get(column.theirs), column, rows) for column in carried})
        yield canonical_table(read_raw(_canonical(file_slice, batch, reading), rows, rules), numbers, rules, own)
        first += rows
    if first != file_slice.rows:
        raise changed


def id_given(file_slice: FileSlice, row: int, reading: ReadingRules) -> str | None:
    """The id of one row of a slice, for a message."""
    first = 0
    for batch, count in _batches(replace(file_slice, rows=row + 1)):
        if row < first + count:
            return read_raw(_canonical(file_slice, batch, reading), count, reading.rules(file_slice.file)).id[
                row - first
            ]
        first += count
    return None
