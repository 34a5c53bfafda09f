"""Counts a run folder's rows over all its manifests, and picks some pictures.

It counts every run on the folder, where `RenderResult` knows its own run only.
"""

import heapq
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Any

import pyarrow as pa

from pipelines.render.open_shard import rendered_table
from pipelines.run.layout import UNREADABLE, DamagedRun, RunFolder, as_stored
from pipelines.run.plan import Plan
from pipelines.storage.folder import StorageError

log = logging.getLogger(__name__)

SHOWN_FAILURES, SHOWN_PICTURES = 5, 48
SHOWN = ("id", "prompt", "category", "num_steps", "status", "error_type", "error_message", "uri", "offset", "bytes")
TOLD = (
    "lane_steps",
    "truncated",
    "negative_truncated",
    "score_error",
    "tries",
    "signed_bytes",
    "signed_sha256",
)  # used, where a version's manifests have them


@dataclass
class Totals:
    """Rows of the manifests. budgets: steps -> ok rows. failures, pictures: some of them; pictures drawn by id.

    unscored: rows that a scorer gave no number, and what is said of some. damaged: manifests that cannot be read,
    whose rows are counted nowhere.
    """

    most_pictures: int = SHOWN_PICTURES
    rows: int = 0
    truncated: int = 0
    negative_truncated: int = 0
    unscored: int = 0
    tries: int = 0  # of the rows with a picture
    lane_steps: int = 0  # of all tries of the rows with a picture
    made: int = 0  # pictures, of all rows that name their tries
    status: Counter[str] = field(default_factory=Counter)
    budgets: Counter[int] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    score_errors: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[DamagedRun] = field(default_factory=list)

    @property
    def mean_steps(self) -> float | None:
        """Of the rows with a picture."""
        done = sum(self.budgets.values())
        return sum(steps * rows for steps, rows in self.budgets.items()) / done if done else None

    @property
    def mean_tries(self) -> float | None:
        """Pictures made for each of the rows with one."""
        return self.tries / self.status["ok"] if self.status["ok"] else None

    def add(self, table: pa.Table) -> None:
        """Count one manifest."""
        rows = table.select([name for name in (*SHOWN, *TOLD) if name in table.column_names]).to_pylist()
        self.rows += len(rows)
        self.truncated += sum(bool(row["truncated"]) for row in rows)
        self.negative_truncated += sum(bool(row.get("negative_truncated")) for row in rows)
        unscored = [row for row in rows if row.get("score_error")]
        self.unscored += len(unscored)
        self.score_errors += unscored[: SHOWN_FAILURES - len(self.score_errors)]
        self.status.update(row["status"] for row in rows)
        done = [row for row in rows if row["status"] == "ok"]
        self.budgets.update(row["num_steps"] for row in done)
        self.lane_steps += sum(row.get("lane_steps") or 0 for row in done)
        self.made += sum(len(row.get("tries") or ()) or row["status"] == "ok" for row in rows)
        self.tries += sum(len(row.get("tries") or ()) or 1 for row in done)
        self.pictures = heapq.nsmallest(self.most_pictures, [*self.pictures, *done], key=_draw)
        failed = [row for row in rows if row["status"] == "failed"]
        self.failures += failed[: SHOWN_FAILURES - len(self.failures)]


def totals(plan: Plan, most_pictures: int = SHOWN_PICTURES) -> Totals:
    """One pass over the manifests, a shard at a time; of an id that was planned again its newest row counts.

    The rows that a limit had rendered of shards that are not done are counted, too.
    """
    found, again = Totals(most_pictures), plan.replaced_ids
    begun = (rendered_table(plan.run, shard, plan.manifest_schema) for shard in plan.run.partly_done())
    for table in chain(plan.run.manifests(found.damaged), begun):
        found.add(_newest(table, again) if again else table)
    return found


def _newest(table: pa.Table, again: dict[str, int]) -> pa.Table:
    """The table without bad rows that a later generation planned again. again: id -> that generation."""
    places = zip(table["id"].to_pylist(), table["shard"].to_pylist(), strict=True)
    return table.filter([again.get(row_id, 0) <= int(shard.partition("-")[0]) for row_id, shard in places])


def with_images(run: RunFolder, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that have an object, each with its bytes as `image`; None where they are gone: no page fails for it.

    `others`: (bytes, its scores in words) of each stored try that was not chosen.
    """
    return [row | {"image": _image_or_none(run, row), "others": _others(run, row)} for row in rows if row["uri"]]


def _others(run: RunFolder, row: dict[str, Any]) -> list[tuple[bytes, str]]:
    tried = [each for each in row.get("tries") or () if each.get("uri")]
    found = [(_image_or_none(run, {"id": row["id"], "uri": each["uri"]}), each["scores"]) for each in tried]
    return [(image, ", ".join(f"{s['scorer']} {s['score']:.3g}" for s in scores)) for image, scores in found if image]


def _image_or_none(run: RunFolder, row: dict[str, Any]) -> bytes | None:
    try:
        return image_bytes(run, row)
    except (*UNREADABLE, StorageError, LookupError, TypeError) as error:  # the manifest's row may be damaged, too
        log.warning("%s: its picture cannot be shown (%s); `python -m jobs repair` renders it again", row["id"], error)
        return None


def image_bytes(run: RunFolder, row: dict[str, Any]) -> bytes:
    """One row's picture, of a packed layout by ranges. Raises what the folder raises, LookupError for no such row."""
    key = row["uri"].partition("#")[0]
    if row.get("offset") is not None:
        return run.read_range(key, row["offset"], row["offset"] + as_stored(row)["bytes"])
    return _from_parquet(run, key, row["id"]) if key.startswith("data/") else run.read(key)


def _from_parquet(run: RunFolder, key: str, row_id: str) -> bytes:
    """Read up to the row, and no further."""
    with run.open_parquet(key, pre_buffer=False) as file:
        for batch in file.iter_batches(1, columns=["id", "image"]):
            if batch["id"][0].as_py() == row_id:
                return batch["image"][0].as_py()
    raise LookupError(f"{key} has no row {row_id}")


def _draw(row: dict[str, Any]) -> bytes:
    return blake2b(row["id"].encode("utf-8", "replace"), digest_size=8).digest()
