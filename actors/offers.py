"""Another try under one price: offers, and what each costs and is worth.

An offer is a recipe and an offset: render with it, keep the first picture that scores at least mu + offset * sigma, at
most max_tries times, and the best of those rendered where none does. The offset -inf is one picture, whatever it
scores. Which one a row gets says `actors.policy.choose_steps`, over offers in place of budgets. mu, sigma, share and
the banks are learned by `training.learn.heads`; nothing is rendered here. Pure numpy.

Shapes: N rows, K recipes, A offers, R residuals of a bank, L levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

SINGLE = -math.inf
OFFSETS = tuple(eighths / 8 for eighths in range(-20, 25))  # in sigmas: from nearly every picture passes to none does
BANK_SIZE = 1000
NUM_LEVELS = 16


def _levels(count: int) -> np.ndarray:
    """(L,) equally likely points of a normal distribution, of mean 0 and variance 1."""
    points = np.array([NormalDist().inv_cdf((at + 0.5) / count) for at in range(count)])
    return points / points.std()


LEVELS = _levels(NUM_LEVELS)


@dataclass(frozen=True)
class Bank:
    """How the scores of one recipe scatter between seeds: residuals (R,), rising, in sigmas; a draw takes any of them.

    level_sd: the standard deviation, in sigmas, of what mu does not know of a prompt. The tries of a row share it, so
    that failures come in runs: they are averaged over a normal level. misses: where they were counted, the chances that
    the first 1, 2, ... pictures of a row all lie below each of OFFSETS; they say then how many tries there are, since
    no level is normal. ValueError: no residual, not finite, not sorted.
    """

    residuals: tuple[float, ...]
    level_sd: float = 0.0
    misses: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        values = np.array(self.residuals, np.float64)
        if not len(values) or not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise ValueError("a bank needs finite residuals in rising order, one at least")
        if not 0 <= self.level_sd < math.inf:
            raise ValueError(f"level_sd {self.level_sd} must be finite and not negative")

    @cached_property
    def values(self) -> np.ndarray:
        """(R,) float64."""
        return np.array(self.residuals, np.float64)

    def acceptance(self, offset: float | np.ndarray) -> np.ndarray:
        """The chance that a picture scores at least mu + offset * sigma; the shape of offset."""
        return 1 - (self._below(offset) / len(self.values)).mean(axis=-1)

    def expected_tries(self, offset: float | np.ndarray, max_tries: int) -> np.ndarray:
        """Pictures rendered on average, 1 to max_tries: the sum of the chances of more than j, for j < max_tries."""
        return self._more_than(offset, max_tries).sum(axis=-1)

    def tries_variance(self, offset: float | np.ndarray, max_tries: int) -> np.ndarray:
        """Of the pictures of one row, whose level is not known: the mean square less the mean's.

        Given the bank, the tries of rows are independent, so that those of a job add up.
        """
        more = self._more_than(offset, max_tries)
        square = ((2 * np.arange(max_tries) + 1) * more).sum(axis=-1)
        return np.maximum(0.0, square - more.sum(axis=-1) ** 2)

    def gain(self, offset: float | np.ndarray, max_tries: int) -> np.ndarray:
        """The kept picture's expected residual, in sigmas; the shape of offset.

        With k of the R residuals below the bar it is tries * (sum of those from k on) / R, a picture that passes, plus
        the sum over i <= k of x_i ((i / R)^m - ((i - 1) / R)^m), the best of m = max_tries that all fail.
        """
        below, count = self._below(offset), len(self.values)
        best = np.diff((np.arange(count + 1) / count) ** _checked(max_tries))  # P(the best of m draws is the i-th)
        passing = np.append(np.cumsum(self.values[::-1])[::-1], 0.0) / count
        failing = np.append(0.0, np.cumsum(self.values * best))
        return (self._tries(below, max_tries) * passing[below] + failing[below]).mean(axis=-1)

    def _below(self, offset: float | np.ndarray) -> np.ndarray:
        """Residuals below the bar at each level, (..., L) or (..., 1) where the level is known."""
        levels = self.level_sd * LEVELS if self.level_sd else np.zeros(1)
        return np.searchsorted(self.values, np.asarray(offset, np.float64)[..., None] - levels, side="left")

    def _more_than(self, offset: float | np.ndarray, max_tries: int) -> np.ndarray:
        """The chances (..., max_tries) that a row has more than j pictures, j from 0: E[q^j], q the share below."""
        powers = np.arange(_checked(max_tries))
        if not self.misses:
            return ((self._below(offset) / len(self.values))[..., None] ** powers).mean(axis=-2)
        at = np.asarray(offset, np.float64)[..., None]
        counted = _prolonged(np.array(self.misses), max_tries)
        columns = [np.interp(at[..., 0], OFFSETS, counted[:, number]) for number in range(max_tries)]
        return np.where(np.isneginf(at), powers == 0, np.stack(columns, axis=-1))

    def _tries(self, below: np.ndarray, max_tries: int) -> np.ndarray:
        return ((below / len(self.values))[..., None] ** np.arange(_checked(max_tries))).sum(axis=-1)


def _prolonged(misses: np.ndarray, max_tries: int) -> np.ndarray:
    """(O, max_tries) chances of more than 0, 1, ... pictures, of misses (O, S), S at least 2.

    Past the seeds that were counted they fall as the moments of the beta distribution with the same first two do.
    """
    first, second = np.clip(misses[:, 0], 1e-9, 1 - 1e-9), misses[:, 1]
    alike = np.clip((second / first - first) / (1 - first), 0.0, 1 - 1e-9)  # correlation of two tries of a row
    found = [np.ones(len(misses)), *misses.T]
    for number in range(len(found) - 1, max_tries - 1):
        found.append(found[-1] * (first * (1 - alike) + number * alike) / (1 - alike + number * alike))
    return np.stack(found[:max_tries], axis=1)


def bank_of(residuals: np.ndarray, level_sd: float = 0.0, size: int = BANK_SIZE) -> Bank:
    """The bank of residuals in any order, centred: mu is the mean. ValueError where one is not finite.

    More than `size` are stored as means of that many equally likely stretches, which keep the mean exactly.
    """
    values = np.sort(np.asarray(residuals, np.float64).ravel())
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("a bank needs finite residuals, one at least")
    values = values - values.mean()
    if len(values) > size:
        sums = np.append(0.0, np.cumsum(values)) / len(values)
        at = np.interp(np.arange(size + 1) / size, np.arange(len(sums)) / len(values), sums)
        values = np.maximum.accumulate(np.diff(at) * size)  # rounding may turn equal ones round
    return Bank(tuple(values.tolist()), level_sd)


def _checked(max_tries: int) -> int:
    if max_tries < 1:
        raise ValueError(f"max_tries {max_tries} must be 1 or more")
    return int(max_tries)


@dataclass(frozen=True)
class OfferMenu:
    """A offers, by recipe and rising offset: recipe (A,) int64, offset (A,) in sigmas, SINGLE first.

    tries, gain (A,): what the bank of the recipe expects of each; variance (A,): of one row's tries.
    """

    recipe: np.ndarray
    offset: np.ndarray
    tries: np.ndarray
    gain: np.ndarray
    variance: np.ndarray

    @property
    def single(self) -> np.ndarray:
        """(A,) bool: one picture, whatever it scores."""
        return np.isneginf(self.offset)


def offer_menu(banks: Sequence[Bank], max_tries: int, offsets: Sequence[float] = OFFSETS) -> OfferMenu:
    """Every recipe as a single picture and, where max_tries allows more, with each offset."""
    of_each = np.array([SINGLE, *(sorted(set(offsets)) if _checked(max_tries) > 1 else ())])
    return OfferMenu(
        recipe=np.repeat(np.arange(len(banks)), len(of_each)),
        offset=np.tile(of_each, len(banks)),
        tries=np.concatenate([bank.expected_tries(of_each, max_tries) for bank in banks]),
        gain=np.concatenate([bank.gain(of_each, max_tries) for bank in banks]),
        variance=np.concatenate([bank.tries_variance(of_each, max_tries) for bank in banks]),
    )


def offer_costs(menu: OfferMenu, costs: np.ndarray) -> np.ndarray:
    """Expected cost (A,) of costs (K,) of one picture, 1 being the reference recipe's; (N, A) of (N, K)."""
    return np.asarray(costs, np.float64)[..., menu.recipe] * menu.tries


