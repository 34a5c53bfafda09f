"""Pieces of prompt files: a task reads them once to find faults and once more for the rows. No Ray here.

A piece is a text file or some row groups of a Parquet file; a task gets several small pieces or one large piece.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.files.readers import Batch, InputError, TableFile, read_batches
from pipelines.prompts.columns import Carried, carried_array, json_type, resolve
from pipelines.prompts.remarks import Remarks, add_remarks, remarks
from pipelines.prompts.rows import (
    RawBatch,
    RowDefaults,
    RowFault,
    Rules,
    canonical_table,
    content_id,
    id_key,
    read_given,
)

TASK_ROWS = 50_000
TASK_BYTES = 16 << 20  # of text, where rows are not known
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
        """What a message calls a row of this piece (from 0); people count from 1, without the header."""
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


def cut_pieces(files: Iterable[TableFile], limit: int | None) -> list[FileSlice]:
    """Cuts files into pieces, in order; with a limit only as many as may hold the first `limit` rows."""
    pieces: list[FileSlice] = []
    known = 0  # rows that are certainly before the next piece
    for file in files:
        for piece in _pieces_of(file, limit):
            if limit is not None and known >= limit:
                return pieces
            pieces.append(piece)
            known += (piece.rows or 0) if file.format == "parquet" else 0
    return pieces


def _pieces_of(file: TableFile, limit: int | None) -> Iterator[FileSlice]:
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


def task_lists(pieces: list[FileSlice]) -> list[list[int]]:
    """Indices of pieces, in order, in lists that are each large enough for a task."""
    lists: list[list[int]] = []
    weight = 1.0
    for index, piece in enumerate(pieces):
        if weight >= 1:
            lists.append([])
            weight = 0.0
        lists[-1].append(index)
        weight += piece.rows / TASK_ROWS if piece.rows is not None else piece.file.size / TASK_BYTES
        weight += 0.02  # opening a file is work too
    return lists


def _batches(piece: FileSlice, columns: Collection[str] | None = None) -> Iterator[tuple[Batch, int]]:
    """(batch, its rows), cut at the piece's rows."""
    left = piece.rows
    for batch in read_batches(piece.file, piece.row_groups, columns):
        rows = len(next(iter(batch.values()), ()))
        if left is not None and rows >= left:
            yield {name: values[:left] for name, values in batch.items()}, left
            return
        left = None if left is None else left - rows
        yield batch, rows


def _canonical(piece: FileSlice, batch: Batch, reading: ReadingRules) -> dict[str, Any]:
    """The canonical columns of a batch. JSONL may show new keys at any row, so each batch is looked at."""
    meaning = resolve(batch, reading.columns, piece.file.place, needs_prompt=False)
    return {ours: batch[theirs] for theirs, ours in meaning.items()}


def scan(piece: FileSlice, reading: ReadingRules) -> Iterator[Chunk]:
    """The first pass over a piece. InputError, StorageError."""
    meaning = resolve(piece.file.columns, reading.columns, piece.file.place, needs_prompt=False)
    chunk = Chunk()
    for number, (batch, rows) in enumerate(_batches(piece, meaning)):
        given = read_given(_canonical(piece, batch, reading), rows, reading.rules(piece.file))
        add_remarks(chunk.remarks, remarks(given, reading.defaults), chunk.rows)
        _add(chunk, piece, batch, given)
        if number % CHUNK_BATCHES == CHUNK_BATCHES - 1:
            yield chunk
            chunk = Chunk()
    yield chunk


def _add(chunk: Chunk, piece: FileSlice, batch: Batch, given: RawBatch) -> None:
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
    if piece.file.format == "jsonl":
        chunk.json_types += [(name, json_type(values)) for name, values in batch.items()]
    chunk.rows += given.rows


def canonical_tables(
    piece: FileSlice, reading: ReadingRules, carried: Collection[Carried], occurrences: tuple[np.ndarray, np.ndarray]
) -> Iterator[pa.Table]:
    """The second pass: canonical rows with the carried columns; `occurrences`: (rows, rising, their numbers).

    InputError where the file is not what it was.
    """
    changed = InputError(f"{piece.file.place}: the file changed while it was being planned. Plan again")
    if piece.file.folder.stat(piece.file.key) != (piece.file.size, piece.file.etag):
        raise changed
    rules = reading.rules(piece.file)
    meaning = resolve(piece.file.columns, reading.columns, piece.file.place, needs_prompt=False)
    wanted, first = [*meaning, *(column.theirs for column in carried)], 0
    for batch, rows in _batches(piece, wanted):
        start, end = np.searchsorted(occurrences[0], [first, first + rows])
        at = (occurrences[0][start:end] - first).tolist()
        numbers = dict(zip(at, occurrences[1][start:end].tolist(), strict=True))
        own = pa.table({column.ours: carried_array(batch.get(column.theirs), column, rows) for column in carried})
        yield canonical_table(read_given(_canonical(piece, batch, reading), rows, rules), numbers, rules, own)
        first += rows
    if first != piece.rows:
        raise changed


def id_given(piece: FileSlice, row: int, reading: ReadingRules) -> str | None:
    """The id of one row of a piece, for a message."""
    first = 0
    for batch, count in _batches(replace(piece, rows=row + 1)):
        if row < first + count:
            return read_given(_canonical(piece, batch, reading), count, reading.rules(piece.file)).id[row - first]
        first += count
    return None
