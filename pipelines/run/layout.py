"""Reads and writes the run folder: which key holds what, and what commits a shard.

Shards, attempts and images have keys here. Their columns are `pipelines.run.schema`'s, how bytes reach a disk or an
object store is `pipelines.storage.folder`'s.
"""

import hashlib
import io
import json
import re
import secrets
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.pipeline_error import PipelineError
from pipelines.storage.folder import Folder
from pipelines.storage.range_file import RangeFile

JOB = "job.yaml"
FOLDERS = ("plan", "images", "data", "attempts", "epochs", "partial", "manifest")
UNREADABLE = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises of bytes that are no Parquet
READERS = 8
RELEASED, DIED = ".released", ".died"  # endings of what is said of an attempt once it is over
_PLAIN_NAME = re.compile(r"[a-z0-9_-]{1,80}", re.ASCII)


class DamagedRun(PipelineError, ValueError):
    """An object of a run folder that is there, and is not what it should be: which one, and the remedy."""


@dataclass(frozen=True)
class Attempt:
    """One worker's try at one shard. `number` counts from 1 over those not released; `token` makes its keys its own."""

    shard: str
    number: int
    token: str  # 8 hex digits

    @property
    def name(self) -> str:
        """The part of every key that belongs to this attempt alone."""
        return f"{self.number}-{self.token}"


