"""`init` writes a first job file."""

from pathlib import Path

import click

from jobs.job_file.positions import ConfigError, Fault
from jobs.terminal.console import Console
from jobs.terminal.options import console_options

TEMPLATE = """\
# Check it: python -m jobs validate {name}    run it: python -m jobs run {name}    every key: python -m jobs schema
input:
  path: training/scenes/prompts.csv   # Parquet, CSV, TSV, JSONL with a column `prompt`: file, folder, glob, s3://...
  images_per_prompt: 1
# model: {{path: s3://bucket/stable-diffusion-v1-5}}   # a diffusers folder, local or s3://, or a hub id
steps:
  selector: policy           # the shipped one is for the embedded model; or words, or fixed (with fixed: 20)
  price: 0.3                 # 0: quality at any cost; higher: fewer steps
sampling:
  guidance_scale: 1.5        # 1: none; left out: 7.5, which suits Stable Diffusion
output:
  path: runs/{stem}          # or s3://bucket/runs/{stem}
  format: png                # or jpeg, webp
pools:
  - {{name: default, actors: 1}}   # processes that render; on a cluster as many as it has GPUs
"""


@click.command("init")
@click.argument("path", default="job.yaml", type=click.Path())
@console_options
def verb(console: Console, path: str) -> int:
    """Write a commented job file, job.yaml by default, that runs as it is.

    An existing file is left alone.
    """
    text = TEMPLATE.format(name=path, stem=Path(path).stem)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError([Fault(path, "is there already; give another name")]) from None
    except OSError as error:
        raise ConfigError([Fault(path, f"cannot be written: {error.strerror}")]) from None
    console.result({"status": "done", "path": path}, f"wrote {path}; next: python -m jobs validate {path}")
    return 0
