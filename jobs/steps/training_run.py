"""Trains a policy from a table of rollouts, and says how it learned."""

from typing import Any

from actors.policy import PolicyCard
from jobs.job_file.errors import blaming
from jobs.job_file.read import Job
from jobs.job_file.settings import read_checkpoint
from jobs.steps.training_check import check_workers
from jobs.steps.training_settings import reward_table, train_config, training_folder
from jobs.terminal.connect_ray import start_ray
from jobs.terminal.console import Console
from training.learn.trainer import TrainConfig, train
from training.reward_table import RewardTable

MOST_LINES = 9


class LearningLine:
    """Shows how far a training is: redrawn on a terminal, elsewhere a line a quarter of each stage."""

    def __init__(self, console: Console) -> None:
        self.console, self.quarter = console, -1

    def __call__(self, record: dict[str, float]) -> None:
        """record: a line of metrics.jsonl."""
        self.console.started = True
        line = f"{record['progress']:4.0%} learned · {record['val_gain']:+.4f} against its start, held-out prompts"
        quarter = int(4 * record["progress"])
        if self.console.is_terminal:
            self.console.draw(line)
        elif quarter != self.quarter:
            self.console.say(line)
        self.quarter = quarter


def learn(console: Console, job: Job, table: RewardTable, config: TrainConfig) -> PolicyCard:
    """The training, with a line of progress. Raises ConfigError for what does not fit."""
    console.say(f"{len(table.prompts):,} prompts, {len(table.choices)} recipes, {table.num_seeds} seeds")
    with blaming(job, "train"):
        return train(training_folder(job), table, config, LearningLine(console))


def document(job: Job, card: PolicyCard, path: str) -> dict[str, Any]:
    """For `--json`."""
    return {
        "run": job.config.train.table or job.config.output.path,
        "status": "done",
        "policy": path,
        "version": card.version,
        "choices": [choice.plain() for choice in card.choices],
        "calibration": list(card.calibration),
    }


def training_text(card: PolicyCard, path: str) -> str:
    """What the policy does at several prices on held-out prompts, and where it is."""
    costs = [point["mean_cost"] for point in card.calibration]
    if len({round(cost, 6) for cost in costs}) == 1:
        head = "The policy gives all prompts one recipe at every price: nothing was learned that pays."
    else:
        head = (
            f"The policy takes {costs[0]:.2f} of the dearest recipe's cost where quality is all (price 0), down to "
            f"{costs[-1]:.2f} at price {card.calibration[-1]['price']:.3g}. Whether it pays: python -m jobs evaluate."
        )
    lines = [head, f"{'price':>8} {'steps':>6} {'cost':>6} {'quality':>8}"]
    for point in card.calibration[:: -(-len(card.calibration) // MOST_LINES)]:
        lines.append(
            f"{point['price']:8.3g} {point['mean_steps']:6.1f} {point['mean_cost']:6.3f} {point['quality']:8.4f}"
        )
    return "\n".join([*lines, f"on held-out prompts, one picture a row; use it with steps.policy: {path}", path])


def train_policy(console: Console, job: Job, address: str | None) -> int:
    """Learn a policy from a table and say how; the exit code."""
    info = read_checkpoint(job)
    table, _ = reward_table(job)
    config = train_config(job, info, table)
    start_ray(address, console.debug)
    check_workers(job)
    card = learn(console, job, table, config)
    path = f"{training_folder(job).url}/policy"
    console.result(document(job, card, path), training_text(card, path))
    return 0
