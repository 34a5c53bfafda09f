"""Verifies a run: adds up what was seen and says it in words."""

import secrets
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.steps.find_run import find_job
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE, FAILED
from pipelines.integrity.findings import KINDS, ORPHANS, Finding
from pipelines.integrity.verification import CheckedShard, verify

SHOWN, LISTED = 5, 1000  # findings: of each kind on the screen, in all under --json


SEEN = {  # what `CheckedShard` counts, by its name under --json
    "planned": "planned",
    "rows": "rows",
    "named": "images_named",
    "found": "images_found",
    "sized": "images_sized",
    "images": "images_read",
    "equal": "images_equal",
}


@dataclass
class VerificationTally:
    """What was seen so far: the counts of `CheckedShard`, added up. found: rows by kind; some findings are kept."""

    shards: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    kept: list[Finding] = field(default_factory=list)

    def add(self, checked: CheckedShard) -> None:
        """One more shard, or the folder around them."""
        self.shards += checked.shard is not None
        self.seen.update({name: getattr(checked, name) for name in SEEN})
        self.found.update(finding.kind for finding in checked.findings)
        self.kept += checked.findings[: max(0, LISTED - len(self.kept))]

    def is_clean(self, allow_orphans: bool) -> bool:
        """Whether there is no finding, or only orphans where those are allowed."""
        return not (self.found.keys() - (ORPHANS if allow_orphans else set()))

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "shards": self.shards,
            **{told: self.seen[name] for name, told in SEEN.items()},
            "found": dict(self.found),
            "findings": [asdict(finding) for finding in self.kept],
            "findings_left_out": self.found.total() - len(self.kept),
        }

    def text(self, run: str) -> str:
        """The counts and findings in words."""
        seen = f"{self.seen['rows']:,} of {self.seen['planned']:,} planned rows in {self.shards:,} shards"
        lines = [f"{run}: {seen}", self._images()]
        for kind in [kind for kind in KINDS if self.found[kind]]:
            lines.append(f"{kind}: {self.found[kind]:,} {KINDS[kind]}")
            some = [finding for finding in self.kept if finding.kind == kind][:SHOWN]
            lines += [f"  {_place(finding)}: {finding.message}" for finding in some]
            lines += [f"  and {self.found[kind] - len(some):,} more"] if self.found[kind] > len(some) else []
        return "\n".join([*lines, "" if self.found else self._clean()]).rstrip()

    def _images(self) -> str:
        """How many are there, and how many of them were read."""
        named, stored, sized, read, equal = (self.seen[name] for name in ("named", "found", "sized", "images", "equal"))
        if not named:
            return "no image is stored"
        there = f"all {named:,} images" if stored == named else f"{stored:,} of {named:,} images"
        sizes = " with their sizes" if sized == stored else ""
        and_equal = "and equal" if equal == read else f"and {equal:,} of them equal"
        return f"{there} are there{sizes}; {read:,} of {named:,} read {and_equal}"

    def _clean(self) -> str:
        """The line for a clean run: how much was looked at."""
        named, read = self.seen["named"], self.seen["images"]
        if read == named:
            return "clean"
        return f"clean as far as {read:,} of {named:,} images were read; --full reads every one"


def _place(finding: Finding) -> str:
    return f"{finding.key} (row {finding.id})" if finding.id is not None else finding.key


def verify_run(console: Console, run_path: str, sample: float, allow_orphans: bool, sets: tuple[str, ...]) -> int:
    """Verify a run and say what was found; the exit code."""
    _, run = find_job(run_path, sets)
    tally = VerificationTally()
    for checked in verify(run, sample, secrets.token_hex(4)):
        tally.add(checked)
        console.draw(f"verified {tally.seen['rows']:,} rows, {tally.seen['images']:,} images read")
    clean = tally.is_clean(allow_orphans)
    console.result(
        {"run": run_path, "status": "clean" if clean else "damaged", **tally.document()}, tally.text(run_path)
    )
    return DONE if clean else FAILED
