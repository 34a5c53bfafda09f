"""Says what offers are worth on the prompts of a reward table: what heads expect, and what its pictures would give.

Pure numpy. Quality is counted as the policy counts it: a recipe's mean, and of what a try gains above it the share that
is quality, in the units of prices, less the mean of the prompt. Shapes: P prompts, N of them, K recipes, A offers, M
draws, S seeds.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from actors.offer_heads import OfferHeads
from actors.offers import SINGLE, OfferMenu, offer_costs
from training.learn.reward import hull_slopes
from training.learn.seed_orders import in_drawn_order, kept_scores, mean_tries, num_failing

LEAST_PRICE = 0.1  # sigma of the reference recipe per cost of one picture: below it nobody saves


@dataclass(frozen=True)
class OfferTable:
    """mu (P, K): what heads say of prompts that they have not learned from; most tries: one with each of S seeds."""

    heads: OfferHeads
    mu: np.ndarray
    num_seeds: int

    @property
    def menu(self) -> OfferMenu:
        """The offers, A in all."""
        return self.heads.menu(self.num_seeds)

    @cached_property
    def costs(self) -> np.ndarray:
        """(A,) as the heads expect them."""
        return offer_costs(self.menu, self.heads.costs)

    @property
    def costs_of_one(self) -> np.ndarray:
        """(A,) of one picture."""
        return np.asarray(self.heads.costs[self.menu.recipe])

    def worths(self, rows: np.ndarray, shift: np.ndarray | float = 0.0, slope: np.ndarray | float = 0.0) -> np.ndarray:
        """(N, A) as the heads expect them, corrected by shift and slope (N, K) in the scorer's units."""
        return self.heads.worths(self.mu[rows], self.num_seeds, shift, slope)

    def expected(self, rows: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value and tries (N, A) over all orders of the seeds, of quality (N, K, S)."""
        at, recipe = np.arange(len(rows))[:, None], self.menu.recipe
        failing = num_failing(quality, recipe, self._bars(rows, recipe, self.menu.offset))
        kept = kept_scores(quality, self.num_seeds)[at, recipe, failing]
        return self._value(quality, kept, recipe[None]), mean_tries(self.num_seeds, self.num_seeds)[failing]

    def drawn(
        self, rows: np.ndarray, quality: np.ndarray, offers: np.ndarray, uniforms: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Value and cost (N, M) of offers (N, M), seeds in the order of uniforms (N, M, S); quality (N, K, S)."""
        recipe = self.menu.recipe[offers]
        score = quality[np.arange(len(rows))[:, None], recipe]  # (N, M, S)
        bars = self._bars(rows, recipe, self.menu.offset[offers])
        kept, tries = in_drawn_order(score, bars, uniforms, self.num_seeds)
        return self._value(quality, kept, recipe), tries * self.heads.costs[recipe]

    def _bars(self, rows: np.ndarray, recipe: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """(N, A) or (N, M), of recipes and offsets of these shapes or (A,)."""
        at, single = self.mu[rows[:, None], recipe], np.isneginf(offset)
        return np.where(single, SINGLE, at + np.where(single, 0.0, offset) * self.heads.sigma[recipe])

    def _value(self, quality: np.ndarray, kept: np.ndarray, recipe: np.ndarray) -> np.ndarray:
        """In units, of kept scores and recipes (N, M)."""
        means = quality.mean(axis=2, dtype=np.float64)  # (N, K)
        of_recipe = np.take_along_axis(means, np.broadcast_to(recipe, kept.shape), axis=1)
        value = of_recipe + self.heads.share[recipe] * (kept - of_recipe)
        return np.asarray((value - means.mean(axis=1, keepdims=True)) / self.heads.unit)

    def prices(self) -> tuple[float, float]:
        """The range in which a price changes the best offer for all, in sigma of the reference recipe per its cost.

        From LEAST_PRICE to the largest slope of worth over cost.
        """
        worth = self.heads.worths(self.mu.mean(axis=0, keepdims=True), self.num_seeds)[0]
        order = np.lexsort((-worth, self.costs))
        first = np.unique(self.costs[order], return_index=True)[1]  # of offers of one cost the best
        slopes = hull_slopes(worth[order][first], self.costs[order][first])
        return LEAST_PRICE, max(float(slopes[0]), 2 * LEAST_PRICE)
