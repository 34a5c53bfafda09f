"""Prompt tables inspected and read in this process, as Ray's tasks do it; a store in memory."""

from pathlib import Path
from typing import Any

import fsspec

from pipelines.prompts.canonical_rows import RowDefaults
from pipelines.prompts.inspection import Inspection, PromptSource, assemble, open_files
from pipelines.prompts.slices import canonical_tables, cut_slices, scan
from pipelines.prompts.two_passes import NONE_EQUAL
from pipelines.storage.folder import Folder

DEFAULTS = RowDefaults(guidance_scale=7.5, width=64, height=64, allowed_steps=frozenset(range(1, 1001)))


class MemoryFolder(Folder):
    """A folder in fsspec's memory store, which the project only reads: a test puts the objects there itself."""

    def write(self, key: str, data: bytes) -> None:
        """By fsspec."""
        fsspec.filesystem("memory").pipe_file(self.url_of(key), data)


def source(path: Path | str, **changes: Any) -> PromptSource:
    """Prompt tables with these defaults."""
    return PromptSource(str(path), **({"defaults": DEFAULTS} | changes))


def inspected(given: PromptSource) -> Inspection:
    """`inspect` without Ray."""
    files = open_files(given)
    pieces = cut_slices(files, given.limit)
    return assemble(given, files, pieces, [list(scan(piece, given.reading)) for piece in pieces])


def inspect_here(path: Path | str, **changes: Any) -> Inspection:
    """What `inspected` finds in such tables."""
    return inspected(source(path, **changes))


def rows_of(found: Inspection) -> list[dict[str, Any]]:
    """`rows` without Ray."""
    return [
        row
        for index, piece in enumerate(found.slices)
        for table in canonical_tables(
            piece, found.source.reading, found.carried, found.equal_rows.get(index, NONE_EQUAL)
        )
        for row in table.to_pylist()
    ]
