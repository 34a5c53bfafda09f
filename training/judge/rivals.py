"""What a policy is compared with, and the policy itself: each a rule that gives every prompt its quality and cost.

Pure numpy over reward tables. No rule sees the picture it is judged by: those that read text learn from another table,
the oracle chooses by one seed and is judged by another; only a second try looks, at its own first picture.

Shapes: P prompts, K budgets, S seeds, F features.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, permutations

import numpy as np

from actors.policy import choose_steps
from actors.selector import SelectorConfig, StepSelector
from training.judge.frontier import Point, Rule
from training.learn.reward import centred, in_rises
from training.reward_table import RewardTable

NEIGHBOURS = (8, 16, 32, 64, 128)
RIDGES = np.geomspace(1e-3, 1e5, 17)
BARS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # shares of first pictures that fall short


def fixed(table: RewardTable, name: str = "fixed", unit_s: float | None = None) -> Rule:
    """Every budget of the menu for all; `unit_s`: seconds of a cost of 1, None: the table's own largest budget."""
    costs = table.seconds / (unit_s or table.seconds[-1])
    points = [
        Point(float(steps), table.quality[:, k].mean(axis=1), *_same(len(table.prompts), costs[k], steps))
        for k, steps in enumerate(table.choices)
    ]
    return Rule(name, tuple(points))


def chosen(table: RewardTable, index: np.ndarray, setting: float) -> Point:
    """What prompts get from budgets chosen for them, index (P,) into the menu."""
    rows = np.arange(len(index))
    return Point(
        setting, table.quality.mean(axis=2)[rows, index], table.costs[index], np.array(table.choices)[index] * 1.0
    )


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
        index = np.searchsorted(table.choices, point.steps)
        quality = other.quality.mean(axis=2)[rows, index]
        points.append(Point(point.setting, quality, other.seconds[index] / table.seconds[-1], point.steps))
    return Rule(f"{rule.name}, {name}", tuple(points))


def shuffled(rule: Rule, table: RewardTable) -> Rule:
    """Each point's own histogram of budgets, dealt to prompts at random: what is left without reading the prompt."""
    steps, points = np.array(table.choices), []
    for point in rule.points:
        shares = (point.steps[:, None] == steps).mean(axis=0)  # (K,)
        quality = table.quality.mean(axis=2) @ shares
        points.append(Point(point.setting, quality, *_same(len(quality), shares @ table.costs, shares @ steps)))
    return Rule(f"{rule.name}, shuffled", tuple(points))


def words(table: RewardTable) -> Rule:
    """The selector `words`: longer prompts, more steps."""
    selector = StepSelector(SelectorConfig("words", choices=table.choices))
    rows = np.array([f"{row}" for row in range(len(table.prompts))], object)
    steps = selector({"prompt": np.array(table.prompts, object), "id": rows})["num_steps"]
    index = np.searchsorted(table.choices, steps.astype(np.int64))
    return Rule("words", (chosen(table, index, 0.0),))


def word_features(prompts: Sequence[str]) -> np.ndarray:
    """(P, 3): number of words, its root and its logarithm."""
    count = np.array([len(prompt.split()) for prompt in prompts], np.float64)
    return np.stack([count, np.sqrt(count), np.log1p(count)], axis=1)


def linear(features: np.ndarray, learned: RewardTable, others: np.ndarray) -> np.ndarray:
    """Centred quality (P', K) of others (P', F) by ridge regression on features (P, F) of a table.

    The ridge is the one with the least leave-one-out error, which has a closed form.
    """
    target = centred(learned.quality).mean(axis=2)  # (P, K)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    x, level = (features - mean) / spread, target.mean(axis=0)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    projected = u.T @ (target - level)  # (F, K)

    def error(ridge: float) -> float:
        shrunk = s**2 / (s**2 + ridge)
        leverage = (u**2) @ shrunk + 1 / len(x)
        residual = target - level - u @ (shrunk[:, None] * projected)
        return float(np.square(residual / (1 - np.minimum(leverage, 0.999))[:, None]).mean())

    ridge = min(RIDGES, key=error)
    weights = vt.T @ ((s / (s**2 + ridge))[:, None] * projected)
    return level + ((others - mean) / spread) @ weights


def nearest(features: np.ndarray, learned: RewardTable, others: np.ndarray) -> np.ndarray:
    """Centred quality (P', K) of others (P', F): the mean of the k nearest by cosine; k by leave-one-out error."""
    target = centred(learned.quality).mean(axis=2)
    mean = features.mean(axis=0)
    x, y = _unit(features - mean), _unit(others - mean)
    among = x @ x.T
    np.fill_diagonal(among, -np.inf)
    order = np.argsort(-among, axis=1)
    counts = [k for k in NEIGHBOURS if k < len(x)] or [max(1, len(x) - 1)]
    count = min(counts, key=lambda k: float(np.square(target - target[order[:, :k]].mean(axis=1)).mean()))
    found = np.argpartition(-(y @ x.T), count - 1, axis=1)[:, :count]
    return target[found].mean(axis=1)


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
        steps = np.mean([np.array(table.choices)[part[2]] for part in parts], axis=0)
        points.append(Point(price, quality, cost, steps))
    return Rule("cross-seed oracle", tuple(points))


def best_of_two(table: RewardTable, seen: np.ndarray) -> Rule:
    """A fixed budget twice, with two seeds, and the better by the scorer that a job has: `seen` (P, K, S)."""
    points = []
    for k, steps in enumerate(table.choices):
        pairs = [_better(table.quality[:, k], seen[:, k], a, b) for a, b in combinations(range(table.num_seeds), 2)]
        quality = np.mean(pairs, axis=0)
        points.append(Point(float(steps), quality, *_same(len(quality), 2 * table.costs[k], 2 * steps)))
    return Rule("best of two", tuple(points))


def second_try(table: RewardTable, seen: np.ndarray) -> Rule:
    """A fixed budget, and again with another seed where the first picture scores below a bar; the better is kept.

    Bars are quantiles of `seen` (P, K, S). Of all budgets and bars only those are given that no cheaper one equals.
    """
    points = []
    for k, steps in enumerate(table.choices):
        for bar in np.quantile(seen[:, k], BARS):
            parts = []
            for a, b in permutations(range(table.num_seeds), 2):
                again = seen[:, k, a] < bar
                better = _better(table.quality[:, k], seen[:, k], a, b)
                parts.append((np.where(again, better, table.quality[:, k, a]), 1.0 + again))
            quality, tries = (np.mean(values, axis=0) for values in zip(*parts, strict=True))
            points.append(Point(float(bar), quality, tries * table.costs[k], tries * steps))
    rising: list[Point] = []
    for point in sorted(points, key=lambda point: point.mean_cost):
        if not rising or point.mean_quality > rising[-1].mean_quality:
            rising.append(point)
    return Rule("second try", tuple(rising))


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


def _better(quality: np.ndarray, seen: np.ndarray, a: int, b: int) -> np.ndarray:
    """The quality (P,) of the seed that looks better; quality and seen (P, S)."""
    return np.where(seen[:, a] >= seen[:, b], quality[:, a], quality[:, b])


def _same(count: int, cost: float, steps: float) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, float(cost)), np.full(count, float(steps))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
