"""Heads of expected scores: the likelihood against known worlds, prompts really held out, the judge's share."""

import warnings

import numpy as np
import pytest

from actors.offers import Bank, bank_of
from benchmarks.offer_controls import says_pays, tries_bought
from benchmarks.offer_worlds import SKEW, Kind, skewed, world
from training.learn.banks import seed_bank, seed_residuals
from training.learn.components import Components, fit_components, negative_log_likelihood
from training.learn.heads import decile_calibration, fit_heads, fit_mean, out_of_fold
from training.learn.ridge import fit_ridge, folds_of
from training.learn.share import share_of, slope_across, slopes_within
from training.learning_error import Unlearnable

pytestmark = pytest.mark.filterwarnings("ignore:no judge", "ignore:the judge sees")


def scores(
    prompts: int, seeds: int, sigma: list[float], tau: list[float], seed: int = 0, skew: float = 0.0
) -> np.ndarray:
    """(P, K, S) about 0."""
    rng, shape = np.random.default_rng(seed), (prompts, len(sigma), seeds)
    level = np.array(tau)[:, None] * rng.normal(size=(*shape[:2], 1))
    return level + np.array(sigma)[:, None] * skewed(rng, shape, skew)


def test_the_likelihood_is_that_of_exchangeable_seeds() -> None:
    score, mu = scores(5, 3, [0.3, 1.2], [0.5, 0.1]), np.random.default_rng(1).normal(size=(5, 2))
    sigma, tau = np.array([0.4, 1.1]), np.array([0.7, 0.2])
    for k in range(2):
        covariance = sigma[k] ** 2 * np.eye(3) + tau[k] ** 2
        error = score[:, k] - mu[:, k, None]
        squares = np.einsum("ps,st,pt->p", error, np.linalg.inv(covariance), error)
        wanted = 0.5 * (squares + np.linalg.slogdet(covariance)[1]).sum()
        assert negative_log_likelihood(score, mu, sigma, tau)[k] == pytest.approx(wanted)
    np.testing.assert_allclose(
        negative_log_likelihood(score, mu, sigma, tau, by_prompt=True).sum(axis=0),
        negative_log_likelihood(score, mu, sigma, tau),
    )


@pytest.mark.parametrize("tau", [0.0, 0.4])
def test_the_closed_form_is_the_largest_likelihood(tau: float) -> None:
    score, mu = scores(40, 3, [0.5], [tau], seed=3), np.zeros((40, 1))
    found = fit_components(score, mu)
    best = negative_log_likelihood(score, mu, *found)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert negative_log_likelihood(score, mu, factor * found.sigma, found.tau) >= best
        assert negative_log_likelihood(score, mu, found.sigma, factor * found.tau) >= best
        assert negative_log_likelihood(score, mu, found.sigma, found.tau + factor / 20) >= best


@pytest.mark.parametrize("seeds", [2, 4])
def test_the_likelihood_finds_what_is_between_seeds_and_what_between_prompts(seeds: int) -> None:
    sigma, tau = [0.2, 0.5, 1.0], [0.3, 0.0, 0.6]
    found = fit_components(scores(4000, seeds, sigma, tau), np.zeros((4000, 3)))
    np.testing.assert_allclose(found.sigma, sigma, rtol=0.04)
    np.testing.assert_allclose(found.tau, tau, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.71), (4, 0.77)])
def test_residuals_keep_the_skew_that_differences_lose(seeds: int, least: float) -> None:
    score = scores(20_000, seeds, [0.5], [0.25], skew=SKEW)
    residuals = seed_residuals(score, np.zeros((20_000, 1)), Components(np.array([0.5]), np.array([0.25])))
    assert residuals.mean() == pytest.approx(0, abs=1e-9)
    assert residuals.std() == pytest.approx(1)
    within = (score - score.mean(axis=2, keepdims=True)).ravel()
    assert (residuals**3).mean() / SKEW > least
    assert (residuals**3).mean() / SKEW > ((within / within.std()) ** 3).mean() / SKEW + 0.05


def test_a_residual_is_what_the_other_seeds_do_not_say() -> None:
    score = scores(20_000, 4, [0.5], [0.25])
    residuals = seed_residuals(score, np.zeros((20_000, 1)), Components(np.array([0.5]), np.array([0.25])))
    others = score.sum(axis=2, keepdims=True) - score
    assert np.corrcoef(residuals.ravel(), others.ravel())[0, 1] == pytest.approx(0, abs=0.015)


