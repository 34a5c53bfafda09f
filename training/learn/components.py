"""Splits a score's variance into the seed's and the prompt's, by the likelihood of a random intercept a prompt.

Shapes: P prompts, K recipes, S seeds.
"""

from typing import NamedTuple

import numpy as np


class Components(NamedTuple):
    """Standard deviations (K,) in the scorer's units: between seeds, and of what mu does not know of a prompt."""

    sigma: np.ndarray
    tau: np.ndarray


def negative_log_likelihood(
    score: np.ndarray, mu: np.ndarray, sigma: np.ndarray, tau: np.ndarray, by_prompt: bool = False
) -> np.ndarray:
    """(K,) sums over prompts, or (P, K), of scores (P, K, S) under a random intercept a prompt, without its constant.

    Half of (S - 1) log sigma^2 + SS / sigma^2 + log(sigma^2 + S tau^2) + S (mean - mu)^2 / (sigma^2 + S tau^2), SS the
    sum of squares about the prompt's mean: the normal density of exchangeable seeds (Searle et al., Variance
    Components, 1992, section 3.7). sigma, tau: (K,) or (P, K).
    """
    seeds, mean = score.shape[2], score.mean(axis=2)
    squares = np.square(score - mean[:, :, None]).sum(axis=2)
    within, between = np.square(sigma), np.square(sigma) + seeds * np.square(tau)
    terms = (seeds - 1) * np.log(within) + squares / within + np.log(between) + seeds * (mean - mu) ** 2 / between
    return terms / 2 if by_prompt else terms.sum(axis=0) / 2


def fit_components(score: np.ndarray, mu: np.ndarray) -> Components:
    """The sigma and tau with the largest likelihood given mu (P, K), in closed form since every prompt has S seeds.

    With mu of held-out prompts tau holds its error, too, which is what the tries of a new prompt share.
    """
    seeds, mean = score.shape[2], score.mean(axis=2)
    squares = np.square(score - mean[:, :, None]).sum(axis=2).mean(axis=0)  # (K,)
    between = seeds * np.square(mean - mu).mean(axis=0)  # sigma^2 + S tau^2
    within = squares / (seeds - 1)
    none = between <= within
    within = np.where(none, (squares + between) / seeds, within)
    return Components(np.sqrt(within), np.sqrt(np.where(none, 0.0, (between - within) / seeds)))
