"""`render` renders what is planned and not yet done into pictures and manifests."""

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


@click.command("render")
@job_argument
@set_option
@limit_option
@address_option
@take_over_option
@console_options
def verb(
    console: Console, job_path: str, sets: tuple[str, ...], limit: int | None, address: str | None, take_over: bool
) -> int:
    """Render every planned shard that has no manifest yet.

    Ctrl-C: the first finishes and commits what is in flight, the second stops
    at once. The same command goes on where it stopped.

    \b
    Example:
      python -m jobs render spring.yaml -s pools.0.actors=8 --address auto
    """
    from jobs.steps.rendering import render_planned

    job = load_job(job_path, sets, limit)
    return render_planned(console, job, job_path, address, take_over)
