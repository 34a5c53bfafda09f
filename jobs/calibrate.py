"""`calibrate` measures this machine's device: its best number of lanes, and what a call, a picture and a score cost."""

import click

from jobs.job_file.read import load_job
from jobs.terminal.console import Console
from jobs.terminal.options import console_options, job_argument, set_option


@click.command("calibrate")
@job_argument
@set_option
@click.option("--calls", type=click.IntRange(1), default=5, show_default=True, help="UNet calls timed for each count.")
@console_options
def verb(console: Console, job_path: str, sets: tuple[str, ...], calls: int) -> int:
    """Measure the smallest number of lanes within 3 % of the best rate.

    Run it on a machine like those that will render, while it does nothing
    else. The result goes into the run folder, for one model, device, precision
    and size; `lanes: auto` reads it there. Memory is kept under 90 %.

    \b
    Example:
      python -m jobs calibrate spring.yaml
    """
    from jobs.steps.calibrating import calibrate_job

    job = load_job(job_path, sets)
    return calibrate_job(console, job, calls)