def offer_worths(menu: OfferMenu, mu: np.ndarray, sigma: np.ndarray, share: np.ndarray, unit: float) -> np.ndarray:
    """Expected quality (N, A) in units: (mu + share * sigma * gain) / unit; mu (N, K), sigma and share (K,) or (N, K).

    mu and sigma in the scorer's units; unit: sigma_ref, see `price_unit`. Less price * cost it is the net worth.
    """
    scale = np.asarray(share, np.float64) * np.asarray(sigma, np.float64)
    return (np.asarray(mu, np.float64)[..., menu.recipe] + scale[..., menu.recipe] * menu.gain) / unit


def price_unit(sigma: np.ndarray, share: np.ndarray, reference: int, mean: np.ndarray) -> float:
    """What prices are counted in: the reference recipe's sigma * share; sigma, share and the menu's mean scores (K,).

    Where seeds make no difference that counts (under a thousandth of the rise of the menu), the rise itself. ValueError
    where there is neither.
    """
    unit, rise = float(sigma[reference] * share[reference]), float(np.ptp(mean))
    if unit > rise / 1000:
        return unit
    if not rise > 0:
        raise ValueError("neither the seed nor the recipe changes the score: there is nothing to choose")
    return rise


def modelled_cost(probabilities: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Expected cost (N,) of rows. It never rises with the price: its derivative is -Var[cost] / temperature."""
    return (probabilities * costs).sum(axis=1)


def allowed_offers(menu: OfferMenu, recipes: np.ndarray, pinned: np.ndarray) -> np.ndarray:
    """(N, A) bool: offers of the recipes allowed, (K,) or (N, K), and no other try of a row with a pinned seed (N,)."""
    of_recipes = np.asarray(recipes, bool)[..., menu.recipe]
    return of_recipes & (menu.single | ~np.asarray(pinned, bool)[:, None])


def offer_bars(menu: OfferMenu, chosen: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The score (N,) from which a picture is kept, in the scorer's units; -inf where there is no other try.

    chosen (N,) offers; mu (N, K); sigma (K,) or (N, K).
    """
    rows, recipe, offset = np.arange(len(chosen)), menu.recipe[chosen], menu.offset[chosen]
    at, spread = np.asarray(mu)[rows, recipe], np.broadcast_to(sigma, np.shape(mu))[rows, recipe]
    return np.where(menu.single[chosen], SINGLE, at + np.where(menu.single[chosen], 0.0, offset) * spread)
