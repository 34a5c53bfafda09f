"""Encodes pictures with their marks and stores a shard's bytes: an object a picture, a tar, a Parquet file, or none.

Every object is whole in memory before it is written, under keys of one attempt. Nothing here commits a shard.
"""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
from PIL import Image

from pipelines.render.marks import FileMarks
from pipelines.render.provenance import Provenance
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
_PNG_START = len(_PNG_HEAD) + 25  # bytes up to the end of IHDR: what is said of a picture stands before its pixels
JPEG_MARK = 65_000  # bytes of a mark in a JPEG: a segment takes 65,533, its own header among them
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286


def encoder_name(image_format: str) -> str:
    """The name and version of the encoder, for the render class: sha256 is equal only within one encoder."""
    if image_format == "png" and isal_zlib is not None:
        return f"png-isal-{isal.__version__}"
    return f"{image_format}-pillow-{PIL.__version__}"


def encode_image(image: np.ndarray, image_format: str, marks: FileMarks | None = None) -> bytes:
    """image: (H, W, 3) uint8. PNG and WebP are lossless, JPEG has quality 95. Marks change no pixel."""
    marks = marks or FileMarks()
    if image_format != "png":
        return _by_pillow(image, image_format, _segments(marks))
    data = _fast_png(image) if isal_zlib is not None else _by_pillow(image, image_format, {})
    return data[:_PNG_START] + _text_chunks(marks) + data[_PNG_START:]


def _text_chunks(marks: FileMarks) -> bytes:
    """Of a PNG: `parameters` as tEXt where Latin-1 has its characters, else as iTXt; XMP as iTXt."""
    chunks = b""
    if marks.parameters:
        try:
            chunks += _chunk(b"tEXt", b"parameters\0" + marks.parameters.encode("latin-1"))
        except UnicodeEncodeError:
            chunks += _chunk(b"iTXt", b"parameters\0\0\0\0\0" + marks.parameters.encode())
    if marks.xmp:
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + marks.xmp)
    return chunks


def _segments(marks: FileMarks) -> dict[str, bytes]:
    """Of a JPEG or a WebP, as Pillow takes them: `parameters` in EXIF's UserComment, and XMP."""
    found = {"xmp": marks.xmp} if marks.xmp else {}
    if marks.parameters:
        exif = Image.Exif()
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + marks.parameters.encode("utf-16-be")
        found["exif"] = exif.tobytes()
    return found


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


def _by_pillow(image: np.ndarray, image_format: str, segments: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=image_format, **_OPTIONS[image_format], **segments)
    return buffer.getvalue()


@dataclass(frozen=True)
class Stored:
    """Where a picture is: the manifest's uri, offset, bytes and sha256; all None under `none`.

    num_bytes, sha256: of the unsigned picture, which a repair can make again; signed_bytes, signed_sha256: of what is
    stored in its place.
    """

    uri: str | None = None
    offset: int | None = None
    num_bytes: int | None = None
    sha256: str | None = None
    signed_bytes: int | None = None
    signed_sha256: str | None = None


@dataclass
class Sink:
    """One attempt's pictures. `put` is called from several threads, `close` once, before the manifest is committed."""

    run: RunFolder
    shard: str
    attempt: Attempt
    layout: str
    image_format: str
    provenance: Provenance = field(default_factory=Provenance)
    keys: list[str] = field(default_factory=list)  # what a loser of the commit has to delete
    _held: dict[str, tuple[str, bytes, PlannedRow]] = field(default_factory=dict)

    def put(self, row: PlannedRow, image: np.ndarray, other_try: int | None = None) -> Stored:
        """Encodes one row's image; writes it in the `files` layout, keeps it for `close` in the packed ones.

        row: with the seed of this picture. other_try: the number of a try that was not chosen, stored beside the row's
        picture; in `files` alone. Raises StampFailed where its row fails, StampError and SigningError where all do.
        """
        if self.layout == "none":
            return Stored()
        unsigned = self._encoded(row, image)
        data, stored = self._signed(unsigned), Stored(num_bytes=len(unsigned), sha256=_sha256(unsigned))
        if data is not unsigned:
            stored = replace(stored, signed_bytes=len(data), signed_sha256=_sha256(data))
        extension, name = EXTENSIONS[self.image_format], self.run.image_name(row.id)
        if other_try is not None:
            name = f"{name}.try{other_try}"
        if self.layout == "files":
            key = self.run.image_key(self.shard, self.attempt, name, extension)
            self.keys.append(key)
            self.run.write(key, data)
            return replace(stored, uri=key)
        self._held[row.id] = (f"{name}.{extension}", data, row)
        return stored

    def _encoded(self, row: PlannedRow, image: np.ndarray) -> bytes:
        """The picture's file: stamped and marked, not signed."""
        stamp, most = self.provenance.stamp, JPEG_MARK if self.image_format == "jpeg" else None
        image = stamp(image) if stamp else image
        return encode_image(image, self.image_format, self.provenance.marks.of(row, most))

    def _signed(self, data: bytes) -> bytes:
        signer = self.provenance.signer
        return signer.sign(data, FORMATS[self.image_format]) if signer else data

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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
