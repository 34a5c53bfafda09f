"""`demo`: the shipped prompts, model and policy, a CPU: pictures in about two minutes, on one sheet.

Each stands beside the picture that the same seed gives at the largest budget.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from jobs import build
from jobs.cluster import ROOT
from jobs.command import console_options, limit_option, set_option
from jobs.config import StepBudgets
from jobs.console import Console
from jobs.driver import take_over_option
from jobs.load import Job, read_job
from jobs.progress import steps_text
from jobs.report import contact_sheet
from jobs.rollouts import Aside
from jobs.run import run_job
from jobs.source import ConfigError, Fault
from jobs.summary import totals, with_images

PROMPTS = "training/scenes/prompts.csv"
SHEET = "contact_sheet.png"
STOPPED = (130, 143)
JOB = """\
model: {device: cpu}
input: {path: PROMPTS}
steps: {selector: policy}
sampling: {guidance_scale: 1.5}
pools: [{name: default, actors: ACTORS, num_cpus: 1}]
output: {path: runs/demo}
"""


@click.command("demo")
@set_option
@limit_option
@take_over_option
@console_options
def verb(console: Console, sets: tuple[str, ...], limit: int | None, take_over: bool) -> int:
    """Render the shipped prompts with the embedded model on this machine's CPU.

    Writes runs/demo: pictures, manifests, a report and a contact sheet, whose
    path is the last line printed. On the sheet each picture stands beside the
    one that its seed gives at the largest budget, from runs/demo-largest.
    """
    job = read_job(job_text(), "demo", sets, limit)
    code = run_job(console, job, "local", take_over)
    if code in STOPPED:
        return code
    largest = at_largest(job)
    console.say(f"the same seeds at {largest.config.steps.fixed} steps, to compare: {largest.config.output.path}")
    if (stopped := run_job(Aside(console), largest, "local", take_over)) in STOPPED:
        return stopped
    sheet = write_sheet(job, largest)
    if not console.json:
        print(sheet, file=console.out, flush=True)
    return code


def job_text() -> str:
    """The demo's job file for this machine."""
    prompts = ROOT / PROMPTS
    if not prompts.is_file():
        raise ConfigError([Fault(PROMPTS, "the shipped prompts are not there; is this a whole checkout?")])
    actors = max(1, min(4, len(os.sched_getaffinity(0))))
    return JOB.replace("PROMPTS", str(prompts)).replace("ACTORS", str(actors))


def at_largest(job: Job) -> Job:
    """The same prompts and seeds, each at the largest budget of the menu, in a folder beside."""
    steps = StepBudgets(selector="fixed", fixed=build.largest_budget(job))
    output = job.config.output.model_copy(update={"path": f"{job.config.output.path}-largest"})
    return Job(job.config.model_copy(update={"steps": steps, "output": output}), job.source)


def write_sheet(job: Job, largest: Job, most: int = 48) -> str:
    """Draws the first pictures, in the order of the prompts, in pairs; the path of the PNG."""
    run = build.run_folder(job)
    found = totals(run, most_pictures=1 << 20)
    order = {row["id"]: index for index, row in enumerate(_prompts())}
    rows = sorted(found.pictures, key=lambda row: order.get(row["id"], len(order)))[:most]
    budget = build.largest_budget(job)
    mean = steps_text(found.mean_steps, budget) if found.mean_steps else "no steps"
    chosen = job.config.steps.selector
    subtitle = (
        f"{found.status['ok']} prompts, {mean}; selector: {chosen}. Right: the same seed at {budget} steps, for all"
    )
    shown = [row for row in with_images(run, rows) if row["image"]]
    pairs = [row | {"beside": beside} for row, beside in zip(shown, _same(shown, largest), strict=True)]
    run.write(SHEET, contact_sheet(pairs, "stepthrift: steps where they pay", subtitle))
    return f"{job.config.output.path}/{SHEET}"


def _same(rows: Sequence[Mapping[str, Any]], largest: Job) -> list[dict[str, Any] | None]:
    """The rows of the same ids in the other run; None where it has no picture."""
    run = build.run_folder(largest)
    found = with_images(run, totals(run, most_pictures=1 << 20).pictures)
    theirs = {row["id"]: row for row in found if row["image"]}
    return [theirs.get(row["id"]) for row in rows]


def _prompts() -> list[dict[str, str]]:
    with Path(ROOT / PROMPTS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
