"""Makes the banks of offers: how scores scatter between seeds alone, from errors of held-out predictions.

Shapes: P prompts, K recipes, S seeds, R residuals of a bank, L levels.
"""

import math

import numpy as np

from actors.offers import LEVELS, OFFSETS, Bank, bank_of
from training.learn.components import Components

ROUNDS = 3  # of matching the errors' quantiles: none leaves a tenth too much gain at high bars, ten fit the noise


def seed_residuals(score: np.ndarray, mu: np.ndarray, found: Components) -> np.ndarray:
    """(P, K, S) of mean 0 and variance 1 a recipe: a seed's score less what mu and the other seeds say of it.

    The other seeds' mean, shrunk as a random intercept is, leaves the seed's own part untouched, and with it the skew;
    differences within a prompt would lose it (all of it with two seeds). Zeros where seeds do not differ.
    """
    seeds, error = score.shape[2], score - mu[:, :, None]
    sigma, tau = (np.expand_dims(values, -1) for values in found)  # (K, 1) or (P, K, 1)
    variance = np.square(sigma) + (seeds - 1) * np.square(tau)
    shrunk = np.divide(np.square(tau), variance, out=np.zeros_like(variance), where=variance > 0)
    residual = error - shrunk * (error.sum(axis=2, keepdims=True) - error)
    residual = np.divide(residual, sigma, out=np.zeros_like(residual), where=np.broadcast_to(sigma > 0, score.shape))
    residual = residual - residual.mean(axis=(0, 2), keepdims=True)
    spread = residual.std(axis=(0, 2), keepdims=True)
    return residual / np.where(spread > 0, spread, 1.0)


def seed_bank(residuals: np.ndarray, errors: np.ndarray, level_sd: float) -> Bank:
    """The bank whose draws, at a normal level of level_sd, scatter as prediction errors do; both in sigmas, any shape.

    Begins with `residuals`, of which each holds some of the level still, and moves each by what the mixture's quantile
    is off the errors' at its rank. Without a level it is the errors themselves.
    """
    values = bank_of(residuals).values
    wanted = bank_of(errors, size=len(values)).values
    for _ in range(ROUNDS):
        mixed = np.sort((values[:, None] + level_sd * LEVELS).ravel()).reshape(len(values), -1).mean(axis=1)
        values = np.sort(values + wanted - mixed)
    return bank_of(values, level_sd)


def miss_chances(errors: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """The chances (offsets, S) that 1 to S seeds of a prompt all lie below mu + offset; errors (P, S) in sigmas.

    Of f seeds of a prompt below it, j drawn without a second look all do in C(f, j) / C(S, j) of all cases: no model of
    how prompts differ.
    """
    seeds = errors.shape[1]
    drawn = range(1, seeds + 1)
    all_below = np.array([[math.comb(f, j) / math.comb(seeds, j) for j in drawn] for f in range(seeds + 1)])
    return tuple(tuple(all_below[(errors < offset).sum(axis=1)].mean(axis=0).tolist()) for offset in OFFSETS)
