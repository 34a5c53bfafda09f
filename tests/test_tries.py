"""Seeds of tries, the decision after each, and bars without a policy."""

import math

import numpy as np
import pytest

from actors.tries import SEED_BITS, kept_try, quantile_bar, tries_again, try_seed
from pipelines.prompts.canonical_rows import MAX_SEED, derived_seed


def test_the_first_try_has_the_rows_own_seed() -> None:
    for seed in (0, 7, 2**32 + 7, MAX_SEED):
        assert try_seed(seed, 0) == seed
    with pytest.raises(ValueError, match="0 or more"):
        try_seed(7, -1)


def test_seeds_of_tries_do_not_change_with_versions() -> None:
    assert [try_seed(42, number) for number in range(4)] == [42, 2990280473, 641745875, 71584443]


def test_a_rows_tries_differ_in_the_bits_that_noise_reads() -> None:
    for seed in (0, 1, 2**32, 2**40 + 3):
        seeds = [try_seed(seed, number) % 2**SEED_BITS for number in range(60)]
        assert len(set(seeds)) == 60


def test_a_drawn_seed_that_was_used_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first = try_seed(5, 1)
    monkeypatch.setattr("actors.tries.SEED_BITS", 8)
    for seed in (5, 3 * 256 + 5):
        seeds = [try_seed(seed, number) for number in range(256)]
        assert len({each % 256 for each in seeds}) == 256
        assert max(seeds[1:]) < 256
    assert first > 256


def test_images_of_a_prompt_and_their_tries_share_no_seed() -> None:
    """images_per_prompt 8, 4 tries, 300 prompts; given seeds count up with the sample."""
    for name in map(str, range(300)):
        own = [derived_seed(f"{name}-{sample}") for sample in range(8)]
        assert len({try_seed(seed, number) for seed in own for number in range(4)}) == 32
        counted = [int(name) + sample for sample in range(8)]
        assert len({try_seed(seed, number) for seed in counted for number in range(4)}) == 32


def test_there_is_another_try_until_one_passes_or_none_is_left() -> None:
    assert tries_again([], 0.5, 1)
    assert tries_again([0.4], 0.5, 3)
    assert not tries_again([0.4, 0.5], 0.5, 3)
    assert not tries_again([0.1, 0.2, 0.3], 0.5, 3)
    assert not tries_again([-5.0], -math.inf, 3)
    assert tries_again([math.nan], -math.inf, 3)


def test_the_best_try_is_kept_the_first_of_equals() -> None:
    assert kept_try([0.1, 0.3, 0.3, math.nan]) == 1
    assert kept_try([math.nan, -math.inf]) == 1
    assert kept_try([math.nan]) is None
    assert kept_try([]) is None


def test_a_bar_is_a_quantile_of_calibration_scores() -> None:
    scores = np.random.default_rng(0).normal(size=(100, 40))
    assert (scores < quantile_bar(scores, 0.4)).mean() == pytest.approx(0.4, abs=1e-3)
    assert quantile_bar(np.array([0.3]), 0.9) == 0.3
    assert quantile_bar(scores, 0.0) == scores.min()


@pytest.mark.parametrize(("scores", "quantile"), [([], 0.5), ([0.1, np.nan], 0.5), ([0.1], 1.0), ([0.1], np.nan)])
def test_what_gives_no_bar_is_refused(scores: list[float], quantile: float) -> None:
    with pytest.raises(ValueError, match=r"bar|quantile"):
        quantile_bar(np.array(scores), quantile)
