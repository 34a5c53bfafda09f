"""`rollout` renders and scores every prompt at every budget: the reward table that a policy is trained on."""

import click

from jobs.job_file.read import load_job
from jobs.terminal.console import Console
from jobs.terminal.options import (
    address_option,
    console_options,
    job_argument,
    limit_option,
    set_option,
    take_over_option,
)


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
    from jobs.steps.rollout_run import run_rollout

    job = load_job(job_path, (f"input.images_per_prompt={seeds}", "steps.selector=words", *sets), limit)
    return run_rollout(console, job, address, take_over)
