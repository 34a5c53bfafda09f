"""`schema` prints what a job file may hold, and what a manifest holds."""

import json
from typing import Any

import click

from jobs.job_file.keys import JobConfig
from jobs.terminal.console import Console
from jobs.terminal.options import console_options


@click.command("schema")
@click.option("--manifest", is_flag=True, help="The columns of the manifest instead, with their Arrow types.")
@console_options
def verb(console: Console, manifest: bool) -> int:
    """Print the JSON schema of the job file: every key with its default, unit, bounds and kind.

    Kinds: `picture` keys must stay the same when a run is resumed, `execution`
    keys may change, `price` changes only by planning again.
    """
    document = manifest_columns() if manifest else JobConfig.model_json_schema()
    console.result(document, json.dumps(document, indent=2))
    return 0


def manifest_columns() -> dict[str, Any]:
    """Name and Arrow type of every column, in order; the input's own columns follow them."""
    from pipelines.run.schema import MANIFEST_FIELDS

    return {"columns": [{"name": field.name, "type": str(field.type)} for field in MANIFEST_FIELDS]}
