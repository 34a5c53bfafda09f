"""The same table learned in several ways, several seeds each, in this process: which part of the method earns its keep.

What is measured is the mean gain over the fixed curve at equal cost, on held-out prompts; no Ray and no files.

Shapes: P prompts, K budgets, S seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.policy import Network
from actors.policy_network import StepPolicy
from training.judge.frontier import Bootstrap, FixedCurve, Rule
from training.judge.rivals import fixed, sweep
from training.learn.batches import Rows, num_slots, rows_at
from training.learn.hyperparameters import Learning, as_in_the_paper
from training.learn.learner import Learner, new_policy, outputs, start_of, units_of
from training.learn.reward import in_rises
from training.reward_table import RewardTable

NUM_PRICES = 12


@dataclass(frozen=True)
class Way:
    """How a policy is learned; the plug-in rule takes its quality head instead of its scores."""

    learning: Learning
    network: Network
    plug_in: bool = False


@dataclass(frozen=True)
class Outcome:
    """gains: by judge, mean gain over the fixed curve at equal cost, one a training seed; costs: mean costs."""

    name: str
    gains: Mapping[str, tuple[float, ...]]
    costs: tuple[float, ...]


def ways(learning: Learning, network: Network) -> dict[str, Way]:
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


def learn(rows: Rows, table: RewardTable, learning: Learning, network: Network) -> StepPolicy:
    """A policy of a table, whose prompts are the rows by number, learned here; its scores in rises."""
    count = len(table.prompts)
    slots = num_slots(learning.batch_size, count, 1)
    units = units_of(table.quality, learning.temperature)
    policy = new_policy(network, learning.seed, start_of(learning, units))
    learner = Learner(policy, learning, units, table.choices, table.costs, learning.num_steps(count, slots))
    while learner.step < learner.num_steps:
        learner.learn(rows.batch(rows_at(learner.step, range(slots), slots, count, learning.seed)))
    return units.finished(policy)


def ablate(
    learned: tuple[RewardTable, Rows],
    held_out: tuple[Mapping[str, RewardTable], Rows],
    candidates: Mapping[str, Way],
    seeds: Sequence[int] = range(5),
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Every way with every seed. A way without prices (the paper's) counts by its one point.

    held_out: the same prompts judged by one or several, by the judge's name.
    """
    outcomes = []
    for name, way in candidates.items():
        measured = [_measured(learned, held_out, way, seed) for seed in seeds]
        gains = {judge: tuple(one[judge] for one, _ in measured) for judge in held_out[0]}
        outcomes.append(Outcome(name, gains, tuple(cost for _, cost in measured)))
        if on_outcome:
            on_outcome(outcomes[-1])
    return outcomes


def _measured(
    learned: tuple[RewardTable, Rows], held_out: tuple[Mapping[str, RewardTable], Rows], way: Way, seed: int
) -> tuple[dict[str, float], float]:
    """Mean gain by judge and mean cost over prices."""
    learning = replace(way.learning, seed=seed)
    policy = learn(learned[1], learned[0], learning, way.network)
    scores, estimate = outputs(policy, held_out[1].chunks())
    prices = [0.0] if learning.reward == "paper" else np.geomspace(*learning.prices, NUM_PRICES).tolist()
    chosen_by = in_rises(estimate, learned[0].quality) if way.plug_in else scores
    gains, cost = {}, 0.0
    for judge, table in held_out[0].items():
        rule: Rule = sweep("policy", table, chosen_by, prices)
        curve = FixedCurve(fixed(table).points, Bootstrap(len(table.prompts), 1))
        gains[judge] = float(np.mean([curve.gain(point).value for point in rule.points]))
        cost = float(np.mean([point.mean_cost for point in rule.points]))
    return gains, cost


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """One line a way: by judge, mean and spread of the gain over training seeds; the mean cost."""
    judges = list(outcomes[0].gains) if outcomes else []
    lines = [f"{'learned by':<30} {'cost':>6} seeds " + " ".join(f"{f'gain by {judge}':>20}" for judge in judges)]
    for outcome in outcomes:
        cells = " ".join(f"{_mean_and_spread(outcome.gains[judge]):>20}" for judge in judges)
        lines.append(f"{outcome.name:<30} {np.mean(outcome.costs):6.3f} {len(outcome.costs):5d} {cells}")
    return "\n".join(lines)


def _mean_and_spread(gains: Sequence[float]) -> str:
    spread = np.std(gains, ddof=1) if len(gains) > 1 else 0.0
    return f"{np.mean(gains):+.4f} +-{spread:.4f}"
