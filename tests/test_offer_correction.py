"""A correction in a policy's folder: its file, the choices it changes and those it leaves, and what prices do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_offer_heads import heads

from actors.offer_correction import SCALES, Correction
from actors.offer_heads import OFFERS, TEMPERATURE, OfferHeads, load_heads, save_heads
from actors.offers import modelled_cost, offer_costs
from actors.policy import choice_probabilities

WIDTH, TRIES = 6, 4
FEATURES = np.random.default_rng(1).normal(size=(300, WIDTH)).astype(np.float32)
ALL, FREE = np.ones(3, bool), np.zeros(len(FEATURES), bool)
PRICES = np.geomspace(0.02, 30.0, 25)


def corrected(scale: float = 1.0, size: float = 0.03) -> OfferHeads:
    rng = np.random.default_rng(2)
    layers = [rng.normal(size=shape) for shape in ((WIDTH, 8), (8,), (8, 6), (6,))]
    correction = Correction(layers[0], layers[1], size * layers[2], size * layers[3], scale, 0.25)
    return replace(heads(WIDTH), correction=correction)


def test_the_file_gives_it_back(tmp_path: Path) -> None:
    made = corrected(0.5)
    (tmp_path / OFFERS).write_bytes(save_heads(made))
    found = load_heads(tmp_path)
    assert found is not None
    assert found.correction is not None
    assert made.correction is not None
    assert save_heads(found) == save_heads(made)
    assert (found.correction.scale, found.correction.gain) == (0.5, 0.25)
    for one, other in zip(found.correction(FEATURES), made.correction(FEATURES), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_without_one_has_none(tmp_path: Path) -> None:
    (tmp_path / OFFERS).write_bytes(save_heads(heads(WIDTH)))
    found = load_heads(tmp_path)
    assert found is not None
    assert found.correction is None


@pytest.mark.parametrize("nothing", [corrected(0.0), corrected(1.0, size=0.0)], ids=["scale 0", "zeros"])
@pytest.mark.parametrize("decision", ["argmax", "sample"])
def test_a_correction_of_nothing_leaves_every_bit_of_a_choice(nothing: OfferHeads, decision: str) -> None:
    uniforms = np.random.default_rng(3).random(len(FEATURES))
    for price in PRICES:
        wanted = heads(WIDTH).choose(FEATURES, price, TRIES, ALL, FREE, decision, uniforms)
        found = nothing.choose(FEATURES, price, TRIES, ALL, FREE, decision, uniforms)
        for one, other in zip(found, wanted, strict=True):
            assert one.tobytes() == other.tobytes()


def test_it_changes_choices_and_no_bar_of_an_offer() -> None:
    with_it, without = corrected(), heads(WIDTH)
    found, before = (each.choose(FEATURES, 0.5, TRIES, ALL, FREE) for each in (with_it, without))
    assert (found.bar != before.bar).mean() > 0.1
    np.testing.assert_array_equal(found.scores, before.scores)  # the forecast of a score stays the heads'
    same = (found.recipe == before.recipe) & (found.tries == before.tries)
    assert same.any()
    np.testing.assert_array_equal(found.bar[same], before.bar[same])


def worths(given: OfferHeads) -> np.ndarray:
    assert given.correction is not None
    return given.worths(given.mu(FEATURES), TRIES, *given.correction(FEATURES))


@pytest.mark.parametrize("scale", SCALES)
def test_no_rows_modelled_cost_rises_with_the_price(scale: float) -> None:
    given = corrected(scale)
    costs, spent, taken = offer_costs(given.menu(TRIES), given.costs), [], []
    for price in PRICES:
        pi = choice_probabilities(worths(given), costs, price, TEMPERATURE)
        spent.append(modelled_cost(pi, costs))
        found = given.choose(FEATURES, price, TRIES, ALL, FREE)
        taken.append(given.costs[found.recipe] * found.tries)
    for each in (spent, taken):
        assert np.diff(each, axis=0).max() <= 1e-9
        assert (each[0] > each[-1]).mean() > 0.5


def test_propensities_are_those_of_the_corrected_worths() -> None:
    given, price = corrected(), 0.5
    menu = given.menu(TRIES)
    pi = choice_probabilities(worths(given), offer_costs(menu, given.costs), price, TEMPERATURE)
    uniforms = np.random.default_rng(3).random(len(FEATURES))
    found = given.choose(FEATURES, price, TRIES, ALL, FREE, "sample", uniforms)
    offers = (np.cumsum(pi, axis=1) <= uniforms[:, None]).sum(axis=1)
    np.testing.assert_array_equal(found.recipe, menu.recipe[offers])
    np.testing.assert_allclose(found.probability, pi[np.arange(len(pi)), offers])
