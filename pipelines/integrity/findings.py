"""Lists the kinds of damage that a verification can find, and defines the record of one finding.

`pipelines.integrity.verification` and `pipelines.integrity.images` look for them.
"""

from dataclasses import dataclass

KINDS: dict[str, str] = {
    "plan_damaged": "parts of the plan that are missing or cannot be read",
    "manifest_missing": "planned shards without a manifest: not done yet, or lost",
    "manifest_unknown": "objects in manifest/ that are no planned shard's",
    "manifest_damaged": "manifests that cannot be read or have other columns than the plan says",
    "row_missing": "planned rows that their shard's manifest lacks",
    "row_doubled": "rows that are there more than once",
    "row_unknown": "rows of a manifest that are not planned in its shard",
    "row_changed": "rows whose manifest says something else than the plan",
    "image_missing": "images that a manifest names and that are not there",
    "image_wrong_length": "images with more or fewer bytes than their manifest says",
    "image_wrong_hash": "images whose bytes are not those their manifest was written for",
    "image_undecodable": "images that cannot be decoded, or are of another format or size than their row",
    "signature_invalid": "signed images whose signature C2PA readers do not accept",
    "try_missing": "pictures of tries that were not chosen, named by a manifest and gone; no repair renders them again",
    "image_misplaced": "rows whose uri is another shard's, another row's, or none",
    "data_damaged": "data files (tar, Parquet) that are cut short or cannot be read",
    "attempt_orphan": "attempts that no manifest names",
    "object_orphan": "objects that no row names: among a run's images and manifests, or what a desktop left behind",
    "plan_orphan": "parts and generations of a plan that was never finished",
}
ORPHANS = frozenset({"attempt_orphan", "object_orphan", "plan_orphan"})  # they take space and harm nothing


@dataclass(frozen=True)
class Finding:
    """kind: of KINDS. key: the object or folder at fault. id: of the one row concerned; rows: how many are, 0: none."""

    kind: str
    key: str
    message: str
    shard: str | None = None
    id: str | None = None
    rows: int = 1
