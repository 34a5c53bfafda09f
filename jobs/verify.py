"""`verify`: is every planned row in a manifest once, and every image there with its bytes? Nothing is changed."""

import json
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs import build
from jobs.command import DONE, FAILED, console_options, set_option
from jobs.console import Console
from jobs.load import Job, load_job, read_job
from jobs.source import ConfigError, Fault

if TYPE_CHECKING:
    from pipelines.findings import Finding
    from pipelines.store import RunFolder
    from pipelines.verify import Checked

SHOWN, LISTED = 5, 1000  # findings: of each kind on the screen, in all under --json


F = TypeVar("F", bound=Callable[..., Any])


def run_argument(command: F) -> F:
    """The run, and how much of it is looked at: `--sample`, `--full`."""
    command = click.option("--full", is_flag=True, help="Read every image.")(command)
    text = "The share of the images whose bytes are read, at least one a shard."
    share: dict[str, Any] = {"type": click.FloatRange(0, 1), "default": 0.01, "show_default": True, "metavar": "SHARE"}
    return click.argument("run_path", metavar="RUN")(click.option("--sample", help=text, **share)(command))


@click.command("verify")
@run_argument
@click.option(
    "--allow-orphans", is_flag=True, help="Name what interrupted attempts left behind, but take it for clean."
)
@set_option
@console_options
def verb(console: Console, run_path: str, sample: float, full: bool, allow_orphans: bool, sets: tuple[str, ...]) -> int:
    """Hold the plan against the manifests and the manifests against what is stored.

    RUN is a run folder (a path or a URL) or a job file. Every row of every
    manifest is looked at; that each image is there, and how long it is, is seen
    by listing; a share of them is read. Exit code 0: all is clean; 1: something
    is missing, doubled, damaged or of no row, and is named.

    \b
    Examples:
      python -m jobs verify spring.yaml
      python -m jobs verify s3://bucket/runs/spring --full --json > found.json
      python -m jobs verify s3://bucket/run -s storage.endpoint_url=http://host:9000
    """
    from pipelines.verify import verify

    run = find_run(run_path, sets)
    tally = Tally()
    for checked in verify(run, 1.0 if full else sample, secrets.token_hex(4)):
        tally.add(checked)
        console.draw(f"verified {tally.rows:,} rows, {tally.images:,} images read")
    clean = tally.is_clean(allow_orphans)
    console.result(
        {"run": run_path, "status": "clean" if clean else "damaged", **tally.document()}, tally.text(run_path)
    )
    return DONE if clean else FAILED


def find_run(path: str, sets: tuple[str, ...]) -> "RunFolder":
    """The run folder of a job file, a path or a URL, by the storage options of its job. Raises ConfigError."""
    return find_job(path, sets)[1]


def find_job(path: str, sets: tuple[str, ...]) -> "tuple[Job, RunFolder]":
    """The same, with the job: the file's, or the one that the folder was last run by. Raises ConfigError."""
    is_job = Path(path).is_file() or path.endswith((".yaml", ".yml"))
    job = load_job(path, sets) if is_job else _job_of(path, sets)
    run = build.run_folder(job)
    _demand_reachable(run, path)
    if not run.generations():
        raise ConfigError([Fault(path, f"nothing is planned in {run.url}: is it a run folder?")])
    return job, run


def _job_of(path: str, sets: tuple[str, ...]) -> Job:
    """The job that a run folder holds, at the address by which it was found: it may have been moved."""
    sets = (*sets, f"output.path={json.dumps(path)}")
    at = read_job("input: {path: '?'}", path, sets)
    _demand_reachable(build.run_folder(at), path)
    text = build.run_folder(at).job_yaml()
    return read_job(text, f"{path}/job.yaml", sets) if text else at


def _demand_reachable(run: "RunFolder", path: str) -> None:
    """In seconds, with the endpoint that was tried. Raises ConfigError."""
    from pipelines.folder import StorageError

    try:
        run.probe(write=False)
    except StorageError as error:
        reach = run.reach()
        tried = f" ({reach.endpoint}: {reach.endpoint_from}; -s storage.endpoint_url=URL names another)"
        raise ConfigError([Fault(path, f"{error}{tried if reach.endpoint else ''}")]) from error


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
    kept: "list[Finding]" = field(default_factory=list)

    def add(self, checked: "Checked") -> None:
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
        from pipelines.findings import ORPHANS

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
        from pipelines.findings import KINDS

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


def _place(finding: "Finding") -> str:
    return f"{finding.key} (row {finding.id})" if finding.id is not None else finding.key
