"""Runs a rollout: renders every row at every budget, and shows the curve that the table gives."""

from dataclasses import replace

from jobs.job_file.read import Job
from jobs.steps.judging import show_curve
from jobs.steps.whole_job import run_job
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE


def run_rollout(console: Console, job: Job, address: str | None, take_over: bool) -> int:
    """Render every prompt at every budget, then say what steps buy; the exit code."""
    if not job.config.quality:
        raise job.fault("quality", "a reward table needs scorers: set quality, for example [{scorer: clip, path: ...}]")
    code = run_job(console, replace(job, rollout=True), address, take_over)
    if code == DONE:
        show_curve(console, job)
    return code
