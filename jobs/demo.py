"""`demo`: the shipped prompts, the embedded model, a CPU: pictures in about two minutes, on one sheet."""

import csv
import os
from pathlib import Path

import click

from jobs import build
from jobs.cluster import ROOT
from jobs.command import console_options, limit_option, set_option
from jobs.console import Console
from jobs.load import Job, read_job
from jobs.progress import steps_text
from jobs.report import contact_sheet
from jobs.run import run_job
from jobs.source import ConfigError, Fault
from jobs.summary import totals, with_images

PROMPTS = "training/scenes/prompts.csv"
SHEET = "contact_sheet.png"
JOB = """\
model: {device: cpu}
input: {path: PROMPTS}
steps: {selector: words, choices: [3, 4, 5, 6, 8, 10, 15, 20]}
sampling: {guidance_scale: 2.0}
pools: [{name: default, actors: ACTORS, num_cpus: 1}]
output: {path: runs/demo}
"""


@click.command("demo")
@set_option
@limit_option
@console_options
def verb(console: Console, sets: tuple[str, ...], limit: int | None) -> int:
    """Render the shipped prompts with the embedded model on this machine's CPU.

    Writes runs/demo: pictures, manifests, a report and a contact sheet, whose
    path is the last line printed.
    """
    job = read_job(job_text(), "demo", sets, limit)
    if job.config.steps.selector == "words":
        console.say("no trained policy is shipped yet: the steps go by the number of words")
    code = run_job(console, job, "local")
    if code in (130, 143):
        return code
    sheet = write_sheet(job)
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


def write_sheet(job: Job, most: int = 48) -> str:
    """Draws the first pictures, in the order of the prompts; the path of the PNG."""
    run = build.run_folder(job)
    found = totals(run, most_pictures=1 << 20)
    order = {row["id"]: index for index, row in enumerate(_prompts())}
    rows = sorted(found.pictures, key=lambda row: order.get(row["id"], len(order)))[:most]
    largest = build.largest_budget(job)
    mean = steps_text(found.mean_steps, largest) if found.mean_steps else "no steps"
    subtitle = (
        f"{found.status['ok']} pictures, {mean} against {largest} for each; selector: {job.config.steps.selector}"
    )
    run.write(SHEET, contact_sheet(with_images(run, rows), "stepthrift: steps where they pay", subtitle))
    return f"{job.config.output.path}/{SHEET}"


def _prompts() -> list[dict[str, str]]:
    with Path(ROOT / PROMPTS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
