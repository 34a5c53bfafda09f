"""Worlds by formula in which it is known what offers can gain, and the best that any rule of stopping can do.

Scores are mu(prompt, recipe) + sigma * e, with e skewed as a scorer's are; the judge sees a share of what the seed does
and noise of its own. Measured worlds are `training.scenes`.

Shapes: P prompts, K recipes, S seeds, D features, R residuals of a bank.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from actors.offers import Bank, bank_of

COSTS = np.array([0.2, 0.35, 0.6, 1.0, 1.7])
CURVE = -np.exp(-3.0 * COSTS)  # what a recipe lacks, for a prompt of need 1
SKEW = -0.7  # of CLIP's scores between seeds, on the embedded model
REFERENCE = 3


def skewed(rng: np.random.Generator, shape: tuple[int, ...], skew: float = SKEW) -> np.ndarray:
    """Draws of mean 0, variance 1 and this skew: a gamma distribution, mirrored where it is negative."""
    if not skew:
        return rng.normal(size=shape)
    form = 4 / skew**2
    return np.sign(skew) * (rng.gamma(form, size=shape) - form) / np.sqrt(form)


def scatter(rng: np.random.Generator, prompts: int, recipes: int, seeds: int, skew: float = SKEW) -> np.ndarray:
    """(P, K, S) of mean 0 and variance 1: half of it is one seed's at all recipes, which begin from one noise."""
    common, own = skewed(rng, (prompts, 1, seeds), skew), skewed(rng, (prompts, recipes, seeds), skew)
    return (common + own) / np.sqrt(2)


@dataclass(frozen=True)
class World:
    """readable (P, K): mu as far as it is linear in features (P, D); unread (P, 1): the rest; sigma, share (K,).

    judge_noise: standard deviation of the judge's own.
    """

    features: np.ndarray
    readable: np.ndarray
    unread: np.ndarray
    sigma: np.ndarray
    share: np.ndarray
    judge_noise: float

    @property
    def mu(self) -> np.ndarray:
        """(P, K)."""
        return self.readable + self.unread

    def draw(self, rng: np.random.Generator, seeds: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and the judge's (P, K, S)."""
        seed = self.sigma[:, None] * scatter(rng, len(self.mu), self.mu.shape[1], seeds)
        judge = self.mu[:, :, None] + self.share[:, None] * seed + self.judge_noise * rng.normal(size=seed.shape)
        return self.mu[:, :, None] + seed, judge


@dataclass(frozen=True)
class Kind:
    """How a world's prompts and seeds differ. needs 1: a prompt's need of a dear recipe is 0.3 to 1.7; 0: always 1.

    unread: standard deviation of what features do not say of a prompt's level. All levels differ in what they say.
    """

    needs: float = 1.0
    sigma: float = 0.1
    share: float = 0.6
    unread: float = 0.02
    judge_noise: float = 0.05


def world(rng: np.random.Generator, prompts: int, kind: Kind) -> World:
    """Prompts with 16 features, of which one is the need, one the level."""
    features = rng.uniform(-1.0, 1.0, size=(prompts, 16))
    need, ones = 1 + 0.7 * kind.needs * features[:, :1], np.ones(len(COSTS))
    readable = 0.17 * features[:, 1:2] + 0.5 * need * CURVE
    unread = kind.unread * rng.normal(size=(prompts, 1))
    return World(features, readable, unread, kind.sigma * ones, kind.share * ones, kind.judge_noise)


def true_bank(rng: np.random.Generator, skew: float = SKEW, level_sd: float = 0.0) -> Bank:
    """The bank that unlimited pictures would give."""
    return bank_of(scatter(rng, 200_000, 1, 1, skew), level_sd, size=4000)


def optimum(residuals: np.ndarray, scale: float, cost: float, max_tries: int) -> float:
    """The best net worth above mu of tries at one recipe: stopping with recall, by dynamic programming over the bank.

    residuals (R,) rising, scale: a residual's worth, cost: of a try, both in one unit. The value after m tries is that
    of the best so far or of one try more; the first is always made (Weitzman 1979 has the unlimited case).
    """
    kept = scale * residuals
    value, count = kept, len(kept)
    for _ in range(max_tries - 1):
        above = np.cumsum(value[::-1])[::-1] - value
        value = np.maximum(kept, ((np.arange(count) + 1) * value + above) / count - cost)
    return float(value.mean() - cost)


def simulated(bank: Bank, offset: float, max_tries: int, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
    """Tries and the kept residual (rows,) of drawn rows, each of one level, with no formula."""
    level = bank.level_sd * rng.normal(size=(rows, 1))
    drawn = level + rng.choice(bank.values, size=(rows, max_tries))
    return stopped(drawn, np.full(rows, offset))


def stopped(scores: np.ndarray, bars: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tries and the score kept (N,) of rows whose tries would score (N, M): the first that passes, else the best."""
    passed = scores >= bars[:, None]
    first = np.where(passed.any(axis=1), passed.argmax(axis=1), scores.argmax(axis=1))
    tries = np.where(passed.any(axis=1), first + 1, scores.shape[1])
    return tries, scores[np.arange(len(scores)), first]


class Delivered(NamedTuple):
    """Expected quality and tries (N,), and the cost of one (N,)."""

    quality: np.ndarray
    tries: np.ndarray
    cost: np.ndarray

    def net(self, price: float) -> float:
        """Mean quality less price * cost."""
        return float((self.quality - price * self.tries * self.cost).mean())


def delivered(here: World, recipe: np.ndarray, bars: np.ndarray, bank: Bank, max_tries: int) -> Delivered:
    """What recipes and bars (N,), chosen by anyone, give in a world: exactly, by each prompt's own mu."""
    mu, sigma = here.mu[np.arange(len(recipe)), recipe], here.sigma[recipe]
    offset = np.divide(bars - mu, sigma, out=np.where(bars > mu, np.inf, -np.inf), where=sigma > 0)
    quality = mu + here.share[recipe] * sigma * bank.gain(offset, max_tries)
    return Delivered(quality, bank.expected_tries(offset, max_tries), COSTS[recipe])
