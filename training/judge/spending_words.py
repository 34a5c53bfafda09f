"""Puts a comparison of ways to spend into words, the verdict first, into a table of few lines, and into JSON."""

import math
from collections.abc import Iterator
from typing import Any

from training.judge.frontier import Interval, Point, Rule
from training.judge.recommendation import Recommendation, Way
from training.judge.spending import AtCost, Spending

WAYS = {
    Way.FIXED: "Take one recipe for all",
    Way.POLICY: "Let the policy choose each prompt's recipe, one picture a row",
    Way.TRIES: "Take one recipe for all, and another try where the picture is poor",
    Way.BOTH: "Let the policy choose each prompt's recipe and bar, and try again where the picture is poor",
}
SHOWN_COSTS = (0.7, 1.5)  # a rule is shown at its points nearest to them


def spending_verdict(found: Spending, advice: Recommendation) -> str:
    """What to do and what it saves; how sure that is; against what it was held."""
    return "\n".join(_sentences(found, advice))


def _sentences(found: Spending, advice: Recommendation) -> Iterator[str]:
    reference = advice.reference
    if advice.saved is None:
        why = (
            f"{found.num_prompts} prompts are too few to say whether anything else pays"
            if advice.unsure
            else "nothing else gives its quality for less"
        )
        yield f"Take {reference.point.name} for all: {why}."
    else:
        yield f"{WAYS[advice.way]}: at the quality of {reference.point.name} it costs {_share(advice.saved)} less."
        if advice.way is Way.TRIES and not advice.unsure:
            yield f"The recipe and its bar: {advice.point.name}."
        if advice.unsure:
            yield f"{found.num_prompts} prompts are few: take the figures as a first guess."
    for other in found.references[1:]:
        saved = _best_saving(other.saved)
        if saved and saved[1].low > 0:
            yield f"Against {other.point.name} ({other.what}): {_share(saved[1])} less, by {saved[0]}."
    known = [at for at in found.at if at.gain is not None and at.saved is not None]
    if found.primary is not None and known:
        costs = ", ".join(f"{at.cost:g}" for at in known)
        yield (
            f"Against the best of one to four pictures of any recipe, at costs {costs} of {reference.point.name}: "
            f"{found.primary:+.4f} of quality on average."
        )
    if found.over_one_bar is not None:
        yield f"Bars that know the prompt, against one bar for all at the same costs: {found.over_one_bar:+.4f}."
    if not found.tuned_elsewhere:
        yield "Recipes and bars of the rivals were tuned on these very prompts, which favours them."
    if found.max_tries > found.num_seeds:
        yield f"Tries were simulated with {found.num_seeds} seeds a prompt: more seeds would show more."


def _best_saving(saved: Any) -> tuple[str, Interval] | None:
    usable = [(name, share) for name, share in saved.items() if math.isfinite(share.value)]
    return max(usable, key=lambda each: each[1].value, default=None)


def _share(saved: Interval) -> str:
    low = f"{saved.low:.0%}" if math.isfinite(saved.low) else "less than nothing"
    return f"{saved.value:.0%} [{low}, {saved.high:.0%}]"


def spending_table(found: Spending) -> str:
    """Each way at about the same two costs: cost in the reference recipe's, steps of all tries, quality."""
    lines = [f"{'way':<24} {'cost':>6} {'steps':>6} {'quality':>8}  setting"]
    for rule in found.rules.values():
        for point in _shown(rule):
            setting = point.name or f"price {point.setting:.3g}"
            numbers = f"{point.mean_cost:6.2f} {point.steps.mean():6.1f} {point.mean_quality:8.4f}"
            lines.append(f"{rule.name[:24]:<24} {numbers}  {setting}")
    return "\n".join(lines)


def _shown(rule: Rule) -> list[Point]:
    nearest = [min(rule.points, key=lambda point: abs(point.mean_cost - cost)) for cost in SHOWN_COSTS]
    return nearest[:1] if nearest[0] is nearest[1] else nearest


def spending_document(found: Spending, advice: Recommendation) -> dict[str, Any]:
    """All figures, for a file; those that do not exist are None."""
    return {
        "prompts": found.num_prompts,
        "seeds": found.num_seeds,
        "max_tries": found.max_tries,
        "way": str(advice.way),
        "unsure": advice.unsure,
        "verdict": spending_verdict(found, advice),
        "recommended": _point(advice.point),
        "saved": _bounds(advice.saved),
        "references": [
            {"what": each.what, **_point(each.point), "saved": {n: _bounds(s) for n, s in each.saved.items()}}
            for each in found.references
        ],
        "at": [_at(each) for each in found.at],
        "gain_over_best_of_n": _bounds(found.primary),
        "gain_over_one_bar": _bounds(found.over_one_bar),
        "tuned_elsewhere": found.tuned_elsewhere,
        "rules": {rule.name: [_point(point) for point in rule.points] for rule in found.rules.values()},
    }


def _at(each: AtCost) -> dict[str, Any]:
    quality = each.quality if math.isfinite(each.quality) else None
    return {"cost": each.cost, "quality": quality, "gain": _bounds(each.gain), "saved": _bounds(each.saved)}


def _point(point: Point) -> dict[str, Any]:
    figures = {"cost": point.mean_cost, "steps": float(point.steps.mean()), "quality": point.mean_quality}
    return {"name": point.name, "setting": point.setting, **figures}


def _bounds(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [float(value) if math.isfinite(value) else None for value in interval]
