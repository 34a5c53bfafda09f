"""`run`: plan, then render: the whole job."""

import click

from jobs.cluster import start_ray
from jobs.command import address_option, console_options, job_argument, limit_option, set_option
from jobs.console import Console
from jobs.driver import Stop, sole_driver, take_over_option
from jobs.gpus import with_gpus
from jobs.interrupts import Interrupts
from jobs.load import Job, load_job
from jobs.plan import make, planned, prepare, table, this_command
from jobs.preflight import check_nodes
from jobs.render import render_job
from jobs.repair import failed_rows


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
      python -m jobs run spring.yaml -s output.path=s3://bucket/runs/spring --address auto
      python -m jobs run spring.yaml --json > summary.json
      python -m jobs run spring.yaml --retry-failed
    """
    return run_job(console, load_job(job_path, sets, limit), address, take_over, retry_failed)


def run_job(
    console: Console, job: Job, address: str | None, take_over: bool = False, retry_failed: bool = False
) -> int:
    """The whole job; the exit code."""
    run, info, warnings = prepare(job)
    with sole_driver(console, job, run, take_over) as epoch:
        start_ray(address, console.debug)
        with Interrupts(console, this_command()) as interrupts:
            check_nodes(console, job, run, epoch.term.proof)
            placed = with_gpus(console, job)
            make(console, job, run, info, warnings)
            console.say(table(str(job.config.output.path), planned(run)))
            again = failed_rows(run) if retry_failed else None
            return render_job(console, placed, run, info, Stop(interrupts, epoch), again)
