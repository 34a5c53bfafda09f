"""`repair`: what `verify` finds missing or damaged is rendered again, and nothing else; and `run --retry-failed`.

Which rows, and what may be overwritten, is `pipelines.repair`'s. What became of them is told in words and in `--json`.
"""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from jobs import build
from jobs.cluster import start_ray
from jobs.command import DONE, FAILED, TOO_MANY_FAILED, address_option, console_options, set_option
from jobs.console import Console
from jobs.driver import Stop, sole_driver, take_over_option
from jobs.gpus import with_gpus
from jobs.interrupts import Interrupts
from jobs.load import Job
from jobs.plan import planned, this_command
from jobs.preflight import check_nodes
from jobs.render import shown
from jobs.validate import check_output
from jobs.verify import LISTED, SHOWN, find_job, run_argument

if TYPE_CHECKING:
    from pipelines.epochs import Epoch
    from pipelines.findings import Finding
    from pipelines.render import Repair
    from pipelines.repair import Order
    from pipelines.store import RunFolder


@click.command("repair")
@run_argument
@click.option("--delete-orphans", is_flag=True, help="Delete what interrupted attempts, and this repair, leave behind.")
@set_option
@address_option
@take_over_option
@console_options
def verb(
    console: Console,
    run_path: str,
    sample: float,
    full: bool,
    delete_orphans: bool,
    sets: tuple[str, ...],
    address: str | None,
    take_over: bool,
) -> int:
    """Verify a run, render again what is missing or damaged, verify that.

    RUN is a run folder (a path or a URL) or a job file. Rows get the seed and
    the steps that their manifest ended with; a shard's manifest is replaced
    whole. Exit code 0: all is clean now, save orphans; 1: something is left,
    and is named; 3: too many of the rows rendered again failed.

    \b
    Examples:
      python -m jobs repair runs/spring --full
      python -m jobs repair s3://bucket/runs/spring --delete-orphans --address auto
    """
    job, run = repairable(run_path, sets)
    with sole_driver(console, job, run, take_over) as epoch:
        repairing = Repairing(console, job, run, epoch)
        repairing.look(1.0 if full else sample)
        if delete_orphans:  # a stray may stand where something is to be written
            repairing.delete_orphans()
        if repairing.orders and repairing.code == DONE:
            start_ray(address, console.debug)
            with Interrupts(console, this_command()) as interrupts:
                check_nodes(console, job, run, epoch.term.proof, with_input=False)
                repairing.job = with_gpus(console, job)
                repairing.render(Stop(interrupts, epoch))
        if delete_orphans and repairing.orders and repairing.code in (DONE, TOO_MANY_FAILED):
            repairing.delete_orphans()
        document = repairing.document(run_path)
        console.result(document, text(document))
        return repairing.exit_code()


def repairable(path: str, sets: tuple[str, ...]) -> "tuple[Job, RunFolder]":
    """The job and its run folder. Raises ConfigError where its pictures would be others."""
    job, run = find_job(path, sets)
    check_output(job)
    kept = run.read_plan(run.generations()[-1]).get("fingerprint", {})
    now = build.fingerprint(job, build.checkpoint(job)) | {"rollout": kept.get("rollout", False)}
    build.refuse_changed(job, run, now)
    return job, run


def failed_rows(run: "RunFolder") -> "Repair":
    """All rows that failed while they were rendered; those that were bad in the input stay as they are."""
    from pipelines.render import Repair
    from pipelines.repair import Repairs

    repairs = Repairs(run)
    failed = [
        table["shard"][0].as_py() for table in run.manifests() if "failed" in table["status"].unique().to_pylist()
    ]
    orders = {shard: order for shard in failed if (order := repairs.order(shard, retry_failed=True))}
    return Repair(orders, alone=False)


@dataclass
class Outcome:
    """Of the rows that were rendered again. same, other: whose bytes are those, or not those, that the manifest named
    before; the rest had none, or none are stored. classes: of the others, render class before and now.
    """

    shards: int = 0
    rows: int = 0
    ok: int = 0
    failed: int = 0
    same: int = 0
    other: int = 0
    classes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A row's manifest rows."""
        self.rows += 1
        self.ok += after["status"] == "ok"
        self.failed += after["status"] == "failed"
        if not before.get("sha256") or not after["sha256"]:
            return
        self.same += before["sha256"] == after["sha256"]
        if before["sha256"] != after["sha256"]:
            self.other += 1
            self.classes[before["render_class"], after["render_class"]] += 1

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        classes = [{"before": old, "now": new, "rows": rows} for (old, new), rows in self.classes.items()]
        counts = {name: getattr(self, name) for name in ("shards", "rows", "ok", "failed")}
        return counts | {"same_bytes": self.same, "other_bytes": self.other, "render_classes": classes}