class RunFolder(Folder):
    """The layout of a run: job.yaml, plan/, images/ or data/, attempts/, epochs/, partial/, manifest/, and the report.

    A shard id is `<generation, 4 digits>-<number, 6 digits>`. A shard with a manifest is done, one without is not;
    nothing else says so. Methods raise StorageError as Folder's do, FileNotFoundError for what has not been written.
    """

    def job_yaml(self) -> str | None:
        """The resolved job file, None in a folder without a run."""
        try:
            return self.read(JOB).decode("utf-8")
        except FileNotFoundError:
            return None

    def write_job(self, text: str) -> None:
        """Put the resolved job file, over an earlier one."""
        self.write(JOB, text.encode("utf-8"))

    def generations(self) -> list[int]:
        """The generations whose plan is complete, rising."""
        numbers = sorted(int(name) for name in self.names("plan") if re.fullmatch(r"\d{4}", name))
        return [number for number in numbers if self.stat(f"{_plan(number)}/plan.json")]

    def read_plan(self, generation: int) -> dict[str, Any]:
        """plan.json of a generation. DamagedRun where it cannot be read."""
        return self.read_json(f"{_plan(generation)}/plan.json")

    def read_json(self, key: str) -> dict[str, Any]:
        """A JSON object of this folder. DamagedRun where it is none."""
        data = self.read(key)
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError) as error:
            raise self._damaged(key, error) from error

    def write_part(self, generation: int, index: int, shards: pa.Table | list[pa.Table]) -> str:
        """Put one plan part, under a key made of its content, and return the key; each table is a row group, one shard.

        Equal rows are equal bytes however they are chunked, so the key is never written with others.
        """
        tables = [shards] if isinstance(shards, pa.Table) else shards
        data = parquet_bytes([table.combine_chunks() for table in tables])
        key = f"{_plan(generation)}/part-{index:05d}-{hashlib.blake2b(data, digest_size=8).hexdigest()}.parquet"
        self.write(key, data)
        return key

    def shard_index(self, generation: int) -> pa.Table:
        """shards.parquet of a generation: one row a shard, with the part and the row group that hold its rows."""
        return self._table(f"{_plan(generation)}/shards.parquet")

    def commit_plan(self, generation: int, plan: dict[str, Any]) -> bool:
        """Create plan.json, which makes the generation exist. False: another planner was first, and its plan holds."""
        return self.create(f"{_plan(generation)}/plan.json", json.dumps(plan, indent=2).encode("utf-8"))

    def read_shard(self, part_key: str, row_group: int, columns: list[str] | None = None) -> pa.Table:
        """The planned rows of one shard: one row group of a part, read by ranges."""
        with self.open_parquet(part_key) as part:
            return part.read_row_group(row_group, columns=columns)

    def open_parquet(self, key: str, pre_buffer: bool = True) -> pq.ParquetFile:
        """A Parquet object of this folder, read by ranges; without `pre_buffer` a little at a time."""
        options = {"pre_buffer": pre_buffer, "buffer_size": 0 if pre_buffer else 1 << 20}
        found = self.stat(key)
        if found is None:
            raise FileNotFoundError(self.url_of(key))
        return pq.ParquetFile(RangeFile(self, key, found[0]), page_checksum_verification=True, **options)

    def _table(self, key: str) -> pa.Table:
        data = self.read(key)
        try:
            return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        except UNREADABLE as error:
            raise self._damaged(key, error) from error

    def _damaged(self, key: str, error: Exception) -> DamagedRun:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        remedy = f"`python -m jobs verify {self.url}` names what is damaged, `repair` renders what it can again"
        return DamagedRun(f"{self.url_of(key)} cannot be read: {reason:.200}; {remedy}")

    def done_shards(self) -> set[str]:
        """The shards that have a manifest, by one listing."""
        return done_of(key.removeprefix("manifest/") for key, _ in self.walk("manifest"))

    def commit_manifest(self, shard: str, table: pa.Table) -> bool:
        """Create the shard's manifest, its only commit. False: another worker's stands, and ours is to be dropped."""
        return self.create(manifest_key(shard), parquet_bytes([table]))

    def write_partial(self, attempt: Attempt, table: pa.Table) -> None:
        """Put what an attempt rendered of a shard that is not done by it."""
        self.write(f"partial/{attempt.shard}/{attempt.name}.parquet", parquet_bytes([table]))

    def partials(self, shard: str) -> Iterator[pa.Table]:
        """The parts of a shard that were written down before it is done; what cannot be read is rendered again."""
        for name in self.names(f"partial/{shard}"):
            if name.endswith(".parquet") and not name.startswith("."):
                with suppress(DamagedRun):
                    yield self._table(f"partial/{shard}/{name}")

    def partly_done(self) -> list[str]:
        """The shards without a manifest of which a part is rendered."""
        return sorted({*self.names("partial")} - self.done_shards() - {""})

    def read_manifest(self, shard: str) -> pa.Table:
        """The manifest of a done shard. DamagedRun where it cannot be read."""
        return self._table(manifest_key(shard))

    def manifests(self, damaged: list[DamagedRun] | None = None) -> Iterator[pa.Table]:
        """The manifests of all done shards, by rising shard, a few read ahead.

        damaged: takes what cannot be read, which is else raised.
        """

        def read(shard: str) -> pa.Table | None:
            try:
                return self.read_manifest(shard)
            except DamagedRun as error:
                if damaged is None:
                    raise
                damaged.append(error)
                return None

        shards = sorted(self.done_shards())
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(shards), 4 * READERS):
                found = pool.map(read, shards[start : start + 4 * READERS])
                yield from (table for table in found if table is not None)

    def begin_attempt(self, shard: str, epoch: int | None = None, node: str | None = None) -> Attempt:
        """Write down that work on a shard starts, before it does. epoch: of the driver; node: Ray's id of it."""
        attempt = Attempt(shard, self.num_attempts(shard) + 1, secrets.token_hex(4))
        note = {"host": socket.gethostname(), "epoch": epoch, "node": node, "started_at": _now()}
        self.write(f"attempts/{shard}/{attempt.name}", json.dumps(note).encode("utf-8"))
        return attempt

    def release_attempt(self, attempt: Attempt) -> None:
        """Say that an attempt was given up cleanly; it no longer counts."""
        self.write(f"attempts/{attempt.shard}/{attempt.name}{RELEASED}", b"{}")

    def mark_death(self, shard: str, reason: str) -> None:
        """Say of a shard's newest open attempt that its process died, on a node and under a driver that live.

        Only these deaths lead to isolation: a driver or a node that dies takes innocent shards with it.
        """
        names = self.names(f"attempts/{shard}")
        ended = {name.rpartition(".")[0] for name in names if "." in name}
        if begun := sorted((name for name in names if "." not in name and name not in ended), key=_number):
            note = json.dumps({"reason": reason, "died_at": _now()})
            self.write(f"attempts/{shard}/{begun[-1]}{DIED}", note.encode("utf-8", "replace"))

    def deaths(self) -> dict[str, tuple[int, ...]]:
        """The numbers of each shard's attempts whose process died, by one listing; shards with none are left out."""
        found = {shard: tuple(_number(n) for n in names if n.endswith(DIED)) for shard, names in self._attempts()}
        return {shard: numbers for shard, numbers in found.items() if numbers}

    def num_attempts(self, shard: str) -> int:
        """Attempts of one shard that were started and not released."""
        return _counted(self.names(f"attempts/{shard}"))

    def attempts(self) -> dict[str, int]:
        """Attempts of each shard that were started and not released, by one listing; shards with none are left out."""
        return {shard: count for shard, names in self._attempts() if (count := _counted(names))}

    def _attempts(self) -> Iterable[tuple[str, list[str]]]:
        names: dict[str, list[str]] = {}
        for key, _ in self.walk("attempts"):
            shard, _, name = key.removeprefix("attempts/").partition("/")
            if name and not name.startswith("."):  # else a stray file of somebody else's
                names.setdefault(shard, []).append(name)
        return names.items()

    @staticmethod
    def image_key(shard: str, attempt: Attempt, name: str, ext: str) -> str:
        """The key of one image in the `files` layout; `ext` without its dot."""
        return f"images/{shard}/{attempt.name}/{name}.{ext}"

    @staticmethod
    def data_key(shard: str, attempt: Attempt, ext: str) -> str:
        """The key of a shard's one data file in the packed layouts; `ext` is `tar` or `parquet`."""
        return f"data/{shard}-{attempt.name}.{ext}"

    @staticmethod
    def image_name(row_id: str) -> str:
        """The file name of a row, without its ending: the id where it is plain, else a hash of it.

        The hash is 81 long, one more than a plain id may be, so that no id can be taken for another's hash.
        """
        if _PLAIN_NAME.fullmatch(row_id):
            return row_id
        return "x" + hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=40).hexdigest()


