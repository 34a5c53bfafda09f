"""Tries another seed on pictures that are there: what a bar keeps and costs, in a drawn order of seeds or over all.

A prompt's S seeds come in random order; the first picture that scores at least the bar is kept, after max_tries the
best. Pure numpy. Shapes: N prompts, K recipes, A offers, M draws, S seeds.
"""

from math import comb

import numpy as np


def num_failing(score: np.ndarray, recipe: np.ndarray, bars: np.ndarray) -> np.ndarray:
    """(N, A) seeds below the bar of each offer; score (N, K, S), recipe (A,), bars (N, A)."""
    return (score[:, recipe] < bars[:, :, None]).sum(axis=2)


def kept_scores(score: np.ndarray, max_tries: int) -> np.ndarray:
    """(N, K, S + 1) expected kept score over all orders of the seeds, by how many of them fail the bar.

    With the scores rising, f of them failing and m tries: one that passes is any of the S - f last, and of m that all
    fail, the i-th is the best with the chance C(i - 1, m - 1) / C(S, m).
    """
    seeds = score.shape[2]
    tries = min(max_tries, seeds)
    rising, number = np.sort(score.astype(np.float64), axis=2), np.arange(seeds)
    best = np.array([comb(at, tries - 1) / comb(seeds, tries) for at in number])
    failed = np.concatenate([np.zeros_like(rising[..., :1]), np.cumsum(rising * best, axis=2)], axis=2)
    passing = np.cumsum(rising[..., ::-1], axis=2)[..., ::-1] / (seeds - number)  # means of the S - f last
    chance = np.array([1 - comb(at, tries) / comb(seeds, tries) for at in number])
    return failed + np.concatenate([passing * chance, np.zeros_like(rising[..., :1])], axis=2)


def mean_tries(num_seeds: int, max_tries: int) -> np.ndarray:
    """(S + 1,) expected tries over all orders, by how many seeds fail the bar: sum of the chances that j all fail."""
    tries = range(min(max_tries, num_seeds))
    return np.array([sum(comb(f, j) / comb(num_seeds, j) for j in tries) for f in range(num_seeds + 1)])


def in_drawn_order(
    score: np.ndarray, bars: np.ndarray, uniforms: np.ndarray, max_tries: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kept score and tries (N, M) of drawn offers: score (N, M, S) of each, bars (N, M), uniforms (N, M, S)."""
    order = np.argsort(uniforms, axis=2)[:, :, : min(max_tries, score.shape[2])]
    tried = np.take_along_axis(score, order, axis=2)  # (N, M, tries)
    passed = tried >= bars[:, :, None]
    some = passed.any(axis=2)
    kept = np.where(some, passed.argmax(axis=2), tried.argmax(axis=2))
    tries = np.where(some, kept + 1, order.shape[2])
    return np.take_along_axis(tried, kept[:, :, None], axis=2)[:, :, 0], tries
