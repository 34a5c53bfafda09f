"""Checks the output and the input before anything starts, and one against the other."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from actors.checkpoint import CheckpointInfo
from jobs.job_file.contradictions import idle, known_choices
from jobs.job_file.errors import blaming
from jobs.job_file.policy import check_policy, menu_of
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.provenance import check_provenance
from jobs.job_file.read import Job
from jobs.job_file.scorers import check_scorers
from jobs.job_file.settings import prompt_source, read_checkpoint, resolve
from jobs.job_file.storage import run_folder, storage_options
from jobs.job_file.tries import bar_of
from jobs.steps.check_nodes import check_nodes_by_probe, refuse_rays_copy
from jobs.steps.input_lines import input_figures, input_lines
from jobs.steps.training_check import check_workers, learning_checks
from jobs.terminal.connect_ray import start_ray
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE, TOO_MANY_FAILED
from pipelines.cluster.nodes import workers_are_up
from pipelines.files.chosen import would_hold
from pipelines.files.tables import FoundFiles, hub_address, web_address
from pipelines.plan.earlier import EarlierRows, earlier_rows
from pipelines.prompts.inspection import Inspection, PromptSource, open_files, pinned_notes
from pipelines.prompts.two_passes import inspect, needs_ray
from pipelines.render.driver import with_gpus_of_this_ray
from pipelines.render.pool import precision_note
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan, read_plan
from pipelines.storage.folder import Folder, StorageError, store_of

REACH_S = 4.0
T = TypeVar("T")
log = logging.getLogger(__name__)


class FaultCollector:
    """Runs one check after another and collects the faults of all."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.faults: list[Fault] = []

    def run(self, check: Callable[[], Any], blames: str) -> Any:
        """The check's result, or None where it found a fault; `blames`: the key of a fault without a place."""
        try:
            with blaming(self.job, blames):
                return check()
        except ConfigError as error:
            self.faults += error.faults
            return None


def check_output(job: Job) -> RunFolder:
    """The run folder. Raises where it cannot be written, or would be deleted; one conditional write shows it."""
    refuse_rays_copy(job)
    with blaming(job, "output.path"):
        run = run_folder(job)
        conditional = run.probe()
    if not conditional:
        log.warning(
            "%s cannot create an object only if it is absent: two runs at once on this folder may leave pictures that "
            "no manifest names",
            job.config.output.path,
        )
    refuse_inside_input(job, run)
    return run


def refuse_inside_input(job: Job, run: RunFolder) -> None:
    """Raises ConfigError where a new run would lie among its own prompts; one that is there goes on."""
    given, output = storage_options(job, "input"), storage_options(job, "output")
    one_store = "://" not in run.url or given.endpoint_url == output.endpoint_url
    if one_store and would_hold(job.config.input.path, run.url) and not run.generations():
        raise job.fault(
            "output.path",
            f"output.path {job.config.output.path} lies inside input.path {job.config.input.path}: the run would be "
            "among its own prompts. Take a folder beside it",
        )


def check_input(job: Job, info: CheckpointInfo | None, run: RunFolder | None = None) -> dict[str, Any]:
    """What the input holds, also against what is planned in `run`. Raises as `read_input` and `read_earlier`.

    Its rows are read by Ray tasks: where no worker is up only the files' headers are, and no machine is started.
    """
    source = prompt_source(job, info)
    if not workers_are_up():
        headers = read_headers(job, source)
        return dict.fromkeys(("rows", "prompts", "bad_rows", "bad_samples", "used", "carried", "exit_code")) | {
            "files": len(headers),
            "notes": list(headers.notes),
        }
    inspection, plan = read_input(job, source), read_plan(run) if run is not None else None
    earlier = read_earlier(job, plan, inspection) if plan is not None else None
    notes = [*inspection.notes, *pinned_notes(inspection.pinned_steps, menu_of(job))]
    return input_figures(inspection, earlier, plan) | {
        "notes": [*notes, *(earlier.changes.notes() if earlier else ())],
        "exit_code": certain_exit(job, inspection, len(earlier.known) if earlier else 0),
    }


def certain_exit(job: Job, inspection: Inspection, planned: int) -> int | None:
    """3 where so many rows are bad that a run cannot end otherwise; None where that is open. planned: rows so far."""
    bad = inspection.bad_rows * inspection.source.images_per_prompt
    most = inspection.num_planned + planned  # of all rows that the run folder may come to hold
    return TOO_MANY_FAILED if too_many_failed(job, bad, most) else None


def too_many_failed(job: Job, failed: int, rows: int) -> bool:
    """Whether more rows failed than failures.max_fraction allows."""
    return failed > job.config.failures.max_fraction * rows


def read_input(job: Job, source: PromptSource, files: FoundFiles | None = None) -> Inspection:
    """The first pass over the prompts. Raises ConfigError for all that is wrong with them. files: if they are open."""
    inspection = _read(job, lambda: inspect(source, files))
    refuse_input(job, inspection)
    return inspection


@dataclass(frozen=True)
class OpenInput:
    """The input's files, and what the first pass found, if that took no Ray."""

    files: FoundFiles
    inspection: Inspection | None


