"""Compares ways to spend on pictures: one recipe, best of n, one bar for all, and the policy, with tries and without.

Hulls and references are chosen on the learning table, where there is one, and judged on other prompts by a judge that
chose nothing. The costs at which the policy is held against the rest are named here, before anything is looked at.
Words are `training.judge.spending_words`'. Shapes: P prompts, K recipes, S seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.recipe import Recipe
from training.judge.frontier import (
    Bootstrap,
    FixedCurve,
    Interval,
    Point,
    Rule,
    hull_corners,
    mixture_at,
    saving,
)
from training.judge.tries import SINGLE, Pictures, best_of, one_bar, singles, stopped

NAMED_COSTS = (0.7, 1.0, 1.5)  # in those of one picture of the reference recipe
PRICES = tuple(np.geomspace(0.03, 30.0, 31).tolist())  # sigma_ref per cost of a reference picture
POLICY, POLICY_ONLY = "policy and tries", "policy, one picture"  # names of rules

Choose = Callable[[float, int], tuple[np.ndarray, np.ndarray]]  # price, most tries -> recipe (P,), bar (P,)


@dataclass(frozen=True)
class AtCost:
    """The policy with tries at one named cost, against the hull of best of n. None, nan: it has no point there."""

    cost: float
    quality: float
    gain: Interval | None
    saved: Interval | None  # share of the hull's cost at the hull's quality there


@dataclass(frozen=True)
class Reference:
    """What a user could take instead: one recipe for all. recipe: its number; saved: of its cost at its quality, by
    rule.
    """

    what: str
    recipe: int
    point: Point
    saved: Mapping[str, Interval]


@dataclass(frozen=True)
class Spending:
    """All that was found. rules: by name; references: the first is the card's.

    hull: best of n, its corners frozen on the learning table. primary: the mean gain over it at the named costs that
    the policy reaches; None without a policy.
    """

    choices: tuple[Recipe, ...]
    num_prompts: int
    num_seeds: int
    max_tries: int
    rules: Mapping[str, Rule]
    hull: FixedCurve
    references: tuple[Reference, ...]
    at: tuple[AtCost, ...]
    primary: Interval | None
    over_one_bar: Interval | None  # the same over one bar for all: what reading the prompt is worth
    tuned_elsewhere: bool  # on a learning table; else on these very prompts, which flatters the rivals


def compare_spending(
    here: Pictures,
    choose: Choose | None,
    learned: Pictures | None = None,
    max_tries: int = 4,
    reference: int = -1,
    prices: Sequence[float] = PRICES,
    resamples: int = 2000,
) -> Spending:
    """The comparison. choose: None without a policy that sets bars. reference: the recipe (by number) that a user would
    take without us.

    learned: other prompts; where it is None, hulls and bars are those of `here`.
    """
    known = learned or here
    bootstrap = Bootstrap(here.num_prompts, resamples)
    single, several = singles(here), best_of(here)
    bars, known_bars = (one_bar(each, known.seen, max_tries) for each in (here, known))
    tried = _corners(bars, known_bars)
    hull_rule = _corners(several, best_of(known))
    hull, bar_curve = (FixedCurve(rule.points, bootstrap, range(len(rule.points))) for rule in (hull_rule, tried))
    ways = ((max_tries, POLICY), (1, POLICY_ONLY))
    policy = [_policy(here, choose, most, prices, name) for most, name in ways] if choose else []
    rules = {rule.name: rule for rule in (*policy, tried, hull_rule, single)}
    whole = policy[0] if policy else None
    return Spending(
        choices=here.choices,
        num_prompts=here.num_prompts,
        num_seeds=here.quality.shape[2],
        max_tries=max_tries,
        rules=rules,
        hull=hull,
        references=_references(rules, singles(known), reference, bootstrap),
        at=tuple(_at(whole, hull, cost, bootstrap) for cost in NAMED_COSTS) if whole else (),
        primary=_mean_gain(whole, hull, bootstrap) if whole else None,
        over_one_bar=_mean_gain(whole, bar_curve, bootstrap) if whole else None,
        tuned_elsewhere=learned is not None,
    )


def _policy(here: Pictures, choose: Choose, most: int, prices: Sequence[float], name: str) -> Rule:
    return Rule(name, tuple(stopped(here, *choose(price, most), most, price) for price in prices))


def _corners(rule: Rule, known: Rule) -> Rule:
    """The points of a rule that are on its hull where it was tuned."""
    return Rule(rule.name, tuple(rule.points[at] for at in hull_corners(known.points)))


def _references(rules: Mapping[str, Rule], known: Rule, reference: int, bootstrap: Bootstrap) -> tuple[Reference, ...]:
    """The card's reference, the recipe of the best mean on the learning table, the largest plain budget."""
    points = rules[SINGLE].points
    named = {reference % len(points): "what you would take without a policy"}
    named.setdefault(int(np.argmax([point.mean_quality for point in known.points])), "the best recipe")
    plain = [at for at, point in enumerate(points) if "," not in point.name]
    if plain:
        named.setdefault(plain[-1], "the largest plain budget")
    found = []
    for at, what in named.items():
        alone = Rule(SINGLE, (points[at],))
        saved = {name: saving(rule, alone, points[at], bootstrap) for name, rule in rules.items() if name != SINGLE}
        found.append(Reference(what, at, points[at], saved))
    return tuple(found)


def _at(policy: Rule, hull: FixedCurve, cost: float, bootstrap: Bootstrap) -> AtCost:
    point = mixture_at(policy.points, cost)
    if point is None or cost < hull.costs[0]:
        return AtCost(cost, float("nan"), None, None)
    wanted = mixture_at(hull.corners, min(cost, float(hull.costs[-1])))
    assert wanted is not None
    return AtCost(cost, point.mean_quality, hull.gain(point), saving(policy, hull.rule, wanted, bootstrap))


def _mean_gain(policy: Rule, curve: FixedCurve, bootstrap: Bootstrap) -> Interval | None:
    """One interval for all named costs together; None where the policy reaches none of them."""
    points = [mixture_at(policy.points, cost) for cost in NAMED_COSTS if cost >= curve.costs[0]]
    gains = [curve.gains(point) for point in points if point is not None]
    if not gains:
        return None
    values, resampled = zip(*gains, strict=True)
    return bootstrap.interval(float(np.mean(values)), np.mean(resampled, axis=0))
