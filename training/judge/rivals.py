"""Defines the rules to compare, the policy among them: each gives every prompt its quality and cost.

Pure numpy over reward tables. No rule chooses by the picture that it is judged by; the oracle chooses by one seed and
is judged by another. Rules that look at pictures and try again are `training.judge.tries`'. Shapes: P prompts, K
recipes, S seeds.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, permutations

import numpy as np

from actors.policy import choose_steps
from actors.selector import SelectorConfig, StepSelector
from training.judge.frontier import Point, Rule
from training.learn.reward import in_rises
from training.reward_table import RewardTable


def fixed(table: RewardTable, name: str = "fixed", unit_s: float | None = None) -> Rule:
    """Every recipe of the menu for all; `unit_s`: seconds of a cost of 1, None: the table's own largest budget."""
    costs = table.seconds / (unit_s or table.seconds[-1])
    points = [
        Point(
            float(recipe.num_steps),
            table.quality[:, k].mean(axis=1),
            *_same(len(table.prompts), costs[k], recipe.num_steps),
            recipe.words,
        )
        for k, recipe in enumerate(table.choices)
    ]
    return Rule(name, tuple(points))


def chosen(table: RewardTable, index: np.ndarray, setting: float) -> Point:
    """What prompts get from budgets chosen for them, index (P,) into the menu."""
    rows = np.arange(len(index))
    return Point(setting, table.quality.mean(axis=2)[rows, index], table.costs[index], table.steps[index])


def sweep(
    name: str,
    table: RewardTable,
    scores: np.ndarray,
    prices: Sequence[float],
    allowed: Callable[[float], np.ndarray] | None = None,
) -> Rule:
    """A policy's scores, or any estimate of quality in rises, (P, K), as a rule: the best of score - price * cost.

    `allowed`: the budgets (K,) there are at a price; None: all.
    """
    points = []
    for price in prices:
        usable = allowed(price) if allowed else None
        points.append(chosen(table, choose_steps(scores, table.costs, price, 1.0, allowed=usable)[0], price))
    return Rule(name, tuple(points))


def rendered_as(rule: Rule, table: RewardTable, other: RewardTable, name: str) -> Rule:
    """The budgets that a rule chose on a table, with the pictures of the same prompts in another setup."""
    points, rows = [], np.arange(len(table.prompts))
    for point in rule.points:
        index = np.abs(table.costs[:, None] - point.cost).argmin(axis=0)  # each chosen recipe by its own cost
        quality = other.quality.mean(axis=2)[rows, index]
        points.append(Point(point.setting, quality, other.seconds[index] / table.seconds[-1], point.steps))
    return Rule(f"{rule.name}, {name}", tuple(points))


def words(table: RewardTable) -> Rule:
    """The selector `words`: longer prompts, more steps."""
    selector = StepSelector(SelectorConfig("words", choices=table.choices))
    rows = np.array([f"{row}" for row in range(len(table.prompts))], object)
    names = selector({"prompt": np.array(table.prompts, object), "id": rows})["recipe_name"]
    known = {choice.name: at for at, choice in enumerate(table.choices)}
    index = np.array([known[name] for name in names])
    return Rule("words", (chosen(table, index, 0.0),))


def oracle(table: RewardTable, prices: Sequence[float]) -> Rule:
    """Chooses by the true quality of one seed and is judged by another, over all ordered pairs of seeds.

    What knowing a prompt's own pictures is worth to its other pictures: if this gains nothing, no policy can.
    """
    points, known = [], in_rises(table.quality, table.quality)
    for price in prices:
        parts = []
        for choose, judge in permutations(range(table.num_seeds), 2):
            index, _ = choose_steps(known[:, :, choose], table.costs, price, 1.0)
            parts.append((table.quality[np.arange(len(index)), index, judge], table.costs[index], index))
        quality, cost, index = (np.mean(values, axis=0) for values in zip(*parts, strict=True))
        steps = np.mean([table.steps[part[2]] for part in parts], axis=0)
        points.append(Point(price, quality, cost, steps))
    return Rule("cross-seed oracle", tuple(points))


def agreement(table: RewardTable) -> np.ndarray:
    """(K,) correlation between seeds of what a budget gains over the largest: the share of it that is the prompt's.

    A bound on what any reader of prompts can explain. nan for the largest itself, and where nothing differs.
    """
    gain = table.quality - table.quality[:, -1:, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = [
            [np.corrcoef(gain[:, k, a], gain[:, k, b])[0, 1] for a, b in combinations(range(table.num_seeds), 2)]
            for k in range(len(table.choices))
        ]
    return np.mean(pairs, axis=1)


def _same(count: int, cost: float, steps: float) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, float(cost)), np.full(count, float(steps))