def open_input(job: Job, source: PromptSource) -> OpenInput:
    """As far as the input can be read without Ray. Raises as `read_input`."""
    files = read_headers(job, source)
    return OpenInput(files, None if needs_ray(source, files) else read_input(job, source, files))


def read_earlier(job: Job, plan: Plan, inspection: Inspection) -> EarlierRows:
    """Compares what is planned with the input. Raises ConfigError where rows changed, unless their pictures stay."""
    earlier = earlier_rows(plan, inspection)
    if earlier.changes.is_refused and job.config.input.changed == "refuse":
        raise job.fault("input.path", earlier.changes.refusal(plan.run.url))
    return earlier


def read_headers(job: Job, source: PromptSource) -> FoundFiles:
    """The files of the input, in this process. Raises ConfigError for what is wrong with them and their columns."""
    return _read(job, lambda: open_files(source))


def _read(job: Job, read: Callable[[], T]) -> T:
    check_reachable(job)
    with blaming(job, "input.path"):
        return read()


def check_reachable(job: Job) -> None:
    """One short request to the input's store, which in mid-run would be tried again for a quarter of an hour."""
    if "://" not in job.config.input.path:
        return
    where, name = asked_for(job.config.input.path)
    try:
        Folder(where, storage_options(job, "input"), REACH_S).stat(name)
    except StorageError as error:
        if error.retryable:  # anything else is told better by who reads the files
            raise job.fault("input.path", str(error)) from error


def asked_for(path: str) -> tuple[str, str]:
    """(folder, key) that shows whether the store answers: on a web server the file itself."""
    address = hub_address(path) if path.lower().startswith("hf://") else path
    if not address.lower().startswith(("http://", "https://")):
        return store_of(path), "-"
    folder, name = web_address(address)
    return folder, name if name.strip(".") and "\0" not in name else "-"


def refuse_input(job: Job, inspection: Inspection) -> None:
    """Raises ConfigError where a row is bad under `input.strict`, or a pool has nothing to do."""
    menu = known_choices(job.config)
    idle_pools = idle(job.config.pools, {*menu, *inspection.pinned_steps}) if menu else ()
    if faults := [Fault(job.source.where(keys[0]), message) for keys, message in idle_pools]:
        raise ConfigError(faults)
    if job.config.input.strict and inspection.bad_rows:
        samples = "; ".join(inspection.bad_samples)
        raise job.fault("input.strict", f"input.strict: {inspection.bad_rows} bad rows: {samples}")


def validation_text(job: Job, found: dict[str, Any]) -> str:
    """What `validate` found, in words."""
    if found["rows"] is None:
        unread = (
            f"{found['files']:,} files of prompts at {job.config.input.path}, whose rows are not read: no worker is up"
        )
        return "\n".join([unread, *found["notes"], f"so far all is well: into {job.config.output.path}"])
    lines = input_lines(job.config.input.path, found)
    if found["bad_rows"]:
        lines.append(f"{found['bad_rows']:,} bad rows, each will be a failed row of the manifest:")
        lines += [f"  {sample}" for sample in found["bad_samples"]]
    lines += found["notes"]
    if found["exit_code"] is None:
        well = "the rest is well" if found["bad_rows"] else "all is well"
        return "\n".join([*lines, f"{well}: into {job.config.output.path}"])
    return "\n".join([*lines, certain_words(job, found)])


def certain_words(job: Job, found: dict[str, Any]) -> str:
    """Says that the run will end with exit code 3, and the ways out."""
    allowed = job.config.failures.max_fraction
    return (
        f"{found['bad_rows']:,} of {found['prompts']:,} rows are bad: the run will end with exit {found['exit_code']}, "
        f"since failures.max_fraction allows {allowed:.0%}. Fix them, or raise it"
    )


def validate_job(console: Console, job: Job, address: str | None) -> int:
    """Check all that can be checked before anything starts; the exit code."""
    checks = FaultCollector(job)
    run = checks.run(lambda: check_output(job), "output.path")
    info = checks.run(lambda: read_checkpoint(job), "model.path")
    checks.run(lambda: check_scorers(job), "quality")
    checks.run(lambda: check_provenance(job), "provenance")
    checks.run(lambda: bar_of(job), "tries.scores")
    if info is not None:
        checks.run(lambda: check_policy(job, info), "steps.selector")
    for check, key in learning_checks(job, info):
        checks.run(check, key)
    start_ray(address, console.debug)
    if "train" in job.config.model_fields_set:
        checks.run(lambda: check_workers(job), "train")
    if run is not None:
        checks.run(lambda: check_nodes_by_probe(console, job, run), "output.path")
    found = checks.run(lambda: check_input(job, info, run), "input.path")
    if checks.faults:
        raise ConfigError(checks.faults)
    if address is None and (note := precision_note(with_gpus_of_this_ray(resolve(job).render))):
        found["notes"].append(note)  # of a cluster it is said once its nodes are up
    console.result({"status": "done", **found}, validation_text(job, found))
    return found["exit_code"] or DONE
