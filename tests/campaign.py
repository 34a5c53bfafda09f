"""Seeded fault campaigns: a real Ray of several raylets, a real S3 server behind the fault proxy, a real driver.

One seed is one small job: storage faults by chance, kills at seeded requests, resumed until done, then `verify --full`
and every picture's bytes against a run that nobody broke. `python -m tests.campaign --seeds 0:100` appends a line a
seed to docs/faults.jsonl and writes the table of docs/faults.md; `--replay SEED` does one again and says what happened.

A seed fixes the job, the faults drawn for the n-th request and the acts at the n-th request; which request is the n-th
is the threads' own affair.
"""

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.findings import ORPHANS
from pipelines.folder import StorageOptions
from pipelines.store import RunFolder
from tests.chaos import ACTS, ROOT, Chaos, Cluster, Driver, wait
from tests.checkpoints import make_checkpoint
from tests.fault_proxy import FAULTS, Chance, FaultProxy
from tests.other_servers import OtherServer, Server
from tests.s3_server import S3Server

SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "STEPTHRIFT_STORAGE_DEADLINE_S": "60"}
RESULTS, TABLE = ROOT / "docs" / "faults.jsonl", ROOT / "docs" / "faults.md"
HANG_S = 240.0  # of one driver: a campaign's watchdog
MOST_LEGS, WILD_LEGS = 12, 4  # drivers a campaign; those that are disturbed
REQUESTS = 40  # of a driver beside its pictures, about
VARIANTS = ((60, "files"), (200, "files"), (120, "webdataset"), (90, "parquet"))
JOB = """\
model: {{path: {model}, device: cpu}}
input: {{path: {prompts}}}
steps: {{selector: fixed, fixed: 2}}
pools: [{{name: default, actors: {actors}, lanes: 8, resources: {{spot: 1}}}}]
output: {{path: "{run}", layout: {layout}}}
storage: {{endpoint_url: "{endpoint}"}}
failures: {{max_fraction: 0.5}}
"""


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

    @property
    def good(self) -> bool:
        """Whether the promise held."""
        wrong = (self.lost, self.doubled, self.different, self.damaged, self.unexplained, self.tracebacks, self.hang)
        return not any(wrong) and bool(self.exits) and self.exits[-1] == 0


