"""The judge of a fault campaign: what a run folder holds, against what an undisturbed run made of the same rows."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.rows import SamplerConfig
from actors.sampler import DDIMSampler
from pipelines.integrity.findings import ORPHANS
from pipelines.render.attempt import engine_row
from pipelines.render.sink import encode_image
from pipelines.run.layout import RunFolder, named_objects
from pipelines.run.schema import planned_row
from tests.campaign_kinds import OLD
from tests.clusters import ROOT

LANES, DECODE = 8, 8  # of the render class where memory suffices
VERIFY_S = 480.0
BAD = ("lost", "doubled", "different", "damaged", "unexplained", "tracebacks", "hang")


@dataclass
class Outcome:
    """One line of docs/faults.jsonl. exits: of the drivers, in order; orphans: what verify names, of no manifest."""

    seed: int
    server: str
    layout: str
    rows: int
    exits: list[int | None] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # the last that each of them said
    acts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    damaged: int = 0  # findings of verify that are no orphans
    orphans: int = 0
    unexplained: int = 0  # objects that neither a manifest nor verify names
    tracebacks: int = 0
    hang: bool = False
    seconds: float = 0.0
    kind: str = OLD

    @property
    def good(self) -> bool:
        """Whether the promise held."""
        return not any(getattr(self, name) for name in BAD) and bool(self.exits) and self.exits[-1] == 0


def judge(
    run: RunFolder, wanted: Mapping[str, str | None], outcome: Outcome, findings: Sequence[Mapping[str, Any]]
) -> Outcome:
    """The promise, row by row and object by object; the outcome with what was found. findings: of `verify --full`."""
    stored = hashes(run)
    named = {key for table in run.manifests() for row in table.to_pylist() for key in named_objects(row)}
    orphans = tuple(finding["key"] for finding in findings if finding["kind"] in ORPHANS)
    others = [key for room in ("images", "data") for key, _ in run.walk(room) if key not in named]
    return replace(
        outcome,
        lost=len(wanted.keys() - stored.keys()),
        doubled=sum(len(found) - 1 for found in stored.values()) + len(stored.keys() - wanted.keys()),
        different=sum(stored[id][0] != wanted[id] for id in wanted.keys() & stored.keys()),
        orphans=len(orphans),
        damaged=len(findings) - len(orphans),
        unexplained=sum(not any(key == name or key.startswith(f"{name}/") for name in orphans) for key in others),
    )


def verified(run: RunFolder) -> list[dict[str, Any]]:
    """What `verify --full --json` finds."""
    endpoint = f"storage.endpoint_url={run.options.endpoint_url}"
    command = [sys.executable, "-m", "jobs", "verify", run.url, "--full", "--json", "-s", endpoint]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=VERIFY_S, check=False)
    return json.loads(done.stdout)["findings"]


def hashes(run: RunFolder) -> dict[str, list[str | None]]:
    """{id: sha256 of the picture of every manifest row that has it}."""
    found: dict[str, list[str | None]] = {}
    for table in run.manifests():
        for row in table.select(["id", "sha256"]).to_pylist():
            found.setdefault(row["id"], []).append(row["sha256"])
    return found


def of_other_classes(model: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{id: sha256} of the rows that ended with fewer lanes or smaller decoder calls, rendered so from the start.

    In this process, without a cluster and a store: whoever runs short of memory changes class, and no byte within it.
    """
    found: dict[str, str] = {}
    classes = {row["id"]: re.findall(r"-(\d+)lanes-(\d+)decode/", row["render_class"] or "") for row in rows}
    for place in {place[0] for place in classes.values() if place}:
        lanes, decode = map(int, place)
        if (lanes, decode) != (LANES, DECODE):
            found |= _rendered(model, lanes, decode, [row for row in rows if classes[row["id"]] == [place]])
    return found


def _rendered(model: Path, lanes: int, decode: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    sampler = DDIMSampler(SamplerConfig(str(model), dtype="float32", device="cpu", lanes=lanes, num_threads=1))
    sampler._decode_halvings = (DECODE // decode).bit_length() - 1
    futures = {row["id"]: sampler.submit(engine_row(planned_row(row))) for row in rows}
    sampler.close()
    images = {id: encode_image(future.result().image, "png") for id, future in futures.items()}
    return {id: hashlib.sha256(data).hexdigest() for id, data in images.items()}


def line_of(outcome: Outcome) -> str:
    """One seed in one line."""
    acts = ", ".join(f"{name} {count}" for name, count in sorted(outcome.acts.items())) or "none"
    bad = {key: value for key, value in asdict(outcome).items() if key in BAD and value}
    return (
        f"{outcome.kind:14s} seed {outcome.seed:3d} {'ok  ' if outcome.good else 'FAIL'} {outcome.rows:3d} rows "
        f"{outcome.layout:10s} exits {outcome.exits} acts: {acts}; {sum(outcome.faults.values())} faults in "
        f"{outcome.requests} requests; {outcome.orphans} orphans; {outcome.seconds:.0f} s{f' {bad}' if bad else ''}"
    )
