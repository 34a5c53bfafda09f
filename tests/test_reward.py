"""Rewards against their formulas, by hand and by property."""

import numpy as np
import pytest

from training.learn.reward import (
    centred,
    default_prices,
    default_temperature,
    hull_slopes,
    paper_reward,
    priced_reward,
    sample_prices,
    upper_hull,
)

COSTS = np.array([0.1, 0.25, 0.5, 1.0])


def table(prompts: int = 6, seeds: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(prompts, 4, seeds))


def test_centring_takes_away_what_a_prompt_and_a_seed_are_worth() -> None:
    quality = table()
    worth = np.random.default_rng(1).normal(size=(6, 1, 3)) * 100
    np.testing.assert_allclose(centred(quality + worth), centred(quality), atol=1e-12)
    np.testing.assert_allclose(centred(quality).mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(centred(quality), axis=1), np.diff(quality, axis=1), atol=1e-12)


def test_the_priced_reward_by_hand() -> None:
    """Two prompts at their prices, two seeds; each prompt's and seed's mean is nobody's merit."""
    one = [[0.2, 1.0], [0.6, 1.0], [0.7, 1.0], [0.9, 1.0]]
    quality = np.array([one, one])
    reward = priced_reward(quality, COSTS, np.array([0.0, 0.4]))
    assert reward[0, :, 0] == pytest.approx([-0.4, 0.0, 0.1, 0.3])
    assert reward[0, :, 1] == pytest.approx([0.0, 0.0, 0.0, 0.0])
    assert reward[1, :, 0] == pytest.approx([-0.44, -0.1, -0.1, -0.1])
    assert reward[1, :, 1] == pytest.approx([-0.04, -0.1, -0.2, -0.4])


def test_the_papers_reward_by_hand() -> None:
    quality = np.array([0.9, -0.1, 0.5, 0.7, 0.2]).reshape(1, 5, 1)
    reward = paper_reward(quality, (10, 20, 30, 40, 50))[0, :, 0]
    assert reward == pytest.approx([0.8 + 1.8, -1.0, 0.4 + 1.0, 0.2 + 1.4, -1.0])
    other = paper_reward(quality, (10, 20, 30, 40, 50), top=1, weight=1.0, penalty=0.5)[0, :, 0]
    assert other == pytest.approx([0.8 + 0.9, -0.5, -0.5, -0.5, -0.5])


def test_the_papers_reward_compares_images_of_one_seed() -> None:
    quality = table(prompts=50, seeds=4)
    reward = paper_reward(quality, (5, 10, 25, 50))
    assert ((reward != -1.0).sum(axis=1) == 3).all()
    for s in range(4):
        alone = paper_reward(quality[:, :, s : s + 1], (5, 10, 25, 50))
        np.testing.assert_array_equal(reward[:, :, s], alone[:, :, 0])
    assert (paper_reward(quality[:, :2], (5, 10)) != -1).all()


def test_prices_are_as_likely_in_each_octave() -> None:
    prices = sample_prices(np.random.default_rng(0).random(40_000), 0.01, 0.16)
    assert prices.min() >= 0.01
    assert prices.max() <= 0.16
    counts = np.histogram(np.log2(prices / 0.01), bins=[0, 1, 2, 3, 4])[0] / 40_000
    np.testing.assert_allclose(counts, 0.25, atol=0.01)
    assert sample_prices(np.array([0.0, 0.7]), 0.3, 0.3) == pytest.approx([0.3, 0.3])
    with pytest.raises(ValueError, match="positive"):
        sample_prices(np.array([0.1]), 0.0, 1.0)


@pytest.mark.parametrize("seed", range(10))
def test_no_mixture_of_budgets_is_above_the_hull(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=7)
    costs = np.sort(rng.uniform(0.05, 1, 7))
    corners = upper_hull(costs, quality)
    for weights in rng.dirichlet(np.full(7, 0.3), size=500):
        assert weights @ quality <= np.interp(weights @ costs, costs[corners], quality[corners]) + 1e-12
    assert (np.diff(hull_slopes(quality, costs)) < 0).all()


def test_the_default_prices_move_the_best_fixed_budget_from_end_to_end() -> None:
    mean = np.array([0.5, 0.8, 0.9, 0.95])
    quality = np.broadcast_to(mean[None, :, None], (5, 4, 2))
    low, high = default_prices(quality, COSTS)
    assert (mean - low * COSTS).argmax() == 3
    assert (mean - high * COSTS).argmax() == 0
    assert default_temperature(quality) == pytest.approx(mean.std() / 2)


@pytest.mark.parametrize("quality", [(0.2, 0.3, 0.5), (0.3, 0.2, 0.5)])
def test_of_recipes_of_one_cost_the_better_one_is_on_the_hull(quality: tuple[float, ...]) -> None:
    costs, means = np.array([6.0, 6.0, 12.0]), np.array(quality)
    assert upper_hull(costs, means) == [quality.index(0.3), 2]
    assert hull_slopes(means, costs) == pytest.approx([0.2 / 6])


def test_a_flat_or_falling_table_has_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="nothing to choose"):
        default_temperature(np.ones((3, 4, 2)))
    with pytest.raises(ValueError, match="nothing to choose"):
        default_prices(np.broadcast_to(np.array([4.0, 3, 2, 1])[None, :, None], (3, 4, 2)), COSTS)
