"""`status` says who renders a run, how far it is and what it waits for; it changes nothing."""

import click

from jobs.terminal.console import Console
from jobs.terminal.options import console_options, set_option


@click.command("status")
@click.argument("run_path", metavar="RUN")
@click.option("--watch", is_flag=True, help="Say it again whenever it changes, until the run has ended.")
@set_option
@console_options
def verb(console: Console, run_path: str, watch: bool, sets: tuple[str, ...]) -> int:
    """Say who drives a run, since when, how far it is, how fast, and what it waits for.

    RUN is a run folder (a path or a URL) or a job file; any machine that reads
    the folder may ask. Exit code 0: all planned rows have ended, or a driver is
    at work; 1: rows are left and nobody renders them.

    \b
    Examples:
      python -m jobs status spring.yaml
      python -m jobs status s3://bucket/runs/spring --watch
      python -m jobs status runs/spring --json
    """
    from jobs.steps.run_status import show_status

    return show_status(console, run_path, watch, sets)
