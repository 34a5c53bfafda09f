"""Renders a shard that has no manifest yet: the whole of it, or under a limit its first rows alone.

What a limit renders of a shard is written down in partial/, and is taken from there when the rest is rendered: a
shard's rows never change, and its one manifest still says that it is done.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from pipelines.render.manifest_rows import manifest_table
from pipelines.render.repaired_shard import RepairOrder
from pipelines.run.layout import Attempt, RunFolder, manifest_key
from pipelines.run.schema import PlannedRow, planned_rows


@dataclass(frozen=True)
class FirstRows:
    """Of an open shard these rows are rendered, and those that are stay. ids: planned, and not rendered yet."""

    shard: str
    ids: tuple[str, ...]
    attempts: ClassVar[int] = 0  # that led to a manifest: there is none
    repairs: ClassVar[bool] = False

    def is_done(self, run: RunFolder) -> bool:
        """Whether all of them are written down, or the whole shard is done."""
        written = bool(self.ids) and set(self.ids) <= rendered_rows(run, self.shard).keys()
        return written or run.stat(manifest_key(self.shard)) is not None

    def outcome(self, run: RunFolder, schema: pa.Schema) -> pa.Table:
        """What became of the rows, whoever rendered them."""
        if run.stat(manifest_key(self.shard)) is not None:
            return run.read_manifest(self.shard)
        return rendered_table(run, self.shard, schema)


ShardOrder = RepairOrder | FirstRows  # which rows of a shard are rendered


@dataclass(frozen=True)
class OpenShard:
    """What is rendered of a shard without a manifest. again: rows to render; kept: manifest rows that are there, by id.

    ids: all planned, in their order.
    """

    shard: str
    schema: pa.Schema
    ids: tuple[str, ...]
    kept: dict[str, dict[str, Any]]
    again: tuple[PlannedRow, ...]

    def manifest(self, rendered: Iterable[dict[str, Any]]) -> pa.Table:
        """The rows so far, in the plan's order."""
        rows = self.kept | {row["id"]: row for row in rendered}
        return manifest_table([rows[id] for id in self.ids if id in rows], self.schema)

    def commit(self, run: RunFolder, attempt: Attempt, table: pa.Table) -> bool:
        """Makes the shard done, or writes down a part of it. False: another worker's manifest stands."""
        if table.num_rows == len(self.ids):
            return run.commit_manifest(self.shard, table)
        run.write_partial(attempt, table)
        return True


def open_shard(
    run: RunFolder, shard: str, place: tuple[str, int], schema: pa.Schema, only: FirstRows | None = None
) -> OpenShard:
    """Reads a shard without a manifest. place: the part of the plan and its row group; only: rows to render."""
    planned = {row.id: row for row in planned_rows(run.read_shard(*place))}
    if only is None:
        return OpenShard(shard, schema, tuple(planned), {}, tuple(planned.values()))
    kept = {id: row for id, row in rendered_rows(run, shard).items() if id in planned}
    again = tuple(planned[id] for id in only.ids if id not in kept)
    return OpenShard(shard, schema, tuple(planned), kept, again)


def rendered_rows(run: RunFolder, shard: str) -> dict[str, dict[str, Any]]:
    """The rows of an open shard that were rendered under a limit, by id; of two the first."""
    rows = [row for table in run.partials(shard) for row in table.to_pylist()]
    return {row["id"]: row for row in reversed(rows)}


def rendered_table(run: RunFolder, shard: str, schema: pa.Schema) -> pa.Table:
    """The same as a table."""
    return manifest_table(rendered_rows(run, shard).values(), schema)
