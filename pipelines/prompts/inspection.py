"""Puts together what the tasks of the first pass over the prompts report.

The driver holds 17 bytes per prompt and the numbers of equal rows; nothing else grows with rows.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.files.readers import InputError, TableFile, TextRules
from pipelines.files.tables import FoundFiles, find_files
from pipelines.pipeline_error import one_line
from pipelines.prompts.canonical_rows import KEY_BYTES, RowDefaults
from pipelines.prompts.columns import (
    GIVEN,
    LEFT_OUT,
    CarriedColumn,
    CarriedTypes,
    check_explicit,
    check_types,
    misspelt,
    resolve_columns,
)
from pipelines.prompts.duplicates import EqualRows, find_equal_rows
from pipelines.prompts.remarks import Remark, remark_notes
from pipelines.prompts.slices import MAX_SHOWN, Chunk, FileSlice, ReadingRules, id_given
from pipelines.storage.folder import StorageOptions

HEAVY_BYTES, HEAVY_ROW_BYTES = 16 << 20, 4096  # of a carried column: in all, and per row


@dataclass(frozen=True)
class PromptSource:
    """Where the prompts are and how they are read. `columns`: canonical name -> the user's, as in `input.columns`.

    drop: columns of the user's own that are not carried.
    """

    path: str
    _: KW_ONLY
    defaults: RowDefaults
    columns: Mapping[str, str] = field(default_factory=dict)
    images_per_prompt: int = 1
    limit: int | None = None  # the first so many prompts
    storage: StorageOptions = field(default_factory=StorageOptions)
    text: TextRules = field(default_factory=TextRules)
    drop: tuple[str, ...] = ()

    @property
    def reading(self) -> ReadingRules:
        """The part of the source that a task needs."""
        return ReadingRules(dict(self.columns), self.defaults, self.images_per_prompt)


@dataclass(frozen=True)
class Inspection:
    """What the first pass found. `rows` counts prompts; `bad_samples` say place and reason of the first bad ones.

    used: the user's columns with a meaning -> the canonical names; nearly: carried ones -> what they may be meant for.
    """

    source: PromptSource
    files: tuple[TableFile, ...]
    slices: tuple[FileSlice, ...]
    rows: int
    bad_rows: int
    bad_samples: tuple[str, ...]
    used: Mapping[str, str]
    carried: tuple[CarriedColumn, ...]
    notes: tuple[str, ...]
    pinned_steps: frozenset[int]
    nearly: Mapping[str, str]
    equal_rows: Mapping[int, tuple[np.ndarray, np.ndarray]]  # slice -> (rows equal to an earlier one, numbers)

    @property
    def carried_schema(self) -> pa.Schema:
        """The carried columns as the plan and the manifest have them."""
        return pa.schema([pa.field(column.ours, column.type) for column in self.carried])

    @property
    def num_planned(self) -> int:
        """Rows of a plan of the whole input: prompts times images per prompt."""
        return self.rows * self.source.images_per_prompt

    @property
    def place(self) -> str:
        """The input's path, made absolute."""
        path = self.source.path
        return path if "://" in path else os.path.abspath(os.path.expanduser(path))

    def input_files(self) -> list[dict[str, Any]]:
        """Path, size, etag and format of each file, for plan.json."""
        return [{"path": f.place, "bytes": f.size, "etag": f.etag, "format": f.format} for f in self.files]


def pinned_notes(pinned: Collection[int], menu: Collection[int]) -> tuple[str, ...]:
    """A note if rows ask for budgets that are not in the menu."""
    beside = sorted(set(pinned) - set(menu))
    if not beside:
        return ()
    more = ", ..." if len(beside) > MAX_SHOWN else ""
    return (
        f"some rows ask for {', '.join(map(str, beside[:MAX_SHOWN]))}{more} steps, which are not in the menu: "
        "they get what they ask for",
    )


def open_files(source: PromptSource) -> FoundFiles:
    """Opens the files and checks that column types fit their canonical names. InputError, StorageError."""
    check_explicit(source.columns)
    files = find_files(source.path, source.storage, source.text)
    for file in files:
        check_types(file, resolve_columns(file.columns, source.columns, file.place, needs_prompt=bool(file.columns)))
    return files


