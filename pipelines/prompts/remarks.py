"""Notes prompts and negative prompts that render, but perhaps not as their author expects.

Pure: texts in, kinds out. `pipelines.prompts.canonical_rows` finds rows that cannot be rendered.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipelines.prompts.canonical_rows import RawBatch, RowDefaults

_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\xad\u180e\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb]"
)
_SYNTAX = re.compile(
    r"<(?:lora|lyco|loha|hypernet|embedding)\w*:[^<>]*>"  # <lora:x:1>
    r"|\([^()]*:\s*[+-]?\d*\.?\d+\s*\)"  # (word:1.3)
    r"|\[[^\[\]]*:[^\[\]]*:\s*\d*\.?\d+\s*\]"  # [cat:dog:0.5]
    r"|\(\([^()]*\)\)"  # ((word))
    r"|\w\w(?:\+\+|--)(?=[\s,.]|$)|\)(?:\+|-|\d+\.\d+)"  # word++, (some words)1.2
    r"|(?<![\w-])--(?:ar|v|seed|no|stylize|chaos|niji)\b"  # --ar 16:9
    r"|\b(?:BREAK|AND)\b(?=\s|$)|\bembedding:\w"
    r"|::-?\d"
)
KINDS = {
    "invisible": "holds characters that cannot be seen, which the text encoder reads",
    "syntax": "holds another tool's syntax, as (word:1.3) or <lora:x:1>, which is read as plain words here",
    "blank": "holds nothing but spaces",
    "unguided": "has no effect, since the row's guidance_scale is 1 or less",
    "interval": "is given: such a row is guided throughout, and sampling.guidance_interval does not hold for it",
}


@dataclass
class Remark:
    """How many rows it applies to, and the first of them, counted from the start of what was read."""

    rows: int
    first: int


Remarks = dict[tuple[str, str], Remark]  # (column, kind)


def remarks(given: RawBatch, defaults: RowDefaults) -> Iterator[tuple[str, str, int]]:
    """(column, kind, row) of a batch."""
    for column in ("prompt", "negative_prompt"):
        for row, text in enumerate(getattr(given, column)):
            if text and row not in given.faults:
                for kind in _kinds(text):
                    yield column, kind, row
    for row, text in enumerate(given.negative_prompt):
        if text and not text.isspace() and row not in given.faults:
            scale = given.guidance_scale[row]
            if (defaults.guidance_scale if scale is None else scale) <= 1:
                yield "negative_prompt", "unguided", row
            elif defaults.guidance_interval:
                yield "negative_prompt", "interval", row


def _kinds(text: str) -> Iterator[str]:
    if _INVISIBLE.search(text):
        yield "invisible"
    if _SYNTAX.search(text):
        yield "syntax"
    if text.isspace():
        yield "blank"


def add_remarks(found: Remarks, new: Iterable[tuple[str, str, int]], first: int) -> None:
    """Add the remarks on one more batch, whose rows begin at `first`."""
    for column, kind, row in new:
        known = found.setdefault((column, kind), Remark(0, first + row))
        known.rows += 1


def remark_notes(found: Mapping[tuple[str, str], tuple[int, str]]) -> tuple[str, ...]:
    """The remarks as notes: how many rows each applies to, and the place of the first."""
    return tuple(
        f"{rows:,} row{'s' * (rows != 1)}: the {column} {KINDS[kind]} (first {place})"
        for (column, kind), (rows, place) in sorted(found.items())
    )
