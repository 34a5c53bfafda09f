"""Compares a policy with all that a user could do instead, on held-out prompts, with intervals.

It reads reward tables; it renders nothing and learns nothing. It reports what it finds, also where a fixed budget does
as well as the policy. `training.judge.verdict` puts the result into words, `training.judge.chart` draws it. Shapes: P
held-out prompts, P' learned ones, K budgets, S seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from training.judge import rivals
from training.judge.frontier import (
    FEW_PROMPTS,
    Bootstrap,
    FixedCurve,
    Interval,
    Point,
    Rule,
    difference,
    saving,
    smallest_not_worse,
)
from training.learning_error import Unlearnable
from training.reward_table import RewardTable

MARGIN_SHARE = 0.01  # of the range of quality


@dataclass(frozen=True)
class Evidence:
    """What an evaluation is made from. margin: the quality one may lose and still call a budget not worse.

    held_out: its quality is the judge's. learned: the table that the policy learned from, which must not share a prompt
    with held_out. allowed: the recipes (K,) that the policy may choose at a price. variants: held-out tables of the
    same prompts under another solver or guidance, by name. labels: for groups, such as {"category": [...]}.
    """

    learned: RewardTable | None  # P' prompts; None: unknown
    held_out: RewardTable  # P prompts
    scores: np.ndarray  # (P, K): the policy's, in rises
    prices: Sequence[float]
    margin: float
    variants: Mapping[str, RewardTable] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    allowed: Callable[[float], np.ndarray] | None = None


@dataclass(frozen=True)
class PromptGroup:
    """Prompts of one label at the recommended price. gain: against the fixed curve of the group at equal cost."""

    name: str
    prompts: int
    mean_steps: float
    mean_quality: float
    gain: Interval


@dataclass(frozen=True)
class Evaluation:
    """All that was found. gains: by rule, one per point, against the fixed curve at equal mean cost.

    curve: of fixed budgets in the policy's own setup, so that a gain is adaptivity's; best: with the variants, too.

    rival: the smallest fixed budget that is not worse than the largest; recommended: the policy's cheapest point that
    is not. savings: of the rival's cost, at the rival's own quality. strict_savings: of the cost of the best mixture of
    fixed budgets of any setup, where both come within the margin of the largest budget's quality; there the curve still
    rises, so that noise in quality is not taken for a saving. kept: the policy's mean gain as a share of the cross-seed
    oracle's, nan where that has none.
    """

    num_prompts: int
    fixed: Rule
    curve: FixedCurve
    best: FixedCurve
    variants: tuple[str, ...]  # names of the rules that are fixed budgets in another setup
    rival: Point
    margin: float
    policy: Rule
    rules: tuple[Rule, ...]  # the others
    gains: Mapping[str, tuple[Interval, ...]]
    savings: Mapping[str, Interval]
    strict_savings: Mapping[str, Interval]
    recommended: Point  # of the policy; its setting is the price
    recommended_loss: Interval  # its quality above the largest budget's
    kept: float
    monotone: bool  # no prompt's cost rises with the price
    agreement: np.ndarray  # (K,)
    groups: tuple[PromptGroup, ...]


def quality_margin(table: RewardTable) -> float:
    """1 % of the range of single pictures' quality in a table: of the learned one, so that it is set before looking."""
    low, high = np.quantile(table.quality, [0.01, 0.99])
    return float(MARGIN_SHARE * (high - low))


