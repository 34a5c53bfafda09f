"""What a damaged shard needs, and the one overwrite there is: its manifest, replaced whole, one revision on.

Pure over a run folder: which rows stay and which are rendered again. Rendering them, under a new attempt's keys, is a
worker's. Only the driver of the latest epoch may replace or delete. An Order is what travels to the worker, small; the
worker makes the Mending of it, from the folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.epochs import DEADLINE_S, Term
from pipelines.findings import Finding, is_odd
from pipelines.generations import newest_schema
from pipelines.image_listing import shard_of
from pipelines.manifest import manifest_table
from pipelines.pipeline_error import PipelineError
from pipelines.store import RunFolder, manifest_key, parquet_bytes
from pipelines.verify_images import UNREADABLE

AGAIN = frozenset({"row_missing", "row_changed", "data_damaged"}) | {
    "image_missing",
    "image_wrong_length",
    "image_wrong_hash",
    "image_undecodable",
    "image_misplaced",
}  # kinds of findings whose rows are rendered again
REWRITE = AGAIN | {"row_doubled", "row_unknown", "manifest_damaged"}
DELETABLE = frozenset({"attempt_orphan", "object_orphan"})  # what is left of a plan may be a planner's at work


class SupersededError(PipelineError, RuntimeError):
    """Another driver has the run; nothing was overwritten."""


@dataclass(frozen=True)
class Mending:
    """One shard's repair. again: planned rows with the final seed and num_steps of their manifest; none may be needed.

    ids: all planned, in their order; kept: manifest rows that stay, by id; seeds: as planned, of the rows in `again`.
    """

    shard: str
    revision: int
    schema: pa.Schema
    ids: tuple[str, ...]
    kept: dict[str, dict[str, Any]]
    again: tuple[dict[str, Any], ...]
    seeds: dict[str, int | None]

    def manifest(self, rendered: Iterable[dict[str, Any]]) -> pa.Table:
        """The new manifest from the rows kept and those rendered again. ValueError where one is missing."""
        fresh = {
            row["id"]: row | {"seed_planned": self.seeds[row["id"]]} for row in rendered if row["id"] in self.seeds
        }
        rows = self.kept | fresh
        if rows.keys() != set(self.ids) or len(fresh) != len(self.seeds):
            raise ValueError(f"shard {self.shard}: {len(fresh)} of {len(self.seeds)} rows were rendered again")
        ordered = [rows[id] | {"revision": self.revision} for id in self.ids]
        return manifest_table(ordered, self.schema)


@dataclass(frozen=True)
class Order:
    """One shard's repair, in short. ids: planned rows to render again; replanned: those of them whose manifest row
    is not to be trusted. attempts: that led to the manifest there is; revision: of the one to come.
    """

    shard: str
    revision: int
    ids: tuple[str, ...]
    replanned: frozenset[str]
    attempts: int

    def is_done(self, run: RunFolder) -> bool:
        """Whether the manifest of that revision stands, whoever wrote it."""
        return max((row["revision"] or 0 for row in written_rows(run, self.shard)), default=-1) >= self.revision

    def mending(self, run: RunFolder, part: str, row_group: int, schema: pa.Schema) -> Mending:
        """All that is needed to carry it out. part, row_group: where the plan has the shard."""
        planned = {row["id"]: row for row in run.read_shard(part, row_group).to_pylist()}
        found = _first_of_each(written_rows(run, self.shard), planned)
        ill = set(self.ids)
        trusted = {id: row for id, row in found.items() if id not in self.replanned}
        return Mending(
            shard=self.shard,
            revision=self.revision,
            schema=schema,
            ids=tuple(planned),
            kept={id: row for id, row in found.items() if id not in ill},
            again=tuple(_final(planned[id], trusted.get(id)) for id in self.ids),
            seeds={id: planned[id]["seed"] for id in self.ids},
        )


class Repairs:
    """The planned shards of a run, and what each needs. StorageError and FileNotFoundError as the folder's."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._places: dict[str, tuple[str, int]] = {}
        self._grouped: set[str] = set()  # shards of rollouts: the rows of one noise are scored together
        plans = {generation: run.read_plan(generation) for generation in run.generations()}
        self._schema = newest_schema(list(plans.values())) if plans else pa.schema([])
        for generation, plan in plans.items():
            for entry in run.shard_index(generation).select(["shard", "part", "row_group"]).to_pylist():
                self._places[entry["shard"]] = (entry["part"], entry["row_group"])
                if plan.get("fingerprint", {}).get("rollout"):
                    self._grouped.add(entry["shard"])

    def mending(self, shard: str, findings: Sequence[Finding] = (), retry_failed: bool = False) -> Mending | None:
        """What `order` says, with its rows."""
        order = self.order(shard, findings, retry_failed)
        return order.mending(self.run, *self._places[shard], self._schema) if order else None

    def order(self, shard: str, findings: Sequence[Finding] = (), retry_failed: bool = False) -> Order | None:
        """None where the manifest is as it should be, or there is none: a shard that is not done is resumed.

        retry_failed: rows that failed while they were rendered are rendered again, too.
        """
        kinds = {finding.kind for finding in findings if not finding.key.startswith("plan/")}
        if "manifest_missing" in kinds or not (retry_failed or kinds & REWRITE):
            return None
        planned = {row["id"]: row for row in self.run.read_shard(*self._places[shard]).to_pylist()}
        written = written_rows(self.run, shard)
        found = {} if "manifest_damaged" in kinds else _first_of_each(written, planned)
        changed = {finding.id for finding in findings if finding.kind == "row_changed"}
        ill = self._ill(found, findings) | (planned.keys() - found.keys())
        if retry_failed:
            ill |= {id for id, row in found.items() if row["status"] == "failed" and not planned[id]["error_type"]}
        if not ill and len(written) == len(planned):
            return None
        ids = tuple(self._with_their_groups(shard, planned, ill))
        return Order(
            shard=shard,
            revision=1 + max((row["revision"] or 0 for row in written), default=0),
            ids=ids,
            replanned=frozenset(id for id in ids if id in changed or id not in found),
            attempts=max(row["attempts"] or 0 for row in found.values()) if found else self.run.num_attempts(shard),
        )

    def _with_their_groups(self, shard: str, planned: Mapping[str, dict[str, Any]], ill: set[str]) -> list[str]:
        if shard not in self._grouped:
            return [id for id in planned if id in ill]
        groups = {(planned[id]["prompt_id"], planned[id]["sample"]) for id in ill}
        return [id for id, row in planned.items() if (row["prompt_id"], row["sample"]) in groups]

    @staticmethod
    def _ill(found: dict[str, dict[str, Any]], findings: Sequence[Finding]) -> set[str]:
        """The ids to render again: those named, and all whose picture is in an object that is named as a whole."""
        named = {finding.id for finding in findings if finding.kind in AGAIN and finding.id is not None}
        objects = {finding.key for finding in findings if finding.kind in AGAIN and finding.id is None}
        inside = {id for id, row in found.items() if str(row["uri"]).partition("#")[0] in objects}
        return (named & found.keys()) | inside


