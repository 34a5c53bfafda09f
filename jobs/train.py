"""`train` makes a policy of a rollout's table, by REINFORCE on Ray Train workers; it loads no diffusion model."""

import click

from jobs.job_file.read import load_job
from jobs.terminal.console import Console
from jobs.terminal.options import address_option, console_options, job_argument, set_option


@click.command("train")
@job_argument
@set_option
@address_option
@console_options
def verb(console: Console, job_path: str, sets: tuple[str, ...], address: str | None) -> int:
    """Train the policy that chooses a prompt's steps, from the table of `rollout`.

    The policy goes to policy/ beside the table: name that folder in
    steps.policy. A quarter of the prompts is kept for `evaluate`. A training
    that was killed goes on from its checkpoint when it is typed again.

    \b
    Examples:
      python -m jobs rollout table.yaml --seeds 4
      python -m jobs train table.yaml -s train.workers=4
      python -m jobs evaluate table.yaml
    """
    from jobs.steps.training_run import train_policy

    job = load_job(job_path, sets)
    return train_policy(console, job, address)
