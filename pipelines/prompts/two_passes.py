"""Turns prompt tables into canonical rows, by two passes over slices of files.

Ray Data reads them; a small list of text is read in this process. `inspect` finds every fault before any actor starts;
`rows` gives the rows in input order. A task reads its slice with `pipelines.prompts.slices`;
`pipelines.prompts.inspection` puts the tasks' reports together.
"""

import functools
import pickle
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.files.readers import InputError
from pipelines.files.tables import FoundFiles
from pipelines.prompts.canonical_rows import KEY_BYTES, id_key
from pipelines.prompts.columns import CarriedColumn
from pipelines.prompts.inspection import Inspection, PromptSource, assemble, open_files
from pipelines.prompts.slices import (
    Chunk,
    FileSlice,
    ReadingRules,
    are_small,
    canonical_tables,
    cut_slices,
    scan,
    task_lists,
)
from pipelines.run.schema import CANONICAL_FIELDS
from pipelines.storage.folder import StorageError

if TYPE_CHECKING:
    from ray.data import Dataset

ABORT = "abort:"  # error_type of the row that stands for a failed read, before the error's name
BLOCK_BYTES = 2 << 20
NONE_EQUAL = (np.empty(0, np.int64), np.empty(0, np.int32))


def inspect(source: PromptSource, files: FoundFiles | None = None) -> Inspection:
    """Read everything once. InputError names what is missing, torn, empty, ambiguous or there twice.

    files: of the source, if they are open. Needs a Ray unless they are small (`needs_ray`).
    """
    files = files or open_files(source)
    slices = cut_slices(files, source.limit)
    if are_small(slices):
        return assemble(source, files, slices, [list(scan(part, source.reading)) for part in slices])
    return assemble(source, files, slices, _scan_all(slices, source))


def needs_ray(source: PromptSource, files: FoundFiles) -> bool:
    """Whether reading takes Ray tasks: all but a small list of text."""
    return not are_small(cut_slices(files, source.limit))


def small_tables(inspection: Inspection, skip: np.ndarray, retry: np.ndarray) -> Iterator[pa.Table]:
    """The tables of `rows`, read in this process; of a small list. InputError, StorageError."""
    reading, carried = inspection.source.reading, inspection.carried
    for index, part in enumerate(inspection.slices):
        for table in canonical_tables(part, reading, carried, inspection.equal_rows.get(index, NONE_EQUAL)):
            yield table.filter(pa.array(~_is_planned(table, skip, retry)))


def rows(
    inspection: Inspection,
    skip: np.ndarray | None = None,
    block_bytes: int = BLOCK_BYTES,
    retry: np.ndarray | None = None,
    carried: tuple[CarriedColumn, ...] | None = None,
) -> "Dataset":
    """Canonical rows in input order, without those whose id's key (`id_key`) is in `skip` ((S,) S16, sorted).

    Rows in `retry` ((T,) S16, sorted) are there all the same where they are good. carried: of the user's own columns
    only these. Ids, seeds and order are the same at each call. A failed read gives one row, which `raise_aborted`
    raises.
    """
    tickets = [
        {"slices": pickle.dumps([(inspection.slices[i], inspection.equal_rows.get(i, NONE_EQUAL)) for i in indices])}
        for indices in task_lists(list(inspection.slices))
    ]
    read = functools.partial(
        _read_ticket,
        reading=inspection.source.reading,
        carried=inspection.carried if carried is None else carried,
        skip=ray.put((skip, retry)) if skip is not None and len(skip) else None,
    )
    return _dataset(tickets, block_bytes).map_batches(read, batch_size=1, batch_format="pyarrow")


def is_aborted(table: pa.Table) -> bool:
    """Whether the table holds a row that stands for a failed read."""
    return any(kind.startswith(ABORT) for kind in table["error_type"].unique().to_pylist())


def raise_aborted(table: pa.Table) -> pa.Table:
    """Returns the table; raises the InputError or StorageError of a failed read that one of its rows stands for."""
    for kind in table["error_type"].unique().to_pylist():
        if kind.startswith(ABORT):
            message = table.filter(pc.equal(table["error_type"], kind))["error_message"][0].as_py()
            raise (StorageError if kind == ABORT + "StorageError" else InputError)(message)
    return table


def _dataset(tickets: list[dict[str, Any]], block_bytes: int) -> "Dataset":
    """A dataset with one ticket a block, ordered results, and no progress bars."""
    from ray.data import from_items  # half a second of imports, and pandas, that a small list does without

    dataset = from_items(tickets, override_num_blocks=len(tickets))
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = block_bytes
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    return dataset


def _scan_all(slices: list[FileSlice], source: PromptSource) -> list[list[Chunk]]:
    """The chunks of each slice, in order; raises the first slice's error."""
    tickets = [
        {"slices": pickle.dumps([(index, slices[index]) for index in indices])} for indices in task_lists(slices)
    ]
    scanned: list[list[Chunk]] = [[] for _ in slices]
    if not tickets:
        return scanned
    scan_tickets = functools.partial(_scan_ticket, reading=source.reading)
    dataset = _dataset(tickets, BLOCK_BYTES).map_batches(scan_tickets, batch_size=1, batch_format="pyarrow")
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        for index, packed in zip(batch["slice"].to_pylist(), batch["chunk"], strict=True):
            scanned[index].append(pickle.loads(packed.as_buffer()))
    errors = [chunk.error for chunks in scanned for chunk in chunks if chunk.error]
    if errors:
        raise errors[0]
    return scanned


def _scan_ticket(batch: pa.Table, reading: ReadingRules) -> Iterator[pa.Table]:
    for index, file_slice in pickle.loads(batch["slices"][0].as_py()):
        try:
            for chunk in scan(file_slice, reading):
                yield pa.table({"slice": [index], "chunk": [pickle.dumps(chunk)]})
        except (InputError, StorageError) as error:
            yield pa.table({"slice": [index], "chunk": [pickle.dumps(Chunk(error=error))]})


def _read_ticket(
    batch: pa.Table, reading: ReadingRules, carried: tuple[CarriedColumn, ...], skip: ray.ObjectRef | None
) -> Iterator[pa.Table]:
    planned, retry = (None, None) if skip is None else ray.get(skip)
    for file_slice, equal_rows in pickle.loads(batch["slices"][0].as_py()):
        try:
            for table in canonical_tables(file_slice, reading, carried, equal_rows):
                yield table if planned is None else table.filter(pa.array(~_is_planned(table, planned, retry)))
        except (InputError, StorageError) as error:
            yield _aborted(error, carried)


def _is_planned(table: pa.Table, planned: np.ndarray, retry: np.ndarray | None) -> np.ndarray:
    keys = keys_of(table)
    found = are_in(keys, planned)
    if retry is None or not len(retry):
        return found
    good = np.array([not error for error in table["error_type"].to_pylist()], bool)
    return found & ~(good & are_in(keys, retry))


def keys_of(table: pa.Table) -> np.ndarray:
    """(n,) S16: the keys of the table's ids."""
    return np.array([id_key(row_id) for row_id in table["id"].to_pylist()], f"S{KEY_BYTES}")


def are_in(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n,) bool: which keys are among the known ones ((R,) S16, sorted)."""
    if not len(known):
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[at] == keys


def _aborted(error: Exception, carried: tuple[CarriedColumn, ...]) -> pa.Table:
    texts = {"error_type": ABORT + type(error).__name__, "error_message": str(error)}
    schema = pa.schema([*CANONICAL_FIELDS, *(pa.field(column.ours, column.type) for column in carried)])
    return pa.table([pa.array([texts.get(column.name)], column.type) for column in schema], schema)
