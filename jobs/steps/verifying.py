"""What a verification has seen so far, and how it is told."""

import secrets
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.steps.find_run import find_run
from jobs.terminal.console import Console
from jobs.terminal.errors import DONE, FAILED
from pipelines.integrity.findings import KINDS, ORPHANS, Finding
from pipelines.integrity.verify import Checked, verify

SHOWN, LISTED = 5, 1000  # findings: of each kind on the screen, in all under --json


@dataclass
class Tally:
    """What was seen so far. rows: by kind, of its findings; some findings are kept, all are counted."""

    shards: int = 0
    planned: int = 0
    rows: int = 0
    named: int = 0  # images that the manifests name
    stored: int = 0  # those that are there
    sized: int = 0  # those that were seen to have their size
    images: int = 0  # those whose bytes were read
    equal: int = 0  # those that are what their manifest says
    found: Counter[str] = field(default_factory=Counter)
    kept: list[Finding] = field(default_factory=list)

    def add(self, checked: Checked) -> None:
        """One more shard, or the folder around them."""
        self.shards += checked.shard is not None
        self.planned += checked.planned
        self.rows += checked.rows
        self.named += checked.named
        self.stored += checked.found
        self.sized += checked.sized
        self.images += checked.images
        self.equal += checked.equal
        self.found.update(finding.kind for finding in checked.findings)
        self.kept += checked.findings[: max(0, LISTED - len(self.kept))]

    def is_clean(self, allow_orphans: bool) -> bool:
        """Whether nothing was found that counts."""
        return not (self.found.keys() - (ORPHANS if allow_orphans else set()))

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "shards": self.shards,
            "planned": self.planned,
            "rows": self.rows,
            "images_named": self.named,
            "images_found": self.stored,
            "images_sized": self.sized,
            "images_read": self.images,
            "images_equal": self.equal,
            "found": dict(self.found),
            "findings": [asdict(finding) for finding in self.kept],
            "findings_left_out": self.found.total() - len(self.kept),
        }

    def text(self, run: str) -> str:
        """In words."""
        seen = f"{self.rows:,} of {self.planned:,} planned rows in {self.shards:,} shards"
        lines = [f"{run}: {seen}", self._images()]
        for kind in [kind for kind in KINDS if self.found[kind]]:
            lines.append(f"{kind}: {self.found[kind]:,} {KINDS[kind]}")
            some = [finding for finding in self.kept if finding.kind == kind][:SHOWN]
            lines += [f"  {_place(finding)}: {finding.message}" for finding in some]
            lines += [f"  and {self.found[kind] - len(some):,} more"] if self.found[kind] > len(some) else []
        return "\n".join([*lines, "" if self.found else self._clean()]).rstrip()

    def _images(self) -> str:
        """How many are there, and how many of them were read."""
        if not self.named:
            return "no image is stored"
        there = (
            f"all {self.named:,} images" if self.stored == self.named else f"{self.stored:,} of {self.named:,} images"
        )
        sizes = " with their sizes" if self.sized == self.stored else ""
        read = f"{self.images:,} of {self.named:,} read"
        equal = "and equal" if self.equal == self.images else f"and {self.equal:,} of them equal"
        return f"{there} are there{sizes}; {read} {equal}"

    def _clean(self) -> str:
        """How far it was looked."""
        if self.images == self.named:
            return "clean"
        return f"clean as far as {self.images:,} of {self.named:,} images were read; --full reads every one"


def _place(finding: Finding) -> str:
    return f"{finding.key} (row {finding.id})" if finding.id is not None else finding.key


def verify_run(console: Console, run_path: str, sample: float, allow_orphans: bool, sets: tuple[str, ...]) -> int:
    """Verify a run and say what was found; the exit code."""
    run = find_run(run_path, sets)
    tally = Tally()
    for checked in verify(run, sample, secrets.token_hex(4)):
        tally.add(checked)
        console.draw(f"verified {tally.rows:,} rows, {tally.images:,} images read")
    clean = tally.is_clean(allow_orphans)
    console.result(
        {"run": run_path, "status": "clean" if clean else "damaged", **tally.document()}, tally.text(run_path)
    )
    return DONE if clean else FAILED
