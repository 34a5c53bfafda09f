"""`convert` writes the diffusers folder of a checkpoint that is one file."""

import click

from jobs.terminal.console import Console
from jobs.terminal.options import console_options


@click.command("convert")
@click.argument("file", metavar="FILE.safetensors", type=click.Path())
@click.argument("folder", metavar="FOLDER", type=click.Path())
@click.option("--kind", type=click.Choice(["sd1", "sd2", "sd2-base", "sdxl"]), help="Default: by the file's header.")
@click.option("--config", metavar="FOLDER", help="A diffusers folder whose configs are taken.")
@console_options
def verb(console: Console, file: str, folder: str, kind: str | None, config: str | None) -> int:
    """Convert a checkpoint of one file (SD 1, SD 2, SDXL) into a diffusers folder.

    By diffusers' own from_single_file, without the hub; safetensors alone are
    read and written. SD 2 files do not say what they predict: sd2 is the 768 px
    model (v-prediction), sd2-base the one of 512 px.

    \b
    Example:
      python -m jobs convert dreamshaper.safetensors models/dreamshaper
      python -m jobs init spring.yaml --model models/dreamshaper
    """
    from jobs.steps.converting import convert_file

    return convert_file(console, file, folder, kind, config)
