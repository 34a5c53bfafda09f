"""`rollout`: every prompt at every budget, scored: the reward table that a policy is trained on."""

from dataclasses import replace

import click

from jobs import build
from jobs.command import DONE, address_option, console_options, job_argument, limit_option, set_option
from jobs.console import Console
from jobs.driver import take_over_option
from jobs.judging import curves
from jobs.learning import table_run, whole_table
from jobs.load import Job, load_job
from jobs.run import run_job


@click.command("rollout")
@job_argument
@set_option
@limit_option
@address_option
@take_over_option
@console_options
@click.option("--seeds", type=click.IntRange(2), default=2, show_default=True, help="Noises of each prompt.")
def verb(
    console: Console,
    job_path: str,
    sets: tuple[str, ...],
    limit: int | None,
    address: str | None,
    take_over: bool,
    seeds: int,
) -> int:
    """Render every prompt at every budget of the menu, and score the pictures.

    All budgets of a prompt and seed share one noise. The manifest of the run
    folder, with its scores, is the table; typed again, it goes on where it
    stopped. With output.layout: none no pictures are kept. It ends with what
    steps buy on these prompts, and what a policy could gain at most.

    \b
    Example:
      python -m jobs rollout table.yaml --seeds 4 --limit 1000
    """
    job = load_job(job_path, (f"input.images_per_prompt={seeds}", "steps.selector=words", *sets), limit)
    if not job.config.quality:
        raise job.fault("quality", "a reward table needs scorers: set quality, for example [{scorer: clip, path: ...}]")
    code = run_job(console, replace(job, rollout=True), address, take_over)
    if code == DONE:
        show_curve(console, job)
    return code


def show_curve(console: Console, job: Job) -> None:
    """What steps buy on these prompts, by judge and group, to be read before anything is trained; into curve.txt."""
    words = curves(job, whole_table(job, "output.path", table_run(job)))
    build.run_folder(job).write("curve.txt", words.encode("utf-8", "replace"))
    console.say(words)
