"""`validate` checks the job file, the model, the input and the output. It renders nothing."""

import click

from jobs.job_file.read import load_job
from jobs.terminal.console import Console
from jobs.terminal.options import address_option, console_options, job_argument, limit_option, set_option


@click.command("validate")
@job_argument
@set_option
@limit_option
@address_option
@console_options
def verb(console: Console, job_path: str, sets: tuple[str, ...], limit: int | None, address: str | None) -> int:
    """Check a job file and what it points at: the model, every prompt of the input, the run folder.

    With --address every node that is up is asked whether it sees the run
    folder, with its own disk, endpoint and credentials, and a local input.
    Where so many rows are bad that a run must end with exit code 3, it does.

    \b
    Example:
      python -m jobs validate spring.yaml -s input.path=s3://bucket/prompts/
    """
    from jobs.steps.checking import validate_job

    job = load_job(job_path, sets, limit)
    return validate_job(console, job, address)
