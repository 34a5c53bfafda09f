"""Runs a repair: verifies, renders again, verifies again, deletes what is left over."""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.job_file.provenance import as_planned, check_provenance
from jobs.job_file.settings import Settings, refuse_changed, resolve
from jobs.steps.checking import check_output, too_many_failed
from jobs.steps.find_run import find_job
from jobs.steps.sole_driver import Stop, followed, ready, sole_driver
from jobs.steps.verifying import LISTED, SHOWN
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE, FAILED, TOO_MANY_FAILED
from jobs.terminal.progress import ProgressLine
from pipelines.integrity.findings import KINDS, ORPHANS, Finding
from pipelines.integrity.repair_orders import DELETABLE, RepairPlanner, delete_orphans, objects_of
from pipelines.integrity.verification import verify
from pipelines.render.driver import RenderOrders, render
from pipelines.render.repaired_shard import RepairOrder, written_rows
from pipelines.run.drivers import Epoch, SupersededError
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan, read_plan
from pipelines.storage.folder import is_odd


def repairable(path: str, sets: tuple[str, ...]) -> tuple[Settings, Plan]:
    """The job of a run folder, and its plan. Raises ConfigError where its pictures would differ now."""
    job, run = find_job(path, sets)
    check_output(job)
    plan = read_plan(run)
    settings = resolve(job := as_planned(job, plan))
    check_provenance(job)
    now = settings.plan.fingerprint | {"rollout": plan.newest.fingerprint.get("rollout", False)}
    refuse_changed(job, plan, now)
    return settings, plan


@dataclass
class RerenderedRows:
    """Of the rows that were rendered again. same: whose bytes are those that the manifest named before; classes: of
    those whose bytes are others, render class before and now; the rest had no bytes, or none are stored.
    """

    shards: int = 0
    status: Counter[str] = field(default_factory=Counter)
    same: int = 0
    classes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Adds a row, by its manifest row before and now."""
        self.status[after["status"]] += 1
        if not before.get("sha256") or not after["sha256"]:
            return
        self.same += before["sha256"] == after["sha256"]
        if before["sha256"] != after["sha256"]:
            self.classes[before["render_class"], after["render_class"]] += 1

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        classes = [{"before": old, "now": new, "rows": rows} for (old, new), rows in self.classes.items()]
        counts = {"shards": self.shards, "rows": self.status.total()}
        counts |= {status: self.status[status] for status in ("ok", "failed")}
        return counts | {"same_bytes": self.same, "other_bytes": self.classes.total(), "render_classes": classes}


class RepairRun:
    """Runs one repair. code: the verb's exit code so far."""

    def __init__(self, console: Console, settings: Settings, plan: Plan, epoch: Epoch) -> None:
        self.console, self.settings, self.plan, self.epoch = console, settings, plan, epoch
        self.job, self.run = settings.job, settings.run
        self.findings: dict[str | None, list[Finding]] = {}  # by shard; None: around the shards
        self.found: Counter[str] = Counter()
        self.orders: dict[str, RepairOrder] = {}
        self.outcome = RerenderedRows()
        self.deleted, self.code, self.status = 0, DONE, ""
        self._before: dict[str, dict[str, dict[str, Any]]] = {}  # shard, id: what its manifest said

    def look(self, sample: float) -> None:
        """Verifies, and says what there is to do."""
        repairs, rows = RepairPlanner(self.plan), 0
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
        """Renders what is ordered, and verifies it; every one of its images is read."""
        stop.interrupts.graceful = True
        again = sum(len(order.ids) for order in self.orders.values())
        self.console.say(f"{_rows_of(again)} of {_shards_of(len(self.orders))} to render again")
        line = ProgressLine(self.console, self.plan.totals()["largest"], done="repaired")
        on_progress, orders = followed(line, self.epoch), RenderOrders(self.orders)
        result = render(self.plan, self.settings.render, on_progress, stop, orders, epoch=self.epoch.id)
        for checked in verify(self.run, 1.0, only=self.orders.keys()):
            self.findings[checked.shard] = list(checked.findings)
        for shard in [shard for shard, order in self.orders.items() if order.is_done(self.run)]:
            self.outcome.shards += 1
            for id, row in _rows(self.run, self.orders[shard]).items():
                self.outcome.add(self._before[shard].get(id, {}), row)
        self._conclude(result.interrupted, stop)

    def _conclude(self, interrupted: bool, stop: Stop) -> None:
        if interrupted and stop.epoch.lost.is_set():
            self.code, self.status = FAILED, "superseded"
        elif interrupted:
            self.code, self.status = stop.interrupts.exit_code or FAILED, "interrupted"
        elif too_many_failed(self.job, self.outcome.status["failed"], self.outcome.status.total()):
            self.code, self.status = TOO_MANY_FAILED, "too many failed"

    def delete_orphans(self) -> None:
        """Deletes what attempts left behind, and strays; what is gone is no longer a finding."""

        def is_there(key: str) -> bool:
            return not is_odd(key) and bool(objects_of(self.run, key))

        everything = [finding for found in self.findings.values() for finding in found]
        try:
            self.deleted += delete_orphans(self.run, self.epoch.id, everything)
        except SupersededError as error:
            self.console.say(f"error: {error}")
            self.code, self.status = FAILED, "superseded"
        for found in self.findings.values():
            found[:] = [each for each in found if each.kind not in DELETABLE or is_there(each.key)]

    def _left(self) -> Counter[str]:
        return Counter(finding.kind for found in self.findings.values() for finding in found)

    def exit_code(self) -> int:
        """1 where a finding is left that is no orphan."""
        return FAILED if self.code == DONE and self._left().keys() - ORPHANS else self.code

    def document(self, run_path: str) -> dict[str, Any]:
        """For `--json`."""
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


def _rows_of(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _shards_of(count: int) -> str:
    return f"{count:,} shard{'s' * (count != 1)}"


def _rows(run: RunFolder, order: RepairOrder) -> dict[str, dict[str, Any]]:
    """The ordered rows of a shard's manifest, by id, as far as they exist."""
    ids, names = set(order.ids), ("status", "sha256", "render_class")
    return {
        row["id"]: {name: row.get(name) for name in names} for row in written_rows(run, order.shard) if row["id"] in ids
    }


def repair_text(document: dict[str, Any]) -> str:
    """The outcome in words."""
    done, lines = document["repaired"], [f"{document['run']}: {document['status']}"]
    if done["shards"]:
        failed = f", {done['failed']:,} failed" if done["failed"] else ""
        lines[0] += f": {done['ok']:,} of {done['rows']:,} repaired{failed}, in {_shards_of(done['shards'])}"
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


def repair_run(
    console: Console,
    run_path: str,
    sample: float,
    delete_orphans: bool,
    sets: tuple[str, ...],
    address: str | None,
    take_over: bool,
) -> int:
    """Verifies a run, renders damaged rows again, verifies them; the exit code."""
    settings, plan = repairable(run_path, sets)
    job, run = settings.job, settings.run
    with sole_driver(console, job, run, take_over) as epoch:
        repairing = RepairRun(console, settings, plan, epoch)
        repairing.look(sample)
        if delete_orphans:  # a stray may stand where something is to be written
            repairing.delete_orphans()
        if repairing.orders and repairing.code == DONE:
            with ready(console, settings, epoch, address) as (repairing.settings, stop):
                repairing.render(stop)
        if delete_orphans and repairing.orders and repairing.code in (DONE, TOO_MANY_FAILED):
            repairing.delete_orphans()
        document = repairing.document(run_path)
        console.result(document, repair_text(document))
        return repairing.exit_code()
