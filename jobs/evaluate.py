"""`evaluate`: a policy on held-out prompts, against everything that a user could do instead."""

import click

from jobs import build
from jobs.command import DONE, address_option, console_options, job_argument, set_option
from jobs.console import Console
from jobs.judging import judged, report, text
from jobs.learning import policy_folder, reward_table, rollout_run, table_run, whole_table
from jobs.load import Job, load_job
from jobs.rollouts import prompts_of, roll_out, variant_job, variant_path


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
    from jobs.cluster import start_ray
    from training.evidence import Setup

    job = load_job(job_path, sets)
    given = job.config.evaluate
    learned, kept = reward_table(job)
    run = rollout_run(job, "evaluate.table") if given.table else table_run(job)
    table = whole_table(job, "evaluate.table", run) if kept is None else kept
    policy = trained_policy(job)
    variants = {}
    for variant in given.variants:
        path = variant_path(run, variant)
        start_ray(address, console.debug)
        console.say(f"{variant.solver}, guidance {variant.guidance_scale:g}: {path}")
        code = roll_out(
            console, variant_job(job, variant), path, prompts_of(run, table), table.choices, table.num_seeds
        )
        if code != DONE:
            return code
        done = whole_table(job, "evaluate.variants", build.run_at(job, path))
        variants[Setup(variant.solver, variant.guidance_scale)] = done
    console.draw(f"reading {len(table.prompts):,} prompts")
    found = judged(job, policy, table, learned, variants)
    version = read_card(policy).version
    about = {"version": version, "prompts": len(table.prompts), "seeds": table.num_seeds}
    where = report(run, "Does adaptivity pay? Held-out prompts", found, about)
    from training.findings import document

    documents = {name: document(each) for name, each in found.items()}
    console.result({"run": run.url, "status": "done", "report": where, "judges": documents}, f"{text(found)}\n{where}")
    return DONE


def trained_policy(job: Job) -> str:
    """The policy's folder on this machine: steps.policy, else what `train` made of the table. Raises StorageError."""
    steps = job.config.steps.model_copy(
        update={"policy": job.config.steps.policy or f"{policy_folder(job).url}/policy"}
    )
    return build.local_policy(Job(job.config.model_copy(update={"steps": steps}), job.source))
