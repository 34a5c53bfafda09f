"""The same reward table learned in several ways, several training seeds each: which part of the method earns its keep.

    python -m benchmarks.ablation JOB [--seeds 5] [--only "no baseline"]

JOB is the job file of a rollout, with evaluate.table a rollout of held-out prompts. The table shows the mean gain over
the fixed curve at equal cost on the held-out prompts, mean over prices, by the job's own scorer and by a judge that
training never saw. Every way is trained to its end; no weights are picked by what they do.

Shapes: P prompts, K budgets, S seeds.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.policy import Network
from actors.policy_network import StepPolicy
from actors.prompt_encoder import PromptEncoder
from jobs.job_file import settings
from jobs.job_file.read import load_job
from jobs.steps.judging import unseen_judge
from jobs.steps.training_settings import hyperparameters_of, rollout_run, table_run, whole_table
from training.judge.frontier import Bootstrap, FixedCurve
from training.judge.rivals import fixed, sweep
from training.learn.batches import TrainingRows, num_slots, rows_at
from training.learn.hyperparameters import Hyperparameters, as_in_the_paper
from training.learn.learner import Learner
from training.learn.reward import in_rises
from training.learn.step_loss import StepLoss, new_policy, outputs, start_of, units_of
from training.reward_table import RewardTable

NUM_PRICES = 12


@dataclass(frozen=True)
class Way:
    """How a policy is learned. plug_in: the rule reads its quality head instead of its scores."""

    learning: Hyperparameters
    network: Network
    plug_in: bool = False


@dataclass(frozen=True)
class Outcome:
    """gains: by judge, mean gain over the fixed curve at equal cost, one per training seed; costs: mean costs."""

    name: str
    gains: Mapping[str, tuple[float, ...]]
    costs: tuple[float, ...]


def ways(learning: Hyperparameters, network: Network) -> dict[str, Way]:
    """The method, each of its parts exchanged, the paper's own, the regression head, and sizes."""
    small, wide = max(network.num_heads, network.width // 4), 2 * network.width
    return {
        "leave-one-out": Way(learning, network),
        "no baseline": Way(replace(learning, baseline="none"), network),
        "batch mean": Way(replace(learning, baseline="batch_mean"), network),
        "all actions": Way(replace(learning, gradient="expected"), network),
        "no entropy": Way(replace(learning, entropy=0.0, entropy_end=0.0), network),
        "paper's reward and gradient": Way(as_in_the_paper(learning), network),
        "paper's reward, our gradient": Way(replace(learning, reward="paper", temperature=1.0), network),
        "regression head": Way(learning, network, plug_in=True),
        "a quarter as wide": Way(learning, replace(network, width=small)),
        "twice as wide": Way(learning, replace(network, width=wide)),
        "one layer": Way(learning, replace(network, num_layers=1)),
    }


def learn(rows: TrainingRows, table: RewardTable, learning: Hyperparameters, network: Network) -> StepPolicy:
    """A policy of a table, whose prompts are the rows by number, learned here; its scores in rises."""
    count = len(table.prompts)
    slots = num_slots(learning.batch_size, count, 1)
    units = units_of(table.quality, learning.temperature)
    policy = new_policy(network, learning.seed, start_of(learning, units))
    loss = StepLoss(learning, units, table.choices, table.costs)
    learner = Learner(policy, learning, loss, learning.num_steps(count, slots))
    while learner.step < learner.num_steps:
        learner.learn(rows.batch(rows_at(learner.step, range(slots), slots, count, learning.seed)))
    return units.finished(policy)


def ablate(
    name: str,
    learned: tuple[RewardTable, TrainingRows],
    held_out: tuple[Mapping[str, RewardTable], TrainingRows],
    way: Way,
    seeds: Sequence[int] = range(5),
) -> Outcome:
    """One way with every seed. A way without prices (the paper's) counts by its one point.

    held_out: the same prompts judged by one or several, by the judge's name.
    """
    measured = [_measured(learned, held_out, way, seed) for seed in seeds]
    gains = {judge: tuple(one[judge] for one, _ in measured) for judge in held_out[0]}
    return Outcome(name, gains, tuple(cost for _, cost in measured))


def _measured(
    learned: tuple[RewardTable, TrainingRows],
    held_out: tuple[Mapping[str, RewardTable], TrainingRows],
    way: Way,
    seed: int,
) -> tuple[dict[str, float], float]:
    """Mean gain by judge and mean cost over prices."""
    learning = replace(way.learning, seed=seed)
    policy = learn(learned[1], learned[0], learning, way.network)
    scores, estimate = outputs(policy, held_out[1].chunks())
    prices = [0.0] if learning.reward == "paper" else np.geomspace(*learning.prices, NUM_PRICES).tolist()
    chosen_by = in_rises(estimate, learned[0].quality) if way.plug_in else scores
    gains, cost = {}, 0.0
    for judge, table in held_out[0].items():
        rule = sweep("policy", table, chosen_by, prices)
        curve = FixedCurve(fixed(table).points, Bootstrap(len(table.prompts), 1))
        gains[judge] = float(np.mean([curve.gain(point).value for point in rule.points]))
        cost = float(np.mean([point.mean_cost for point in rule.points]))
    return gains, cost


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """One line per way: by judge, mean and spread of the gain over training seeds; the mean cost."""
    judges = list(outcomes[0].gains) if outcomes else []
    lines = [f"{'learned by':<30} {'cost':>6} seeds " + " ".join(f"{f'gain by {judge}':>20}" for judge in judges)]
    for outcome in outcomes:
        cells = " ".join(f"{_mean_and_spread(outcome.gains[judge]):>20}" for judge in judges)
        lines.append(f"{outcome.name:<30} {np.mean(outcome.costs):6.3f} {len(outcome.costs):5d} {cells}")
    return "\n".join(lines)


def _mean_and_spread(gains: Sequence[float]) -> str:
    spread = np.std(gains, ddof=1) if len(gains) > 1 else 0.0
    return f"{np.mean(gains):+.4f} +-{spread:.4f}"


def main() -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--seeds", type=int, default=5, help="training seeds of each way")
    parser.add_argument("--only", action="append", default=[], metavar="WAY", help="only this way; as often as wanted")
    parser.add_argument("--fidelity", type=float, default=0.5, help="its weight where several scorers count")
    options = parser.parse_args()
    job = load_job(options.job)
    table = whole_table(job, "output.path", table_run(job))
    judged = whole_table(job, "evaluate.table", rollout_run(job, "evaluate.table"))
    encoder = PromptEncoder(settings.model_source(job).local())
    given = job.config.train
    network = Network(encoder.hidden_size, len(table.choices), given.width, given.layers, given.heads)
    learning = hyperparameters_of(given, table)
    judge = job.config.evaluate.judge or unseen_judge(job, judged)
    judges = ({judge: judged.judged_by(judge)} if judge else {}) | {"own scorer": judged}
    held_out = judges, rows_of(encoder, judged)
    embeds = encoder.embed(table.prompts)
    wanted = [(name, way, table) for name, way in ways(learning, network).items()]
    if "fidelity" in table.scores:
        both = table.weighed({"clip": 1.0, "fidelity": options.fidelity})
        wanted.append(("two scorers", Way(hyperparameters_of(given, both), network), both))
    outcomes = []
    for name, way, learned in wanted:
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        rows = TrainingRows(dict(enumerate(embeds)), dict(enumerate(learned.quality)))
        outcomes.append(ablate(name, (learned, rows), held_out, way, range(options.seeds)))
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(outcome_table(outcomes))
    return 0


def rows_of(encoder: PromptEncoder, table: RewardTable) -> TrainingRows:
    """All prompts of a table, read by the encoder."""
    return TrainingRows(dict(enumerate(encoder.embed(table.prompts))), dict(enumerate(table.quality)))


if __name__ == "__main__":
    sys.exit(main())
