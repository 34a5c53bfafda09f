"""Seeded fault campaigns: a real Ray of several raylets, a real S3 server behind the fault proxy, a real driver.

One seed is one small job: storage faults by chance, kills at seeded requests, resumed until done, then `verify --full`
and every picture's bytes against a run that nobody broke. `python -m tests.campaign --seeds 0:100` appends a line a
seed to docs/faults.jsonl and writes the table of docs/faults.md; `--replay SEED` does one again and says what happened.
`--kind` chooses what else varies: see `tests.campaign_kinds`.

A seed fixes the job, the faults drawn for the n-th request and the acts at the n-th request; which request is the n-th
is the threads' own affair.
"""

import argparse
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from pipelines.run.layout import RunFolder
from pipelines.storage.folder import StorageOptions
from tests.breaking_engine import Tokens
from tests.campaign_judge import Outcome, hashes, judge, line_of, of_other_classes, verified
from tests.campaign_kinds import CONTROLS, KINDS, OLD, Kind
from tests.campaign_table import read, write_table
from tests.chaos import Chaos
from tests.checkpoints import make_checkpoint
from tests.clusters import ROOT, Cluster, Driver, wait
from tests.fault_proxy import FAULTS, Chance, FaultProxy, Rule
from tests.other_servers import OtherServer, Server
from tests.s3_server import S3Server, only_these_keys

SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "STEPTHRIFT_STORAGE_DEADLINE_S": "60"}
RESULTS, TABLE = ROOT / "docs" / "faults.jsonl", ROOT / "docs" / "faults.md"
HANG_S = 480.0  # of one driver: a campaign's watchdog; some nodes are away for more than a minute
MOST_LEGS, WILD_LEGS = 12, 4  # drivers a campaign; those that are disturbed
REQUESTS = 40  # of a driver beside its pictures, about
VARIANTS = ((60, "files"), (200, "files"), (120, "webdataset"), (90, "parquet"))
ROW_ID = "r{:03d}"
JOB = """\
model: {{path: {model}, device: cpu}}
input: {{path: {prompts}}}
steps: {{selector: fixed, fixed: 2}}
pools: [{pools}]
output: {{path: "{run}", layout: {layout}}}
storage: {{endpoint_url: "{endpoint}"}}
failures: {{max_fraction: 0.5}}
"""


