"""`evaluate` compares a policy on held-out prompts with everything that a user could do instead."""

import click

from jobs.job_file.read import load_job
from jobs.terminal.console import Console
from jobs.terminal.options import address_option, console_options, job_argument, set_option


@click.command("evaluate")
@job_argument
@set_option
@address_option
@console_options
def verb(console: Console, job_path: str, sets: tuple[str, ...], address: str | None) -> int:
    """Judge a policy on prompts that it never learned from.

    The policy is steps.policy, else the one that `train` made of this table.
    With tries and without, it is compared at equal cost with every recipe for
    all, the best of one to four pictures, one bar for all, rules that read the
    text without a network, other solvers and guidance (evaluate.variants,
    which are rendered first), and the cross-seed oracle. What is tuned is
    tuned on the table that was learned from. The headline is by a judge that
    training did not count.
    Writes evaluation/ in the table's run folder.

    \b
    Examples:
      python -m jobs evaluate table.yaml
      python -m jobs evaluate table.yaml -s evaluate.table=runs/other-prompts
    """
    from jobs.steps.policy_evaluation import evaluate_policy

    job = load_job(job_path, sets)
    return evaluate_policy(console, job, address)
