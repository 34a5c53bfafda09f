"""`pilot`: does it pay here? A sample of one's own prompts at every budget, judged as `evaluate` does."""

from typing import TYPE_CHECKING

import click

from jobs import build
from jobs.cluster import start_ray
from jobs.command import DONE, address_option, console_options, job_argument, set_option
from jobs.config import Scorer
from jobs.console import Console
from jobs.judging import conclude, curves, judged
from jobs.learning import whole_table
from jobs.load import Job, load_job
from jobs.rollouts import roll_out
from jobs.validate import read_input

if TYPE_CHECKING:
    import pyarrow as pa

    from actors.checkpoint import CheckpointInfo

EMBEDDED_QUALITY = [
    Scorer(scorer="clip", path="training/scenes/scorer"),
    Scorer(scorer="training.scenes.checker:agreement", name="truth", weight=0.0),
]


@click.command("pilot")
@job_argument
@set_option
@address_option
@console_options
@click.option("--rows", type=click.IntRange(20), default=200, show_default=True, help="Prompts of the sample.")
@click.option("--seeds", type=click.IntRange(2), default=2, show_default=True, help="Noises of each prompt.")
def verb(console: Console, job_path: str, sets: tuple[str, ...], address: str | None, rows: int, seeds: int) -> int:
    """Say whether adaptive steps pay on your prompts, before you pay for all of them.

    A sample of the job's prompts, each category in its share, is rendered at
    every budget of the policy and scored by the job's `quality`; no pictures
    are kept. The verdict names what is saved at equal quality with its
    interval, the best fixed budget, the price to use and the categories that
    need most steps, or says that the sample is too small. Nothing of the job's
    own run folder is touched; the sample's is <output.path>-pilot-<rows>.

    \b
    Example:
      python -m jobs pilot spring.yaml --rows 400
    """
    from actors.policy import read_card

    job = with_quality(load_job(job_path, sets))
    info = build.checkpoint(job)
    build.check_scorers(job)
    build.check_policy(job, info)
    policy = build.local_policy(job)
    card = read_card(policy)
    start_ray(address, console.debug)
    path = f"{str(job.config.output.path).rstrip('/')}-pilot-{rows}"
    code = roll_out(console, job, path, sample(console, job, info, rows), card.choices, seeds)
    if code != DONE:
        return code
    run = build.run_at(job, path)
    table = whole_table(job, "quality", run)
    found = judged(job, policy, table, None, {})
    about = {
        "prompts": len(table.prompts),
        "of": job.config.input.path,
        "version": card.version,
        "seeds": table.num_seeds,
    }
    title = "Pilot: do adaptive steps pay on these prompts?"
    return conclude(console, run, title, found, about, curves(job, table))


def with_quality(job: Job) -> Job:
    """The job with scorers. Raises ConfigError where it has none and its model is not the embedded one."""
    if job.config.quality:
        return job
    if job.config.model.path is not None:
        raise job.fault("quality", "a pilot needs scorers: set quality, for example [{scorer: clip, path: ...}]")
    return Job(job.config.model_copy(update={"quality": EMBEDDED_QUALITY}), job.source)


def sample(console: Console, job: Job, info: "CheckpointInfo", count: int) -> "pa.Table":
    """Some of the job's prompts. Raises ConfigError for all that is wrong with the input."""
    from pipelines.prompts import raise_aborted, rows
    from pipelines.sample import stratified

    console.draw(f"reading {job.config.input.path}")
    inspection = read_input(job, build.prompt_source(job, info))
    tables = rows(inspection).iter_batches(batch_size=None, batch_format="pyarrow")
    return stratified((raise_aborted(table) for table in tables), count)
