"""Says which way to spend a user should take, at which setting, and what that saves, with the job file's lines for it.

It reads a comparison (`training.judge.spending`) and computes nothing anew.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from actors.recipe import Recipe
from training.judge.frontier import Interval, Point, Rule
from training.judge.spending import POLICY, POLICY_ONLY, Reference, Spending
from training.judge.tries import ONE_BAR

FEWEST_PROMPTS, MOST_UNSURE = 100, 0.3  # width of a saving's interval; below, above: the sample is too small to say


class Way(StrEnum):
    """fixed: one recipe for all; policy: recipes by prompt; tries: one bar for all; both: bars by prompt."""

    FIXED = "fixed"
    POLICY = "policy"
    TRIES = "tries"
    BOTH = "both"


RULES = {Way.POLICY: POLICY_ONLY, Way.TRIES: ONE_BAR, Way.BOTH: POLICY}


@dataclass(frozen=True)
class Recommendation:
    """way, and the point of its rule to take. saved: of the reference's cost at its quality; None for `fixed`.

    unsure: the sample is too small to tell whether a way other than `fixed` saves anything.
    """

    way: Way
    reference: Reference
    point: Point
    saved: Interval | None
    unsure: bool


def recommend(found: Spending) -> Recommendation:
    """The way that saves most of the first reference's cost at its quality, of those that save something for certain.

    Of equals the simpler way is taken.
    """
    reference = found.references[0]
    saved = {way: reference.saved[rule] for way, rule in RULES.items() if rule in reference.saved}
    certain = [way for way, share in saved.items() if share.low > 0]
    if not certain:
        best = max(saved.values(), key=lambda share: share.value, default=None)
        unsure = best is not None and best.high > 0 and (best.high - best.low > MOST_UNSURE or _few(found))
        return Recommendation(Way.FIXED, reference, reference.point, None, unsure)
    way = max(certain, key=lambda each: saved[each].value)
    return Recommendation(way, reference, _cheapest(found.rules[RULES[way]], reference.point), saved[way], _few(found))


def _few(found: Spending) -> bool:
    return found.num_prompts < FEWEST_PROMPTS


def _cheapest(rule: Rule, wanted: Point) -> Point:
    """The cheapest point that reaches a quality; the best where none does."""
    good = [point for point in rule.points if point.mean_quality >= wanted.mean_quality - 1e-12]
    if good:
        return min(good, key=lambda point: point.mean_cost)
    return max(rule.points, key=lambda point: point.mean_quality)


def job_lines(found: Recommendation, choices: tuple[Recipe, ...], max_tries: int, scores: str) -> dict[str, Any]:
    """The sections of a job file that take the recommended way. scores: the run folder whose scores a bar is of."""
    if found.way in (Way.POLICY, Way.BOTH):
        most = max_tries if found.way is Way.BOTH else 1
        return {"steps": {"price": float(f"{found.point.setting:.3g}")}, "tries": {"max": most}}
    at = found.reference.recipe if found.way is Way.FIXED else found.point.recipe
    lines: dict[str, Any] = {"steps": {"selector": "fixed", "fixed": choices[at].plain()}}
    if found.way is Way.TRIES and found.point.setting:
        lines["tries"] = {"max": max_tries, "bar": {"quantile": found.point.setting}, "scores": scores}
    return lines
