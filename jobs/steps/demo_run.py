"""Runs the demonstration: the shipped prompts through the embedded model."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.job_file.keys import StepBudgets
from jobs.job_file.places import ROOT
from jobs.job_file.policy import largest_budget
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import Job, read_job
from jobs.job_file.storage import run_folder
from jobs.pages.contact_sheet import contact_sheet
from jobs.pages.totals import SHOWN_PICTURES, totals, with_images
from jobs.steps.nested_rollout import NestedConsole
from jobs.steps.whole_job import run_job
from jobs.terminal.console import Console
from jobs.terminal.interrupts import SIGNALS
from jobs.terminal.progress import steps_text
from pipelines.run.plan import read_plan

PROMPTS = "training/scenes/prompts.csv"
SHEET = "contact_sheet.png"
SHOWN_PAIRS = 12  # on the sheet; all that SHOWN_PICTURES allows are judged
STOPPED = tuple(128 + number for number in SIGNALS)
JOB = """\
model: {device: cpu}
input: {path: PROMPTS}
steps: {selector: policy}
sampling: {guidance_scale: 1.5}
pools: [{name: default, actors: ACTORS, num_cpus: 1}]
output: {path: runs/demo}
"""


def job_text() -> str:
    """The demo's job file for this machine."""
    prompts = ROOT / PROMPTS
    if not prompts.is_file():
        raise ConfigError([Fault(PROMPTS, "the shipped prompts are not there; is this a whole checkout?")])
    actors = max(1, min(4, len(os.sched_getaffinity(0))))
    return JOB.replace("PROMPTS", str(prompts)).replace("ACTORS", str(actors))


def at_largest(job: Job) -> Job:
    """The same job with every row at the largest budget of the menu, in a folder beside."""
    steps = StepBudgets(selector="fixed", fixed=largest_budget(job))
    output = job.config.output.model_copy(update={"path": f"{job.config.output.path}-largest"})
    return job.changed(steps=steps, output=output)


def write_sheet(job: Job, largest: Job) -> tuple[str, str]:
    """Draws the first pictures, in the order of the prompts, in pairs; the path of the PNG, and the verdict on it."""
    run = run_folder(job)
    found = totals(read_plan(run), most_pictures=1 << 20)
    order = {row["id"]: index for index, row in enumerate(_prompts())}
    rows = sorted(found.pictures, key=lambda row: order.get(row["id"], len(order)))[:SHOWN_PICTURES]
    budget = largest_budget(job)
    mean = steps_text(found.mean_steps, budget) if found.mean_steps else "no steps"
    shown = [row for row in with_images(run, rows) if row["image"]]
    judged = [row | {"beside": beside} for row, beside in zip(shown, _same(shown, largest), strict=True)]
    every = max(1, len(judged) // SHOWN_PAIRS)
    pairs = judged[::every][:SHOWN_PAIRS]
    subtitle = f"{len(pairs)} of {len(judged)} prompts: one in {every}, in the order of the file. A pair has one seed"
    heads, verdict = ("chosen", f"{budget} steps"), f"{mean} against {budget}. {right_text(judged, budget)}"
    run.write(SHEET, contact_sheet(pairs, "stepthrift: steps where they pay", subtitle, verdict, heads))
    return f"{job.config.output.path}/{SHEET}", verdict


def right_text(pairs: Sequence[Mapping[str, Any]], budget: int) -> str:
    """How much of what their prompts ask for the pictures show, on either side; nothing where a program cannot tell."""
    if find_spec("scipy") is None:
        return ""
    from training.scenes.checker import exactness, score  # scipy comes with the extra `scenes` alone

    both = [pair for pair in pairs if pair["beside"]]
    prompts = [pair["prompt"] for pair in both]
    sides = [[_pixels(pair["image"]) for pair in both], [_pixels(pair["beside"]["image"]) for pair in both]]
    objects, whole = ([judge(images, prompts) for images in sides] for judge in (score, exactness))
    if not both or any(map(math.isnan, objects[0])):
        return ""
    chosen, dear = (f"{100 * sum(side) / len(both):.0f} %" for side in objects)
    return (
        f"Of all {len(both)} prompts' objects {chosen} are right as chosen, {dear} at {budget} steps; "
        f"pictures without any fault: {sum(whole[0]):.0f} and {sum(whole[1]):.0f}"
    )


def _pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def _same(rows: Sequence[Mapping[str, Any]], largest: Job) -> list[dict[str, Any] | None]:
    """The rows of the same ids in the other run; None where it has no picture."""
    run, wanted = run_folder(largest), {row["id"] for row in rows}
    found = [row for row in totals(read_plan(run), most_pictures=1 << 20).pictures if row["id"] in wanted]
    theirs = {row["id"]: row for row in with_images(run, found) if row["image"]}
    return [theirs.get(row["id"]) for row in rows]


def _prompts() -> list[dict[str, str]]:
    with Path(ROOT / PROMPTS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_demo(console: Console, sets: tuple[str, ...], limit: int | None, take_over: bool) -> int:
    """Render the shipped prompts and show them; the exit code."""
    job = read_job(job_text(), "demo", sets, limit)
    code = run_job(console, job, "local", take_over)
    if code in STOPPED:
        return code
    largest = at_largest(job)
    console.say(f"the same seeds at {largest.config.steps.fixed} steps, to compare: {largest.config.output.path}")
    if (stopped := run_job(NestedConsole(console), largest, "local", take_over)) in STOPPED:
        return stopped
    sheet, verdict = write_sheet(job, largest)
    console.say(verdict)
    if not console.json:
        print(sheet, file=console.out, flush=True)
    return code