def assemble(
    source: PromptSource, files: FoundFiles, slices: list[FileSlice], scanned: list[list[Chunk]]
) -> Inspection:
    """The inspection from the chunks of each slice, in order; it empties them. InputError as `inspect`."""
    _limit(scanned, source.limit)
    slices = [
        replace(file_slice, rows=sum(c.rows for c in chunks))
        for file_slice, chunks in zip(slices, scanned, strict=True)
    ]
    num_rows = sum(file_slice.rows or 0 for file_slice in slices)
    if not num_rows:
        raise InputError(f"{source.path}: there are no rows. Give a file with at least one prompt")
    _check_columns_seen(source, files, scanned)
    used, carried, notes = _columns(source, files, slices, scanned)
    nearly = misspelt([column.theirs for column in carried], used.values())
    chunks = [chunk for of_piece in scanned for chunk in of_piece]
    remarked = (*_seeds_that_count_up(source, chunks), *remark_notes(_remarks(slices, scanned)))
    said = (*files.notes, *notes, *map(_may_be_meant, nearly.items()), *remarked)
    return Inspection(
        source=source,
        files=tuple(files),
        slices=tuple(slices),
        rows=num_rows,
        bad_rows=sum(len(chunk.bad_rows) for chunk in chunks),
        bad_samples=_bad_samples(slices, scanned),
        used=used,
        carried=carried,
        notes=tuple(map(one_line, said)),
        pinned_steps=frozenset().union(*(chunk.pinned_steps for chunk in chunks)),
        nearly=nearly,
        equal_rows=_equal_rows(source, slices, scanned),
    )


def _may_be_meant(names: tuple[str, str]) -> str:
    name, ours = names
    remedy = f"rename it, or set input.columns: {{{ours}: {name}}}"
    return f"column {name!r} is only carried along: if it is the {ours}, {remedy}"


def _seeds_that_count_up(source: PromptSource, chunks: list[Chunk]) -> tuple[str, ...]:
    """A note if rows give seeds and the job asks for several images per prompt."""
    samples = source.images_per_prompt
    if samples == 1 or not any(chunk.pins_seeds for chunk in chunks):
        return ()
    return (
        f"a given seed counts up with input.images_per_prompt: seed, seed + 1, ..., seed + {samples - 1}. Rows of one "
        f"prompt whose seeds lie closer than {samples} get the same picture twice",
    )


def _limit(scanned: list[list[Chunk]], limit: int | None) -> None:
    """Cuts the chunks to the first `limit` rows."""
    left = sum(chunk.rows for chunks in scanned for chunk in chunks) if limit is None else limit
    for chunks in scanned:
        for chunk in chunks:
            if chunk.rows > left:
                chunk.rows, chunk.keys, chunk.given = left, chunk.keys[: left * KEY_BYTES], chunk.given[:left]
                chunk.bad_rows = [row for row in chunk.bad_rows if row < left]
                cut = {key: Remark(min(r.rows, left - r.first), r.first) for key, r in chunk.remarks.items()}
                chunk.remarks = {key: remark for key, remark in cut.items() if remark.rows > 0}
            left -= chunk.rows


def _check_columns_seen(source: PromptSource, files: FoundFiles, scanned: list[list[Chunk]]) -> None:
    names = {name for file in files for name in file.columns}
    names |= {name for chunks in scanned for chunk in chunks for name in chunk.names}
    missing = sorted(theirs for theirs in source.columns.values() if theirs not in {*names, LEFT_OUT})
    if missing:
        raise InputError(
            f"input.columns names {', '.join(map(repr, missing))}, which {source.path} does not have. "
            f"Its columns are {', '.join(sorted(names))}"
        )


def _columns(
    source: PromptSource, files: FoundFiles, slices: list[FileSlice], scanned: list[list[Chunk]]
) -> tuple[dict[str, str], tuple[CarriedColumn, ...], tuple[str, ...]]:
    """The columns of the input with a meaning, the columns that are carried along, and notes on them."""
    types, used, names = CarriedTypes(), dict[str, str](), set[str]()
    of_file: dict[str, list[Chunk]] = {}
    for file_slice, chunks in zip(slices, scanned, strict=True):
        of_file.setdefault(file_slice.file.place, []).extend(chunks)
    for file in files:
        kinds: list[tuple[str, pa.DataType | None]]
        if file.format == "jsonl":
            kinds = [kind for chunk in of_file.get(file.place, ()) for kind in chunk.json_types]
        elif file.schema is not None:
            kinds = [(column.name, column.type) for column in file.schema]
        else:
            kinds = [(name, pa.string()) for name in file.columns]
        meaning = resolve_columns(
            dict.fromkeys(name for name, _ in kinds), source.columns, file.place, needs_prompt=False
        )
        used |= meaning
        for name, kind in kinds:
            if name not in meaning:
                names.add(name)
                if name not in source.drop:
                    types.add(name, kind, file.place, file.format == "jsonl")
    if unknown := [name for name in source.drop if name not in names]:
        raise InputError(
            f"input.drop names {', '.join(map(repr, unknown))}, which is no column that is only carried along. "
            f"Those of {source.path} are {', '.join(sorted(names)) or 'none'}"
        )
    carried, notes = types.finish()
    in_order = sorted(used.items(), key=lambda pair: GIVEN.index(pair[1]))
    return dict(in_order), carried, (*notes, *_heavy(files, carried))


