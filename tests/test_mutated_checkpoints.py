"""A seeded slice of `tests.mutated_checkpoints`; the whole takes hours."""

import pytest

from tests.mutated_checkpoints import Outcome, one_checkpoint, one_scorer


def bad(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.good]


def test_a_slice_of_mutated_checkpoints_is_refused_or_equal():
    outcomes = [one_checkpoint(seed) for seed in range(12)]
    assert not bad(outcomes)
    assert {outcome.verdict for outcome in outcomes} == {"refused", "equal"}


def test_a_slice_of_harmless_variants_is_accepted_and_equal():
    assert {outcome.verdict for outcome in (one_checkpoint(seed, harmless=True) for seed in range(5))} == {"equal"}


def test_a_slice_of_mutated_scorers_is_refused_or_equal():
    assert not bad([one_scorer(seed) for seed in range(12)])


@pytest.mark.hours
def test_500_mutated_checkpoints_are_refused_or_equal():
    assert not bad([one_checkpoint(seed) for seed in range(500)])


@pytest.mark.hours
def test_100_harmless_variants_are_accepted_and_equal():
    outcomes = [one_checkpoint(seed, harmless=True) for seed in range(100)]
    assert [outcome for outcome in outcomes if outcome.verdict != "equal"] == []


@pytest.mark.hours
def test_200_mutated_scorers_are_refused_or_equal():
    assert not bad([one_scorer(seed) for seed in range(200)])
