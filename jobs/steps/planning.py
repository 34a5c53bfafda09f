"""Prompts in, every row's steps and the shards out; and a plan in words."""

import shlex
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

from actors.checkpoint import CheckpointInfo
from jobs.job_file import settings
from jobs.job_file.places import placed
from jobs.job_file.read import Job
from jobs.steps.check_nodes import check_nodes_by_probe
from jobs.steps.checking import check_output, read_earlier, read_input
from jobs.terminal.connect_ray import start_ray
from jobs.terminal.console import Console
from jobs.terminal.interrupts import Interrupts
from jobs.terminal.progress import duration, steps_text
from pipelines.plan.make import make_plan
from pipelines.run.layout import RunFolder

BAR = 32  # characters of the longest bar


def this_command() -> str:
    """What the user typed, to be typed again."""
    return shlex.join(["python", "-m", "jobs", *sys.argv[1:]])


def prepare(job: Job) -> tuple[RunFolder, CheckpointInfo, list[str]]:
    """Everything that can be refused without Ray: the run folder, model, scorers, what must not change, the policy.

    -> the folder, the model, and warnings of what the policy was not calibrated with.
    """
    run, info = check_output(job), settings.checkpoint(job)
    settings.check_scorers(job)
    settings.refuse_changed(job, run, settings.fingerprint(job, info))
    return run, info, settings.check_policy(job, info)


def make(console: Console, job: Job, run: RunFolder, info: CheckpointInfo, warnings: list[str]) -> None:
    """Write the resolved job file and one new generation of the plan, where there is something new."""
    config = settings.plan_config(job, info)
    console.draw(f"reading {job.config.input.path}")
    inspection = read_input(job, config.source)
    earlier = read_earlier(job, run, inspection)
    run.write_job(placed(job.config).dump())
    for note in warnings:
        console.say(note)
    config = replace(config, keep_changed=True)  # else it was refused above
    summary = make_plan(
        run, config, lambda done, rows: console.draw(f"planned {done:,}/{rows:,} rows"), inspection, earlier
    )
    console.clear()
    for note in summary.notes:
        console.say(note)


def planned(run: RunFolder) -> dict[str, Any]:
    """The totals of all generations."""
    plans = [run.read_plan(generation) for generation in run.generations()]
    budgets = Counter[int]()
    for plan in plans:
        budgets.update({int(steps): rows for steps, rows in plan["budget_histogram"].items()})
    rows, lane_steps = budgets.total(), sum(plan["lane_steps"] for plan in plans)
    again = sum(plan.get("replaced_rows", 0) for plan in plans)  # bad rows, mended and planned anew: the newest counts
    return {
        "rows": sum(plan["rows"] for plan in plans) - again,
        "failed_rows": sum(plan["failed_rows"] for plan in plans) - again,
        "shards": sum(plan["shards"] for plan in plans),
        "generations": len(plans),
        "mean_steps": sum(steps * count for steps, count in budgets.items()) / rows if rows else None,
        "lane_steps": lane_steps,
        "largest": max([*(plan["largest_budget"] for plan in plans), *budgets], default=None),
        "budget_histogram": {str(steps): budgets[steps] for steps in sorted(budgets)},
        "estimates": estimates(run, rows, lane_steps),
    }


def estimates(run: RunFolder, rows: int, lane_steps: int) -> list[dict[str, Any]]:
    """Seconds that one actor would take for all of it, and for 1,000 images, on each device that was calibrated."""
    found = []
    for place, measured in settings.calibrations(run).items() if rows else ():
        each = sum(measured.get(f"seconds_per_{name}") or 0 for name in ("decode", "prompt", "score"))
        seconds = lane_steps * measured["seconds_per_lane_step"] + rows * each
        found.append({"place": place, "actor_seconds": seconds, "actor_seconds_per_1000": 1000 * seconds / rows})
    return found


def plan_text(run: str, found: dict[str, Any]) -> str:
    """The plan in words and bars."""
    bad = f", {found['failed_rows']:,} of them bad: failed rows of the manifest" if found["failed_rows"] else ""
    lines = [f"{run}: {found['rows']:,} rows{bad}, in {found['shards']:,} shards"]
    if found["mean_steps"] is not None:
        largest = found["largest"]
        lines.append(f"{steps_text(found['mean_steps'], largest)} against {largest} steps for every row")
    most = max(found["budget_histogram"].values(), default=1)
    for steps, rows in found["budget_histogram"].items():
        lines.append(f"{steps:>6} steps {rows:>9,} rows  {'█' * max(1, round(BAR * rows / most))}")
    for estimate in found["estimates"]:
        whole, thousand = duration(estimate["actor_seconds"]), duration(estimate["actor_seconds_per_1000"])
        lines.append(f"about {whole} of one actor, {thousand} for 1,000 images, on {estimate['place']}")
    return "\n".join(lines)


def plan_job(console: Console, job: Job, address: str | None) -> int:
    """Plan what is new in the input, and say what is planned; the exit code."""
    run, info, warnings = prepare(job)
    start_ray(address, console.debug)
    with Interrupts(console, this_command()):
        check_nodes_by_probe(console, job, run)
        make(console, job, run, info, warnings)
    found = planned(run)
    document = {"run": job.config.output.path, "status": "done", **found}
    console.result(document, plan_text(str(job.config.output.path), found))
    return 0
