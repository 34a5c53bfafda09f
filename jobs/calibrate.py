"""`calibrate`: how many lanes the device of this machine wants; what a call, a picture and a score cost on it."""

import json
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from jobs import build
from jobs.command import DONE, console_options, job_argument, set_option
from jobs.console import Console
from jobs.errors import blaming
from jobs.load import Job, load_job
from jobs.validate import check_output

if TYPE_CHECKING:
    from actors.calibration import Calibration
    from actors.checkpoint import CheckpointInfo
    from pipelines.scoring import ScorerSource

SCORED = 8  # pictures of one call of the scorers


@click.command("calibrate")
@job_argument
@set_option
@click.option("--calls", type=click.IntRange(1), default=5, show_default=True, help="UNet calls timed for each count.")
@console_options
def verb(console: Console, job_path: str, sets: tuple[str, ...], calls: int) -> int:
    """Measure the smallest number of lanes within 3 % of the best rate.

    Run it on a machine like those that will render, while it does nothing
    else. The result goes into the run folder, for one model, device, precision
    and size; `lanes: auto` reads it there. Memory is kept under 90 %.

    \b
    Example:
      python -m jobs calibrate spring.yaml
    """
    job = load_job(job_path, sets)
    check_output(job)
    info = build.checkpoint(job)
    build.check_scorers(job)
    console.draw("loading the model")
    found, score = measure(job, info, calls)
    console.clear()
    run = build.run_folder(job)
    entry = asdict(found) | {"seconds_per_score": score}
    run.write(build.CALIBRATION, json.dumps(build.calibrations(run) | {found.place: entry}, indent=2).encode())
    document = {"run": job.config.output.path, "status": "done", **entry}
    console.result(document, text(found, score))
    return DONE


def measure(job: Job, info: "CheckpointInfo", calls: int) -> "tuple[Calibration, float | None]":
    """On this machine's device, with the threads of the job's first pool; seconds of a score None without scorers."""
    from actors.calibration import calibrate
    from actors.sampler import DDIMSampler

    sampling, threads = job.config.sampling, max(1, int(job.config.pools[0].num_cpus))
    config = replace(
        build.sampler_config(job, info), model_path=build.model_source(job).local(), num_threads=threads, lanes=None
    )
    sampler = DDIMSampler(config)
    sampler.load()
    try:
        width, height = sampling.width or info.width, sampling.height or info.height
        found = calibrate(sampler, width, height, calls)
        scorers = build.scorer_sources(job)
        return found, _seconds_of_a_score(job, scorers, config.device, width, height) if scorers else None
    finally:
        sampler.close()


def _seconds_of_a_score(job: Job, scorers: "tuple[ScorerSource, ...]", device: str, width: int, height: int) -> float:
    """Raises ConfigError for a scorer that cannot be loaded or used."""
    with blaming(job, "quality", "quality: "):
        return seconds_of_a_score(scorers, device, width, height)


def seconds_of_a_score(scorers: "tuple[ScorerSource, ...]", device: str, width: int, height: int) -> float:
    """Of one picture by all scorers, in the second of two calls."""
    import numpy as np

    from pipelines.scoring import load_scorer

    scorer = load_scorer(scorers, device)
    pictures = [np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8) for i in range(SCORED)]
    for _ in range(2):
        started = time.perf_counter()
        scorer.score(pictures, ["a red fox"] * SCORED, pictures)
        seconds = time.perf_counter() - started
    return seconds / SCORED


def text(found: "Calibration", score: float | None) -> str:
    """The trials and what follows from them."""
    lines = [found.place]
    for trial in found.trials:
        mark = "  <- lanes: auto" if trial.lanes == found.lanes else ""
        rate = f"{trial.rate:8.1f} lane-steps/s"
        lines.append(f"{trial.lanes:>5} lanes {1000 * trial.seconds:9.1f} ms a call {rate}{mark}")
    costs: dict[str, Any] = {
        "a guided step": 2 * found.seconds_per_lane_step,
        "decoding a picture": found.seconds_per_decode,
        "reading a prompt": found.seconds_per_prompt,
        "scoring a picture": score,
    }
    lines += [f"{name:>20} {1000 * seconds:9.2f} ms" for name, seconds in costs.items() if seconds is not None]
    return "\n".join(lines)