class Repairing:
    """One repair: look, render, look again, delete. code: what the verb's exit code is so far."""

    def __init__(self, console: Console, job: Job, run: "RunFolder", epoch: "Epoch") -> None:
        self.console, self.job, self.run, self.epoch = console, job, run, epoch
        self.findings: dict[str | None, list[Finding]] = {}  # by shard; None: around the shards
        self.found: Counter[str] = Counter()
        self.orders: dict[str, Order] = {}
        self.outcome = Outcome()
        self.deleted, self.code, self.status = 0, DONE, ""
        self._before: dict[str, dict[str, dict[str, Any]]] = {}  # shard, id: what its manifest said

    def look(self, sample: float) -> None:
        """Verify, and say what is to be done."""
        from pipelines.repair import Repairs
        from pipelines.verify import verify

        repairs, rows = Repairs(self.run), 0
        for checked in verify(self.run, sample, secrets.token_hex(4)):
            rows += checked.rows
            self.console.draw(f"verified {rows:,} rows")
            if checked.findings:
                self.findings.setdefault(checked.shard, []).extend(checked.findings)
                self.found.update(finding.kind for finding in checked.findings)
        for shard, found in self.findings.items():
            if shard is not None and (order := repairs.order(shard, found)):
                self.orders[shard] = order
                self._before[shard] = _rows(self.run, order)

    def render(self, stop: Stop) -> None:
        """What is ordered, and look at it again; every one of its images is read."""
        from pipelines.render import Repair, render
        from pipelines.verify import verify

        stop.interrupts.graceful = True
        again = sum(len(order.ids) for order in self.orders.values())
        self.console.say(f"{again:,} rows of {len(self.orders):,} shards are rendered again")
        progress = shown(self.console, planned(self.run)["largest"])
        config, term = build.render_config(self.job, build.checkpoint(self.job)), self.epoch.term
        result = render(self.run, config, progress, stop, Repair(self.orders), term=term)
        for checked in verify(self.run, 1.0, only=self.orders.keys()):
            self.findings[checked.shard] = list(checked.findings)
        for shard in [shard for shard, order in self.orders.items() if order.is_done(self.run)]:
            self.outcome.shards += 1
            for id, row in _rows(self.run, self.orders[shard]).items():
                self.outcome.add(self._before[shard].get(id, {}), row)
        self._conclude(result.interrupted, stop)

    def _conclude(self, interrupted: bool, stop: Stop) -> None:
        allowed = self.job.config.failures.max_fraction * self.outcome.rows
        if interrupted and stop.epoch.lost.is_set():
            self.code, self.status = FAILED, "superseded"
        elif interrupted:
            self.code, self.status = stop.interrupts.exit_code or FAILED, "interrupted"
        elif self.outcome.failed > allowed:
            self.code, self.status = TOO_MANY_FAILED, "too many failed"

    def delete_orphans(self) -> None:
        """What attempts left behind, and strays; what is gone is found no more."""
        from pipelines.findings import is_odd
        from pipelines.repair import DELETABLE, SupersededError, delete_orphans, objects_of

        def is_there(key: str) -> bool:
            return not is_odd(key) and bool(objects_of(self.run, key))

        everything = [finding for found in self.findings.values() for finding in found]
        try:
            self.deleted += delete_orphans(self.run, self.epoch.term, everything)
        except SupersededError as error:
            self.console.say(f"error: {error}")
            self.code, self.status = FAILED, "superseded"
        for found in self.findings.values():
            found[:] = [each for each in found if each.kind not in DELETABLE or is_there(each.key)]

    def _left(self) -> Counter[str]:
        return Counter(finding.kind for found in self.findings.values() for finding in found)

    def exit_code(self) -> int:
        """As the contract has it: 1 where something is left that is no orphan."""
        from pipelines.findings import ORPHANS

        return FAILED if self.code == DONE and self._left().keys() - ORPHANS else self.code

    def document(self, run_path: str) -> dict[str, Any]:
        """For `--json`."""
        from pipelines.findings import ORPHANS

        left = self._left()
        ill = "damaged" if left.keys() - ORPHANS else "repaired" if self.outcome.shards else "clean"
        some = [asdict(finding) for found in self.findings.values() for finding in found][:LISTED]
        return {
            "run": run_path,
            "status": self.status or ill,
            "found": dict(self.found),
            "repaired": self.outcome.document(),
            "orphans_deleted": self.deleted,
            "left": dict(left),
            "findings": some,
            "findings_left_out": left.total() - len(some),
        }


def _rows(run: "RunFolder", order: "Order") -> dict[str, dict[str, Any]]:
    """Of a shard's manifest the ordered rows, by id, as far as they are there."""
    from pipelines.repair import written_rows

    ids, names = set(order.ids), ("status", "sha256", "render_class")
    return {
        row["id"]: {name: row.get(name) for name in names} for row in written_rows(run, order.shard) if row["id"] in ids
    }


def text(document: dict[str, Any]) -> str:
    """The outcome in words."""
    from pipelines.findings import KINDS

    done, lines = document["repaired"], [f"{document['run']}: {document['status']}"]
    if done["shards"]:
        counts = f"{done['rows']:,} rows were rendered again: {done['ok']:,} ok, {done['failed']:,} failed"
        lines.append(f"{done['shards']:,} manifests replaced, {counts}")
        lines += [f"{done['same_bytes']:,} images have the bytes they had before"] if done["same_bytes"] else []
    for each in done["render_classes"]:
        lines.append(f"{each['rows']:,} images have other bytes: render class {each['now']}, was {each['before']}")
    if document["orphans_deleted"]:
        lines.append(f"{document['orphans_deleted']:,} objects that belonged to no row were deleted")
    for kind in [kind for kind in KINDS if kind in document["left"]]:
        lines.append(f"left: {document['left'][kind]:,} {KINDS[kind]}")
        some = [finding for finding in document["findings"] if finding["kind"] == kind][:SHOWN]
        lines += [f"  {finding['key']}: {finding['message']}" for finding in some]
    return "\n".join(lines)
