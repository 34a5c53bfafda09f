"""Repairs a shard on a worker: its rows are rendered again and its manifest is replaced, the one overwrite there is.

A small RepairOrder travels to the worker, which reads the RepairedShard from the folder. Only the driver of the latest
epoch may replace or delete.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyarrow as pa

from pipelines.render.manifest_rows import manifest_table
from pipelines.run.drivers import DEADLINE_S, EpochId, demand_driver
from pipelines.run.layout import UNREADABLE, RunFolder, manifest_key, parquet_bytes
from pipelines.run.schema import PlannedRow, planned_rows

TRIED = ("tries", "lane_steps", "seconds")  # columns that say what all tries of a row took
WANTED = ("bar", "plan_key")  # columns that say what was to come, where no other try is made now
RECIPE = ("num_steps", "solver", "guidance_scale", "guidance_interval")


@dataclass(frozen=True)
class RepairedShard:
    """One shard's repair. again: planned rows with the final seed and num_steps of their manifest; none may be needed.

    ids: all planned, in their order; kept: manifest rows that stay, by id; seeds: as planned, of the rows in `again`,
    and pinned: those of them that gave it; tries: of those that had several.
    """

    shard: str
    revision: int
    schema: pa.Schema
    ids: tuple[str, ...]
    kept: dict[str, dict[str, Any]]
    again: tuple[PlannedRow, ...]
    seeds: dict[str, int | None]
    pinned: frozenset[str] = frozenset()
    tries: dict[str, Any] = field(default_factory=dict)

    def manifest(self, rendered: Iterable[dict[str, Any]]) -> pa.Table:
        """The new manifest from the rows kept and those rendered again. ValueError where one is missing."""
        fresh = {row["id"]: self._as_before(row) for row in rendered if row["id"] in self.seeds}
        rows = self.kept | fresh
        if rows.keys() != set(self.ids) or len(fresh) != len(self.seeds):
            raise ValueError(f"shard {self.shard}: {len(fresh)} of {len(self.seeds)} rows were rendered again")
        ordered = [rows[id] | {"revision": self.revision} for id in self.ids]
        return manifest_table(ordered, self.schema)

    def _as_before(self, row: dict[str, Any]) -> dict[str, Any]:
        """With what its repair does not do again: the seed it was planned with, and the tries that led to its seed."""
        before = self.tries.get(row["id"], {}) if row["status"] == "ok" else {}
        planned = {"seed_planned": self.seeds[row["id"]], "seed_pinned": row["id"] in self.pinned}
        return row | planned | before


@dataclass(frozen=True)
class RepairOrder:
    """One shard's repair, in short. ids: planned rows to render again; replanned: those of them whose manifest row
    is not to be trusted. attempts: that led to the manifest there is; revision: of the one to come.
    """

    shard: str
    revision: int
    ids: tuple[str, ...]
    replanned: frozenset[str]
    attempts: int
    repairs: ClassVar[bool] = True  # its rows were rendered before

    def is_done(self, run: RunFolder) -> bool:
        """Whether the manifest of that revision stands, whoever wrote it."""
        return max((row["revision"] or 0 for row in written_rows(run, self.shard)), default=-1) >= self.revision

    def repaired_shard(self, run: RunFolder, part: str, row_group: int, schema: pa.Schema) -> RepairedShard:
        """Reads what the repair needs. part, row_group: where the plan has the shard."""
        planned = {row.id: row for row in planned_rows(run.read_shard(part, row_group))}
        found = first_of_each(written_rows(run, self.shard), planned)
        ill = set(self.ids)
        trusted = {id: row for id, row in found.items() if id not in self.replanned}
        return RepairedShard(
            shard=self.shard,
            revision=self.revision,
            schema=schema,
            ids=tuple(planned),
            kept={id: row for id, row in found.items() if id not in ill},
            again=tuple(_final(planned[id], trusted.get(id)) for id in self.ids),
            seeds={id: planned[id].seed for id in self.ids},
            pinned=frozenset(id for id in self.ids if planned[id].seed_pinned),
            tries={id: _tried(trusted[id]) for id in self.ids if id in trusted},
        )


def _tried(written: dict[str, Any]) -> dict[str, Any]:
    """What a manifest row with a picture says of its tries."""
    if written["status"] != "ok":
        return {}
    kept = TRIED if len(written.get("tries") or ()) > 1 else ()
    return {name: written[name] for name in (*kept, *WANTED) if written.get(name) is not None}


def written_rows(run: RunFolder, shard: str) -> list[dict[str, Any]]:
    """The rows of a shard's manifest; none where it cannot be read. FileNotFoundError where there is none."""
    try:
        table = run.read_manifest(shard)
    except FileNotFoundError:
        raise
    except UNREADABLE:
        return []
    return table.to_pylist() if {"id", "revision", "attempts"} <= set(table.column_names) else []


def first_of_each(written: list[dict[str, Any]], planned: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The first manifest row of each planned id, by id."""
    return {row["id"]: row for row in reversed(written) if row["id"] in planned}


def replace_manifest(run: RunFolder, epoch: EpochId, shard: str, table: pa.Table) -> None:
    """Put a shard's manifest over the one that is there. SupersededError where another driver has the run.

    The write gives up after seconds, not minutes: it must not arrive long after the epoch was asked for.
    """
    demand_driver(run, epoch)
    prompt = RunFolder(run.url, run.options, min(run.deadline_s, DEADLINE_S))
    prompt.write(manifest_key(shard), parquet_bytes([table]))


def _final(planned: PlannedRow, written: dict[str, Any] | None) -> PlannedRow:
    """The planned row with the seed and the recipe that its manifest ended with, and no other try.

    A row that failed is rendered as it was planned, with all of its tries.
    """
    if written is None or written["status"] != "ok" or written["seed"] is None or written["num_steps"] is None:
        return planned
    recipe = {name: written[name] for name in RECIPE if written.get(name) is not None}
    return replace(planned, seed=written["seed"], seed_pinned=True, bar=None, **recipe)
