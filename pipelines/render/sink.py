"""Encodes pictures and stores a shard's bytes: an object a picture, one tar, one Parquet file, or none.

Every object is whole in memory before it is written, under keys of one attempt. Nothing here commits a shard.
"""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
from PIL import Image

from pipelines.run.layout import Attempt, RunFolder, parquet_bytes
from pipelines.run.schema import PlannedRow

try:
    import isal
    from isal import isal_zlib
except ImportError:  # not built for this processor: Pillow's PNG has the same pixels, in ten times the time
    isal_zlib = None  # type: ignore[assignment]

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
LAYOUTS = ("files", "webdataset", "parquet", "none")
_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},  # a third of the time of Pillow's default for 1.1 times the bytes
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True, "method": 0},
}


_PNG_HEAD, _RGB8, _SUB = b"\x89PNG\r\n\x1a\n", (8, 2, 0, 0, 0), 1


def encoder_name(image_format: str) -> str:
    """The name and version of the encoder, for the render class: sha256 is equal only within one encoder."""
    if image_format == "png" and isal_zlib is not None:
        return f"png-isal-{isal.__version__}"
    return f"{image_format}-pillow-{PIL.__version__}"


def encode_image(image: np.ndarray, image_format: str) -> bytes:
    """image: (H, W, 3) uint8. PNG and WebP are lossless, JPEG has quality 95."""
    if image_format == "png" and isal_zlib is not None:
        return _fast_png(image)
    return _by_pillow(image, image_format)


def _fast_png(image: np.ndarray) -> bytes:
    """Each line as differences to its left neighbour (PNG filter 1, Sub), deflated by ISA-L."""
    height, width, _ = image.shape
    flat = image.reshape(height, 3 * width)
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0], lines[:, 1:4] = _SUB, flat[:, :3]
    np.subtract(flat[:, 3:], flat[:, :-3], out=lines[:, 4:])  # modulo 256, as the filter is defined
    header = struct.pack(">II5B", width, height, *_RGB8)
    data = isal_zlib.compress(lines, 1)
    return _PNG_HEAD + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _by_pillow(image: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=image_format, **_OPTIONS[image_format])
    return buffer.getvalue()


@dataclass(frozen=True)
class Stored:
    """Where a picture is: the manifest's uri, offset, bytes and sha256; all None under `none`."""

    uri: str | None = None
    offset: int | None = None
    num_bytes: int | None = None
    sha256: str | None = None


@dataclass
class Sink:
    """One attempt's pictures. `put` is called from several threads, `close` once, before the manifest is committed."""

    run: RunFolder
    shard: str
    attempt: Attempt
    layout: str
    image_format: str
    keys: list[str] = field(default_factory=list)  # what a loser of the commit has to delete
    _held: dict[str, tuple[str, bytes, PlannedRow]] = field(default_factory=dict)

    def put(self, row: PlannedRow, image: np.ndarray, other_try: int | None = None) -> Stored:
        """Encodes one row's image; writes it in the `files` layout, keeps it for `close` in the packed ones.

        other_try: the number of a try that was not chosen, stored beside the row's picture; in `files` alone.
        """
        if self.layout == "none":
            return Stored()
        data = encode_image(image, self.image_format)
        extension, name = EXTENSIONS[self.image_format], self.run.image_name(row.id)
        if other_try is not None:
            name = f"{name}.try{other_try}"
        digest = hashlib.sha256(data).hexdigest()
        if self.layout == "files":
            key = self.run.image_key(self.shard, self.attempt, name, extension)
            self.keys.append(key)
            self.run.write(key, data)
            return Stored(key, None, len(data), digest)
        self._held[row.id] = (f"{name}.{extension}", data, row)
        return Stored(None, None, len(data), digest)

    def close(self) -> dict[str, tuple[str, int | None]]:
        """Writes the packed layouts' one object. -> {id: (uri, offset of the bytes in a tar)} for its rows."""
        if not self._held:
            return {}
        extension, pack = ("tar", _tar) if self.layout == "webdataset" else ("parquet", _parquet)
        key = self.run.data_key(self.shard, self.attempt, extension)
        data, offsets = pack({id: self._held[id] for id in sorted(self._held)})
        self.keys.append(key)
        self.run.write(key, data)
        return {id: (f"{key}#{name}", offsets.get(id)) for id, (name, _, _) in self._held.items()}

    def discard(self) -> None:
        """Deletes what this attempt wrote: another one's manifest stands."""
        self.run.delete(self.keys)


def _tar(held: Mapping[str, tuple[str, bytes, PlannedRow]]) -> tuple[bytes, dict[str, int]]:
    """A WebDataset shard: of each row the image and a JSON of what it was made from, side by side."""
    buffer, offsets = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for id, (name, data, row) in held.items():
            offsets[id] = _add(tar, buffer, name, data)
            described = {k: v for k, v in row.columns().items() if isinstance(v, str | int | float | bool)}
            _add(tar, buffer, f"{name.rsplit('.', 1)[0]}.json", json.dumps(described).encode())
    return buffer.getvalue(), offsets


def _add(tar: tarfile.TarFile, buffer: io.BytesIO, name: str, data: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    return buffer.tell() - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _parquet(held: Mapping[str, tuple[str, bytes, PlannedRow]]) -> tuple[bytes, dict[str, int]]:
    columns = {"id": list(held), "image": [data for _, data, _ in held.values()]}
    columns["prompt"] = [row.prompt for _, _, row in held.values()]
    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("prompt", pa.string())])
    return parquet_bytes([pa.table(columns, schema=schema)], write_batch_size=1), {}
