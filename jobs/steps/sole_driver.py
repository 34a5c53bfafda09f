"""Lets one driver at a time onto a run folder: `--take-over`, the refusal, and the stop of a superseded driver.

It also does what every driver does between its claim and its first picture. `pipelines.run.drivers` says what an epoch
is, and why a run is correct without one.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from jobs.job_file.read import Job
from jobs.job_file.settings import Settings
from jobs.steps.check_nodes import check_nodes
from jobs.steps.gpus import with_gpus
from jobs.terminal.connect_ray import start_ray
from jobs.terminal.console import Console
from jobs.terminal.interrupts import Interrupts, this_command
from jobs.terminal.progress import ProgressLine
from pipelines.render.driver import Progress
from pipelines.run.drivers import ActiveRunError, Epoch, driving
from pipelines.run.layout import RunFolder


@contextmanager
def sole_driver(console: Console, job: Job, run: RunFolder, take_over: bool) -> Iterator[Epoch]:
    """The run folder's new epoch while the body runs. Raises ConfigError where another run is active."""
    with ExitStack() as stack:
        try:
            epoch = stack.enter_context(driving(run, take_over, on_wait=console.say))
        except ActiveRunError as error:
            raise job.fault("output.path", str(error)) from error
        yield epoch


def followed(line: ProgressLine, epoch: Epoch) -> Callable[[Progress], None]:
    """Shows each Progress here, and writes it into the driver's heartbeat for who asks elsewhere."""

    def on_progress(progress: Progress) -> None:
        line(progress)
        epoch.tell(asdict(progress))

    return on_progress


@dataclass(frozen=True)
class Stop:
    """Asks a run to finish what is in work: a signal came, or another driver."""

    interrupts: Interrupts
    epoch: Epoch

    def is_set(self) -> bool:
        """Whether either asked."""
        return self.interrupts.stop.is_set() or self.epoch.lost.is_set()


@contextmanager
def ready(
    console: Console, settings: Settings, epoch: Epoch, address: str | None, with_input: bool = False
) -> Iterator[tuple[Settings, Stop]]:
    """Ray is up, its nodes were asked, and signals ask the body to stop; -> the settings with a number for each `auto`.

    Raises ConfigError where the nodes, or a place for the pools, are lacking.
    """
    console.draw("starting Ray" if address in (None, "local") else f"connecting to Ray at {address}")
    start_ray(address, console.debug)
    with Interrupts(console, this_command()) as interrupts:
        check_nodes(console, settings.job, settings.run, epoch.id.proof, with_input)
        yield with_gpus(console, settings), Stop(interrupts, epoch)
