"""`evaluate`: a policy on held-out prompts, against everything that a user could do instead."""

from typing import TYPE_CHECKING

import click

from jobs import build
from jobs.cluster import start_ray
from jobs.command import DONE, address_option, console_options, job_argument, set_option
from jobs.console import Console
from jobs.errors import blaming
from jobs.judging import conclude, judged
from jobs.learning import policy_folder, reward_table, rollout_run, table_run, variant_job, whole_table
from jobs.load import Job, load_job
from jobs.rollouts import prompts_of, roll_out, variant_path

if TYPE_CHECKING:
    from pipelines.store import RunFolder
    from training.evidence import Setup
    from training.table import RewardTable


@click.command("evaluate")
@job_argument
@set_option
@address_option
@console_options
def verb(console: Console, job_path: str, sets: tuple[str, ...], address: str | None) -> int:
    """Judge a policy on prompts that it never learned from.

    The policy is steps.policy, else the one that `train` made of this table.
    It is compared, at equal cost, with every fixed budget, with rules that
    read the text without a network, with a second try, with other solvers and
    guidance (evaluate.variants, which are rendered first), and with the
    cross-seed oracle. The headline is by a judge that training did not count.
    Writes evaluation/ in the table's run folder.

    \b
    Examples:
      python -m jobs evaluate table.yaml
      python -m jobs evaluate table.yaml -s evaluate.table=runs/other-prompts
    """
    from actors.policy import read_card

    job = load_job(job_path, sets)
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


def variant_tables(
    console: Console, job: Job, run: "RunFolder", table: "RewardTable"
) -> "tuple[int, dict[Setup, RewardTable]]":
    """The table's prompts under each of evaluate.variants, rendered where they are not yet; the exit code with them."""
    from training.evidence import Setup

    found: dict[Setup, RewardTable] = {}
    variants = job.config.evaluate.variants
    prompts = prompts_of(run, table) if variants else None
    for variant in variants:
        path = variant_path(run, variant)
        console.say(f"{variant.solver}, guidance {variant.guidance_scale:g}: {path}")
        code = roll_out(console, variant_job(job, variant), path, prompts, table.choices, table.num_seeds)
        if code != DONE:
            return code, found
        made = whole_table(job, "evaluate.variants", build.run_at(job, path))
        found[Setup(variant.solver, variant.guidance_scale)] = made
    return DONE, found


def trained_policy(job: Job) -> str:
    """The policy's folder on this machine: steps.policy, else what `train` made of the table. Raises ConfigError."""
    steps = job.config.steps.model_copy(
        update={"policy": job.config.steps.policy or f"{policy_folder(job).url}/policy"}
    )
    with blaming(job, "steps.policy"):
        return build.local_policy(Job(job.config.model_copy(update={"steps": steps}), job.source))
