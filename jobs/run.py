"""`run` plans, then renders: the whole job."""

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


@click.command("run")
@job_argument
@set_option
@limit_option
@address_option
@take_over_option
@click.option("--retry-failed", is_flag=True, help="Render rows again that failed, with their seed and steps.")
@console_options
def verb(
    console: Console,
    job_path: str,
    sets: tuple[str, ...],
    limit: int | None,
    address: str | None,
    take_over: bool,
    retry_failed: bool,
) -> int:
    """Plan, then render. Typed again, it goes on where it stopped.

    \b
    Examples:
      python -m jobs run spring.yaml --limit 10
      python -m jobs run spring.yaml -s pools.0.actors=8 --address auto
      python -m jobs run spring.yaml --json > summary.json
      python -m jobs run spring.yaml --retry-failed
    """
    from jobs.steps.whole_job import run_job

    return run_job(console, load_job(job_path, sets, limit), address, take_over, retry_failed)
