"""Evaluates a policy: reads it and the tables, and renders the variants that are missing."""

from actors.policy import read_card
from jobs.job_file.errors import blaming
from jobs.job_file.policy import local_policy
from jobs.job_file.read import Job
from jobs.job_file.storage import run_at
from jobs.steps.judging import conclude, judged
from jobs.steps.nested_rollout import prompts_of, roll_out, variant_path
from jobs.steps.training_settings import reward_table, rollout_run, table_run, training_folder, variant_job, whole_table
from jobs.terminal.connect_ray import start_ray
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE
from pipelines.run.layout import RunFolder
from training.judge.evidence import Setup
from training.reward_table import RewardTable


def variant_tables(
    console: Console, job: Job, run: RunFolder, table: RewardTable
) -> tuple[int, dict[Setup, RewardTable]]:
    """The table's prompts under each of evaluate.variants, rendered where they are not yet; the exit code with them."""
    found: dict[Setup, RewardTable] = {}
    variants = job.config.evaluate.variants
    prompts = prompts_of(run, table) if variants else None
    for variant in variants:
        path = variant_path(run, variant)
        console.say(f"{variant.solver}, guidance {variant.guidance_scale:g}: {path}")
        code = roll_out(console, variant_job(job, variant), path, prompts, table.choices, table.num_seeds)
        if code != DONE:
            return code, found
        made = whole_table(job, "evaluate.variants", run_at(job, path))
        found[Setup(variant.solver, variant.guidance_scale)] = made
    return DONE, found


def trained_policy(job: Job) -> str:
    """The policy's folder on this machine: steps.policy, else what `train` made of the table. Raises ConfigError."""
    steps = job.config.steps.model_copy(
        update={"policy": job.config.steps.policy or f"{training_folder(job).url}/policy"}
    )
    with blaming(job, "steps.policy"):
        return local_policy(job.changed(steps=steps))


def evaluate_policy(console: Console, job: Job, address: str | None) -> int:
    """Judge a policy on held-out prompts; the exit code."""
    learned, kept = reward_table(job)
    run = rollout_run(job, "evaluate.table") if job.config.evaluate.table else table_run(job)
    table = whole_table(job, "evaluate.table", run) if kept is None else kept
    policy = trained_policy(job)
    if job.config.evaluate.variants:
        start_ray(address, console.debug)
    code, variants = variant_tables(console, job, run, table)
    if code != DONE:
        return code
    console.draw(f"reading {len(table.prompts):,} prompts")
    found = judged(job, policy, table, learned, variants)
    about = {"version": read_card(policy).version, "prompts": len(table.prompts), "seeds": table.num_seeds}
    return conclude(console, run, "Does adaptivity pay? Held-out prompts", found, about)
