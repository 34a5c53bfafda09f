"""`plan` reads prompts and plans every row's steps and the shards, to be looked at before a GPU is paid for."""

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


@click.command("plan")
@job_argument
@set_option
@limit_option
@address_option
@take_over_option
@console_options
def verb(
    console: Console, job_path: str, sets: tuple[str, ...], limit: int | None, address: str | None, take_over: bool
) -> int:
    """Choose the steps of every prompt and cut the work into shards.

    Nothing is rendered. A second plan adds what is new in the input; what is
    planned stays as it is.

    \b
    Examples:
      python -m jobs plan spring.yaml
      python -m jobs plan spring.yaml -s steps.price=0.5 --json
    """
    from jobs.steps.planning import plan_job

    job = load_job(job_path, sets, limit)
    return plan_job(console, job, address, take_over)
