"""Points, the fixed curve and its intervals: by hand, by coverage, and by rules whose gain is known."""

import math

import numpy as np
import pytest
from tables import COSTS, STEPS, world

from training.judge import rivals
from training.judge.frontier import Bootstrap, FixedCurve, Point, Rule, difference, saving, smallest_not_worse


def flat(cost: float, quality: float, prompts: int = 50, noise: float = 0.0) -> Point:
    spread = noise * np.random.default_rng(int(cost * 1000)).normal(size=prompts)
    return Point(cost, quality + spread, np.full(prompts, cost), np.full(prompts, 10.0))


def curve_of(*pairs: tuple[float, float]) -> FixedCurve:
    return FixedCurve([flat(*pair) for pair in pairs], Bootstrap(50, 200))


def test_the_curve_is_the_hull_and_flat_beyond_its_best() -> None:
    curve = curve_of((0.1, 0.2), (0.2, 0.25), (0.4, 0.8), (0.7, 0.9), (1.0, 0.85), (0.4, 0.5))
    assert curve.costs.tolist() == pytest.approx([0.1, 0.4, 0.7])
    assert curve.at(0.25) == pytest.approx(0.5)
    assert curve.at(0.55) == pytest.approx(0.85)
    assert curve.at(1.0) == pytest.approx(0.9)
    assert curve.at(0.1 * (1 - 1e-12)) == pytest.approx(0.2)
    assert math.isnan(curve.at(0.05))


def test_gains_and_savings_by_hand() -> None:
    curve = curve_of((0.2, 0.4), (1.0, 0.8))
    gain = curve.gain(flat(0.6, 0.7))
    assert gain == pytest.approx((0.1, 0.1, 0.1))
    rule, rival = Rule("r", (flat(0.2, 0.4), flat(0.4, 0.8))), flat(1.0, 0.8)
    bootstrap = curve.bootstrap
    assert saving(rule, curve.rule, rival, bootstrap) == pytest.approx((0.6, 0.6, 0.6))
    assert saving(rule, Rule("alone", (rival,)), rival, bootstrap).value == pytest.approx(0.6)
    assert saving(rule, curve.rule, flat(0.6, 0.6), bootstrap).value == pytest.approx(0.5)
    assert saving(Rule("low", (flat(0.2, 0.4),)), curve.rule, rival, bootstrap).value == -math.inf
    assert saving(curve.rule, curve.rule, rival, bootstrap).value == pytest.approx(0)
    assert saving(Rule("high", (flat(0.4, 0.9),)), curve.rule, flat(0.4, 0.9), bootstrap).value == pytest.approx(0.6)


def test_a_rule_that_falls_with_its_cost_counts_by_its_best() -> None:
    rule = Rule("r", (flat(0.2, 0.4), flat(0.5, 0.8), flat(0.6, 0.6), flat(1.0, 0.9)))
    rival = flat(1.0, 0.85)
    assert saving(rule, Rule("alone", (rival,)), rival, Bootstrap(50, 10)).value == pytest.approx(0.2)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """100 samples of prompts with a known gain: about 95 intervals hold it."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        level = rng.normal(size=120)
        points = [
            Point(c, q + level + 0.3 * rng.normal(size=120), np.full(120, c), np.full(120, 1.0))
            for c, q in ((0.2, 0.0), (1.0, 0.8))
        ]
        mine = Point(0, 0.5 + level + 0.3 * rng.normal(size=120), np.full(120, 0.6), np.full(120, 1.0))
        interval = FixedCurve(points, Bootstrap(120, 400, seed)).gain(mine)
        assert interval.low <= interval.value <= interval.high
        held += interval.low <= 0.1 <= interval.high
    assert 88 <= held <= 100


def test_pairing_takes_away_what_prompts_have_in_common() -> None:
    rng = np.random.default_rng(0)
    level = 10 * rng.normal(size=200)
    one, other = (Point(0, level + 0.1 * rng.normal(size=200), np.ones(200), np.ones(200)) for _ in range(2))
    interval = difference(one, other, Bootstrap(200))
    assert interval.high - interval.low < 0.06


def test_the_smallest_budget_that_is_not_worse() -> None:
    points = [flat(c, q, 400, 0.02) for c, q in ((0.1, 0.5), (0.3, 0.78), (0.6, 0.795), (1.0, 0.8))]
    bootstrap = Bootstrap(400)
    assert smallest_not_worse(points, 0.01, bootstrap).mean_cost == pytest.approx(0.6)
    assert smallest_not_worse(points, 0.05, bootstrap).mean_cost == pytest.approx(0.3)
    assert smallest_not_worse(points, 0.0, bootstrap).mean_cost == pytest.approx(1.0)


# rules


def test_fixed_points_are_the_tables_means() -> None:
    table = world(50)
    points = rivals.fixed(table).points
    np.testing.assert_allclose([p.mean_quality for p in points], table.quality.mean(axis=(0, 2)))
    np.testing.assert_allclose([p.mean_cost for p in points], COSTS)
    assert [p.setting for p in points] == list(STEPS)
    half = rivals.fixed(table, "half", unit_s=2.0)
    np.testing.assert_allclose([p.mean_cost for p in half.points], COSTS / 2)


def test_a_sweep_falls_in_cost_on_every_prompt() -> None:
    table = world(80)
    scores = np.random.default_rng(0).normal(0, 0.1, (80, 4))
    rule = rivals.sweep("r", table, scores, np.geomspace(0.001, 2, 20).tolist())
    for one, other in zip(rule.points, rule.points[1:], strict=False):
        assert (other.cost <= one.cost).all()
    index = scores.argmax(axis=1)
    free = rivals.sweep("r", table, scores, [0.0]).points[0]
    np.testing.assert_allclose(free.quality, table.quality.mean(axis=2)[np.arange(80), index])


def test_the_oracle_gains_where_prompts_differ_and_loses_where_only_seeds_do() -> None:
    prices = [0.7, 1.4, 2.8]
    gains = {}
    for name, table in (("prompts", world(400, noise=0.02)), ("seeds", world(400, noise=0.2, alike=True))):
        curve = FixedCurve(rivals.fixed(table).points, Bootstrap(400, 300))
        gains[name] = [curve.gain(point) for point in rivals.oracle(table, prices).points]
    assert all(gain.low > 0 for gain in gains["prompts"])
    assert all(gain.high < 0 for gain in gains["seeds"])


def test_the_oracle_never_looks_at_its_judge() -> None:
    """Where seeds say nothing of each other it does as well as chance."""
    table = world(3000, noise=1.0, alike=True)
    quality = np.random.default_rng(0).normal(size=table.quality.shape)
    blind = table.__class__(**{**vars(table), "quality": quality})
    assert abs(rivals.oracle(blind, [0.0]).points[0].mean_quality) < 0.05


def test_words() -> None:
    table = world(60)
    point = rivals.words(table).points[0]
    assert set(point.steps) <= set(STEPS)
    counts = np.array([len(prompt.split()) for prompt in table.prompts])
    assert point.steps[counts.argmax()] >= point.steps[counts.argmin()]


def test_agreement_of_seeds() -> None:
    assert (rivals.agreement(world(500, noise=0.01))[:2] > 0.8).all()
    apart = rivals.agreement(world(500, noise=0.2, alike=True))
    assert (np.abs(apart[:3]) < 0.15).all()
    assert math.isnan(apart[3])
