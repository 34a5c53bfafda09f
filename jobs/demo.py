"""`demo` renders the shipped prompts with the shipped model and policy on a CPU, in about two minutes, onto one sheet.

Some stand beside one picture at 20 steps, and beside their first try where another was kept.
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
    path is the last line printed. A policy chooses each prompt's recipe and bar;
    a picture below its bar is tried again. On the sheet one in four stands beside
    a picture of 20 steps, from runs/demo-20-steps, and its first try where another
    was kept; the line above them counts all.
    """
    from jobs.steps.demo_run import run_demo

    return run_demo(console, sets, limit, take_over)
