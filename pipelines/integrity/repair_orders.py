"""Decides which rows of a damaged shard stay and which are rendered again; deletes orphans.

Pure over a run folder. `pipelines.render.repaired_shard` renders them and replaces the manifest. Only the driver of the
latest epoch may delete.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.integrity.findings import Finding
from pipelines.render.repaired_shard import RepairOrder, first_of_each, written_rows
from pipelines.run.drivers import EpochId, demand_driver
from pipelines.run.layout import UNREADABLE, RunFolder, named_objects, shard_of
from pipelines.run.plan import Plan
from pipelines.storage.folder import is_odd

AGAIN = frozenset({"row_missing", "row_changed", "data_damaged"}) | {
    "image_missing",
    "image_wrong_length",
    "image_wrong_hash",
    "image_undecodable",
    "signature_invalid",
    "image_misplaced",
}  # kinds of findings whose rows are rendered again
REWRITE = AGAIN | {"row_doubled", "row_unknown", "manifest_damaged"}
DELETABLE = frozenset({"attempt_orphan", "object_orphan"})  # what is left of a plan may be a planner's at work


class RepairPlanner:
    """Makes the repair order of each damaged shard. StorageError and FileNotFoundError as the folder's."""

    def __init__(self, plan: Plan) -> None:
        self.run = plan.run
        self._places: dict[str, tuple[str, int]] = {}
        self._grouped: set[str] = set()  # shards of rollouts: the rows of one noise are scored together
        for generation, entry in plan.shards("shard", "part", "row_group"):
            self._places[entry["shard"]] = (entry["part"], entry["row_group"])
            if generation.is_rollout:
                self._grouped.add(entry["shard"])

    def order(self, shard: str, findings: Sequence[Finding] = (), retry_failed: bool = False) -> RepairOrder | None:
        """The shard's order; None where its manifest is right, or absent: a shard that is not done is resumed.

        retry_failed: rows that failed while they were rendered are rendered again, too.
        """
        kinds = {finding.kind for finding in findings if not finding.key.startswith("plan/")}
        if "manifest_missing" in kinds or not (retry_failed or kinds & REWRITE):
            return None
        planned = {row["id"]: row for row in self.run.read_shard(*self._places[shard]).to_pylist()}
        written = written_rows(self.run, shard)
        found = {} if "manifest_damaged" in kinds else first_of_each(written, planned)
        changed = {finding.id for finding in findings if finding.kind == "row_changed"}
        ill = self._ill(found, findings) | (planned.keys() - found.keys())
        if retry_failed:
            ill |= {id for id, row in found.items() if row["status"] == "failed" and not planned[id]["error_type"]}
        if not ill and len(written) == len(planned):
            return None
        ids = tuple(self._with_their_groups(shard, planned, ill))
        return RepairOrder(
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
        """The ids to render again: those that findings name, and all whose picture is in a data file that one names."""
        named = {finding.id for finding in findings if finding.kind in AGAIN and finding.id is not None}
        objects = {finding.key for finding in findings if finding.kind in AGAIN and finding.id is None}
        inside = {id for id, row in found.items() if str(row["uri"]).partition("#")[0] in objects}
        return (named & found.keys()) | inside


def delete_orphans(run: RunFolder, epoch: EpochId, findings: Iterable[Finding]) -> int:
    """Delete what attempts left behind and no manifest names; -> objects. SupersededError as `replace_manifest`.

    Each shard's manifest is read again first: what it names now stays, whatever was found before.
    """
    deleted = 0
    for finding in findings:
        if finding.kind not in DELETABLE:
            continue
        demand_driver(run, epoch)
        named = set() if is_odd(finding.key) else _named(run, finding.shard or shard_of(finding.key))
        if named is not None:
            keys = [key for key in objects_of(run, finding.key) if key not in named]
            run.delete_listed(keys)
            deleted += len(keys)
    return deleted


def objects_of(run: RunFolder, place: str) -> list[str]:
    """The objects that a finding's key stands for: itself, or what is below it."""
    if is_odd(place) or run.stat(place) is not None:
        return [place]
    return [key for key, _ in run.walk(place)]


def _named(run: RunFolder, shard: str) -> set[str] | None:
    """The objects that a shard's manifest names, planned or not; None where it cannot be read: then all must stay."""
    try:
        rows = run.read_manifest(shard).select(["uri", "tries"]).to_pylist()
    except FileNotFoundError:
        return set()
    except (*UNREADABLE, KeyError):
        return None
    return {key for row in rows for key in named_objects(row)}
