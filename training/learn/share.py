"""Estimates how much of a score's difference between seeds is quality: the factor for a try's expected gain.

Shapes: P prompts, K recipes, S seeds.
"""

from typing import NamedTuple

import numpy as np

LEAST_SLOPE = 2.0  # standard errors from which a slope within prompts is not noise
LEAST_SIGNAL = 4.0  # standard errors that the recipes' means must spread by, else there is no slope across them


def share_of(score: np.ndarray, judge: np.ndarray | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """share (K,) of score and judge (P, K, S), and notes where it could not be found.

    The slope of the judge on the score within prompts, over that slope across the recipes' means. It is no correlation
    and may pass 1. Without a judge it is 1; where the judge does not rise with the score within prompts for certain, 0,
    and no other try is bought; where it does and there is no slope across recipes, 1.
    """
    ones = np.ones(score.shape[1])
    if judge is None:
        return ones, ("no judge: every difference in score between seeds counts as quality (share 1)",)
    within, across = slopes_within(score, judge), slope_across(score, judge)
    if within.pooled <= LEAST_SLOPE * within.error:
        return 0 * ones, ("the judge sees no quality in the score's differences between seeds: share 0, no other try",)
    if across is None:
        return ones, ("the recipes' mean scores hardly differ, or the judge falls as they rise: share 1",)
    return np.maximum(within.drawn, 0.0) / across, ()


class SlopesWithin(NamedTuple):
    """drawn (K,): a recipe's slope, drawn to the pooled one as far as its noise demands; error: of the pooled one."""

    drawn: np.ndarray
    pooled: float
    error: float


def slopes_within(score: np.ndarray, judge: np.ndarray) -> SlopesWithin:
    """Slopes of judge on score about each prompt's mean; 0 where seeds do not differ.

    Empirical Bayes, the variance between recipes by moments (DerSimonian and Laird 1986, equal weights).
    """
    x = score - score.mean(axis=2, keepdims=True)
    y = judge - judge.mean(axis=2, keepdims=True)
    xx, xy = np.square(x).sum(axis=(0, 2)), (x * y).sum(axis=(0, 2))  # (K,)
    if not (xx > 0).all():
        pooled = float(xy.sum() / xx.sum()) if xx.sum() > 0 else 0.0
        return SlopesWithin(np.full(len(xx), pooled), pooled, 0.0)
    slopes, pooled = xy / xx, float(xy.sum() / xx.sum())
    noise = np.square(_products(x, y, slopes)).sum(axis=0) / xx**2
    error = np.sqrt(np.square(_products(x, y, np.array([pooled])).sum(axis=1)).sum()) / xx.sum()
    between = max(float(slopes.var(ddof=1) - noise.mean()), 0.0) if len(slopes) > 1 else 0.0
    kept = np.divide(between, between + noise, out=np.zeros_like(noise), where=between + noise > 0)
    return SlopesWithin(pooled + kept * (slopes - pooled), pooled, float(error))


def _products(x: np.ndarray, y: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """(P, K) sums of x times the residual: their squares hold where spreads differ between prompts (White 1980)."""
    return (x * (y - slopes[:, None] * x)).sum(axis=2)


def slope_across(score: np.ndarray, judge: np.ndarray) -> float | None:
    """The slope of the judge's recipe means on the score's; None where noise could have made it, or it falls."""
    x = score.mean(axis=2) - score.mean(axis=(1, 2))[:, None]  # (P, K), each prompt's level taken out
    y = judge.mean(axis=2) - judge.mean(axis=(1, 2))[:, None]
    means, noise = x.mean(axis=0), x.var(axis=0, ddof=1).sum() / len(x)
    spread = np.square(means).sum()
    if not spread > max(LEAST_SIGNAL**2 * noise, 1e-18):
        return None
    slope = float((means * y.mean(axis=0)).sum() / spread)
    return slope if slope > 0 else None
