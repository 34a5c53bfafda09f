"""What the verbs share: their options, and how an error becomes a message and an exit code."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from jobs.console import Console
from jobs.source import ConfigError, Fault

DONE, FAILED, REFUSED, TOO_MANY_FAILED = 0, 1, 2, 3
F = TypeVar("F", bound=Callable[..., Any])

# Errors that are messages. Named here, not imported: that would cost every `--help` the rooms they live in.
MESSAGES = {
    "jobs.source": "ConfigError",
    "actors.checkpoint": "CheckpointError",
    "actors.policy": "PolicyError",
    "pipelines.formats": "InputError",
    "pipelines.folder": "StorageError",
    "pipelines.render": "RenderError",
    "training.table": "TableError",
    "training.trainer": "TrainingError",
}


def job_argument(command: F) -> F:
    """The job file."""
    return click.argument("job_path", metavar="JOB", type=click.Path())(command)


def set_option(command: F) -> F:
    """`-s a.b=value`, as often as wanted."""
    text = "Set a key of the job file, for example -s steps.price=0.5 or -s pools.0.actors=4; wins over the file."
    return click.option("-s", "--set", "sets", multiple=True, metavar="KEY=VALUE", help=text)(command)


def limit_option(command: F) -> F:
    """`--limit n`."""
    text = "Only the first n prompts; the same command without it goes on with the rest."
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


def message_errors() -> tuple[type[BaseException], ...]:
    """The classes of errors that are messages, as far as their rooms were entered; and Ray's, which may wrap one."""
    found = [getattr(sys.modules.get(room), name, None) for room, name in MESSAGES.items()]
    found.append(getattr(sys.modules.get("ray.exceptions"), "RayError", None))
    return tuple(kind for kind in found if kind is not None)


def message_of(error: BaseException | None) -> BaseException | None:
    """The error that is a message, in this one or among its causes."""
    names = set(MESSAGES.values())
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None)
        if not isinstance(inner, BaseException):
            if names & {kind.__name__ for kind in type(error).__mro__}:
                return error
            inner = error.__cause__ or error.__context__
        error = inner
    return None


def lost_in_ray(error: BaseException) -> BaseException | None:
    """A message for what Ray itself lost, a process of its own or a connection; None for an error of a task's code."""
    from ray.exceptions import RayError, RayTaskError

    from pipelines.render import RenderError

    if not isinstance(error, RayError) or isinstance(error, RayTaskError):
        return None
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return RenderError(f"Ray failed: {type(error).__name__}: {reason:.300}; the same command goes on where it stopped")


def refuse(console: Console, error: BaseException) -> int:
    """Say what is wrong; the exit code: 2 where nothing was started, else 1."""
    faults = error.faults if isinstance(error, ConfigError) else [Fault("", str(error))]
    later = getattr(error, "retryable", False) or type(error).__name__ == "RenderError"
    status = "failed" if console.started or later else "refused"
    console.clear()
    for fault in faults:
        console.say(f"error: {fault}")
    if console.json:
        errors = [{"where": fault.where or None, "message": fault.message} for fault in faults]
        console.result({"status": status, "errors": errors}, "")
    return FAILED if status == "failed" else REFUSED
