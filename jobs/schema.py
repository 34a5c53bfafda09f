"""`schema` prints what a job file may hold, and what a manifest holds."""

import shutil

import click

from jobs.job_file.keys import JobConfig
from jobs.terminal.console import Console
from jobs.terminal.options import console_options

WIDEST = 100  # columns: longer lines are hard to read


@click.command("schema")
@click.option("--manifest", is_flag=True, help="The columns of the manifest instead, with their types and meanings.")
@console_options
def verb(console: Console, manifest: bool) -> int:
    """Print every key of the job file: default, kind, meaning, an example.

    With --json the same as a JSON schema, with units and bounds.

    \b
    Examples:
      python -m jobs schema | less
      python -m jobs schema --manifest
      python -m jobs schema --json > job.schema.json
    """
    from jobs.steps.key_reference import reference
    from jobs.steps.manifest_reference import manifest_columns, manifest_text

    width = min(WIDEST, shutil.get_terminal_size().columns)
    if manifest:
        console.result(manifest_columns(), manifest_text(width))
    else:
        console.result(JobConfig.model_json_schema(), reference(width))
    return 0