def _heavy(files: FoundFiles, carried: tuple[CarriedColumn, ...]) -> tuple[str, ...]:
    """A note on carried columns that hold bytes, as embedded pictures are: they are copied into plan and manifests.

    It goes by the files' sizes: reading the columns' sizes of a torn file ends the process (pyarrow 26).
    """
    tables = [file for file in files if file.format == "parquet"]
    size, rows = sum(file.size for file in tables), sum(sum(file.row_groups) for file in tables)
    names = [column.theirs for column in carried if _holds_bytes(column.type)]
    if not names:
        return ()
    remedy = f"copied into plan and manifests. To leave it out, set input.drop: [{', '.join(names)}]"
    if not rows or size < HEAVY_BYTES or size < HEAVY_ROW_BYTES * rows:
        return (f"column {', '.join(names)} holds bytes, such as pictures: it is {remedy}",)
    return (
        f"the Parquet files hold {size / 1e6:,.0f} MB, {size / rows / 1e3:,.0f} kB a row: column {', '.join(names)} is "
        f"{remedy}",
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _bad_samples(slices: list[FileSlice], scanned: list[list[Chunk]]) -> tuple[str, ...]:
    samples = (
        one_line(f"{file_slice.place(first + row)}: {fault.message}")
        for file_slice, first, chunk in _placed(slices, scanned)
        for row, fault in zip(chunk.bad_rows, chunk.faults, strict=False)
    )
    return tuple(islice(samples, MAX_SHOWN))


def _remarks(slices: list[FileSlice], scanned: list[list[Chunk]]) -> dict[tuple[str, str], tuple[int, str]]:
    """(column, kind) -> the number of rows (an upper bound if a limit cuts the input) and the place of the first."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for file_slice, first, chunk in _placed(slices, scanned):
        for key, remark in chunk.remarks.items():
            rows, place = found.get(key, (0, file_slice.place(first + remark.first)))
            found[key] = rows + remark.rows, place
    return found


def _placed(slices: list[FileSlice], scanned: list[list[Chunk]]) -> Iterator[tuple[FileSlice, int, Chunk]]:
    """Each chunk with its slice, and the row of the slice at which it begins."""
    for file_slice, chunks in zip(slices, scanned, strict=True):
        first = 0
        for chunk in chunks:
            yield file_slice, first, chunk
            first += chunk.rows


def _equal_rows(
    source: PromptSource, slices: list[FileSlice], scanned: list[list[Chunk]]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The equal rows, by slice; InputError if an id was given twice. The chunks lose their keys, to free memory."""
    chunks = [chunk for of_piece in scanned for chunk in of_piece if chunk.rows]
    found = find_equal_rows([(np.frombuffer(chunk.keys, f"S{KEY_BYTES}"), chunk.given) for chunk in chunks])
    for chunk in chunks:
        chunk.keys, chunk.given = b"", chunk.given[:0]
    starts = np.cumsum([0] + [file_slice.rows or 0 for file_slice in slices])
    if found.given_twice:
        raise InputError(_given_twice(source, slices, found, starts))
    at_piece = np.searchsorted(found.rows, starts)
    return {
        index: (found.rows[start:end] - starts[index], found.numbers[start:end])
        for index, (start, end) in enumerate(pairwise(at_piece))
        if end > start
    }


def _given_twice(source: PromptSource, slices: list[FileSlice], found: EqualRows, starts: np.ndarray) -> str:
    shown = []
    for pair in found.given_twice:
        indices = [int(np.searchsorted(starts, row, side="right")) - 1 for row in pair]
        at = [row - int(starts[index]) for row, index in zip(pair, indices, strict=True)]
        name = id_given(slices[indices[0]], at[0], source.reading)
        places = " and ".join(slices[index].place(row) for index, row in zip(indices, at, strict=True))
        shown.append(f"{name!r} ({places})")
    more = f" and {found.num_given_twice - len(shown)} more" if found.num_given_twice > len(shown) else ""
    return f"{source.path}: ids are given twice: {', '.join(shown)}{more}. Make them unique, or leave the ids out"
