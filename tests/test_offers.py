"""Offers: closed forms against brute force, the price against its promises, and the edges."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from actors.offers import (
    OFFSETS,
    SINGLE,
    Bank,
    allowed_offers,
    bank_of,
    modelled_cost,
    offer_bars,
    offer_costs,
    offer_menu,
    offer_worths,
    price_unit,
)
from actors.policy import choice_probabilities, choose_steps
from benchmarks.offer_worlds import optimum, simulated, skewed
from benchmarks.offers import main, random_case, shortfall, worst_rise
from training.learn.banks import miss_chances

COSTS = np.array([0.25, 0.5, 1.0])
BARS = (SINGLE, -1.0, -0.2, 0.0, 0.4, 1.1, 9.0)


def skewed_bank(count: int = 400, level_sd: float = 0.0, seed: int = 0) -> Bank:
    return bank_of(skewed(np.random.default_rng(seed), (count,)), level_sd)


def enumerated(values: tuple[float, ...], offset: float, max_tries: int) -> tuple[float, float]:
    """Expected tries and kept residual over all sequences of draws: no formula."""
    tries, kept = [], []
    for draws in itertools.product(values, repeat=max_tries):
        passed = [at for at, value in enumerate(draws) if value >= offset]
        tries.append(passed[0] + 1 if passed else max_tries)
        kept.append(draws[passed[0]] if passed else max(draws))
    return float(np.mean(tries)), float(np.mean(kept))


@pytest.mark.parametrize("max_tries", [1, 2, 3, 4])
@pytest.mark.parametrize("values", [(0.0,), (-1.0, 1.0), (-2.0, -0.2, -0.2, -0.2, 0.7, 1.1, 1.1)])
def test_the_closed_forms_are_all_sequences_of_draws(values: tuple[float, ...], max_tries: int) -> None:
    """Ties at the bar included: a score at the bar passes."""
    bank = Bank(values)
    for offset in BARS:
        tries, gain = enumerated(values, offset, max_tries)
        assert bank.expected_tries(offset, max_tries) == pytest.approx(tries, abs=1e-12)
        assert bank.gain(offset, max_tries) == pytest.approx(gain, abs=1e-12)


@pytest.mark.parametrize("level_sd", [0.0, 0.6])
def test_the_closed_forms_are_what_simulation_gives(level_sd: float) -> None:
    bank, rng = skewed_bank(level_sd=level_sd), np.random.default_rng(1)
    for offset, max_tries in itertools.product((-0.7, 0.0, 0.9), (2, 4, 7)):
        tries, kept = simulated(bank, offset, max_tries, rng, 100_000)
        assert bank.expected_tries(offset, max_tries) == pytest.approx(tries.mean(), abs=4 * tries.std() / 316 + 2e-3)
        assert bank.gain(offset, max_tries) == pytest.approx(kept.mean(), abs=4 * kept.std() / 316 + 4e-3)


def squared(values: tuple[float, ...], offset: float, max_tries: int) -> float:
    """The variance of the tries of one row, by all sequences of draws."""
    passed = [
        [at for at, value in enumerate(draws) if value >= offset]
        for draws in itertools.product(values, repeat=max_tries)
    ]
    return float(np.var([first[0] + 1 if first else max_tries for first in passed]))


def test_the_variance_is_that_of_all_sequences_of_draws() -> None:
    bank = Bank((-2.0, -0.2, -0.2, -0.2, 0.7, 1.1, 1.1))
    for offset, max_tries in itertools.product(BARS, (1, 2, 4)):
        expected = squared(bank.residuals, offset, max_tries)
        assert bank.tries_variance(offset, max_tries) == pytest.approx(expected, abs=1e-12)


def test_a_level_that_is_not_known_makes_tries_scatter_more() -> None:
    bank, rng = skewed_bank(level_sd=0.6), np.random.default_rng(1)
    tries, _ = simulated(bank, 0.4, 4, rng, 100_000)
    assert bank.tries_variance(0.4, 4) == pytest.approx(tries.var(), rel=0.02)


@pytest.mark.parametrize("seeds", [2, 4])
def test_misses_that_were_counted_say_how_many_tries_there_are(seeds: int) -> None:
    """Prompts whose levels are skewed, as no normal level is. Up to one try more than seeds nothing is assumed."""
    rng = np.random.default_rng(3)
    level = -0.8 * (rng.exponential(size=(40_000, 1)) - 1)
    bank = replace(skewed_bank(level_sd=0.8), misses=miss_chances(level + rng.normal(size=(40_000, seeds))))
    fresh = level + rng.normal(size=(40_000, 8))
    for offset, max_tries in itertools.product((-1.0, 0.0, 0.5, 1.0), (2, seeds + 1, 8)):
        passed = fresh[:, :max_tries] >= offset
        made = np.where(passed.any(axis=1), passed.argmax(axis=1) + 1, max_tries)
        counted = max_tries <= seeds + 1
        assert bank.expected_tries(offset, max_tries) == pytest.approx(made.mean(), rel=0.02 if counted else 0.05)
        if counted:
            assert bank.tries_variance(offset, max_tries) == pytest.approx(made.var(), rel=0.08)
    assert bank.expected_tries(SINGLE, 4) == 1
    assert bank.tries_variance(SINGLE, 4) == 0


def test_tries_that_share_a_level_are_more_and_gain_less_than_if_they_did_not() -> None:
    bank, rng = skewed_bank(2000, level_sd=0.6), np.random.default_rng(2)
    mixed = bank_of(np.repeat(bank.values, 20) + 0.6 * rng.normal(size=20 * len(bank.values)))
    bars = np.array([-0.5, 0.0, 0.5])
    assert (bank.expected_tries(bars, 4) > 1.03 * mixed.expected_tries(bars, 4)).all()
    assert (bank.gain(bars, 4) < 0.9 * mixed.gain(bars, 4)).all()


def test_a_higher_bar_costs_more_and_more_tries_gain_more() -> None:
    bank, bars = skewed_bank(), np.linspace(-3, 3, 50)
    for max_tries in (2, 5):
        assert (np.diff(bank.expected_tries(bars, max_tries)) >= -1e-12).all()
        assert (bank.gain(bars, max_tries) <= bank.gain(9.0, max_tries) + 1e-12).all()
    for bar in bars:
        gains = [float(bank.gain(bar, most)) for most in range(1, 8)]
        assert (np.diff(gains) >= -1e-12).all()
    assert bank.expected_tries(9.0, 6) == pytest.approx(6)
    assert bank.acceptance(SINGLE) == 1
    assert bank.acceptance(9.0) == 0


def test_a_bank_shrinks_to_its_size_with_its_mean_and_shape() -> None:
    values = skewed(np.random.default_rng(3), (30_000,)) + 5.0
    small, whole = bank_of(values), bank_of(values, size=30_000)
    assert (len(small.residuals), len(whole.residuals)) == (1000, 30_000)
    assert small.values.mean() == pytest.approx(0, abs=1e-12)
    assert small.values.std() == pytest.approx(whole.values.std(), rel=2e-3)
    bars = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(small.expected_tries(bars, 4), whole.expected_tries(bars, 4), atol=0.01)
    np.testing.assert_allclose(small.gain(bars, 4), whole.gain(bars, 4), atol=0.01)
    assert bank_of(np.repeat([0.1, 0.7], 3000)).values.std() == pytest.approx(0.3)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf, 0.0]])
def test_what_is_no_bank_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite residuals"):
        bank_of(np.array(values))
    with pytest.raises(ValueError, match="finite residuals"):
        Bank(tuple(values))


def test_other_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="rising"):
        Bank((1.0, 0.0))
    with pytest.raises(ValueError, match="level_sd"):
        Bank((0.0,), level_sd=np.nan)
    for call in (Bank((0.0,)).gain, Bank((0.0,)).expected_tries):
        with pytest.raises(ValueError, match="max_tries"):
            call(0.0, 0)
    with pytest.raises(ValueError, match="nothing to choose"):
        price_unit(np.zeros(2), np.ones(2), 0, np.ones(2))


def test_with_one_try_offers_are_the_policy_over_budgets() -> None:
    rng = np.random.default_rng(4)
    mu = rng.normal(0, 0.1, size=(500, 3))
    menu = offer_menu([skewed_bank(seed=k) for k in range(3)], max_tries=1)
    assert menu.single.all()
    worths, costs = offer_worths(menu, mu, np.full(3, 0.1), np.ones(3), 0.1), offer_costs(menu, COSTS)
    draws = rng.random(500)
    for price, decision in itertools.product((0.0, 0.3, 2.0), ("argmax", "sample")):
        ours = choose_steps(worths, costs, price, 0.2, decision, uniforms=draws)
        theirs = choose_steps(mu / 0.1, COSTS, price, 0.2, decision, uniforms=draws)
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1])


def test_the_menu_is_every_recipe_alone_and_with_each_offset() -> None:
    menu = offer_menu([skewed_bank(), skewed_bank(seed=1)], 4)
    assert len(menu.recipe) == 2 * (1 + len(OFFSETS))
    assert menu.single.sum() == 2
    assert menu.tries[menu.single].tolist() == [1, 1]
    np.testing.assert_allclose(menu.gain[menu.single], 0, atol=1e-12)
    assert (menu.gain[~menu.single] > 0).all()
    one = offer_menu([skewed_bank()], 4)
    assert set(one.recipe) == {0}


def test_modelled_cost_never_rises_with_the_price() -> None:
    rng = np.random.default_rng(5)
    assert max(worst_rise(random_case(rng)) for _ in range(40)) <= 1e-9


def test_the_chosen_offer_is_the_best_rule_of_stopping() -> None:
    rng = np.random.default_rng(6)
    short = [shortfall(random_case(rng)) for _ in range(60)]
    assert min(short) >= -1e-9
    assert max(short) < 0.01


def test_the_optimum_is_what_all_thresholds_of_each_try_give() -> None:
    """Backward induction against brute force over a bar for each try: with recall one constant bar is enough."""
    bank = Bank((-1.5, -0.5, 0.0, 0.5, 1.5))
    for cost in (0.0, 0.05, 0.3, 2.0):
        bars = [SINGLE, *bank.residuals, 9.0]
        by_offer = max(float(bank.gain(bar, 3) - cost * bank.expected_tries(bar, 3)) for bar in bars)
        by_thresholds = []
        for first, second in itertools.product(bars, repeat=2):
            total = 0.0
            for a, b, c in itertools.product(bank.residuals, repeat=3):
                drawn = (a,) if a >= first else (a, b) if max(a, b) >= second else (a, b, c)
                total += max(drawn) - cost * len(drawn)
            by_thresholds.append(total / 125)
        assert optimum(bank.values, 1.0, cost, 3) == pytest.approx(max(by_thresholds))
        assert by_offer == pytest.approx(max(by_thresholds))


def test_probabilities_are_those_of_the_choice() -> None:
    menu = offer_menu([skewed_bank(seed=k) for k in range(3)], 4)
    mu = np.random.default_rng(7).normal(0, 0.1, size=(50, 3))
    worths, costs = offer_worths(menu, mu, np.full(3, 0.1), np.ones(3), 0.1), offer_costs(menu, COSTS)
    pi = choice_probabilities(worths, costs, 0.5, 0.1)
    index, chance = choose_steps(worths, costs, 0.5, 0.1, "sample", uniforms=np.linspace(0, 0.99, 50))
    np.testing.assert_allclose(pi[np.arange(50), index], chance)
    np.testing.assert_allclose(pi.sum(axis=1), 1)
    sharp = modelled_cost(choice_probabilities(worths, costs, 0.5, 1e-9), costs)
    np.testing.assert_allclose(sharp, costs[choose_steps(worths, costs, 0.5, 0.1)[0]])


def test_where_seeds_do_not_differ_no_other_try_is_bought() -> None:
    menu = offer_menu([skewed_bank(seed=k) for k in range(3)], 4)
    mu = np.random.default_rng(8).normal(0, 0.1, size=(50, 3))
    worths = offer_worths(menu, mu, np.zeros(3), np.ones(3), 1.0)
    chosen, _ = choose_steps(worths, offer_costs(menu, COSTS), 1e-6, 0.1)
    assert menu.single[chosen].all()
    assert np.isneginf(offer_bars(menu, chosen, mu, np.zeros(3))).all()


def test_a_share_shrinks_the_worth_and_never_the_bar() -> None:
    menu, mu, sigma = offer_menu([skewed_bank()], 4), np.full((1, 1), 2.0), np.array([0.5])
    full, half = (offer_worths(menu, mu, sigma, np.array([share]), 0.5)[0] for share in (1.0, 0.5))
    np.testing.assert_allclose(half - 4, (full - 4) / 2)
    for at in range(1, len(menu.offset)):
        assert offer_bars(menu, np.array([at]), mu, sigma) == pytest.approx(2 + 0.5 * menu.offset[at])


def test_a_row_with_a_pinned_seed_and_recipes_left_out() -> None:
    menu = offer_menu([skewed_bank(seed=k) for k in range(3)], 4)
    allowed = allowed_offers(menu, np.array([True, True, False]), np.array([True, False]))
    assert allowed.shape == (2, len(menu.recipe))
    assert menu.single[allowed[0]].all()
    assert set(menu.recipe[allowed[1]]) == {0, 1}
    worths = offer_worths(menu, np.zeros((2, 3)), np.full(3, 0.1), np.ones(3), 0.1)
    chosen, _ = choose_steps(worths, offer_costs(menu, COSTS), 0.05, 0.1, allowed=allowed)
    assert menu.single[chosen].tolist() == [True, False]
    pi = choice_probabilities(worths, offer_costs(menu, COSTS), 0.05, 0.1, allowed)
    assert (pi[~allowed] == 0).all()


def test_a_row_whose_scores_are_not_finite_gets_the_cheapest_picture_whatever_it_scores() -> None:
    menu, mu = offer_menu([skewed_bank(seed=k) for k in range(3)], 4), np.array([[0.1, np.nan, 0.1]])
    worths, costs = offer_worths(menu, mu, np.full(3, 0.1), np.ones(3), 0.1), offer_costs(menu, COSTS)
    chosen, _ = choose_steps(worths, costs, 0.5, 0.1)
    assert (menu.recipe[chosen], menu.single[chosen]) == (0, True)
    assert np.isneginf(offer_bars(menu, chosen, mu, np.full(3, 0.1)))
    assert np.isfinite(choice_probabilities(worths, costs, 0.5, 0.1)).all()


def test_costs_may_be_a_rows_own() -> None:
    menu = offer_menu([skewed_bank()], 3)
    np.testing.assert_allclose(offer_costs(menu, np.array([[1.0], [2.0]]))[1], 2 * menu.tries)


def test_prices_are_counted_in_the_reference_recipes_spread() -> None:
    mean = np.array([0.5, 0.8])
    assert price_unit(np.array([0.1, 0.2]), np.array([0.5, 0.6]), 1, mean) == pytest.approx(0.12)
    assert price_unit(np.zeros(2), np.ones(2), 1, mean) == pytest.approx(0.3)
    assert price_unit(np.ones(2), np.ones(2), 0, np.ones(2)) == 1


def test_the_benchmark_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["offers", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "python -m benchmarks.offers" in capsys.readouterr().out
