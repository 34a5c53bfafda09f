"""Fits ridge regressions in closed form, with the penalty by leave-one-out error. Pure numpy.

Shapes: P prompts, D features, T targets, F folds.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from training.learning_error import Unlearnable

PENALTIES = (*np.geomspace(1e-2, 1e6, 33).tolist(), math.inf)  # inf: the mean alone
LEAST_REMAINDER = 1e-10  # of 1 - leverage: no clamp that fits of more features than prompts reach


@dataclass(frozen=True)
class Ridge:
    """(P, D) features -> (P, T): intercept + ((features - mean) / spread) @ weights."""

    mean: np.ndarray  # (D,)
    spread: np.ndarray  # (D,)
    intercept: np.ndarray  # (T,)
    weights: np.ndarray  # (D, T), of standardized features
    penalty: np.ndarray  # (T,)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(P, T)."""
        return self.intercept + ((features - self.mean) / self.spread) @ self.weights


def fit_ridge(features: np.ndarray, targets: np.ndarray, penalties: Sequence[float] = PENALTIES) -> Ridge:
    """Each target (P, T) with the penalty of its least leave-one-out error. Constant features weigh nothing.

    Hastie et al., The Elements of Statistical Learning, eq. 7.64, with an intercept that is not penalized.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 1e-9 * (np.abs(mean) + 1e-9), spread, np.inf)
    u, s, vt = np.linalg.svd((features - mean) / spread, full_matrices=False)
    level = targets.mean(axis=0)
    projected = u.T @ (targets - level)  # (min(P, D), T)

    def errors(penalty: float) -> np.ndarray:
        shrunk = s**2 / (s**2 + penalty)
        remainder = np.maximum(1 - 1 / len(u) - (u**2) @ shrunk, LEAST_REMAINDER)  # 1 - leverage, (P,)
        residual = targets - level - u @ (shrunk[:, None] * projected)
        return np.square(residual / remainder[:, None]).mean(axis=0)  # (T,)

    best = np.stack([errors(each) for each in penalties]).argmin(axis=0)
    penalty = np.array(penalties)[best]  # (T,)
    weights = vt.T @ (s[:, None] / (s[:, None] ** 2 + penalty) * projected)
    return Ridge(mean, spread, level, weights, penalty)


def folds_of(groups: Sequence[Hashable], num_folds: int, seed: int = 0) -> np.ndarray:
    """The fold (P,) of each prompt; equal groups, such as one text under two ids, share theirs.

    Unlearnable: fewer groups than folds.
    """
    number: dict[Hashable, int] = {}
    labels = np.array([number.setdefault(group, len(number)) for group in groups])
    if len(number) < num_folds:
        raise Unlearnable(f"{len(number)} different prompts are too few for {num_folds} folds")
    places = np.random.default_rng(seed).permutation(len(number)) % num_folds
    return places[labels]
