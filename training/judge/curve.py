"""Says what steps buy before anything is learned: quality by budget and group, and where it saturates.

It says how much a policy could gain at most; what one gains is `training.judge.compare`'s. Pure over a reward table.
Shapes: P prompts, K budgets, S seeds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.recipe import Recipe
from training.judge import rivals
from training.judge.frontier import FEW_PROMPTS, Bootstrap, FixedCurve, Interval, Point, difference, smallest_not_worse
from training.learn.reward import default_prices, in_rises
from training.reward_table import RewardTable

NUM_PRICES = 8
FEW_TO_SAY, LEAST_SHARE = 100, 0.1  # prompts; of what recipes differ by: below it no reader of prompts can gain much


@dataclass(frozen=True)
class GroupCurve:
    """One group's mean quality at every budget, and its smallest budget that is not worse than the largest."""

    name: str
    prompts: int
    quality: tuple[Interval, ...]  # (K,)
    saturated: str  # recipe


@dataclass(frozen=True)
class Curve:
    """groups: all prompts first. agreement (K,): the prompt's share of what budgets differ by; oracle: gain by price.

    agreement is the correlation between seeds of what a budget loses against the largest: all that any reader of
    prompts could explain of it. by_group: how much of the agreement a group's own mean explains.
    """

    choices: tuple[Recipe, ...]
    margin: float
    groups: tuple[GroupCurve, ...]
    agreement: np.ndarray
    oracle: tuple[tuple[float, Interval], ...]  # (price, gain over the fixed curve at equal cost)
    oracle_by_group: tuple[tuple[float, Interval], ...]  # who knows each group's curve, chosen on other prompts


def curve(table: RewardTable, groups: Mapping[str, Sequence[str]], margin: float, resamples: int = 2000) -> Curve:
    """`groups`: labels of the prompts, by name of the label; the first decides what a group's own curve is worth."""
    rows = {"all": np.arange(len(table.prompts))}
    for label, values in groups.items():
        names = np.array([str(value) for value in values])
        rows |= {f"{label} {name}": np.flatnonzero(names == name) for name in _ordered(names)}
    bootstrap = Bootstrap(len(table.prompts), resamples)
    fixed = FixedCurve(rivals.fixed(table).points, bootstrap)
    prices = _prices(table)
    first = next(iter(groups.values()), None)
    by_group = [] if first is None or not prices else _by_group(table, [str(value) for value in first], prices)
    return Curve(
        choices=table.choices,
        margin=margin,
        groups=tuple(
            _group(table.take(some), name, margin, resamples) for name, some in rows.items() if len(some) >= FEW_PROMPTS
        ),
        agreement=rivals.agreement(table),
        oracle=tuple((p.setting, fixed.gain(p)) for p in (rivals.oracle(table, prices).points if prices else ())),
        oracle_by_group=tuple((p.setting, fixed.gain(p)) for p in by_group),
    )


def _ordered(names: Iterable[str]) -> list[str]:
    """`9 to 13` before `14 to 18`."""
    return sorted(
        {str(name) for name in names},
        key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )


def _prices(table: RewardTable) -> list[float]:
    try:
        low, high = default_prices(in_rises(table.quality, table.quality), table.costs)
    except ValueError:  # nothing rises: no price changes a budget
        return []
    return [float(price) for price in np.geomspace(low, high, NUM_PRICES)]


def _group(table: RewardTable, name: str, margin: float, resamples: int) -> GroupCurve:
    bootstrap = Bootstrap(len(table.prompts), resamples)
    points = rivals.fixed(table).points
    none = np.zeros(len(table.prompts))
    nothing = Point(0.0, none, none, none)
    return GroupCurve(
        name,
        len(table.prompts),
        tuple(difference(point, nothing, bootstrap) for point in points),
        smallest_not_worse(points, margin, bootstrap).name,
    )


def _by_group(table: RewardTable, names: Sequence[str], prices: Sequence[float]) -> list[Point]:
    """The best budget of each group, chosen on one half of its prompts and used on the other."""
    estimate = np.zeros((len(table.prompts), len(table.choices)))
    mean = in_rises(table.quality, table.quality).mean(axis=2)
    for name in sorted(set(names)):
        rows = np.flatnonzero(np.array(names) == name)
        halves = rows[::2], rows[1::2]
        for one, other in (halves, halves[::-1]):
            estimate[one] = mean[other].mean(axis=0) if len(other) else mean.mean(axis=0)
    return list(rivals.sweep("by group", table, estimate, prices).points)


def curve_verdict(found: Curve, judge: str) -> str:
    """What the curve says, for people: which recipe does as well as the dearest, and whether prompts differ in it."""
    whole, dearest = found.groups[0], found.choices[-1].words
    lines = [f"Judged by {judge}, {whole.prompts:,} prompts:"]
    if whole.saturated == dearest:
        lines.append(f"No recipe does as well as the dearest, {dearest}.")
    else:
        lines.append(
            f"{whole.saturated} does as well as the dearest, {dearest} (within {found.margin:.4f} of quality)."
        )
    shares = found.agreement[np.isfinite(found.agreement)]
    most = float(shares.max()) if len(shares) else 0.0
    if whole.prompts < FEW_TO_SAY:
        lines.append("So few prompts do not tell whether some need a dearer recipe than others.")
    elif most < LEAST_SHARE:
        lines.append(
            "Which picture needs a dearer recipe is the seed's to say, not the prompt's "
            f"(correlation between seeds at most {most:.2f}): another try pays sooner than a choice by prompt."
        )
    else:
        lines.append(
            f"Prompts differ in what they need (correlation between seeds up to {most:.2f}): a policy can learn it."
        )
    lines.append(f"{'recipe':<42} {'quality':>8}")
    for choice, quality in zip(found.choices, whole.quality, strict=True):
        lines.append(f"{choice.words[:42]:<42} {quality.value:8.4f} ±{(quality.high - quality.low) / 2:.4f}")
    return "\n".join(lines)


def curve_text(found: Curve, judge: str) -> str:
    """The curve as lines to read."""
    return "\n".join(_lines(found, judge))


def _lines(found: Curve, judge: str) -> Iterator[str]:
    yield f"What steps buy, judged by {judge} (95 % intervals over prompts; saturated: within {found.margin:.4f}):"
    yield f"{'':<22} {'prompts':>7} " + " ".join(f"{choice.name[:10]:>10}" for choice in found.choices) + "  saturated"
    for group in found.groups:
        cells = " ".join(
            f"{q.value:.3f}±{(q.high - q.low) / 2:.3f}".replace("±0", "±").rjust(10) for q in group.quality
        )
        yield f"{group.name[:22]:<22} {group.prompts:7d} {cells}  {group.saturated}"
    shares = " ".join(f"{share:.2f}" for share in found.agreement[:-1])
    yield f"The prompt's share of what budgets differ by (correlation between seeds): {shares}"
    for name, gains in (("cross-seed oracle", found.oracle), ("each group's best budget", found.oracle_by_group)):
        if gains:
            yield f"Gain over the fixed curve at equal cost, {name}:"
            yield "  " + "; ".join(f"price {price:.3g}: {gain:+.4f}" for price, gain in gains)
