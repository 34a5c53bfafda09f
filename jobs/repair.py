"""`repair` renders again what `verify` finds missing or damaged, and nothing else.

Which rows are rendered again, and what may be overwritten, is decided by `pipelines.integrity.repair_orders`.
"""

import click

from jobs.terminal.console import Console
from jobs.terminal.options import address_option, console_options, run_argument, set_option, take_over_option


@click.command("repair")
@run_argument
@click.option("--delete-orphans", is_flag=True, help="Delete what interrupted attempts, and this repair, leave behind.")
@set_option
@address_option
@take_over_option
@console_options
def verb(
    console: Console,
    run_path: str,
    sample: float,
    full: bool,
    delete_orphans: bool,
    sets: tuple[str, ...],
    address: str | None,
    take_over: bool,
) -> int:
    """Verify a run, render again what is missing or damaged, verify that.

    RUN is a run folder (a path or a URL) or a job file. Rows get the seed and
    the steps that their manifest ended with; a shard's manifest is replaced
    whole. Exit code 0: all is clean now, save orphans; 1: something is left,
    and is named; 3: too many of the rows rendered again failed.

    \b
    Examples:
      python -m jobs repair runs/spring --full
      python -m jobs repair s3://bucket/runs/spring --delete-orphans
    """
    from jobs.steps.repair_run import repair_run

    return repair_run(console, run_path, 1.0 if full else sample, delete_orphans, sets, address, take_over)