@dataclass
class Campaigns:
    """One cluster, one server and the undisturbed runs, for as many seeds as wanted."""

    cluster: Cluster
    server: Server
    model: Path
    folder: Path
    say: Callable[[str], None] = lambda text: None
    kind: str = "radosgw"
    undisturbed: dict[tuple[int, str], dict[str, str | None]] = field(default_factory=dict)

    def run(self, seed: int) -> Outcome:
        """One campaign, start to end."""
        started, chance = time.monotonic(), random.Random(seed)
        rows, layout = VARIANTS[seed % len(VARIANTS)]
        wanted = self.reference(rows, layout)
        outcome = Outcome(seed, self.kind, layout, rows)
        with FaultProxy(self.server.s3_port, hang_s=1.5) as proxy:
            run = self._folder(proxy.endpoint_url)
            job = self._job(run, rows, layout, proxy.endpoint_url, chance.choice((1, 2)))
            chaos = Chaos(self.cluster, self.server, chance)
            self._until_done(seed, job, proxy, chaos, outcome)
            chaos.settle()
            outcome.acts = dict(Counter(chaos.done))
            outcome.faults = dict(Counter(seen.fault for seen in proxy.injected))
            outcome.requests = proxy.total()
        if not outcome.hang:
            calm = RunFolder(run.url, StorageOptions(self.server.endpoint_url))
            outcome = judge(calm, wanted, outcome)
        outcome.seconds = round(time.monotonic() - started, 1)
        return outcome

    def reference(self, rows: int, layout: str) -> dict[str, str | None]:
        """{id: sha256 of its picture} of the same job when nobody breaks anything; once for each kind of job."""
        if (rows, layout) not in self.undisturbed:
            run = self._folder(self.server.endpoint_url)
            job = self._job(run, rows, layout, self.server.endpoint_url, 1)
            driver = Driver.start(job, self.cluster.address)
            if wait(driver.process, HANG_S) != 0:
                driver.process.kill()
                raise RuntimeError(f"the undisturbed run failed: {driver.said()[-3000:]}")
            found = hashes(run)
            assert len(found) == rows
            self.undisturbed[rows, layout] = {id: hashes[0] for id, hashes in found.items()}
        return self.undisturbed[rows, layout]

    def _folder(self, endpoint: str) -> RunFolder:
        return RunFolder(f"s3://{self.bucket}/{secrets.token_hex(4)}", StorageOptions(endpoint))

    def __post_init__(self) -> None:
        self.bucket = self.server.bucket()

    def _job(self, run: RunFolder, rows: int, layout: str, endpoint: str, actors: int) -> Path:
        """The job file and its prompts; two rows are bad, a third has steps of its own."""
        prompts = self.folder / f"{rows}.jsonl"
        lines = [{"id": f"r{i:03d}", "prompt": f"a fox number {i}"} for i in range(rows)]
        lines[7]["prompt"] = lines[11]["prompt"] = ""
        for i in range(0, rows, 3):
            lines[i]["num_inference_steps"] = 3  # type: ignore[assignment]
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
        job = self.folder / f"{run.url.rpartition('/')[2]}.yaml"
        values = {"model": self.model, "prompts": prompts, "run": run.url, "endpoint": endpoint}
        job.write_text(JOB.format(layout=layout, actors=actors, **values))
        return job

    def _until_done(self, seed: int, job: Path, proxy: FaultProxy, chaos: Chaos, outcome: Outcome) -> None:
        """Driver after driver until one says that all is done; the later ones are left in peace."""
        for leg in range(MOST_LEGS):
            wild = leg < WILD_LEGS
            proxy.chance = Chance(1000 * seed + leg, chaos.chance.uniform(0.02, 0.1), FAULTS) if wild else None
            options = ("--take-over",) if leg and chaos.chance.random() < 0.2 else ()
            if self.cluster.mend():
                chaos.done.append("head lost")
            driver = chaos.driver = Driver.start(job, self.cluster.address, *options)
            proxy.moments = self._moments(leg, outcome, proxy, chaos) if wild else {}
            code = wait(driver.process, HANG_S, chaos.serve)
            outcome.exits.append(code)
            said = driver.said()
            outcome.errors += [line[:300] for line in said.splitlines() if line.startswith("error:")][-1:]
            outcome.tracebacks += said.count("Traceback")
            outcome.errors += [said[said.index("Traceback") :][:6000]] if "Traceback" in said else []
            self.say(f"leg {leg}: exit {code}, so far {chaos.done}\n{said[-1500:]}")
            if code is None:
                driver.process.kill()
                outcome.hang = True
                return
            if code == 0:
                return

    def _moments(self, leg: int, outcome: Outcome, proxy: FaultProxy, chaos: Chaos) -> dict[int, Callable[[], None]]:
        """{n-th request: act}. Every tenth seed loses raylets too, every seventh the whole server."""
        draw = chaos.chance
        names = [draw.choice(ACTS) for _ in range(draw.choice((1, 2, 3) if leg == 0 else (0, 1)))]
        if leg == 0 and outcome.seed % 10 == 0:
            names.append("raylet")
        if leg == 0 and outcome.seed % 7 == 3:
            names.append("power")
        pictures = outcome.rows if outcome.layout == "files" else 10
        at = proxy.total()
        found: dict[int, Callable[[], None]] = {}
        for name in names:
            moment = at + draw.randrange(5, REQUESTS + pictures // (1 + leg))
            found[moment] = lambda name=name: chaos.act(name)  # type: ignore[misc]
        return found


def judge(run: RunFolder, wanted: dict[str, str | None], outcome: Outcome) -> Outcome:
    """The promise, row by row and object by object; the outcome with what was found."""
    stored = hashes(run)
    findings = verified(run)
    named = {uri.partition("#")[0] for uri in _uris(run)}
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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    return json.loads(done.stdout)["findings"]


def hashes(run: RunFolder) -> dict[str, list[str | None]]:
    """{id: sha256 of the picture of every manifest row that has it}."""
    found: dict[str, list[str | None]] = {}
    for table in run.manifests():
        for row in table.select(["id", "sha256"]).to_pylist():
            found.setdefault(row["id"], []).append(row["sha256"])
    return found


def _uris(run: RunFolder) -> list[str]:
    return [uri for table in run.manifests() for uri in table["uri"].drop_null().to_pylist()]


@contextmanager
def own_server(kind: str = "radosgw") -> Iterator[Server]:
    """A running server whose keys, and no other credentials, are in the environment: before Ray starts."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[variable]
    keys = ("test" + secrets.token_hex(8), secrets.token_hex(20))
    os.environ.update(S3Server.env(*keys) | SETTINGS)
    with S3Server(*keys) if kind == "radosgw" else OtherServer(kind, *keys) as server:
        yield server


@contextmanager
def campaigns(
    server: Server, say: Callable[[str], None] = lambda text: None, kind: str = "radosgw"
) -> Iterator[Campaigns]:
    """Everything that the seeds share; seconds to start."""
    with tempfile.TemporaryDirectory() as folder, Cluster() as cluster:
        yield Campaigns(cluster, server, make_checkpoint("sd1", Path(folder) / "model"), Path(folder), say, kind)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 where every campaign kept the promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", default="0:3", metavar="FROM:TO", help="the seeds to run, the last one left out")
    parser.add_argument("--replay", type=int, metavar="SEED", help="this seed alone, with all that its drivers said")
    parser.add_argument("--server", choices=("radosgw", "moto", "rclone"), default="radosgw", help="must be installed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="lines are appended here")
    parser.add_argument("--again", action="store_true", help="also the seeds that are there already")
    options = parser.parse_args(arguments)
    from tests.campaign_table import read, write_table

    first, last = map(int, options.seeds.split(":"))
    lines = [line for line in read(options.results) if line["good"] and line["server"] == options.server]
    known = set() if options.again else {line["seed"] for line in lines}
    seeds = [options.replay] if options.replay is not None else [n for n in range(first, last) if n not in known]
    failed = []
    say = print if options.replay is not None else lambda text: None
    with own_server(options.server) as server, campaigns(server, say, options.server) as every:
        for seed in seeds:
            outcome = every.run(seed)
            print(line_of(outcome), flush=True)
            failed += [] if outcome.good else [seed]
            if options.replay is None:
                with options.results.open("a") as file:
                    file.write(json.dumps(asdict(outcome) | {"good": outcome.good}) + "\n")
    if options.results == RESULTS and options.replay is None:
        write_table(TABLE, read(RESULTS))
    for seed in failed:
        print(f"failed: python -m tests.campaign --replay {seed}")
    return 1 if failed else 0


def line_of(outcome: Outcome) -> str:
    """One seed in one line."""
    acts = ", ".join(f"{name} {count}" for name, count in sorted(outcome.acts.items())) or "none"
    bad = {key: value for key, value in asdict(outcome).items() if key in BAD and value}
    return (
        f"seed {outcome.seed:3d} {'ok  ' if outcome.good else 'FAIL'} {outcome.rows:3d} rows {outcome.layout:10s} "
        f"exits {outcome.exits} acts: {acts}; {sum(outcome.faults.values())} faults in {outcome.requests} requests; "
        f"{outcome.orphans} orphans; {outcome.seconds:.0f} s{f' {bad}' if bad else ''}"
    )


BAD = ("lost", "doubled", "different", "damaged", "unexplained", "tracebacks", "hang")

if __name__ == "__main__":
    sys.exit(main())
