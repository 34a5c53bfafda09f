"""One driver at a time on a run folder: `--take-over`, the refusal, and the stop of the one that was taken over.

What an epoch is, and why none is needed for a run to be right, is `pipelines.epochs`'.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs.console import Console
from jobs.interrupts import Interrupts
from jobs.load import Job

if TYPE_CHECKING:
    from pipelines.epochs import Epoch
    from pipelines.store import RunFolder

F = TypeVar("F", bound=Callable[..., Any])


def take_over_option(command: F) -> F:
    """`--take-over`."""
    text = "Go on though another run is active in the folder; the other one stops when it notices."
    return click.option("--take-over", is_flag=True, help=text)(command)


@contextmanager
def sole_driver(console: Console, job: Job, run: "RunFolder", take_over: bool) -> Iterator["Epoch"]:
    """The run folder's new epoch while the body runs. Raises ConfigError where another run is active."""
    from pipelines.epochs import ActiveRunError, driving

    with ExitStack() as stack:
        try:
            epoch = stack.enter_context(driving(run, take_over, on_wait=console.say))
        except ActiveRunError as error:
            raise job.fault("output.path", str(error)) from error
        yield epoch


@dataclass(frozen=True)
class Stop:
    """Asks a run to finish what is in work: a signal came, or another driver."""

    interrupts: Interrupts
    epoch: "Epoch"

    def is_set(self) -> bool:
        """Whether either did."""
        return self.interrupts.stop.is_set() or self.epoch.lost.is_set()
