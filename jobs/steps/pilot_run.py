"""Runs a pilot: renders a sample of the user's prompts by every recipe and says what to spend on them."""

import pyarrow as pa

from actors.checkpoint import CheckpointInfo
from actors.policy import read_card
from actors.recipe import menu_of
from jobs.job_file.contradictions import PAPER_CHOICES
from jobs.job_file.keys import Scorer
from jobs.job_file.policy import check_policy, local_policy
from jobs.job_file.read import Job
from jobs.job_file.recipes import menu_of_job
from jobs.job_file.scorers import check_scorers
from jobs.job_file.settings import prompt_source, read_checkpoint
from jobs.job_file.storage import run_at
from jobs.steps.checking import read_input
from jobs.steps.judging import conclude, curves, curves_text, judged
from jobs.steps.nested_rollout import roll_out
from jobs.steps.training_settings import whole_table
from jobs.terminal.connect_ray import start_ray
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE
from pipelines.prompts.sample import stratified
from pipelines.prompts.two_passes import raise_aborted, rows

EMBEDDED_QUALITY = [
    Scorer(scorer="clip", path="training/scenes/scorer"),
    Scorer(scorer="training.scenes.checker:agreement", name="truth", weight=0.0),
]


def with_quality(job: Job) -> Job:
    """The job with scorers. Raises ConfigError where it has none and its model is not the embedded one."""
    if job.config.quality:
        return job
    if job.config.model.path is not None:
        raise job.fault("quality", "a pilot needs scorers: set quality, for example [{scorer: clip, path: ...}]")
    return job.changed(quality=EMBEDDED_QUALITY)


def sample(console: Console, job: Job, info: CheckpointInfo, count: int) -> pa.Table:
    """Some of the job's prompts. Raises ConfigError for all that is wrong with the input."""
    console.draw(f"reading {job.config.input.path}")
    inspection = read_input(job, prompt_source(job, info))
    tables = rows(inspection).iter_batches(batch_size=None, batch_format="pyarrow")
    return stratified((raise_aborted(table) for table in tables), count)


def run_pilot(console: Console, job: Job, address: str | None, count: int, seeds: int) -> int:
    """Roll out a sample, and say which of one recipe, the policy, tries or both to take; the exit code."""
    job = with_quality(job)
    info = read_checkpoint(job)
    check_scorers(job)
    check_policy(job, info)
    policy = local_policy(job) if job.config.steps.selector == "policy" else None
    menu = read_card(policy).choices if policy else menu_of_job(job) or menu_of(PAPER_CHOICES)
    start_ray(address, console.debug)
    path = f"{str(job.config.output.path).rstrip('/')}-pilot-{count}"
    code = roll_out(console, job, path, sample(console, job, info, count), menu, seeds)
    if code != DONE:
        return code
    run = run_at(job, path)
    table = whole_table(job, "quality", run)
    found = judged(job, policy, table, None, {})
    about = {"prompts": len(table.prompts), "of": job.config.input.path, "seeds": table.num_seeds}
    about |= {"policy": read_card(policy).version} if policy else {}
    title = "Pilot: what to spend on these prompts"
    return conclude(console, run, title, found, about, curves_text(curves(job, table)))
