"""`verify` checks that each planned row is in one manifest and each image there with its bytes; it changes nothing."""

import click

from jobs.terminal.console import Console
from jobs.terminal.options import console_options, run_argument, set_option


@click.command("verify")
@run_argument
@click.option(
    "--allow-orphans", is_flag=True, help="Name what interrupted attempts left behind, but take it for clean."
)
@set_option
@console_options
def verb(console: Console, run_path: str, sample: float, full: bool, allow_orphans: bool, sets: tuple[str, ...]) -> int:
    """Hold the plan against the manifests and the manifests against what is stored.

    RUN is a run folder (a path or a URL) or a job file. Every row of every
    manifest is looked at; that each image is there, and how long it is, is seen
    by listing; a share of them is read. Exit code 0: all is clean; 1: something
    is missing, doubled, damaged or of no row, and is named.

    \b
    Examples:
      python -m jobs verify spring.yaml
      python -m jobs verify s3://bucket/runs/spring --full --json > found.json
      python -m jobs verify s3://bucket/run -s storage.endpoint_url=http://nas:9000
    """
    from jobs.steps.verifying import verify_run

    return verify_run(console, run_path, 1.0 if full else sample, allow_orphans, sets)
