"""Learns what offers are made from: a prompt's expected score of every recipe, and its scatter between seeds.

x[p, k, s] = mu[p, k] + u[p, k] + e[p, k, s]: mu = level(prompt) + recipe + an interaction, ridge regressions on the
prompt's features; u, of standard deviation tau[k], what they do not know of the prompt, the same for all its seeds; e,
of sigma[k], what the seed decides. Offers and their price are `actors.offers`; a judge's say is `training.learn.share`.
Shapes: P prompts, K recipes, S seeds, D features, B deciles.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from actors.offers import Bank, price_unit
from training.learn.banks import miss_chances, seed_bank, seed_residuals
from training.learn.components import Components, fit_components, negative_log_likelihood
from training.learn.ridge import Ridge, fit_ridge, folds_of
from training.learn.share import share_of
from training.learning_error import Unlearnable

NUM_FOLDS = 5
Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]  # features, targets -> its predictions
LEAST_GAIN = 2.0  # standard errors of log-likelihood by which a prompt's own sigma must be better on held-out prompts


@dataclass(frozen=True)
class MeanScore:
    """level (P, D) -> (P, 1), the mean over recipes; contrast (P, D) -> (P, K), a recipe's score above it."""

    level: Ridge
    contrast: Ridge

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """mu (P, K) in the scorer's units."""
        return self.level(features) + self.contrast(features)


def fit_mean(features: np.ndarray, means: np.ndarray) -> MeanScore:
    """Of means over seeds (P, K). Level and contrasts are orthogonal, so each has its own penalty."""
    level = means.mean(axis=1, keepdims=True)
    return MeanScore(fit_ridge(features, level), fit_ridge(features, means - level))


@dataclass(frozen=True)
class ScoreHeads:
    """What offers need. sigma, tau, share (K,); scale: of sigma by prompt, (P, D) -> (P, 1), None where pooled.

    mu, fold: of the learning table, out of fold, (P, K) and (P,).
    """

    mean: MeanScore
    sigma: np.ndarray
    tau: np.ndarray
    share: np.ndarray
    banks: tuple[Bank, ...]
    scale: Ridge | None
    mu: np.ndarray
    fold: np.ndarray
    notes: tuple[str, ...] = field(default=())

    def sigmas(self, features: np.ndarray) -> np.ndarray:
        """(P, K) in the scorer's units."""
        scale = np.zeros((len(features), 1)) if self.scale is None else self.scale(features)
        return self.sigma * np.exp(scale / 2)

    def unit(self, reference: int) -> float:
        """What prices are counted in, in the scorer's units (`actors.offers.price_unit`)."""
        return price_unit(self.sigma, self.share, reference, self.mu.mean(axis=0))


def fit_heads(
    features: np.ndarray,
    score: np.ndarray,
    judge: np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
    pooled_sigma: bool = False,
) -> ScoreHeads:
    """The heads of features (P, D) and scores (P, K, S); judge (P, K, S) of the same pictures.

    All seeds of a prompt, and prompts of equal `groups` (their texts), are in one fold; mu, tau and the banks come from
    prompts that the regression had not seen. pooled_sigma: no prompt has a sigma of its own.
    Unlearnable: fewer than two seeds, values not finite, too few prompts.
    """
    _check(features, score, judge)
    fold = folds_of(range(len(score)) if groups is None else groups, num_folds, seed)
    means = score.mean(axis=2)
    mu = out_of_fold(fit_mean, features, means, fold)
    pooled = fit_components(score, mu)
    same = (None, np.broadcast_to(pooled.sigma, mu.shape))
    scale, sigma = same if pooled_sigma else _fit_scale(features, score, mu, pooled, fold)
    share, notes = share_of(score, judge)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    banks = _banks(score, mu, sigma, pooled)
    return ScoreHeads(fit_mean(features, means), *pooled, share, banks, scale, mu, fold, notes)


