"""`validate`: is the job file right, and are the model, the input and the output there? Nothing is rendered."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs import build
from jobs.cluster import start_ray
from jobs.command import (
    address_option,
    console_options,
    job_argument,
    limit_option,
    message_errors,
    message_of,
    set_option,
)
from jobs.console import Console
from jobs.load import Job, load_job
from jobs.preflight import check_nodes_by_probe, refuse_rays_copy
from jobs.rules import idle, known_choices
from jobs.source import ConfigError, Fault

if TYPE_CHECKING:
    from actors.checkpoint import CheckpointInfo
    from pipelines.formats import TableFile
    from pipelines.inspection import Inspection, PromptSource
    from pipelines.store import RunFolder

REACH_S = 4.0
T = TypeVar("T")

log = logging.getLogger(__name__)


@click.command("validate")
@job_argument
@set_option
@limit_option
@address_option
@console_options
def verb(console: Console, job_path: str, sets: tuple[str, ...], limit: int | None, address: str | None) -> int:
    """Check a job file and what it points at: the model, every prompt of the input, the run folder.

    With --address every node that is up is asked whether it sees the run
    folder, with its own disk, endpoint and credentials, and a local input.

    \b
    Example:
      python -m jobs validate spring.yaml -s input.path=s3://bucket/prompts/
    """
    job = load_job(job_path, sets, limit)
    checks = Checks(job)
    run = checks.run(lambda: check_output(job), "output.path")
    info = checks.run(lambda: build.checkpoint(job), "model.path")
    if info is not None:
        checks.run(lambda: build.check_policy(job, info), "steps.selector")
    start_ray(address, console.debug)
    if run is not None:
        checks.run(lambda: check_nodes_by_probe(console, job, run), "output.path")
    found = checks.run(lambda: check_input(job, info), "input.path")
    if checks.faults:
        raise ConfigError(checks.faults)
    console.result({"status": "done", **found}, report(job, found))
    return 0


class Checks:
    """Runs one check after another and keeps what each finds wrong."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.faults: list[Fault] = []

    def run(self, check: Callable[[], Any], blames: str) -> Any:
        """The check's result, or None where it found a fault; `blames`: the key of a fault without a place."""
        try:
            return check()
        except message_errors() as error:
            message = message_of(error)
            if message is None:
                raise
            self.faults += (
                message.faults if isinstance(message, ConfigError) else self.job.fault(blames, str(message)).faults
            )
            return None


def check_output(job: Job) -> "RunFolder":
    """The run folder. Raises where it cannot be written, or would be deleted; one conditional write shows it."""
    from pipelines.folder import StorageError

    refuse_rays_copy(job)
    try:
        run = build.run_folder(job)
        probe = run.probe()
    except StorageError as error:
        raise job.fault("output.path", str(error)) from error
    if not probe.conditional:
        log.warning(
            "%s cannot create an object only if it is absent: two runs at once on this folder may leave pictures that "
            "no manifest names",
            job.config.output.path,
        )
    return run


def check_input(job: Job, info: "CheckpointInfo | None") -> dict[str, Any]:
    """What the input holds. Raises as `read_input`.

    Its rows are read by Ray tasks: where no worker is up only the files' headers are, and no machine is started.
    """
    from pipelines.preflight import workers_are_up

    source = build.prompt_source(job, info)
    if not workers_are_up():
        return dict.fromkeys(("rows", "prompts", "bad_rows", "bad_samples", "notes", "carried")) | {
            "files": len(read_headers(job, source))
        }
    inspection = read_input(job, source)
    return {
        "files": len(inspection.files),
        "rows": inspection.num_planned,
        "prompts": inspection.rows,
        "bad_rows": inspection.bad_rows,
        "bad_samples": list(inspection.bad_samples),
        "notes": list(inspection.notes),
        "carried": inspection.carried_schema.names,
    }


def read_input(job: Job, source: "PromptSource") -> "Inspection":
    """The first pass over the prompts. Raises ConfigError for all that is wrong with them."""
    from pipelines.prompts import inspect

    inspection = _read(job, lambda: inspect(source))
    refuse_input(job, inspection)
    return inspection


def read_headers(job: Job, source: "PromptSource") -> "list[TableFile]":
    """The files of the input, in this process. Raises ConfigError for what is wrong with them and their columns."""
    from pipelines.inspection import open_files

    return _read(job, lambda: open_files(source))


def _read(job: Job, read: Callable[[], T]) -> T:
    from pipelines.folder import StorageError
    from pipelines.formats import InputError

    check_reachable(job)
    try:
        return read()
    except (InputError, StorageError) as error:
        raise job.fault("input.path", str(error)) from error


def check_reachable(job: Job) -> None:
    """One short request to the input's store, which in mid-run would be tried again for a quarter of an hour."""
    from pipelines.folder import Folder, StorageError

    if "://" not in job.config.input.path:
        return
    bucket = "/".join(job.config.input.path.split("/")[:3])
    try:
        Folder(bucket, build.storage_options(job, "input"), REACH_S).stat("-")
    except StorageError as error:
        if error.retryable:  # anything else is told better by who reads the files
            raise job.fault("input.path", str(error)) from error


def refuse_input(job: Job, inspection: "Inspection") -> None:
    """Raises ConfigError where a row is bad under `input.strict`, or a pool has nothing to do."""
    menu = known_choices(job.config)
    idle_pools = idle(job.config.pools, {*menu, *inspection.pinned_steps}) if menu else ()
    if faults := [Fault(job.source.where(keys[0]), message) for keys, message in idle_pools]:
        raise ConfigError(faults)
    if job.config.input.strict and inspection.bad_rows:
        samples = "; ".join(inspection.bad_samples)
        raise job.fault("input.strict", f"input.strict: {inspection.bad_rows} bad rows: {samples}")


def report(job: Job, found: dict[str, Any]) -> str:
    """The outcome in words."""
    if found["rows"] is None:
        unread = (
            f"{found['files']:,} files of prompts at {job.config.input.path}, whose rows are not read: no worker is up"
        )
        return f"{unread}\nso far all is well: into {job.config.output.path}"
    lines = [f"{found['rows']:,} images to make from {found['prompts']:,} prompts of {job.config.input.path}"]
    if found["bad_rows"]:
        lines.append(f"{found['bad_rows']:,} bad rows, each will be a failed row of the manifest:")
        lines += [f"  {sample}" for sample in found["bad_samples"]]
    lines += found["notes"]
    return "\n".join([*lines, f"all is well: into {job.config.output.path}"])