@pytest.mark.parametrize("seeds", [2, 4])
@pytest.mark.parametrize("level_sd", [0.0, 0.3, 0.6])
def test_a_bank_is_what_the_seed_decides_without_the_level(level_sd: float, seeds: int) -> None:
    """Against the bank that made the scores; as they come, residuals would promise a tenth more at high bars."""
    score = scores(20_000, seeds, [0.5], [0.5 * level_sd], skew=-1.5)
    found = fit_components(score, np.zeros((20_000, 1)))
    residuals, bars = seed_residuals(score, np.zeros((20_000, 1)), found), np.array([-0.5, 0.0, 0.5, 1.0])
    made = bank_of(skewed(np.random.default_rng(1), (200_000,), -1.5), level_sd)
    bank = seed_bank(residuals, score / found.sigma[0], float(found.tau[0] / found.sigma[0]))
    np.testing.assert_allclose(bank.acceptance(bars), made.acceptance(bars), atol=0.015)
    np.testing.assert_allclose(bank.expected_tries(bars, 4), made.expected_tries(bars, 4), rtol=0.02)
    np.testing.assert_allclose(bank.gain(bars, 4), made.gain(bars, 4), rtol=0.03)
    if level_sd == 0.6:
        raw = bank_of(residuals, level_sd)
        assert raw.gain(1.0, 4) > 1.06 * made.gain(1.0, 4)


def test_a_prompt_does_not_speak_for_itself() -> None:
    """Scores of one fold, changed, leave that fold's own mu as it was, and change the others'."""
    here = world(np.random.default_rng(0), 200, Kind())
    means = here.draw(np.random.default_rng(1), 2)[0].mean(axis=2)
    fold = folds_of(range(200), 5)
    before, changed = out_of_fold(fit_mean, here.features, means, fold), means.copy()
    changed[fold == 2] += np.random.default_rng(2).normal(size=changed[fold == 2].shape)
    after = out_of_fold(fit_mean, here.features, changed, fold)
    np.testing.assert_array_equal(after[fold == 2], before[fold == 2])
    assert (after[fold != 2] != before[fold != 2]).all()


def test_features_that_only_name_the_prompt_explain_nothing() -> None:
    """As many random features as prompts: a fit that sees its own prompt would find no tau at all."""
    score = scores(300, 4, [0.3, 0.3], [0.5, 0.5])
    features = np.random.default_rng(1).normal(size=(300, 300))
    heads = fit_heads(features, score)
    np.testing.assert_allclose(heads.tau, 0.5, rtol=0.15)
    np.testing.assert_allclose(heads.sigma, 0.3, rtol=0.05)
    np.testing.assert_allclose([bank.level_sd for bank in heads.banks], 0.5 / 0.3, rtol=0.2)


def test_equal_texts_share_a_fold_else_they_leak() -> None:
    rng = np.random.default_rng(2)
    once, level = rng.normal(size=(150, 150)), rng.normal(size=(150, 1, 1))
    features, texts = np.repeat(once, 2, axis=0), [f"text {at // 2}" for at in range(300)]
    score = np.repeat(level, 2, axis=0) + 0.3 * rng.normal(size=(300, 1, 4))
    assert fit_heads(features, score, groups=texts).tau[0] > 0.85
    assert fit_heads(features, score).tau[0] < 0.7


def test_folds_are_even_and_repeatable() -> None:
    fold = folds_of(range(103), 5, seed=4)
    assert sorted(np.bincount(fold)) == [20, 20, 21, 21, 21]
    np.testing.assert_array_equal(fold, folds_of(range(103), 5, seed=4))
    with pytest.raises(Unlearnable, match="too few"):
        folds_of(["a", "a", "b"], 3)


def test_ridge_takes_each_target_as_far_as_it_can_be_read() -> None:
    rng = np.random.default_rng(5)
    features = np.column_stack([rng.normal(size=(400, 5)), np.full(400, 3.0)])
    targets = np.column_stack([features[:, 0] + 2, rng.normal(size=400), np.full(400, 7.0)])
    found = fit_ridge(features, targets)
    np.testing.assert_allclose(found(features)[:, 0], targets[:, 0], atol=0.02)
    assert found(features)[:, 1].std() < 0.15
    np.testing.assert_allclose(found(features)[:, 2], 7.0)
    assert found.penalty[1] > found.penalty[0]