def manifest_key(shard: str) -> str:
    """The key of a shard's manifest."""
    return f"manifest/{shard}.parquet"


def shard_of(key: str) -> str:
    """The shard of `images/<shard>/...` and of `data/<shard>-<attempt>.<ext>`."""
    folder, _, rest = key.partition("/")
    return rest.partition("/")[0] if folder == "images" else rest.partition(".")[0].rsplit("-", 2)[0]


def named_objects(row: Mapping[str, Any]) -> set[str]:
    """The objects that a manifest row names: that of its picture, and those of tries that were not chosen."""
    uris = [row["uri"], *(each.get("uri") for each in row.get("tries") or ())]
    return {uri.partition("#")[0] for uri in uris if uri}


def as_stored(row: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest row with bytes and sha256 of the stored object, where that is a signed picture."""
    if row.get("signed_sha256") is None:
        return dict(row)
    return {**row, "bytes": row["signed_bytes"], "sha256": row["signed_sha256"]}


def done_of(names: Iterable[str]) -> set[str]:
    """The shards whose manifests are among the keys below manifest/; hidden files are nobody's manifests."""
    plain = (name for name in names if "/" not in name and not name.startswith("."))
    return {name.removesuffix(".parquet") for name in plain if name.endswith(".parquet")}


def parquet_bytes(row_groups: list[pa.Table], write_batch_size: int = 1024) -> bytes:
    """A Parquet file in memory (zstd, checksums of its pages), each table one row group.

    A page ends at a MiB, which is looked at once in so many rows: with pictures in them, 1024 rows make a huge page.
    """
    sink, options = io.BytesIO(), {"compression": "zstd", "write_page_checksum": True}
    with pq.ParquetWriter(sink, row_groups[0].schema, write_batch_size=write_batch_size, **options) as writer:
        for table in row_groups:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    return sink.getvalue()


def _plan(generation: int) -> str:
    return f"plan/{generation:04d}"


def _counted(names: list[str]) -> int:
    kinds = Counter(name.endswith(RELEASED) for name in names if not name.endswith(DIED))
    return kinds[False] - kinds[True]


def _number(name: str) -> int:
    """The number in an attempt's name."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _now() -> str:
    return datetime.now(UTC).isoformat()
