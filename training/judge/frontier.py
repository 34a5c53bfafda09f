"""Computes quality against cost: points, the curve of fixed budgets, and bootstrap intervals over prompts.

Pure numpy over arrays. A point holds what each prompt gets, so that two rules are compared prompt by prompt. Which
rules there are is `training.judge.rivals`; the whole comparison is `training.judge.compare`. Shapes: P prompts, R
resamples of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from training.learn.reward import upper_hull

RESAMPLES, LEVEL = 2000, 0.95
FEW_PROMPTS = 10  # of a group: less is left out


@dataclass(frozen=True)
class Point:
    """One way to choose at one setting, such as a price: what each prompt gets. quality, cost, steps: (P,).

    name, recipe: of one recipe for all, in words and by its number; elsewhere the setting says it.
    """

    setting: float
    quality: np.ndarray
    cost: np.ndarray
    steps: np.ndarray
    name: str = ""
    recipe: int = -1

    @property
    def mean_cost(self) -> float:
        """In units of the largest budget's cost."""
        return float(self.cost.mean())

    @property
    def mean_quality(self) -> float:
        """In the judge's units."""
        return float(self.quality.mean())


@dataclass(frozen=True)
class Rule:
    """A way to choose, over its settings."""

    name: str
    points: tuple[Point, ...]


class Interval(NamedTuple):
    """An estimate with the bounds of its bootstrap interval; nan where there is none."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


class Bootstrap:
    """Resamples of the same prompts for every comparison, which keeps them paired."""

    def __init__(self, num_prompts: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=resamples)
        self.weights = counts / num_prompts  # (R, P)

    def means(self, values: np.ndarray) -> np.ndarray:
        """(R,) means of values (P,)."""
        return self.weights @ values

    @staticmethod
    def interval(value: float, resampled: np.ndarray) -> Interval:
        """The central 95 % of the resamples; unbounded ends stay infinite."""
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail], method="nearest")
        return Interval(value, float(low), float(high))


class FixedCurve:
    """What fixed budgets reach at a mean cost: straight lines between the corners of their upper hull.

    A line between two budgets is a real rival: give part of the rows the one, the rest the other. Beyond its best
    budget the curve is flat, since nobody must spend more. The corners are those of the whole sample, or of other
    prompts: `corners`, by number.
    """

    def __init__(self, points: Sequence[Point], bootstrap: Bootstrap, corners: Sequence[int] | None = None) -> None:
        chosen = [points[at] for at in (hull_corners(points) if corners is None else corners)]
        self.corners = sorted(chosen, key=lambda point: point.mean_cost)
        self.costs = np.array([point.mean_cost for point in self.corners])
        self.bootstrap = bootstrap

    @cached_property
    def resampled(self) -> np.ndarray:
        """(R, corners)."""
        return np.stack([self.bootstrap.means(point.quality) for point in self.corners], axis=1)

    def at(self, cost: float) -> float:
        """Quality at a mean cost; nan below the cheapest budget."""
        if cost < self.costs[0] * (1 - 1e-9):  # rounding is no cheaper budget
            return math.nan
        return float(np.interp(cost, self.costs, [point.mean_quality for point in self.corners]))

    @property
    def rule(self) -> Rule:
        """The curve as a rule of its own."""
        return Rule("fixed curve", tuple(self.corners))

    def gain(self, point: Point) -> Interval:
        """A point's mean quality above the curve at its own mean cost, paired over prompts."""
        return self.bootstrap.interval(*self.gains(point))

    def gains(self, point: Point) -> tuple[float, np.ndarray]:
        """That gain, and of each resample (R,)."""
        value = point.mean_quality - self.at(point.mean_cost)
        quality, costs = self.bootstrap.means(point.quality), self.bootstrap.means(point.cost)
        costs = np.maximum(costs, self.costs[0])  # a resample may round just below
        curve = np.array([np.interp(c, self.costs, row) for c, row in zip(costs, self.resampled, strict=True)])
        return round(value, 12), np.round(quality - curve, 12) + 0.0  # equal is not below


