"""The whole of `python -m jobs run` against what a user would run instead, each as a process of its own, in turns.

    python -m benchmarks.job [--rows 200] [--actors 1] [--sides ours none a b c] [--write]

a: Ray Data's map_batches over a class with a diffusers pipeline, 50 steps for every row. b: the same at the job's mean
steps. c: diffusers in a loop, no Ray, at those steps. none: the job with its sink off (layout none). All write PNG
files to the same disk; ten budgets, 5 to 50, chosen by the number of words. images/s is between the first and the last
file (`none` has no files: between the first and the last row of its actors); `wall` is the whole process, with its
imports and its Ray.
"""

import argparse
import csv
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import BUDGETS
from benchmarks.measure import ROOT, Turns, alternate, arguments, machine, markdown, report
from benchmarks.rivals import GUIDANCE

LONGEST = 50
WORDS = ("red", "green", "blue", "star", "ring", "circle", "square", "above", "below", "two", "three", "small")
JOB = """\
model: {{path: {model}}}
input: {{path: {prompts}}}
steps: {{selector: words, choices: {choices}}}
sampling: {{guidance_scale: {guidance}}}
pools: [{{name: default, actors: {actors}, num_gpus: 0}}]
output: {{path: {output}, layout: {layout}}}
"""
NAMES = {
    "ours": "python -m jobs run",
    "none": "the same, layout none",
    "a": "Ray map_batches, 50 steps",
    "b": "Ray map_batches, mean steps",
    "c": "diffusers in a loop, mean steps",
}


@dataclass
class Ran:
    """rate: images/s from the first to the last. summary: of the job's."""

    rate: float
    summary: dict[str, Any]


def write_prompts(path: Path, rows: int) -> float:
    """Prompts of 1 to 30 words, so that each of the ten budgets is chosen; -> the mean steps that follow."""
    draw = random.Random(0)
    lengths = [1 + i % 30 for i in range(rows)]
    draw.shuffle(lengths)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "prompt"))
        writer.writerows((i, " ".join(draw.choices(WORDS, k=length))) for i, length in enumerate(lengths))
    return statistics.mean(BUDGETS[(length - 1) * len(BUDGETS) // 30] for length in lengths)


def rate_of(folder: Path) -> float:
    """Files a second between the first and the last picture."""
    times = sorted(path.stat().st_mtime for path in folder.rglob("*.png") if path.name != "contact_sheet.png")
    return (len(times) - 1) / (times[-1] - times[0])


def our_job(folder: Path, given: argparse.Namespace, layout: str) -> Ran:
    """A new run folder, from prompts to report."""
    output = Path(tempfile.mkdtemp(dir=folder))
    values = {"model": os.path.abspath(given.model), "prompts": folder / "prompts.csv", "output": output / "run"}
    job = output / "job.yaml"
    job.write_text(JOB.format(**values, choices=list(BUDGETS), guidance=GUIDANCE, actors=given.actors, layout=layout))
    summary = json.loads(_run(["jobs", "run", str(job), "--json", "--address", "local"]))
    assert summary["ok"] == given.rows, summary
    if layout == "files":
        rate = rate_of(output / "run" / "images")
    else:
        rate = given.rows * given.actors / summary["actor_seconds"]
    shutil.rmtree(output)
    return Ran(rate, summary)


def rival(folder: Path, given: argparse.Namespace, way: str, steps: int) -> Ran:
    """One of benchmarks.rivals."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "images"
    where = ["--prompts", str(folder / "prompts.csv"), "--out", str(out), "--model", given.model]
    size = ["--steps", str(steps), "--batch", str(given.batch), "--actors", str(given.actors)]
    _run(["benchmarks.rivals", way, *where, *size])
    found = len(list(out.glob("*.png")))
    assert found == given.rows, found
    rate = rate_of(out)
    shutil.rmtree(out)
    return Ran(rate, {})


def _run(command: list[str]) -> str:
    """stdout. The steps are the process's; Ray's workers are given their threads by their pools."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def rows_of(turns: dict[str, Turns], mean_steps: float) -> list[list[Any]]:
    """One line a side; ratios are of images/s, ours over theirs, in the same turn."""
    found = []
    for name, side in turns.items():
        rates = [ran.rate for ran in side.values]
        ratios = [a.rate / b.rate for a, b in zip(turns["ours"].values, side.values, strict=True)]
        steps = LONGEST if name == "a" else round(mean_steps) if name in "bc" else mean_steps
        spread = f"{statistics.median(rates):.3g} ({min(rates):.3g} to {max(rates):.3g})"
        summary = side.values[-1].summary
        shares = [f"{summary[key]:.1%}" if key in summary else None for key in ("busy_share", "lane_fill")]
        beside = None if name == "ours" else statistics.median(ratios)
        found.append([NAMES[name], steps, spread, beside, side.text, *shares])
    return found


def words_of(turns: dict[str, Turns]) -> str:
    """The gain in its two parts, and what the sink costs."""
    middle = {name: statistics.median([ran.rate for ran in side.values]) for name, side in turns.items()}
    words = []
    if "a" in turns and "b" in turns:
        steps, engine = middle["b"] / middle["a"], middle["ours"] / middle["b"]
        words.append(f"Gain over a: {steps * engine:.2f} = {steps:.2f} by fewer steps x {engine:.2f} by the engine.")
    if "none" in turns:
        shares = [
            with_files.summary["actor_seconds"] / without.summary["actor_seconds"] - 1
            for with_files, without in zip(turns["ours"].values, turns["none"].values, strict=True)
        ]
        spread = f"{statistics.median(shares):+.1%} ({min(shares):+.1%} to {max(shares):+.1%})"
        words.append(f"Encoding and writing files: {spread} of the actors' time between their first and last row.")
    return " ".join(words)


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="of the rivals")
    parser.add_argument("--model", default="training/scenes/model")
    parser.add_argument("--sides", nargs="+", default=list(NAMES), choices=list(NAMES))
    given = parser.parse_args()
    where, started = machine(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="job-") as name:
        folder = Path(name)
        mean_steps = write_prompts(folder / "prompts.csv", given.rows)
        sides: dict[str, Callable[[], Ran]] = {
            "ours": lambda: our_job(folder, given, "files"),
            "none": lambda: our_job(folder, given, "none"),
            "a": lambda: rival(folder, given, "ray", LONGEST),
            "b": lambda: rival(folder, given, "ray", round(mean_steps)),
            "c": lambda: rival(folder, given, "loop", round(mean_steps)),
        }
        turns = alternate({name: sides[name] for name in NAMES if name in given.sides}, given.repeats)
    columns = (
        *("side", "steps", "images/s (spread)", "ours / theirs", "wall s, median (spread)", "UNet + VAE busy"),
        "lanes used",
    )
    rows = rows_of(turns, mean_steps)
    what = (
        f"{given.model}, {given.rows:,} rows, {given.actors} actors of one thread, {time.monotonic() - started:.0f} s."
    )
    table = f"{what}\n\n{markdown(columns, rows)}\n\n{words_of(turns)}"
    report("job", table, {"options": vars(given), "rows": rows, "mean_steps": mean_steps}, where, given.write)


if __name__ == "__main__":
    main()
