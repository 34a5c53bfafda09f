"""Renders shards whose pictures are marked, stamped or signed, through a worker's own steps, and reads them back."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ET
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actors.rows import SamplerConfig
from jobs.pages.totals import image_bytes
from pipelines.render.attempt import BusySpan, InlineExecutor, ShardAttempt, settled
from pipelines.render.manifest_rows import manifest_table
from pipelines.render.marks import NAMESPACES, Marks
from pipelines.render.provenance import Provenance
from pipelines.render.sink import Sink
from pipelines.run.layout import RunFolder
from pipelines.run.schema import PlannedRow, manifest_schema
from tests.finished import picture
from tests.plans import CARRIED, planned_row, typed_row, write_plan

SHARD = "0001-000000"
MARKS = Marks(iptc=True, parameters=True, model="sd15", model_hash="0123456789abcdef")
MARKED = Provenance(MARKS)


def rendered(
    run: RunFolder,
    rows: list[PlannedRow],
    provenance: Provenance = MARKED,
    layout: str = "files",
    image_format: str = "png",
    writers: Executor | None = None,
    **attempt: Any,
) -> list[dict[str, Any]]:
    """The manifest rows of one attempt at one shard; each picture is a function of its row's seed."""
    sink = Sink(run, SHARD, run.begin_attempt(SHARD), layout, image_format, provenance)
    work = ShardAttempt(rows, sink, SamplerConfig(""), BusySpan(), **attempt)
    return work.render(lambda row: settled(picture(row)), writers or InlineExecutor())


def marked_run(
    folder: Path,
    provenance: Provenance = MARKED,
    layout: str = "files",
    image_format: str = "png",
    prompts: tuple[str, ...] = ("a fox", "a hen", "an owl"),
) -> RunFolder:
    """A whole run of one shard, with its plan and its manifest."""
    run = RunFolder(str(folder))
    values = [{"prompt": prompt, "negative_prompt": "blurred, grey" if i else None} for i, prompt in enumerate(prompts)]
    write_plan(run, [planned_row(i, **each) for i, each in enumerate(values)], len(values))
    rows = [typed_row(i, **each) for i, each in enumerate(values)]
    made = rendered(run, rows, provenance, layout, image_format)
    assert run.commit_manifest(SHARD, manifest_table(made, manifest_schema(CARRIED)))
    return run


def stored(run: RunFolder) -> dict[str, bytes]:
    """{id: the stored bytes of its picture}, found as the page finds them."""
    return {row["id"]: image_bytes(run, row) for row in manifest(run)}


def manifest(run: RunFolder) -> list[dict[str, Any]]:
    return run.read_manifest(SHARD).to_pylist()


def unpacked(run: RunFolder, layout: str, folder: Path) -> dict[str, Path]:
    """{id: a file of its picture}, out of the tar where there is one, as a reader of WebDatasets finds it."""
    if layout == "files":
        return {row["id"]: Path(run.url) / row["uri"] for row in manifest(run)}
    (key,) = [key for key, _ in run.walk("data")]
    with tarfile.open(fileobj=io.BytesIO(run.read(key))) as tar:
        tar.extractall(folder, filter="data")
    return {row["id"]: folder / row["uri"].partition("#")[2] for row in manifest(run)}


def exiftool(path: Path) -> dict[str, Any]:
    """What Debian's exiftool reads in a file, by group and name."""
    if shutil.which("exiftool") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("exiftool is not installed: libimage-exiftool-perl")
    command = ["exiftool", "-j", "-G1", "-a", "-XMP:all", "-PNG:all", "-EXIF:all", "-JUMBF:all", "-CBOR:all"]
    return json.loads(subprocess.run([*command, str(path)], capture_output=True, check=True).stdout)[0]


def xmp(data: bytes) -> dict[str, str]:
    """{prefix:name: text} of the XMP packet in a picture, by an XML parser."""
    info = Image.open(io.BytesIO(data)).info
    packet = info.get("XML:com.adobe.xmp") or info.get("xmp")
    if packet is None:
        return {}
    prefixes = {address: prefix for prefix, address in NAMESPACES.items()}
    text = packet if isinstance(packet, bytes) else packet.encode()
    (described,) = ET.fromstring(text.rpartition(b"<?xpacket")[0]).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    found = [(*each.tag[1:].split("}"), each.text) for each in described]
    return {f"{prefixes[address]}:{name}": text or "" for address, name, text in found}


def made_from(data: bytes) -> dict[str, Any]:
    """The exact record of what a picture was made from."""
    return json.loads(xmp(data)["stepthrift:madeFrom"])


def parameters(data: bytes) -> str:
    """The text that other tools read, found where they look for it."""
    with Image.open(io.BytesIO(data)) as opened:
        if opened.format == "PNG":
            return opened.info["parameters"]
        comment = opened.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")
