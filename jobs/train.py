"""`train`: a rollout's table becomes a policy, by REINFORCE on Ray Train workers; the diffusion model is not loaded."""

from typing import TYPE_CHECKING, Any

import click

from jobs import build
from jobs.cluster import start_ray
from jobs.command import address_option, console_options, job_argument, set_option
from jobs.console import Console
from jobs.errors import blaming
from jobs.learning import policy_folder, reward_table, train_config
from jobs.learning_check import check_workers
from jobs.load import Job, load_job

if TYPE_CHECKING:
    from actors.policy import PolicyCard


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
    job = load_job(job_path, sets)
    info = build.checkpoint(job)
    table, _ = reward_table(job)
    config = train_config(job, info, table)
    start_ray(address, console.debug)
    check_workers(job)
    card = learn(console, job, table, config)
    path = f"{policy_folder(job).url}/policy"
    console.result(document(job, card, path), text(card, path))
    return 0


def learn(console: Console, job: Job, table: Any, config: Any) -> "PolicyCard":
    """The training, with a line of progress for each report. Raises ConfigError for what does not fit."""
    from training.trainer import train

    def on_progress(record: dict[str, float]) -> None:
        console.started = True
        console.say(
            f"{record['progress']:4.0%} · gain {record['val_gain']:+.4f} · "
            f"cost {record['val_cost']:.3f} · entropy {record['entropy']:.2f}"
        )

    console.say(f"{len(table.prompts):,} prompts, {len(table.choices)} budgets, {table.num_seeds} seeds")
    with blaming(job, "train"):
        return train(policy_folder(job), table, config, on_progress)


def document(job: Job, card: "PolicyCard", path: str) -> dict[str, Any]:
    """For `--json`."""
    return {
        "run": job.config.train.table or job.config.output.path,
        "status": "done",
        "policy": path,
        "version": card.version,
        "choices": list(card.choices),
        "calibration": list(card.calibration),
    }


def text(card: "PolicyCard", path: str) -> str:
    """What the policy does at several prices, and where it is."""
    lines = [f"{'price':>8} {'steps':>6} {'cost':>6} {'quality':>8}"]
    for point in card.calibration:
        lines.append(
            f"{point['price']:8.3g} {point['mean_steps']:6.1f} {point['mean_cost']:6.3f} {point['quality']:8.4f}"
        )
    return "\n".join([*lines, f"on held-out prompts; use it with steps.policy: {path}", path])
