"""Defines the options and arguments that several verbs share."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from jobs.terminal.console import Console

F = TypeVar("F", bound=Callable[..., Any])


def job_argument(command: F) -> F:
    """The job file."""
    return click.argument("job_path", metavar="JOB", type=click.Path())(command)


def set_option(command: F) -> F:
    """`-s a.b=value`, as often as wanted."""
    text = "Set a key of the job file, for example -s steps.price=0.5 or -s pools.0.actors=4; wins over the file."
    return click.option("-s", "--set", "sets", multiple=True, metavar="KEY=VALUE", help=text)(command)


def limit_option(command: F) -> F:
    """`--limit n`."""
    text = "The first N prompts at most, whatever is planned; the same command without it goes on with the rest."
    return click.option("--limit", type=int, metavar="N", help=text)(command)


def address_option(command: F) -> F:
    """`--address`: which Ray."""
    text = "Ray cluster: auto, host:port or ray://host:port. Default: RAY_ADDRESS, else a local Ray of its own."
    return click.option("--address", metavar="ADDRESS", help=text)(command)


def console_options(command: F) -> F:
    """`--json`, `--debug`, and the Console as the verb's first argument."""

    @functools.wraps(command)
    @click.pass_obj
    def with_console(console: Console, /, as_json: bool, debug: bool, **options: Any) -> Any:
        console.json, console.debug = as_json, debug
        console.log()
        with console.alone_on_stdout():
            return command(console, **options)

    wrapped = click.option("--debug", is_flag=True, help="Show tracebacks and debug records.")(with_console)
    text = "Print one JSON document on stdout; everything else goes to stderr."
    return click.option("--json", "as_json", is_flag=True, help=text)(wrapped)  # type: ignore[return-value]


def take_over_option(command: F) -> F:
    """`--take-over`."""
    text = "Go on though another run is active in the folder; the other one stops when it notices."
    return click.option("--take-over", is_flag=True, help=text)(command)


def run_argument(command: F) -> F:
    """The run, and how much of it is looked at: `--sample`, `--full`."""
    command = click.option("--full", is_flag=True, help="Read every image.")(command)
    text = "The share of the images whose bytes are read, at least one a shard."
    share: dict[str, Any] = {"type": click.FloatRange(0, 1), "default": 0.01, "show_default": True, "metavar": "SHARE"}
    return click.argument("run_path", metavar="RUN")(click.option("--sample", help=text, **share)(command))
