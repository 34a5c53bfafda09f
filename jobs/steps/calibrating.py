"""Measures what this machine's device does in a second."""

import json
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from actors.calibration import Calibration, calibrate
from actors.sampler import DDIMSampler
from jobs.job_file.errors import blaming
from jobs.job_file.read import Job
from jobs.job_file.scorers import check_scorers
from jobs.job_file.settings import CALIBRATION, Settings, resolve
from jobs.steps.checking import check_output
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE
from jobs.terminal.progress import duration
from pipelines.render.quality import ScorerSource, load_scorer

EXAMPLE_STEPS = 20  # of the picture whose time is said
SCORED = 8  # pictures of one call of the scorers


def measure(settings: Settings, calls: int) -> tuple[Calibration, float | None]:
    """On this machine's device, with the threads of the job's first pool; seconds of a score None without scorers."""
    threads, defaults, scorers = max(1, int(settings.pools[0].num_cpus)), settings.source.defaults, settings.scorers
    config = replace(settings.sampler, model_path=settings.model.local(), num_threads=threads, calibrated=())
    sampler = DDIMSampler(config)
    sampler.load()
    try:
        width, height = defaults.width, defaults.height
        found = calibrate(sampler, width, height, calls)
        with blaming(settings.job, "quality", "quality: "):
            return found, seconds_of_a_score(scorers, config.device, width, height) if scorers else None
    finally:
        sampler.close()


def seconds_of_a_score(scorers: tuple[ScorerSource, ...], device: str, width: int, height: int) -> float:
    """Of one picture by all scorers, in the second of two calls."""
    scorer = load_scorer(scorers, device)
    pictures = [np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8) for i in range(SCORED)]
    for _ in range(2):
        started = time.perf_counter()
        scorer.score(pictures, ["a red fox"] * SCORED, pictures)
        seconds = time.perf_counter() - started
    return seconds / SCORED


def calibration_text(found: Calibration, score: float | None) -> str:
    """The answer, what things cost, then the trials that it was chosen from."""
    step = 2 * found.seconds_per_lane_step
    picture = EXAMPLE_STEPS * step + found.seconds_per_decode + found.seconds_per_prompt + (score or 0.0)
    thousand = f"1,000 images of {EXAMPLE_STEPS} guided steps take one actor about {duration(1000 * picture)}"
    lines = [f"lanes: auto is {found.lanes} lanes here; {thousand}"]
    costs: dict[str, Any] = {
        "a guided step": step,
        "decoding a picture": found.seconds_per_decode,
        "reading a prompt": found.seconds_per_prompt,
        "scoring a picture": score,
    }
    lines += [f"{name:>20} {1000 * seconds:9.2f} ms" for name, seconds in costs.items() if seconds is not None]
    lines.append("tried:")
    for trial in found.trials:
        mark = "  <- lanes: auto" if trial.lanes == found.lanes else ""
        rate = f"{trial.rate:8.1f} lane-steps/s"
        lines.append(f"{trial.lanes:>5} lanes {1000 * trial.seconds:9.1f} ms a call {rate}{mark}")
    return "\n".join([*lines, f"for {found.place}"])


def calibrate_job(console: Console, job: Job, calls: int) -> int:
    """Measure this machine's device for a job, and keep the figures; the exit code."""
    check_output(job)
    settings = resolve(job)
    check_scorers(job)
    console.draw("loading the model")
    found, score = measure(settings, calls)
    console.clear()
    entry = asdict(found) | {"seconds_per_score": score}
    known = {**settings.calibrations, found.place: entry}
    settings.run.write(CALIBRATION, json.dumps(known, indent=2).encode())
    document = {"run": job.config.output.path, "status": "done", **entry}
    console.result(document, calibration_text(found, score))
    return DONE
