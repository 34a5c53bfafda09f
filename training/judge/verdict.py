"""Puts an evaluation into words: the table, the verdict that a user acts on, and JSON. It computes nothing."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from training.judge.compare import Evaluation
from training.judge.frontier import Interval, Point, Rule

MOST_UNSURE, FEWEST_PROMPTS = 0.3, 100  # width of a saving's interval; below, above: the sample is too small to say
SHOWN = 8  # points of a long rule


def frontier_table(found: Evaluation) -> str:
    """One line a point: rule, setting, mean steps, mean cost, quality, gain over the fixed curve at equal cost."""
    lines = [f"{'rule':<30} {'setting':>8} {'steps':>6} {'cost':>6} {'quality':>8}  against fixed at equal cost (95 %)"]
    lines += [_line(found.fixed, point, None) for point in found.fixed.points]
    for rule in (found.policy, *found.rules):
        lines += [_line(rule, rule.points[at], found.gains[rule.name][at]) for at in _shown(rule)]
    return "\n".join(lines)


def _line(rule: Rule, point: Point, gain: Interval | None) -> str:
    numbers = f"{point.setting:8.4g} {point.steps.mean():6.1f} {point.mean_cost:6.3f} {point.mean_quality:8.4f}"
    mark = "" if gain is None else f"  {gain:+.4f}" + (" *" if gain.low > 0 or gain.high < 0 else "")
    return f"{rule.name[:30]:<30} {numbers}{mark}"


def _shown(rule: Rule) -> list[int]:
    """All points, or some at even distances."""
    count = len(rule.points)
    return sorted({round(at) for at in np.linspace(0, count - 1, min(SHOWN, count))})


def groups(found: Evaluation) -> str:
    """One line a group, at the recommended price; those with the most steps first."""
    lines = [f"{'group':<24} {'prompts':>7} {'steps':>6} {'quality':>8}  against fixed at equal cost (95 %)"]
    for group in sorted(found.groups, key=lambda group: -group.mean_steps):
        numbers = f"{group.prompts:7d} {group.mean_steps:6.1f} {group.mean_quality:8.4f}"
        lines.append(f"{group.name[:24]:<24} {numbers}  {group.gain:+.4f}")
    return "\n".join(lines)


def too_small(found: Evaluation) -> bool:
    """Whether the sample cannot say how much is saved."""
    saved = found.strict_savings["policy"]
    wide = not math.isfinite(saved.low) or saved.high - saved.low > MOST_UNSURE
    return found.num_prompts < FEWEST_PROMPTS or (wide and saved.low <= 0 < saved.high)


def pays(found: Evaluation) -> bool:
    """Whether the policy comes within the margin at less cost than any mixture of fixed budgets, for certain."""
    return found.strict_savings["policy"].low > 0


def verdict(found: Evaluation) -> str:
    """What to do, in plain words."""
    return "\n".join(_sentences(found))


def _sentences(found: Evaluation) -> Iterator[str]:
    rival, saved = found.rival, found.savings["policy"]
    yield (
        f"The cheapest recipe for all that is not worse than the dearest is {rival.name} "
        f"(quality {rival.mean_quality:.4f}, margin {found.margin:.4f})."
    )
    strict = _share(found.strict_savings["policy"])
    if pays(found):
        point = found.recommended
        yield (
            f"Adaptivity pays on these {found.num_prompts} prompts. Recommended: steps.price {point.setting:.3g}, "
            f"{point.steps.mean():.1f} steps on average, quality {found.recommended_loss:+.4f} against the largest."
        )
        yield f"To come within the margin it costs {strict} less than the best mixture of fixed budgets."
    elif too_small(found):
        yield (
            f"{found.num_prompts} prompts are too few to say whether the policy saves anything ({strict}): "
            f"take more, and until then {rival.name} for all."
        )
    else:
        yield (
            f"Adaptivity does not pay on these {found.num_prompts} prompts ({strict} saved within the margin): "
            f"use steps.selector: fixed with {rival.name}."
        )
    yield f"At the quality of {rival.name} for all the policy saves {_share(saved)} of their cost."
    for name in found.variants:
        if found.savings[name].low > 0:
            yield f"There fixed budgets with {name}, save {_share(found.savings[name])}."
    worse = [point for point, gain in zip(found.policy.points, found.gains["policy"], strict=True) if gain.high < 0]
    if worse:
        listed = ", ".join(f"{point.setting:.3g}" for point in worse)
        yield f"At price {listed} the policy is worse than fixed budgets of the same cost, for certain."
    if not math.isnan(found.kept):
        yield f"It keeps {found.kept:.0%} of what knowing each prompt's own pictures would gain (cross-seed oracle)."
    else:
        yield "Even knowing each prompt's own pictures gains nothing here (cross-seed oracle): the seed decides."
    if len(found.groups) > 1 and pays(found):
        most = max(found.groups, key=lambda group: group.mean_steps)
        yield f"Most steps go to {most.name}: {most.mean_steps:.1f} on average."


def _share(saved: Interval) -> str:
    if not math.isfinite(saved.value):
        return "it never reaches that quality"
    low = f"{saved.low:.0%}" if math.isfinite(saved.low) else "less than nothing"
    return f"{saved.value:.0%} [{low}, {saved.high:.0%}]"


def evaluation_document(found: Evaluation) -> dict[str, Any]:
    """All figures, for a file; numbers that do not exist are None."""
    every = (found.fixed, found.policy, *found.rules)
    return {
        "prompts": found.num_prompts,
        "margin": found.margin,
        "rival": _point(found.rival),
        "recommended": _point(found.recommended) | {"against_largest": _bounds(found.recommended_loss)},
        "pays": pays(found),
        "too_small": too_small(found),
        "verdict": verdict(found),
        "monotone": found.monotone,
        "best_fixed": [_point(point) for point in found.best.corners],
        "kept": _number(found.kept),
        "agreement": [_number(value) for value in found.agreement],
        "savings": _all_bounds(found.savings),
        "strict_savings": _all_bounds(found.strict_savings),
        "rules": {rule.name: _points(rule, found.gains.get(rule.name)) for rule in every},
        "groups": [
            {"name": g.name, "prompts": g.prompts, "steps": g.mean_steps, "gain": _bounds(g.gain)} for g in found.groups
        ],
    }


def _points(rule: Rule, gains: tuple[Interval, ...] | None) -> list[dict[str, Any]]:
    bounds = [_bounds(gain) for gain in gains] if gains else [None] * len(rule.points)
    return [_point(point) | {"gain": gain} for point, gain in zip(rule.points, bounds, strict=True)]


def _point(point: Point) -> dict[str, Any]:
    return {
        "setting": point.setting,
        "steps": float(point.steps.mean()),
        "cost": point.mean_cost,
        "quality": point.mean_quality,
    }


def _all_bounds(intervals: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    return {name: _bounds(interval) for name, interval in intervals.items()}


def _bounds(interval: Interval) -> list[float | None]:
    return [_number(value) for value in interval]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