def test_the_leave_one_out_error_is_the_one_by_leaving_out() -> None:
    """The penalty that is chosen is the best of two by refitting without each prompt."""
    rng = np.random.default_rng(6)
    features = rng.normal(size=(25, 8))
    for noise in (0.1, 3.0):
        targets = features[:, :1] + noise * rng.normal(size=(25, 1))
        errors = {}
        for penalty in (0.5, 200.0):
            x = np.column_stack([np.ones(25), (features - features.mean(0)) / features.std(0)])
            kept = [np.delete(np.arange(25), at) for at in range(25)]
            ridge = penalty * np.diag([0.0] + [1.0] * 8)
            weights = [np.linalg.solve(x[rows].T @ x[rows] + ridge, x[rows].T @ targets[rows]) for rows in kept]
            errors[penalty] = np.mean([(targets[at] - x[at] @ w) ** 2 for at, w in enumerate(weights)])
        assert fit_ridge(features, targets, (0.5, 200.0)).penalty == min(errors, key=lambda each: errors[each])


def test_heads_find_a_known_world() -> None:
    rng, kind = np.random.default_rng(7), Kind(unread=0.05)
    learn, new = world(rng, 1500, kind), world(rng, 500, kind)
    heads = fit_heads(learn.features, *learn.draw(rng, 4))
    np.testing.assert_allclose(heads.sigma, 0.1, rtol=0.03)
    np.testing.assert_allclose(heads.tau, 0.05, rtol=0.15)
    np.testing.assert_allclose(heads.share, 0.6, rtol=0.1)
    assert heads.scale is None
    assert heads.notes == ()
    assert (heads.mean(new.features) - new.readable).std() < 0.01
    assert heads.unit(3) == pytest.approx(0.06, rel=0.1)


def test_predicted_acceptance_is_what_new_prompts_do() -> None:
    rng, kind = np.random.default_rng(8), Kind(unread=0.05)
    learn, new = world(rng, 1000, kind), world(rng, 4000, kind)
    heads = fit_heads(learn.features, *learn.draw(rng, 4))
    score, mu, sigma = new.draw(rng, 2)[0], heads.mean(new.features), heads.sigmas(new.features)
    for recipe, offset in ((0, -0.5), (2, 0.0), (4, 0.8)):
        found = decile_calibration(heads.banks[recipe], score[:, recipe], mu[:, recipe], sigma[:, recipe], offset)
        assert len(found) == 10
        assert all(abs(each.acceptance - each.observed_acceptance) < 0.08 for each in found)
        assert np.mean([each.acceptance - each.observed_acceptance for each in found]) == pytest.approx(0, abs=0.02)
        assert all(abs(each.mean - each.observed_mean) < 0.02 for each in found)
        assert (np.diff([each.mean for each in found]) > 0).all()


@pytest.mark.parametrize(("slope", "found"), [(0.8, True), (0.0, False)])
def test_a_prompts_own_sigma_is_taken_where_held_out_prompts_gain_from_it(slope: float, found: bool) -> None:
    rng = np.random.default_rng(9)
    features = rng.normal(size=(600, 6))
    own = np.exp(slope * features[:, :1] / 2)
    heads = fit_heads(features, own[:, :, None] * rng.normal(size=(600, 3, 4)))
    assert (heads.scale is not None) == found
    if found:
        error = np.log(heads.sigmas(features) / own)
        assert abs(error.mean()) < 0.03
        assert error.std() < 0.15


def test_a_prompts_own_sigma_is_hardly_ever_taken_where_there_is_none() -> None:
    rng = np.random.default_rng(24)
    found = [fit_heads(rng.normal(size=(100, 6)), rng.normal(size=(100, 2, 3))).scale is not None for _ in range(40)]
    assert not any(found)


def test_a_prompts_own_sigma_is_judged_on_held_out_prompts() -> None:
    """Features that only name the prompt: on its own prompts a fit of sigma would gain much."""
    rng = np.random.default_rng(19)
    own = np.exp(0.8 * rng.normal(size=(200, 1, 1)))
    assert fit_heads(rng.normal(size=(200, 200)), own * rng.normal(size=(200, 3, 4))).scale is None


def test_a_share_is_found_and_one_recipes_own() -> None:
    rng = np.random.default_rng(10)
    here = world(rng, 1500, Kind())
    seed = 0.1 * rng.normal(size=(1500, 5, 4))
    share = np.array([0.3, 0.3, 0.6, 0.9, 0.9])[:, None]
    found, notes = share_of(here.mu[:, :, None] + seed, 2 * (here.mu[:, :, None] + share * seed))
    np.testing.assert_allclose(found, share[:, 0], rtol=0.05)
    assert notes == ()


