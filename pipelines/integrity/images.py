"""Checks one shard's images: whether they are where its manifest says, have these bytes, and decode.

It holds one image at a time, reads only the needed ranges of a data file, and writes nothing.
"""

import hashlib
import io
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from PIL import Image

from pipelines.integrity.findings import Finding
from pipelines.render.signing import signature_fault
from pipelines.run.layout import UNREADABLE, RunFolder, as_stored
from pipelines.storage.folder import is_odd

BATCH_ROWS = 32  # of a Parquet data file, at a time
HEADER = tarfile.BLOCKSIZE
UNDECODABLE = (  # what Pillow raises of bytes that are no picture
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
Row = Mapping[str, Any]


@dataclass
class ShardImages:
    """The images of one shard. sample: share of them that are read, 1: all; at least one is.

    sizes: bytes of all that is stored of the shard, by key. stored: whether the layout stores images. whole: whether a
    Parquet data file is read to its end, or its ids only.
    """

    run: RunFolder
    shard: str
    sizes: Mapping[str, int]
    sample: float
    salt: str = ""
    stored: bool = True
    whole: bool = True
    named: int = 0  # images that the manifest names
    found: int = 0  # those that are there
    sized: int = 0  # those of them whose size was seen, and is the manifest's
    read: int = 0  # those whose bytes were seen
    equal: int = 0  # those of them that are what the manifest says

    def check(self, rows: Sequence[Row]) -> Iterator[Finding]:
        """Everything that is wrong with the images of these rows."""
        rows = [as_stored(row) for row in rows]
        placed = [row for row in rows if row["uri"] and row["bytes"] is not None]
        self.named = len(placed)
        if placed or self.stored:
            nowhere = [row for row in rows if not row["uri"] or row["bytes"] is None]
            yield from (self._finding("image_misplaced", row, "an ok row without an image") for row in nowhere)
        by_object: dict[str, list[Row]] = {}
        uses = Counter(uri for uri, _ in {(row["uri"], row["id"]) for row in placed})
        for row in placed:
            if not self._is_ours(row["uri"]):
                yield self._finding("image_misplaced", row, f"{row['uri']} is not of this shard's attempts")
            elif uses[row["uri"]] > 1:
                yield self._finding("image_misplaced", row, f"{uses[row['uri']]} rows name {row['uri']}")
            else:
                by_object.setdefault(_object(row), []).append(row)
        alone = [row for key, members in by_object.items() for row in members if key.startswith("images/")]
        whole = []
        for row in alone:
            if wrong := self._size_fault(row):
                yield self._finding(wrong[0], row, wrong[1])
            else:
                whole.append(row)
        self._count(len(whole))
        for row in self._drawn(whole):
            yield from self._judged(row, lambda row=row: self.run.read(row["uri"]))  # type: ignore[misc]
        for key, members in by_object.items():
            if key.endswith(".tar"):
                yield from self._tar(key, members)
            elif key.startswith("data/"):
                yield from self._parquet(key, members)

    def _size_fault(self, row: Row) -> tuple[str, str] | None:
        """Compares an image's size in the listing with its row: it may be absent, longer or shorter."""
        size = self.sizes.get(row["uri"])
        if size is None:
            return "image_missing", "no such object"
        return None if size == row["bytes"] else ("image_wrong_length", _lengths(size, row))

    def _is_ours(self, uri: str) -> bool:
        key, _, name = uri.partition("#")
        if is_odd(key):
            return False
        alone = key.startswith(f"images/{self.shard}/") and key.count("/") == 3 and not name
        return alone or bool(name and key.startswith(f"data/{self.shard}-") and key.count("/") == 1)

    def _drawn(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Draws a share of the rows by a hash of their ids, at least one."""
        if self.sample >= 1 or not rows:
            return rows
        draws = {row["id"]: _draw(f"{self.salt}{row['id']}") for row in rows}
        first = min(draws, key=lambda id: draws[id])
        return [row for row in rows if draws[row["id"]] < self.sample or row["id"] == first]

    def _judged(self, row: Row, read: Callable[[], bytes]) -> Iterator[Finding]:
        try:
            data = read()
        except FileNotFoundError:
            yield self._finding("image_missing", row, "no such object")
            return
        self.read += 1
        if wrong := fault(row, data) or self._signature_fault(row, data):
            yield self._finding(*wrong[:1], row, wrong[1])
        else:
            self.equal += 1

    def _signature_fault(self, row: Row, data: bytes) -> tuple[str, str] | None:
        """Of a signed picture, where all are read."""
        if self.sample < 1 or row.get("signed_sha256") is None:
            return None
        found = signature_fault(data, f"image/{row['format']}")
        return ("signature_invalid", found) if found else None

    def _count(self, images: int) -> None:
        """Counts images that are there with their size."""
        self.found += images
        self.sized += images

    def _tar(self, key: str, rows: Sequence[Row]) -> Iterator[Finding]:
        if (size := self.sizes.get(key)) is None:
            yield Finding("image_missing", key, "no such object", self.shard, rows=len(rows))
            return
        end = self.run.read_range(key, max(0, size - 2 * HEADER), size)
        if size % tarfile.RECORDSIZE or len(end) < 2 * HEADER or any(end):
            yield Finding("data_damaged", key, f"has no end: cut short at {size} bytes", self.shard, rows=0)
        inside = {row["id"]: row for row in rows if HEADER <= (row["offset"] or 0) <= size - row["bytes"]}
        for row in rows:
            if row["id"] not in inside:
                yield self._finding("image_missing", row, f"at offset {row['offset']} of a file of {size} bytes")
        self._count(len(inside))
        for row in self._drawn(list(inside.values())):
            start = row["offset"] - HEADER
            data = self.run.read_range(key, start, row["offset"] + row["bytes"])
            yield from self._member(row, data[:HEADER])
            yield from self._judged(row, lambda data=data: data[HEADER:])  # type: ignore[misc]

    def _member(self, row: Row, header: bytes) -> Iterator[Finding]:
        """Whether readers of the tar find the image that the manifest finds by its offset."""
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            yield self._finding("data_damaged", row, f"no header of a tar member before the image: {error}")
            return
        name = row["uri"].partition("#")[2]
        if (member.name, member.size) != (name, row["bytes"]):
            yield self._finding("data_damaged", row, f"the tar calls it {member.name}, {member.size} bytes")

    def _parquet(self, key: str, rows: Sequence[Row]) -> Iterator[Finding]:
        if key not in self.sizes:
            yield Finding("image_missing", key, "no such object", self.shard, rows=len(rows))
            return
        wanted = {row["id"]: row for row in rows}
        self.found += len(wanted)  # those that it lacks are taken off again below
        columns = ["id", "image"] if self.whole else ["id"]
        try:
            with self.run.open_parquet(key, pre_buffer=False) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                    for stored in batch.to_pylist():
                        row = wanted.pop(stored["id"], None)
                        if row is not None and self.whole:
                            image = stored["image"] or b""
                            self.sized += len(image) == row["bytes"]
                            yield from self._judged(row, lambda image=image: image)  # type: ignore[misc]
        except UNREADABLE as error:
            self.found -= len(wanted)
            yield Finding("data_damaged", key, _words(error), self.shard, rows=len(wanted))
            return
        self.found -= len(wanted)
        for row in wanted.values():
            yield self._finding("image_missing", row, "the file has no row of this id")

    def _finding(self, kind: str, row: Row, message: str) -> Finding:
        return Finding(kind, row["uri"] or "", message, self.shard, row["id"])


def fault(row: Row, data: bytes) -> tuple[str, str] | None:
    """(kind, message) of what is wrong with an image's bytes, None where they are what the row says."""
    if len(data) != row["bytes"]:
        return "image_wrong_length", _lengths(len(data), row)
    if (digest := hashlib.sha256(data).hexdigest()) != row["sha256"]:
        return "image_wrong_hash", f"sha256 {digest[:12]}..., the manifest says {str(row['sha256'])[:12]}..."
    try:
        with Image.open(io.BytesIO(data)) as image:
            seen = (str(image.format).lower(), *image.size)
            if seen != (row["format"], row["width"], row["height"]):
                return "image_undecodable", f"is {seen[0]} of {seen[1]} x {seen[2]}, not as its row says"
            image.load()
    except UNDECODABLE as error:
        return "image_undecodable", _words(error)
    return None


def _lengths(size: int, row: Row) -> str:
    return f"{size} bytes, the manifest says {row['bytes']}"


def _object(row: Row) -> str:
    return row["uri"].partition("#")[0]


def _draw(text: str) -> float:
    """A number in [0, 1), from a hash of the text."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) / 2**64


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
