"""Words the marks in a picture's file: that an AI made it (IPTC's XMP), and from what (as other image tools read it).

Pure: a row in, text and XMP out, with no time, run or host, so that a file stays a function of its row. How they get
into a PNG, a JPEG or a WebP is `pipelines.render.sink`'s.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from actors.recipe import THROUGHOUT
from pipelines.run.schema import PlannedRow

ROOT = Path(__file__).resolve().parents[2]
SOFTWARE = "stepthrift"
# Not from installed metadata: the code runs from its folder, and an older version may be installed beside it.
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SAMPLERS = {"ddim": "DDIM", "dpmpp_2m": "DPM++ 2M"}  # as the web UI calls them
NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    SOFTWARE: f"urn:{SOFTWARE}:1",
}
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # what readers stop at, or refuse
_NOT_XML = re.compile("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # and JSON does not escape
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" {names}>'
    '{properties}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


@dataclass(frozen=True)
class FileMarks:
    """What goes into one file. xmp: a packet; parameters: the text of the generation parameters. Empty: neither."""

    xmp: bytes = b""
    parameters: str = ""


@dataclass(frozen=True)
class Marks:
    """What all pictures of a job are marked with. iptc: as made by an AI; parameters: with what they were made from.

    model: its name as anyone may see it; model_hash: the fingerprint of its weights; solver, guidance_interval: of rows
    whose plan names none.
    """

    iptc: bool = False
    parameters: bool = False
    model: str = ""
    model_hash: str = ""
    solver: str = "ddim"
    guidance_interval: tuple[float, float] | None = None

    def of(self, row: PlannedRow, most_bytes: int | None = None) -> FileMarks:
        """The marks of one picture. most_bytes: of each of the two; then long prompts are cut, and it says so."""
        found, characters = self._cut_to(row, None), None
        while most_bytes is not None and characters != 0 and _largest(found) > most_bytes:
            characters = (characters or _longest(row)) // 2
            found = self._cut_to(row, characters)
        return found

    def _cut_to(self, row: PlannedRow, characters: int | None) -> FileMarks:
        made_from = self._made_from(row, characters) if self.parameters else {}
        return FileMarks(self._xmp(made_from), _text(made_from) if made_from else "")

    def _made_from(self, row: PlannedRow, characters: int | None) -> dict[str, Any]:
        """What the picture was made from, whole; or its prompts cut, and how long they are."""
        negative = row.negative_prompt if row.negative_prompt is None else row.negative_prompt[:characters]
        found: dict[str, Any] = {"prompt": row.prompt[:characters], "negative_prompt": negative}
        found |= {"steps": row.num_steps, "sampler": SAMPLERS[row.solver or self.solver]}
        found["guidance_scale"] = row.guidance_scale
        own = None if row.negative_prompt else self.guidance_interval
        interval = tuple(row.guidance_interval or own or THROUGHOUT)
        found |= {"guidance_interval": list(interval)} if interval != THROUGHOUT else {}
        found |= {"seed": row.seed, "width": row.width, "height": row.height}
        found |= {"model": self.model, "model_hash": self.model_hash}
        return found if characters is None else found | {"cut": f"{characters} of {_longest(row)} characters"}

    def _xmp(self, made_from: Mapping[str, Any]) -> bytes:
        properties = {}
        if self.iptc:
            properties["Iptc4xmpExt:DigitalSourceType"] = MADE_BY_AI
            properties |= {"Iptc4xmpExt:AISystemUsed": SOFTWARE, "Iptc4xmpExt:AISystemVersionUsed": VERSION}
            properties["xmp:CreatorTool"] = f"{SOFTWARE} {VERSION}"
        if made_from:  # exact, whatever characters the prompts hold: the text beside it is for other tools
            exact = json.dumps(made_from, ensure_ascii=False)
            properties[f"{SOFTWARE}:madeFrom"] = _NOT_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", exact)
        if not properties:
            return b""
        used = dict.fromkeys(name.partition(":")[0] for name in properties)
        names = " ".join(f'xmlns:{prefix}="{NAMESPACES[prefix]}"' for prefix in used)
        inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in properties.items())
        return _PACKET.format(names=names, properties=inside).encode()


def _longest(row: PlannedRow) -> int:
    return max(len(row.prompt), len(row.negative_prompt or ""))


def _largest(found: FileMarks) -> int:
    return max(len(found.xmp), len(found.parameters.encode("utf-16-be")))


def _text(made_from: Mapping[str, Any]) -> str:
    """The parameters in the form of the Stable Diffusion web UI: prompts, then one line of named values."""
    lines = [made_from["prompt"]]
    if made_from["negative_prompt"]:
        lines.append(f"Negative prompt: {made_from['negative_prompt']}")
    named = {
        "Steps": made_from["steps"],
        "Sampler": made_from["sampler"],
        "CFG scale": f"{made_from['guidance_scale']:g}",
        "Seed": made_from["seed"],
        "Size": f"{made_from['width']}x{made_from['height']}",
        "Model hash": made_from["model_hash"],
        "Model": made_from["model"],
        "Prompt cut": made_from.get("cut", ""),
        "Version": f"{SOFTWARE} {VERSION}",
    }
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in named.items() if value != ""))
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", "\n".join(lines))


def _quoted(value: str) -> str:
    """A value that holds what separates values is quoted, as the web UI does it."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value


def public_name(model: str) -> str:
    """The last name of a model's folder, hub id or URL: what stands before it is nobody's business.

    A path says who works where, a URL names a bucket that may be private; the weights are told by their fingerprint.
    """
    path = urlsplit(model).path if "://" in model else model
    return PurePosixPath(path).name