@dataclass
class Campaigns:
    """One cluster, one server and the undisturbed run, for as many seeds of one kind as wanted."""

    cluster: Cluster
    server: Server
    model: Path
    folder: Path
    say: Callable[[str], None] = lambda text: None
    server_kind: str = "radosgw"
    kind_name: str = OLD
    undisturbed: dict[str, str | None] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What varies here."""
        return (KINDS | CONTROLS)[self.kind_name]

    def run(self, seed: int) -> Outcome:
        """One campaign, start to end."""
        started = time.monotonic()
        chance = random.Random(seed if self.kind_name == OLD else f"{self.kind_name} {seed}")
        rows, layout = VARIANTS[seed % len(VARIANTS)]
        wanted = {id: self.reference()[id] for id in map(ROW_ID.format, range(rows))}
        outcome = Outcome(seed, self.server_kind, layout, rows, kind=self.kind_name)
        with FaultProxy(self.server.s3_port, hang_s=1.5) as proxy:
            run = self._folder(proxy.endpoint_url)
            pools = ", ".join(self.kind.pools[seed % len(self.kind.pools)])
            job = self._job(run, rows, layout, proxy.endpoint_url, pools, chance.choice((1, 2)))
            breaks = Tokens(job.with_suffix(".breaks"))
            breaks.folder.mkdir()
            chaos = Chaos(self.cluster, self.server, chance, breaks, (proxy.port, self.server.s3_port))
            for name in self.kind.at_start(seed):
                chaos.act(name)
            self._until_done(seed, job, proxy, chaos, outcome)
            chaos.settle()
            outcome.acts = dict(chaos.counts())
            outcome.faults = dict(Counter(seen.fault for seen in proxy.injected if seen.fault in FAULTS))
            outcome.requests = proxy.total()
        if not outcome.hang:
            calm = RunFolder(run.url, StorageOptions(self.server.endpoint_url))
            if self.kind.other_classes:
                rows = [row for table in calm.manifests() for row in table.to_pylist()]
                wanted |= of_other_classes(self.model, rows)
            outcome = judge(calm, wanted, outcome, verified(calm))
        outcome.seconds = round(time.monotonic() - started, 1)
        return outcome

    def reference(self) -> dict[str, str | None]:
        """{id: sha256 of its picture} of the largest job when nobody breaks it: the others have its first rows."""
        if not self.undisturbed:
            rows, layout = max(VARIANTS)
            run = self._folder(self.server.endpoint_url)
            job = self._job(run, rows, layout, self.server.endpoint_url, ", ".join(self.kind.pools[0]), 1)
            driver = Driver.start(job, self.cluster.address)
            if wait(driver.process, HANG_S) != 0:
                driver.process.kill()
                raise RuntimeError(f"the undisturbed run failed: {driver.said()[-3000:]}")
            self.undisturbed = {id: found[0] for id, found in hashes(run).items()}
            assert len(self.undisturbed) == rows
        return self.undisturbed

    def _folder(self, endpoint: str) -> RunFolder:
        return RunFolder(f"s3://{self.bucket}/{secrets.token_hex(4)}", StorageOptions(endpoint))

    def __post_init__(self) -> None:
        self.bucket = self.server.bucket()

    def _job(self, run: RunFolder, rows: int, layout: str, endpoint: str, pools: str, actors: int) -> Path:
        """The job file and its prompts; two rows are bad, a third or more has steps of its own."""
        prompts = self.folder / f"{rows}.jsonl"
        lines = [{"id": ROW_ID.format(i), "prompt": f"a fox number {i}"} for i in range(rows)]
        lines[7]["prompt"] = lines[11]["prompt"] = ""
        for i, line in enumerate(lines):
            if steps := self.kind.steps[i % len(self.kind.steps)]:
                line["num_inference_steps"] = steps  # type: ignore[assignment]
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
        job = self.folder / f"{run.url.rpartition('/')[2]}.yaml"
        values = {"model": self.model, "prompts": prompts, "run": run.url, "endpoint": endpoint}
        text = JOB.format(layout=layout, pools=pools.replace("ACTORS", str(actors)), **values)
        job.write_text(f"{text}{self.kind.more}\n")
        return job

    def _until_done(self, seed: int, job: Path, proxy: FaultProxy, chaos: Chaos, outcome: Outcome) -> None:
        """Driver after driver until one says that all is done; the later ones are left in peace."""
        for leg in range(MOST_LEGS):
            wild = leg < WILD_LEGS
            proxy.chance = Chance(1000 * seed + leg, chaos.chance.uniform(0.02, 0.1), FAULTS) if wild else None
            options = ("--take-over",) if leg and chaos.chance.random() < 0.2 else ()
            if self.cluster.mend():
                chaos.done.append("head lost")
            if not wild:
                chaos.breaks.mend()
            driver = chaos.driver = Driver.start(job, self.cluster.address, *options, breaks=chaos.breaks)
            self._arrange(leg, outcome, proxy, chaos)
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
            if code == 2:  # refused: what it needs is not there at the moment
                chaos.settle()

    def _arrange(self, leg: int, outcome: Outcome, proxy: FaultProxy, chaos: Chaos) -> None:
        """What is done to one driver: at the n-th request, when the plan is written, and when shards are begun."""
        proxy.moments, proxy.rules, draw, kind = {}, [], chaos.chance, self.kind
        if leg >= WILD_LEGS:
            return
        names = [draw.choice(kind.acts) for _ in range(draw.choice((1, 2, 3) if leg == 0 else (0, 1)))]
        names += kind.always(outcome.seed) if leg == 0 else ()
        pictures, at = outcome.rows if outcome.layout == "files" else 10, proxy.total()
        for name in names:
            moment = at + draw.randrange(5, REQUESTS + pictures // (1 + leg))
            proxy.moments[moment] = partial(chaos.act, name)
        if leg == 0 and kind.at_plan:
            proxy.rules.append(Rule("pass", "CREATE", "plan.json", then=partial(chaos.act, kind.at_plan)))
        if undone := [*(Counter(kind.while_rendering(outcome.seed)) - Counter(chaos.done)).elements()]:
            skip = draw.randrange(2)
            proxy.rules.append(Rule("pass", "PUT", "attempts/", skip=skip, then=partial(chaos.soon, *undone)))


@contextmanager
def own_server(kind: str = "radosgw") -> Iterator[Server]:
    """A running server whose keys, and no other credentials, are in the environment: before Ray starts."""
    keys = only_these_keys()
    os.environ.update(SETTINGS)
    with S3Server(*keys) if kind == "radosgw" else OtherServer(kind, *keys) as server:
        yield server


@contextmanager
def campaigns(
    server: Server, say: Callable[[str], None] = lambda text: None, server_kind: str = "radosgw", kind: str = OLD
) -> Iterator[Campaigns]:
    """Everything that the seeds share; seconds to start."""
    with tempfile.TemporaryDirectory() as folder, (KINDS | CONTROLS)[kind].cluster() as cluster:
        model = make_checkpoint("sd1", Path(folder) / "model")
        yield Campaigns(cluster, server, model, Path(folder), say, server_kind, kind)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 where every campaign kept the promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", default="0:3", metavar="FROM:TO", help="the seeds to run, the last one left out")
    parser.add_argument("--kind", choices=("every", *KINDS, *CONTROLS), default=OLD, help="what varies beside the seed")
    parser.add_argument("--replay", type=int, metavar="SEED", help="this seed alone, with all that its drivers said")
    parser.add_argument("--server", choices=("radosgw", "moto", "rclone"), default="radosgw", help="must be installed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="lines are appended here")
    parser.add_argument("--again", action="store_true", help="also the seeds that are there already")
    options = parser.parse_args(arguments)
    failed = []
    with own_server(options.server) as server:
        for kind in KINDS if options.kind == "every" else (options.kind,):
            failed += [f"--kind '{kind}' --replay {seed}" for seed in run_kind(kind, server, options)]
    if options.results == RESULTS and options.replay is None:
        write_table(TABLE, read(RESULTS))
    for arguments_of_it in failed:
        print(f"failed: python -m tests.campaign {arguments_of_it}")
    return 1 if failed else 0


def run_kind(kind: str, server: Server, options: argparse.Namespace) -> list[int]:
    """-> the seeds whose campaign was not good."""
    first, last = map(int, options.seeds.split(":"))
    known = {(line["kind"], line["server"], line["seed"]) for line in read(options.results) if line["good"]}
    new = [seed for seed in range(first, last) if options.again or (kind, options.server, seed) not in known]
    replayed, failed = options.replay is not None, []
    with campaigns(server, print if replayed else lambda text: None, options.server, kind) as every:
        for seed in [options.replay] if replayed else new:
            outcome = every.run(seed)
            print(line_of(outcome), flush=True)
            failed += [] if outcome.good else [seed]
            if not replayed:
                with options.results.open("a") as file:
                    file.write(json.dumps(asdict(outcome) | {"good": outcome.good}) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
