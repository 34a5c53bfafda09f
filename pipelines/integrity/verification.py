"""Compares plan, manifests and stored objects: finds what is missing, doubled, damaged, or belongs to no row.

It reads only, a shard at a time, and holds 16 bytes a planned row. `pipelines.integrity.findings` lists the kinds,
`pipelines.integrity.images` checks an image; what is done about a finding is not decided here.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.integrity.findings import Finding
from pipelines.integrity.image_listing import ImageListing
from pipelines.integrity.images import ShardImages
from pipelines.prompts.canonical_rows import KEY_BYTES, id_key
from pipelines.run.layout import FOLDERS, READERS, UNREADABLE, RunFolder, done_of, manifest_key, named_objects, shard_of
from pipelines.run.plan import Generation, Plan
from pipelines.storage.folder import is_odd

S = TypeVar("S")
T = TypeVar("T")
AHEAD = 2 * READERS  # shards read before their turn
STATUSES = ("ok", "failed", "filtered")
SAME = {  # column of the plan: of the manifest
    "shard": "shard",
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed_planned",
    "width": "width",
    "height": "height",
}
# What file managers and archivers put into any folder that they touch; all other hidden names are left alone.
_DROPPING = re.compile(r"\.DS_Store|\._.*|\.nfs\w+|\.directory|__MACOSX|thumbs\.db|desktop\.ini|Icon\r", re.IGNORECASE)
PLANNED = ("id", *SAME)
STORED = ("id", *SAME.values(), "status", "uri", "offset", "bytes", "sha256", "format", "tries")
STORED_SINCE = ("signed_bytes", "signed_sha256")  # columns that manifests of earlier versions do not have


@dataclass(frozen=True)
class CheckedShard:
    """One shard, or (None) the folder around the shards. rows: in its manifest; named: images that it names.

    Of these, found: are there; sized: were seen to have the size that it says; images: were read; equal: are what it
    says.
    """

    shard: str | None
    planned: int = 0
    rows: int = 0
    named: int = 0
    found: int = 0
    sized: int = 0
    images: int = 0
    equal: int = 0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Generation:
    plan: Generation
    schema: pa.Schema  # of its manifests
    index: tuple[dict[str, Any], ...]  # shard, part, row_group, rows


@dataclass(frozen=True)
class _Shard:
    """A planned shard. rows: None where its part of the plan cannot be read.

    listed: {key: bytes} of its images by the great listing; None where there was none.
    """

    name: str
    number: int
    num_rows: int
    rows: list[dict[str, Any]] | None
    generation: _Generation
    listed: dict[str, int] | None


def verify(
    run: RunFolder, sample: float = 0.01, salt: str = "", only: Collection[str] | None = None
) -> Iterator[CheckedShard]:
    """Everything about a run folder, as it is found: the folder first, then each planned shard, then what is doubled.

    Every row of every manifest is held against the plan. sample: the share of images that are read, drawn by their ids
    and `salt`, at least one a shard (in the Parquet layout: that share of the data files); from 1 on all are read. That
    each is there, and how long it is, is seen by listing. only: these shards, and nothing around them. StorageError
    where a store cannot be asked.
    """
    check = _Verification(run, sample, salt)
    if only is not None:
        yield from _ahead(check.shard, check.planned(only))
        return
    yield CheckedShard(None, findings=tuple(check.around()))
    listing = ImageListing(run)
    yield from _ahead(check.shard, check.planned(listing=listing))
    yield CheckedShard(None, findings=(*check.strays(listing), *check.planned_twice()))


class _Verification:
    """What one pass over a run folder keeps: the listings of one object a shard, and the keys of the planned ids."""

    def __init__(self, run: RunFolder, sample: float, salt: str) -> None:
        self.run, self.sample, self.salt = run, sample, salt
        self.manifests = sorted(key.removeprefix("manifest/") for key, _ in run.walk("manifest"))  # before the images
        self.done = done_of(self.manifests)
        self.data: dict[str, dict[str, int]] = {}
        for key, size in run.walk("data"):
            self.data.setdefault(shard_of(key), {})[key] = size
        self.damage: list[Finding] = []
        self.generations = [found for number in run.generations() if (found := self._generation(number))]
        self.plan = Plan(run, tuple(each.plan for each in self.generations))  # as far as it can be read
        self.shards = {entry["shard"] for generation in self.generations for entry in generation.index}
        self.schemas = list(self._schemas())
        self.keys: list[np.ndarray] = []  # of the ids, (R,) S16 each

    def _generation(self, number: int) -> _Generation | None:
        try:
            plan = Generation(number, self.run.read_plan(number))
            index = self.run.shard_index(number).select(["shard", "part", "row_group", "rows"]).to_pylist()
            schema = plan.manifest_schema
        except (*UNREADABLE, KeyError) as error:
            message = f"its plan.json or shards.parquet cannot be read: {_reason(error)}"
            self.damage.append(Finding("plan_damaged", f"plan/{number:04d}", message))
            return None
        return _Generation(plan, schema, tuple(index))

    def _schemas(self) -> Iterator[tuple[int, pa.Schema]]:
        """(generation, schema) that manifests may have: the plan's own, and what workers make of all plans so far."""
        for generation in self.generations:
            yield generation.plan.number, generation.schema
        for end in range(1, len(self.plan.generations) + 1):
            so_far = Plan(self.run, self.plan.generations[:end])
            yield so_far.newest.number, so_far.manifest_schema

    def around(self) -> Iterator[Finding]:
        """Finds what lies in the run folder outside all planned shards."""
        yield from self.damage
        if self.damage:  # what its shards are called is not known
            return
        for name in self.manifests:
            if not name.endswith(".parquet") or name.startswith(".") or "/" in name:
                yield Finding("object_orphan", f"manifest/{name}", "no manifest is called so", rows=0)
            elif name.removesuffix(".parquet") not in self.shards:
                yield self._unknown(f"manifest/{name}")
        for shard in sorted(self.data.keys() - self.shards):
            for key in self.data[shard]:
                yield Finding("attempt_orphan", key, "no planned shard is called so", rows=0)
        yield from self._plan_leftovers()
        yield from self._astray()

    def _astray(self) -> Iterator[Finding]:
        """Finds files where folders should be, and what desktops leave in folders without planned shards."""
        for name in FOLDERS:
            if self.run.stat(name) is not None:
                yield Finding("object_orphan", name, "a file where a folder of the run should be", rows=0)
        names = [name for name in self.run.names() if name not in FOLDERS]
        below = [key for folder in ("plan", "attempts", "epochs") for key, _ in self.run.walk(folder)]
        for key in [*names, *sorted(below)]:
            if is_dropping(key):
                yield Finding("object_orphan", key, "a desktop's file", rows=0)
            elif key.startswith("attempts/") and key.count("/") == 1:
                yield Finding("object_orphan", key, "a file where a folder of the run should be", rows=0)

    def strays(self, listing: ImageListing) -> Iterator[Finding]:
        """Finds images of no planned shard; nothing where the plan cannot be read."""
        listing.finish()
        planned = {f"images/{shard}" for shard in self.shards}
        for place in () if self.damage else sorted(listing.strays - planned):
            yield Finding("attempt_orphan", place, "no planned shard is called so", rows=0)
        for place in sorted(listing.strays & planned):
            if self.run.stat(place) is not None:
                yield Finding("object_orphan", place, "a file where a folder of the run should be", rows=0)

    def _unknown(self, key: str) -> Finding:
        try:
            rows = pq.read_table(pa.BufferReader(self.run.read(key)), columns=["shard"])["shard"].to_pylist()
        except (*UNREADABLE, KeyError) as error:
            return Finding(
                "manifest_unknown", key, f"no planned shard is called so, and it cannot be read: {_reason(error)}"
            )
        claimed = ", ".join(sorted({str(shard) for shard in rows})[:3])
        twice = " which has a manifest of its own" if self.done & self.shards & set(rows) else ""
        message = f"no planned shard is called so; its {len(rows)} rows say they are of {claimed}{twice}"
        return Finding("manifest_unknown", key, message, rows=len(rows))

    def _plan_leftovers(self) -> Iterator[Finding]:
        complete = {f"{generation.plan.number:04d}": generation for generation in self.generations}
        for name in self.run.names("plan"):
            if name.isdecimal() and name not in complete:
                yield Finding("plan_orphan", f"plan/{name}", "a planner began it and did not finish", rows=0)
        for name, generation in complete.items():
            used = {entry["part"].rpartition("/")[2] for entry in generation.index}
            for part in self.run.names(f"plan/{name}"):
                if used and part.startswith("part-") and part not in used:
                    yield Finding("plan_orphan", f"plan/{name}/{part}", "the plan does not name it", rows=0)

    def planned(self, only: Collection[str] | None = None, listing: ImageListing | None = None) -> Iterator[_Shard]:
        """Checks every planned shard (or the given ones), a part of the plan at a time."""
        number = 0
        for generation in self.generations:
            part, file = "", None
            for entry in generation.index:
                if only is not None and entry["shard"] not in only:
                    continue
                if entry["part"] != part:
                    part, file = entry["part"], self._part(entry["part"])
                rows = _row_group(file, entry["row_group"])
                if rows is not None:
                    ids = [id_key(row["id"]) for row in rows]
                    self.keys.append(np.array(ids, f"S{KEY_BYTES}"))
                listed = listing.take(entry["shard"]) if listing else None
                yield _Shard(entry["shard"], number, entry["rows"], rows, generation, listed)
                number += 1

    def _part(self, key: str) -> pq.ParquetFile | None:
        try:
            return pq.ParquetFile(pa.BufferReader(self.run.read(key)), page_checksum_verification=True)
        except UNREADABLE:
            return None

    def shard(self, shard: _Shard) -> CheckedShard:
        """Checks one planned shard: its manifest, its rows, its images, and other objects under its name."""
        planned, findings = shard.num_rows, []
        if shard.rows is None or len(shard.rows) != planned:
            message = f"shard {shard.name} cannot be read from its part of the plan"
            findings.append(
                Finding("plan_damaged", f"plan/{shard.generation.plan.number:04d}", message, shard.name, rows=planned)
            )
        manifest = self._manifest(shard)
        if isinstance(manifest, Finding):
            return CheckedShard(shard.name, planned, findings=(*findings, manifest))
        if shard.rows is not None:
            findings += compare(shard.rows, manifest, shard.name)
        named = {key for row in manifest for key in named_objects(row)}
        stored = {**self.data.get(shard.name, {}), **self._listed(shard, named)}
        images = ShardImages(
            self.run,
            shard.name,
            stored,
            self.sample,
            self.salt,
            stored=shard.generation.plan.stores_images,
            whole=shard.number % max(1, round(1 / max(self.sample, 1e-9))) == 0,
        )
        findings += images.check([row for row in manifest if row["status"] == "ok"])
        findings += _missing_tries(shard.name, manifest, stored)
        findings += self._orphans(shard.name, stored, named)
        counts = (images.named, images.found, images.sized, images.read, images.equal)
        return CheckedShard(shard.name, planned, len(manifest), *counts, findings=tuple(findings))

    def _listed(self, shard: _Shard, named: set[str]) -> dict[str, int]:
        """{key: bytes} of its images: from the listing of all images, else from a listing of this shard."""
        listed, place = shard.listed, f"images/{shard.name}"
        if listed is None or any(key not in listed for key in named if key.startswith(f"{place}/")):
            listed = dict(self.run.walk(place))
        return listed

    def _manifest(self, shard: _Shard) -> list[dict[str, Any]] | Finding:
        key = manifest_key(shard.name)
        if shard.name not in self.done:
            return Finding("manifest_missing", key, "the shard is not done", shard.name, rows=shard.num_rows)
        try:
            table = self.run.read_manifest(shard.name)
            if not self._is_of_run(table.schema, shard.generation.plan.number):
                return Finding(
                    "manifest_damaged", key, "its columns are not the plan's", shard.name, rows=shard.num_rows
                )
            return table.select([*STORED, *(name for name in STORED_SINCE if name in table.column_names)]).to_pylist()
        except UNREADABLE as error:
            return Finding(
                "manifest_damaged", key, f"cannot be read: {_reason(error)}", shard.name, rows=shard.num_rows
            )

    def _is_of_run(self, schema: pa.Schema, number: int) -> bool:
        """Whether a manifest has the columns of its generation, or of a later one (`pipelines.integrity.widen`)."""
        return any(schema.equals(each) for at, each in self.schemas if at >= number)

    def _orphans(self, shard: str, stored: Mapping[str, int], named: set[str]) -> Iterator[Finding]:
        """Finds attempts that no manifest names, each once, and stray objects in those that one names."""
        attempts = {key.split("/")[2] for key in named if key.startswith(f"images/{shard}/")}
        others = set()
        for key in sorted(stored.keys() - named):
            parts = key.split("/")
            if is_odd(key) or (parts[0] == "images" and len(parts) > 3 and parts[2] in attempts):
                yield Finding("object_orphan", key, "no row names it", shard, rows=0)
            elif (place := "/".join(parts[:3]) if parts[0] == "images" else key) not in others:
                others.add(place)
                yield Finding("attempt_orphan", place, "no manifest names it", shard, rows=0)

    def planned_twice(self) -> Iterator[Finding]:
        """Ids that are in two planned shards, or twice in one: their rows are rendered twice."""
        keys = np.sort(np.concatenate([np.empty(0, f"S{KEY_BYTES}"), *self.keys]))
        twice = set(keys[1:][keys[1:] == keys[:-1]].tolist())
        twice -= self._mended() if twice else set()
        if not twice:
            return
        for shard in self.planned():
            for row in shard.rows or []:
                if id_key(row["id"]).rstrip(b"\0") in twice:
                    key = f"plan/{shard.generation.plan.number:04d}"
                    yield Finding("row_doubled", key, "planned more than once", shard.name, row["id"])

    def _mended(self) -> set[bytes]:
        """Keys of ids that were bad when they were planned, and were planned again after they were fixed."""
        try:
            return {id_key(row_id).rstrip(b"\0") for row_id in self.plan.replaced_ids}
        except UNREADABLE:  # it is named as damage of the plan
            return set()