def written_rows(run: RunFolder, shard: str) -> list[dict[str, Any]]:
    """The rows of a shard's manifest; none where it cannot be read. FileNotFoundError where there is none."""
    try:
        table = run.read_manifest(shard)
    except FileNotFoundError:
        raise
    except UNREADABLE:
        return []
    return table.to_pylist() if {"id", "revision", "attempts"} <= set(table.column_names) else []


def _first_of_each(written: list[dict[str, Any]], planned: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in reversed(written) if row["id"] in planned}


def replace_manifest(run: RunFolder, term: Term, shard: str, table: pa.Table) -> None:
    """Put a shard's manifest over the one that is there. SupersededError where another driver has the run.

    The write gives up after seconds, not minutes: it must not arrive long after the epoch was asked for.
    """
    _demand(run, term)
    prompt = RunFolder(run.url, run.options, min(run.deadline_s, DEADLINE_S))
    prompt.write(manifest_key(shard), parquet_bytes([table]))


def delete_orphans(run: RunFolder, term: Term, findings: Iterable[Finding]) -> int:
    """Delete what attempts left behind and no manifest names; -> objects. SupersededError as `replace_manifest`.

    Each shard's manifest is read again first: what it names now stays, whatever was found before.
    """
    deleted = 0
    for finding in findings:
        if finding.kind not in DELETABLE:
            continue
        _demand(run, term)
        named = set() if is_odd(finding.key) else _named(run, finding.shard or shard_of(finding.key))
        if named is not None:
            keys = [key for key in objects_of(run, finding.key) if key not in named]
            run.delete_listed(keys) if is_odd(finding.key) else run.delete(keys)
            deleted += len(keys)
    return deleted


def objects_of(run: RunFolder, place: str) -> list[str]:
    """The objects that a finding's key stands for: itself, or what is below it."""
    if is_odd(place) or run.stat(place) is not None:
        return [place]
    return [key for key, _ in run.walk(place)]


def _demand(run: RunFolder, term: Term) -> None:
    if term.successor(run) is not None:
        raise SupersededError(f"another run has taken over {run.url}; nothing more is changed by this one")


def _named(run: RunFolder, shard: str) -> set[str] | None:
    """The objects that a shard's manifest names, planned or not; None where it cannot be read: then all must stay."""
    try:
        uris = run.read_manifest(shard)["uri"].drop_null().to_pylist()
    except FileNotFoundError:
        return set()
    except (*UNREADABLE, KeyError):
        return None
    return {uri.partition("#")[0] for uri in uris}


def _final(planned: dict[str, Any], written: dict[str, Any] | None) -> dict[str, Any]:
    """What the worker renders: the seed and steps that the manifest ended with, never the guard's way to them."""
    if written is None or written["seed"] is None or written["num_steps"] is None:
        return planned
    return planned | {"seed": written["seed"], "num_steps": written["num_steps"]}