def hull_corners(points: Sequence[Point]) -> list[int]:
    """The numbers of the points on the upper hull, by rising cost, up to the best one."""
    best: dict[float, int] = {}
    for at, point in enumerate(points):
        cost = point.mean_cost
        if cost not in best or point.mean_quality > points[best[cost]].mean_quality:
            best[cost] = at
    costs = np.array(sorted(best))
    quality = np.array([points[best[cost]].mean_quality for cost in costs])
    top = int(quality.argmax()) + 1
    return [best[float(costs[k])] for k in upper_hull(costs[:top], quality[:top])]


def mixture_at(points: Sequence[Point], cost: float) -> Point | None:
    """Two neighbouring points of a rule, each for its share of the rows, so that the mean cost is this.

    None below the cheapest point and above the dearest: nothing is made up there.
    """
    rising = sorted(points, key=lambda point: point.mean_cost)
    costs = np.array([point.mean_cost for point in rising])
    if not costs[0] <= cost <= costs[-1]:
        return None
    above = max(1, int(np.searchsorted(costs, cost))) if len(rising) > 1 else 0
    one, other = rising[above - 1], rising[above]
    width = other.mean_cost - one.mean_cost
    share = (cost - one.mean_cost) / width if width > 0 else 1.0
    quality, spent, steps = ((1 - share) * a + share * b for a, b in zip(_arrays(one), _arrays(other), strict=True))
    return Point(one.setting, quality, spent, steps)


def _arrays(point: Point) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return point.quality, point.cost, point.steps


def difference(one: Point, other: Point, bootstrap: Bootstrap) -> Interval:
    """Mean quality of one point above another's, paired."""
    return bootstrap.interval(
        one.mean_quality - other.mean_quality, bootstrap.means(one.quality) - bootstrap.means(other.quality)
    )


def smallest_not_worse(fixed: Sequence[Point], margin: float, bootstrap: Bootstrap) -> Point:
    """The cheapest fixed budget whose quality is not lower than the dearest's by `margin` or more, at 95 %.

    Non-inferiority: the lower bound of the paired difference lies above -margin. `fixed`: by rising cost.
    """
    largest = fixed[-1]
    return next(point for point in fixed if difference(point, largest, bootstrap).low >= -margin)


def saving(rule: Rule, against: Rule, wanted: Point, bootstrap: Bootstrap) -> Interval:
    """Share of the cost of one rule that another saves at the mean quality of a point, `wanted`.

    A rule's points, by rising cost, are joined by lines (a mixture of two settings). -inf: the rule never gets there;
    where the other never does, its dearest point is what is saved from, the least that can be said.
    """
    qualities = [wanted.mean_quality, *bootstrap.means(wanted.quality)]
    paid, due = _costs_of(rule, qualities, bootstrap), _costs_of(against, qualities, bootstrap)
    dearest = max(point.mean_cost for point in against.points)
    shares = 1 - paid / np.where(np.isinf(due), dearest, due)
    return bootstrap.interval(float(shares[0]), shares[1:])


def _costs_of(rule: Rule, wanted: Sequence[float], bootstrap: Bootstrap) -> np.ndarray:
    """(1 + R,) least costs that reach `wanted`, of the sample and of each resample."""
    points = sorted(rule.points, key=lambda point: point.mean_cost)
    costs = np.stack([[p.mean_cost, *bootstrap.means(p.cost)] for p in points], axis=1)  # (1 + R, points)
    quality = np.stack([[p.mean_quality, *bootstrap.means(p.quality)] for p in points], axis=1)
    return np.array([_cost_of(*row) for row in zip(wanted, costs, quality, strict=True)])


def _cost_of(wanted: float, costs: np.ndarray, quality: np.ndarray) -> float:
    """The least cost on the line through the points that reaches a quality; inf where none does."""
    best = np.maximum.accumulate(quality)
    reached = best >= wanted - 1e-12  # a point reaches its own quality, whatever the order of its sum
    if not reached[-1]:
        return math.inf
    at = int(np.argmax(reached))
    if at == 0:
        return float(costs[0])
    share = (wanted - best[at - 1]) / (quality[at] - best[at - 1])
    return float(costs[at - 1] + share * (costs[at] - costs[at - 1]))