def evaluate(evidence: Evidence, resamples: int = 2000) -> Evaluation:
    """The comparison. ValueError where the tables do not belong together."""
    _refuse_strangers(evidence)
    table, prices = evidence.held_out, sorted({0.0, *evidence.prices})
    bootstrap = Bootstrap(len(table.prompts), resamples)
    fixed = rivals.fixed(table)
    variants = [rivals.fixed(other, name, table.seconds[-1]) for name, other in evidence.variants.items()]
    curve = FixedCurve(fixed.points, bootstrap)
    best = FixedCurve([point for rule in (fixed, *variants) for point in rule.points], bootstrap)
    policy = rivals.sweep("policy", table, evidence.scores, prices, evidence.allowed)
    elsewhere = [rivals.rendered_as(policy, table, other, name) for name, other in evidence.variants.items()]
    alternatives = rivals.words(table), rivals.oracle(table, prices)
    others = (*variants, *elsewhere, *alternatives)
    rival = smallest_not_worse(fixed.points, evidence.margin, bootstrap)
    alone, largest = Rule("rival", (rival,)), fixed.points[-1]
    within = replace(largest, quality=largest.quality - evidence.margin)
    recommended = _recommended(policy, largest, evidence.margin, bootstrap)
    every = (policy, *others)
    gains = {rule.name: tuple(curve.gain(point) for point in rule.points) for rule in every}
    return Evaluation(
        num_prompts=len(table.prompts),
        fixed=fixed,
        curve=curve,
        best=best,
        variants=tuple(evidence.variants),
        rival=rival,
        margin=evidence.margin,
        policy=policy,
        rules=others,
        gains=gains,
        savings={rule.name: saving(rule, alone, rival, bootstrap) for rule in every},
        strict_savings={rule.name: saving(rule, best.rule, within, bootstrap) for rule in every},
        recommended=recommended,
        recommended_loss=difference(recommended, largest, bootstrap),
        kept=_kept(gains["policy"], gains["cross-seed oracle"]),
        monotone=all(bool((b.cost <= a.cost).all()) for a, b in zip(policy.points, policy.points[1:], strict=False)),
        agreement=rivals.agreement(table),
        groups=tuple(_groups(evidence, fixed, recommended)),
    )


def _recommended(policy: Rule, largest: Point, margin: float, bootstrap: Bootstrap) -> Point:
    """The policy's cheapest point that is not worse than the largest budget; its best where none is."""
    good = [point for point in policy.points if difference(point, largest, bootstrap).low >= -margin]
    if good:
        return min(good, key=lambda point: point.mean_cost)
    return max(policy.points, key=lambda point: point.mean_quality)


def _kept(policy: Sequence[Interval], oracle: Sequence[Interval]) -> float:
    """By means over the same prices; nan where the oracle gains nothing for certain."""
    if not any(gain.low > 0 for gain in oracle) or np.mean([gain.value for gain in oracle]) <= 0:
        return float("nan")
    return float(np.mean([gain.value for gain in policy]) / np.mean([gain.value for gain in oracle]))


def _groups(evidence: Evidence, fixed: Rule, recommended: Point) -> list[PromptGroup]:
    found = []
    for label, values in evidence.labels.items():
        for value in sorted({str(value) for value in values}):
            rows = np.flatnonzero(np.array([str(each) for each in values]) == value)
            if len(rows) < FEW_PROMPTS:
                continue
            curve = FixedCurve([_part(point, rows) for point in fixed.points], Bootstrap(len(rows), 1000))
            point = _part(recommended, rows)
            name, steps = f"{label} {value}", float(point.steps.mean())
            found.append(PromptGroup(name, len(rows), steps, point.mean_quality, curve.gain(point)))
    return found


def _part(point: Point, rows: np.ndarray) -> Point:
    return Point(point.setting, point.quality[rows], point.cost[rows], point.steps[rows])


def _refuse_strangers(evidence: Evidence) -> None:
    table, count = evidence.held_out, len(evidence.held_out.prompts)
    for name, other in evidence.variants.items():
        if other.prompt_ids != table.prompt_ids:
            raise Unlearnable(f"the table of {name} is not of the held-out prompts: roll out the same ones")
    if evidence.learned is not None:
        _refuse_learned(evidence.learned, table)
    if len(evidence.scores) != count:
        raise Unlearnable(f"scores has {len(evidence.scores)} rows for {count} held-out prompts")
    for name, labels in evidence.labels.items():
        if len(labels) != count:
            raise Unlearnable(f"label {name} has {len(labels)} values for {count} held-out prompts")


def _refuse_learned(learned: RewardTable, table: RewardTable) -> None:
    if learned.choices != table.choices:
        raise Unlearnable("the learned table has another menu than the held-out one")
    if shared := set(learned.prompts) & set(table.prompts):
        raise Unlearnable(f"{len(shared)} prompts are both learned from and held out, such as {min(shared)!r}")
