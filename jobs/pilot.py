"""`pilot` says what to spend on: it renders a sample of the user's prompts by every recipe and compares the ways."""

import click

from jobs.job_file.read import load_job
from jobs.terminal.console import Console
from jobs.terminal.options import address_option, console_options, job_argument, set_option


@click.command("pilot")
@job_argument
@set_option
@address_option
@console_options
@click.option("--rows", type=click.IntRange(20), default=200, show_default=True, help="Prompts of the sample.")
@click.option(
    "--seeds",
    type=click.IntRange(2),
    default=4,
    show_default=True,
    help="Noises of each prompt: tries of a row that can be tried out.",
)
def verb(console: Console, job_path: str, sets: tuple[str, ...], address: str | None, rows: int, seeds: int) -> int:
    """Say what to spend on your prompts, before you pay for all of them.

    A sample of the job's prompts, each category in its share, is rendered by
    every recipe of the menu and scored by the job's `quality`; no pictures are
    kept. The verdict says which to take of one recipe for all, the policy,
    another try where the picture is poor, or both; what that saves at equal
    quality, with its interval; or that the sample is too small. It ends with
    the lines for your job file. Nothing of the job's own run folder is
    touched; the sample's is <output.path>-pilot-<rows>.

    \b
    Example:
      python -m jobs pilot spring.yaml --rows 400
    """
    from jobs.steps.pilot_run import run_pilot

    return run_pilot(console, load_job(job_path, sets), address, rows, seeds)
