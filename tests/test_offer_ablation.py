"""The ablation of offers: at equal cost, on a world in which heads are wrong and REINFORCE is not."""

from dataclasses import replace

import numpy as np
import pytest
from test_offer_learning import LEARNING, ROOMY, world

from benchmarks.offer_ablation import HEADS, Read, Setup, at_cost, compare, mean_over_costs, result_table
from training.judge.frontier import Point, Rule


def line(level: float, costs: tuple[float, ...] = (0.5, 1.0, 2.0)) -> Rule:
    """Quality level + cost, of four prompts."""
    return Rule("", tuple(Point(c, np.full(4, level + c), np.full(4, c), np.full(4, c)) for c in costs))


def test_ways_are_compared_at_one_cost_and_seeds_are_averaged() -> None:
    point = at_cost([line(0.0), line(0.2)], 1.5)
    assert point is not None
    assert (point.mean_cost, point.mean_quality) == pytest.approx((1.5, 1.6))
    assert at_cost([line(0.0), line(0.2, (0.5, 1.0))], 1.5) is None
    assert mean_over_costs([line(0.0)], (0.7, 1.0)).mean_quality == pytest.approx(0.85)
    text = result_table({HEADS: [line(0.0)], "better": [line(0.1), line(0.3)]}, (0.7, 1.0, 5.0))
    assert "+0.2000 [+0.2000, +0.2000]" in text.splitlines()[2]
    assert " 5 " not in text.splitlines()[0]  # a cost that nobody reaches


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reinforce_beats_heads_that_cannot_know() -> None:
    pairs = [world(500), world(300, 1)]
    learned, held_out = (Read(table, list(tokens)) for table, tokens in pairs)
    found = compare(Setup(learned, held_out, "clip", replace(LEARNING, epochs=60), ROOMY, 0.25), 1)
    assert [*found][:3] == ["one bar for all", "bars by prompt, one recipe", HEADS]
    gained = {name: mean_over_costs(rules, (0.7, 1.0)).mean_quality for name, rules in found.items()}
    assert gained["heads and REINFORCE"] > gained[HEADS] + 0.001
    assert gained["REINFORCE from the mean"] > gained[HEADS] + 0.001
    assert len(result_table(found).splitlines()) == 1 + len(found)