def _banks(score: np.ndarray, mu: np.ndarray, sigma: np.ndarray, pooled: Components) -> tuple[Bank, ...]:
    """A bank a recipe; sigma (P, K). Where seeds make no difference, one of zeros."""
    residuals = seed_residuals(score, mu, Components(sigma, np.broadcast_to(pooled.tau, sigma.shape)))
    safe = np.where(pooled.sigma > 0, pooled.sigma, np.inf)
    errors = (score - mu[:, :, None]) / np.where(sigma > 0, sigma, np.inf)[:, :, None]
    levels = pooled.tau / safe
    return tuple(
        replace(seed_bank(residuals[:, k], errors[:, k], float(levels[k])), misses=miss_chances(errors[:, k]))
        for k in range(mu.shape[1])
    )


def _check(features: np.ndarray, score: np.ndarray, judge: np.ndarray | None) -> None:
    if score.ndim != 3 or score.shape[2] < 2:
        raise Unlearnable("two seeds a prompt or more tell what the seed decides from what the prompt does")
    if len(features) != len(score) or (judge is not None and judge.shape != score.shape):
        raise Unlearnable(f"features {features.shape} and judge must be of the prompts of scores {score.shape}")
    if not all(np.isfinite(values).all() for values in (features, score, judge) if values is not None):
        raise Unlearnable("features, scores and the judge's scores must be finite: leave out prompts without them")


def out_of_fold(fit: Fit, features: np.ndarray, targets: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Each prompt's prediction, as targets (P, T), by a regression, penalty included, on prompts of the other folds."""
    found = np.empty_like(targets)
    for each in np.unique(fold):
        found[fold == each] = fit(features[fold != each], targets[fold != each])(features[fold == each])
    return found


def _fit_scale(
    features: np.ndarray, score: np.ndarray, mu: np.ndarray, pooled: Components, fold: np.ndarray
) -> tuple[Ridge | None, np.ndarray]:
    """log(sigma_p^2 / sigma^2) by prompt, with sigma (P, K) out of fold; None and the pooled one without a gain."""
    same = np.broadcast_to(pooled.sigma, mu.shape)
    if not (pooled.sigma > 0).all():
        return None, same
    ratio = (score.var(axis=2, ddof=1) / np.square(pooled.sigma)).mean(axis=1, keepdims=True)  # (P, 1)
    if not (ratio > 0).all():
        return None, same
    own = same * np.exp(out_of_fold(_fit_log, features, ratio, fold) / 2)
    gain = [negative_log_likelihood(score, mu, sigma, pooled.tau, by_prompt=True).sum(axis=1) for sigma in (same, own)]
    better = gain[0] - gain[1]  # (P,)
    if better.mean() <= LEAST_GAIN * better.std() / np.sqrt(len(better)):
        return None, same
    return _fit_log(features, ratio), own


def _fit_log(features: np.ndarray, ratio: np.ndarray) -> Ridge:
    """log ratio (P, 1) on features, its intercept such that ratio / exp(prediction) has mean 1."""
    found = fit_ridge(features, np.log(ratio))
    shift = np.log((ratio / np.exp(found(features))).mean())
    return Ridge(found.mean, found.spread, found.intercept + shift, found.weights, found.penalty)


class Decile(NamedTuple):
    """Prompts of like predicted score: predicted and observed mean, and share of pictures that pass the bar."""

    mean: float
    observed_mean: float
    acceptance: float
    observed_acceptance: float


def decile_calibration(bank: Bank, score: np.ndarray, mu: np.ndarray, sigma: np.ndarray, offset: float) -> list[Decile]:
    """One recipe's deciles by rising mu, with bars at mu + offset * sigma; score (P, S), mu and sigma (P,).

    A report on prompts that the heads were not fitted on, or on their out-of-fold mu.
    """
    predicted = float(bank.acceptance(offset))
    passed = score >= (mu + offset * sigma)[:, None]  # (P, S)
    return [
        Decile(float(mu[rows].mean()), float(score[rows].mean()), predicted, float(passed[rows].mean()))
        for rows in np.array_split(np.argsort(mu, kind="stable"), min(10, len(mu)))
    ]
