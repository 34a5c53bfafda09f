"""`pilot` says whether the policy pays: it renders a sample of the user's prompts at every budget and judges it."""

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
@click.option("--seeds", type=click.IntRange(2), default=2, show_default=True, help="Noises of each prompt.")
def verb(console: Console, job_path: str, sets: tuple[str, ...], address: str | None, rows: int, seeds: int) -> int:
    """Say whether adaptive steps pay on your prompts, before you pay for all of them.

    A sample of the job's prompts, each category in its share, is rendered at
    every budget of the policy and scored by the job's `quality`; no pictures
    are kept. The verdict names what is saved at equal quality with its
    interval, the best fixed budget, the price to use and the categories that
    need most steps, or says that the sample is too small. Nothing of the job's
    own run folder is touched; the sample's is <output.path>-pilot-<rows>.

    \b
    Example:
      python -m jobs pilot spring.yaml --rows 400
    """
    from jobs.steps.pilot_run import run_pilot

    return run_pilot(console, load_job(job_path, sets), address, rows, seeds)
