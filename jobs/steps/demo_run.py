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

from jobs.job_file.keys import StepBudgets, Tries
from jobs.job_file.places import ROOT
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import Job, read_job
from jobs.job_file.storage import run_folder
from jobs.pages.contact_sheet import contact_sheet
from jobs.pages.totals import SHOWN_PICTURES, Totals, totals, with_images
from jobs.steps.nested_rollout import NestedConsole
from jobs.steps.whole_job import run_job
from jobs.terminal.console import Console
from jobs.terminal.interrupts import SIGNALS
from jobs.terminal.progress import saved_text
from pipelines.run.plan import read_plan

PROMPTS = "training/scenes/prompts.csv"
SHEET = "contact_sheet.png"
SHOWN_PAIRS = 12  # on the sheet; all that SHOWN_PICTURES allows are judged
SEEDS = "The 20 steps and the first try have the row's first seed"
STOPPED = tuple(128 + number for number in SIGNALS)
COMPARED = 20  # steps for all, beside: what nobody would call too few
JOB = """\
model: {device: cpu}
input: {path: PROMPTS}
steps: {selector: policy}
sampling: {guidance_scale: 1.5}
quality: [{scorer: clip, path: training/scenes/scorer}]
tries: {max: 4, keep: true}
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


def for_comparison(job: Job) -> Job:
    """The same job with one picture of COMPARED steps for every row, in a folder beside."""
    steps = StepBudgets(selector="fixed", fixed=COMPARED)
    output = job.config.output.model_copy(update={"path": f"{job.config.output.path}-{COMPARED}-steps"})
    return job.changed(steps=steps, tries=Tries(), output=output)


def write_sheet(job: Job, largest: Job) -> tuple[str, str]:
    """Draws the first pictures, in the order of the prompts, in pairs; the path of the PNG, and the verdict on it."""
    run = run_folder(job)
    found = totals(read_plan(run), most_pictures=1 << 20)
    order = {row["id"]: index for index, row in enumerate(_prompts())}
    rows = sorted(found.pictures, key=lambda row: order.get(row["id"], len(order)))[:SHOWN_PICTURES]
    shown = [row for row in with_images(run, rows) if row["image"]]
    others = _same(shown, largest)
    judged = [row | {"beside": [other, *_first(row)]} for row, other in zip(shown, others, strict=True) if other]
    every = max(1, len(judged) // SHOWN_PAIRS)
    pairs = judged[::every][:SHOWN_PAIRS]
    subtitle = f"{len(pairs)} of {len(judged)} prompts: one in {every}, in the order of the file. {SEEDS}"
    heads = ("kept", f"{COMPARED} steps", "first try, not kept")
    verdict = f"{spent_text(found, totals(read_plan(run_folder(largest))))}. {right_text(judged)}"
    run.write(SHEET, contact_sheet(pairs, "stepthrift: spend where it pays", subtitle, verdict, heads))
    return f"{job.config.output.path}/{SHEET}", verdict


def spent_text(found: Totals, compared: Totals) -> str:
    """What the rows took, all tries counted, against the other run."""
    if not found.mean_steps or not compared.lane_steps:
        return "no pictures"
    a_row, theirs = found.lane_steps / found.status["ok"], compared.lane_steps / compared.status["ok"]
    reference = {"words": f"{COMPARED} steps", "lane_steps": theirs}
    means = {"mean_steps": found.mean_steps, "mean_tries": found.mean_tries}
    return saved_text(means | {"reference": reference, "lane_steps_a_row": a_row})


def _first(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first try of a row, where another was kept."""
    tries = row.get("tries") or ()
    stored = tries and tries[0].get("uri") and row["others"]
    return [{"image": row["others"][0][0], "prompt": row["prompt"]}] if stored else []


def right_text(pairs: Sequence[Mapping[str, Any]]) -> str:
    """How much of what their prompts ask for the pictures show, on either side; nothing where a program cannot tell."""
    if find_spec("scipy") is None:
        return ""
    from training.scenes.checker import exactness, score  # scipy comes with the extra `scenes` alone

    both = [*pairs]
    prompts = [pair["prompt"] for pair in both]
    sides = [[_pixels(pair["image"]) for pair in both], [_pixels(pair["beside"][0]["image"]) for pair in both]]
    objects, whole = ([judge(images, prompts) for images in sides] for judge in (score, exactness))
    if not both or any(map(math.isnan, objects[0])):
        return ""
    chosen, dear = (f"{100 * sum(side) / len(both):.0f} %" for side in objects)
    return (
        f"Of all {len(both)} prompts' objects {chosen} are right as kept, {dear} at {COMPARED} steps; "
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
    largest = for_comparison(job)
    console.say(f"one picture of each at {COMPARED} steps, to compare: {largest.config.output.path}")
    if (stopped := run_job(NestedConsole(console), largest, "local", take_over)) in STOPPED:
        return stopped
    sheet, verdict = write_sheet(job, largest)
    console.say(verdict)
    if not console.json:
        print(sheet, file=console.out, flush=True)
    return code
