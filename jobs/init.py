"""`init` writes a first job file."""

import shlex

import click

from jobs.job_file.positions import ConfigError, Fault
from jobs.terminal.console import Console
from jobs.terminal.options import console_options


@click.command("init")
@click.argument("path", default="job.yaml", type=click.Path())
@click.option("--model", metavar="PATH", help="A diffusers folder, s3:// folder or hub id: what is written fits it.")
@click.option("--variant", help="Of its weight files, for example fp16.")
@console_options
def verb(console: Console, path: str, model: str | None, variant: str | None) -> int:
    """Write a commented job file, job.yaml by default, that runs as it is.

    With --model the checkpoint is read for its size, its solver, how many steps
    and how much guidance suit it. An existing file is left alone.

    \b
    Examples:
      python -m jobs init spring.yaml
      python -m jobs init spring.yaml --model models/dreamshaper
    """
    from jobs.steps.first_job import first_job

    text = first_job(path, model, variant)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError([Fault(path, "is there already; give another name")]) from None
    except OSError as error:
        raise ConfigError([Fault(path, f"cannot be written: {error.strerror}")]) from None
    next_one = f"wrote {path}; next: python -m jobs validate {shlex.quote(path)}"
    console.result({"status": "done", "path": path}, next_one)
    return 0