def _missing_tries(shard: str, rows: Iterable[Mapping[str, Any]], stored: Mapping[str, int]) -> Iterator[Finding]:
    """Finds pictures of tries that were kept though not chosen, and are gone; no size of them is written down."""
    for row in rows:
        for uri in (each.get("uri") for each in row["tries"] or ()):
            if uri and uri not in stored:
                yield Finding("try_missing", uri, "no such object", shard, row["id"])


def compare(planned: Iterable[Mapping[str, Any]], found: list[dict[str, Any]], shard: str) -> Iterator[Finding]:
    """A shard's planned rows (columns PLANNED) against the rows of its manifest (columns STORED)."""
    key, wanted = manifest_key(shard), {row["id"]: row for row in planned}
    counts = Counter(row["id"] for row in found)
    for id in wanted.keys() - counts.keys():
        yield Finding("row_missing", key, "planned, and not in the manifest", shard, id)
    for id, count in counts.items():
        if id not in wanted:
            yield Finding("row_unknown", key, "in the manifest, and not planned in this shard", shard, id)
        elif count > 1:
            yield Finding("row_doubled", key, f"{count} times in the manifest", shard, id)
    for row in found:
        changed = [
            theirs for ours, theirs in SAME.items() if row[theirs] != wanted.get(row["id"], row).get(ours, row[theirs])
        ]
        changed += ["status"] if row["status"] not in STATUSES else []
        if changed:
            yield Finding("row_changed", key, f"not as planned: {', '.join(changed)}", shard, row["id"])


def is_dropping(key: str) -> bool:
    """Whether an object was left behind by a desktop: it is of no use to a run, wherever it lies."""
    return any(_DROPPING.fullmatch(part) for part in key.split("/"))


def _ahead(call: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Calls items on threads, a bounded number ahead; results come in the items' order."""
    pool = ThreadPoolExecutor(READERS, "verify")
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _reason(error: BaseException) -> str:
    """The error's reason alone, without the place and the remedy that the run folder adds."""
    return str(error.__cause__ or error).partition("\n")[0]


def _row_group(part: pq.ParquetFile | None, row_group: int) -> list[dict[str, Any]] | None:
    try:
        return part.read_row_group(row_group, columns=list(PLANNED)).to_pylist() if part else None
    except UNREADABLE:
        return None
