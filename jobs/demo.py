"""`demo` renders the shipped prompts with the shipped model and policy on a CPU, in about two minutes, onto one sheet.

Some stand beside the picture that the same seed gives at the largest budget.
"""

import click

from jobs.terminal.console import Console
from jobs.terminal.options import console_options, limit_option, set_option, take_over_option


@click.command("demo")
@set_option
@limit_option
@take_over_option
@console_options
def verb(console: Console, sets: tuple[str, ...], limit: int | None, take_over: bool) -> int:
    """Render the shipped prompts with the embedded model on this machine's CPU.

    Writes runs/demo: pictures, manifests, a report and a contact sheet, whose
    path is the last line printed. On the sheet one picture in four stands beside
    the one that its seed gives at the largest budget, from runs/demo-largest;
    the line above them counts all.
    """
    from jobs.steps.demo_run import run_demo

    return run_demo(console, sets, limit, take_over)