def test_slopes_are_drawn_together_as_far_as_they_are_noise() -> None:
    rng = np.random.default_rng(21)
    seed, noise = rng.normal(size=(2, 400, 5, 4))
    alike, apart = (slopes_within(seed, share * seed + noise) for share in (0.5, np.arange(5)[:, None]))
    raw = (seed - seed.mean(axis=2, keepdims=True), noise)
    errors = (raw[0] * raw[1]).sum(axis=(0, 2)) / np.square(raw[0]).sum(axis=(0, 2))  # of each slope by itself
    assert np.ptp(alike.drawn) < 0.5 * np.ptp(errors)
    np.testing.assert_allclose(apart.drawn, np.arange(5) + errors, atol=0.01)
    assert alike.error == pytest.approx(1 / np.sqrt(400 * 5 * 3), rel=0.1)


def test_no_recipes_share_is_below_nothing() -> None:
    seed, here = np.random.default_rng(22).normal(size=(1500, 5, 4)), world(np.random.default_rng(23), 1500, Kind())
    share = np.array([-0.5, 0.6, 0.6, 0.6, 0.6])[:, None]
    found, _ = share_of(here.mu[:, :, None] + 0.1 * seed, here.mu[:, :, None] + 0.1 * share * seed)
    assert found[0] == 0
    np.testing.assert_allclose(found[1:], 0.6, rtol=0.05)


def test_a_share_may_pass_one() -> None:
    rng = np.random.default_rng(11)
    here = world(rng, 500, Kind(share=1.4))
    assert (share_of(*here.draw(rng, 4))[0] > 1.2).all()


def test_without_a_judge_the_share_is_one_and_said_to_be() -> None:
    here = world(np.random.default_rng(12), 100, Kind())
    score, _ = here.draw(np.random.default_rng(13), 2)
    with pytest.warns(UserWarning, match="no judge"):
        heads = fit_heads(here.features, score)
    assert (heads.share == 1).all()
    assert len(heads.notes) == 1


def test_recipes_that_tie_have_no_slope_across() -> None:
    rng = np.random.default_rng(14)
    seed = rng.normal(size=(300, 3, 4))
    assert slope_across(seed, seed) is None
    found, notes = share_of(seed, 0.5 * seed)
    assert (found == 1).all()
    assert "hardly differ" in notes[0]


def test_differences_that_are_noise_to_the_judge_have_no_share() -> None:
    rng = np.random.default_rng(15)
    shares = []
    for _ in range(40):
        here = world(rng, 200, Kind(share=0.0))
        shares.append(share_of(*here.draw(rng, 4))[0].max())
    assert np.mean(np.array(shares) > 0) <= 0.1
    assert max(shares) < 0.2


def test_seeds_that_do_not_differ_buy_no_tries() -> None:
    rng = np.random.default_rng(16)
    assert tries_bought(rng, 0.0) == 1
    assert tries_bought(rng, 1e-6) < 1.01


def test_one_recipe_is_a_menu() -> None:
    rng = np.random.default_rng(17)
    heads = fit_heads(rng.normal(size=(60, 4)), rng.normal(size=(60, 1, 3)))
    assert isinstance(heads.banks[0], Bank)
    assert heads.mean(rng.normal(size=(7, 4))).shape == (7, 1)


def test_what_cannot_be_learned_from_is_refused() -> None:
    features, score = np.zeros((20, 2)), scores(20, 2, [1.0], [0.0])
    broken = score.copy()
    broken[3, 0, 1] = np.nan
    for given, why in (
        ((features, score[:, :, :1]), "two seeds"),
        ((features[:5], score), "must be of the prompts"),
        ((features, score, score[:, :, :1]), "must be of the prompts"),
        ((features, broken), "finite"),
        ((features, score, broken), "finite"),
        ((np.full((20, 2), np.inf), score), "finite"),
        ((features[:3], score[:3]), "too few"),
    ):
        with pytest.raises(Unlearnable, match=why):
            fit_heads(*given)


def test_an_evaluation_says_pays_where_it_does_and_hardly_ever_elsewhere() -> None:
    """benchmarks.offers counts 40 worlds of each kind; 400 prompts and a bootstrap take a quarter second a world."""
    rng = np.random.default_rng(18)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sum(says_pays(rng, Kind(needs=0.0, share=0.0), prompts=200) for _ in range(8)) <= 1
        assert sum(says_pays(rng, Kind(), prompts=200) for _ in range(4)) >= 3
