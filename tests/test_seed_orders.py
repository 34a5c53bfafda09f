"""Tries on pictures that are there: closed forms against every order of the seeds, drawn orders against both."""

from itertools import permutations

import numpy as np
import pytest

from training.learn.seed_orders import in_drawn_order, kept_scores, mean_tries, num_failing

BARS = (-np.inf, -1.0, -0.2, 0.0, 0.3, 1.1, np.inf)


def by_hand(score: np.ndarray, bar: float, max_tries: int) -> tuple[float, float]:
    """Mean kept score and mean tries over all orders, one after the other."""
    found = []
    for order in permutations(score):
        tried = order[:max_tries]
        first = next((at for at, each in enumerate(tried) if each >= bar), None)
        found.append((max(tried), len(tried)) if first is None else (tried[first], first + 1))
    kept, tries = np.mean(found, axis=0)
    return float(kept), float(tries)


@pytest.mark.parametrize(("seeds", "max_tries"), [(1, 4), (2, 2), (4, 1), (4, 2), (4, 4), (5, 3), (3, 8)])
def test_closed_forms_are_every_order(seeds: int, max_tries: int) -> None:
    rng = np.random.default_rng(seeds)
    score = np.round(rng.normal(size=(6, 1, seeds)), 1)  # with ties
    kept, tries = kept_scores(score, max_tries), mean_tries(seeds, max_tries)
    failing = num_failing(score, np.zeros(len(BARS), int), np.tile(BARS, (6, 1)))
    for row in range(6):
        for at, bar in enumerate(BARS):
            expected = by_hand(score[row, 0], bar, max_tries)
            found = kept[row, 0, failing[row, at]], tries[failing[row, at]]
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_drawn_orders_average_to_all_orders() -> None:
    rng, score = np.random.default_rng(0), np.random.default_rng(1).normal(size=4)
    count = 40_000
    for bar in (-np.inf, 0.0, 0.5, np.inf):
        drawn = in_drawn_order(np.tile(score, (1, count, 1)), np.full((1, count), bar), rng.random((1, count, 4)), 3)
        for found, expected in zip(drawn, by_hand(score, bar, 3), strict=True):
            error = found.std() / np.sqrt(count)
            assert abs(found.mean() - expected) <= 4 * error + 1e-12
