"""Says what bars and tries would have delivered, from pictures that are there: all orders of their seeds, averaged.

Pure numpy. A bar looks at the chooser's scores; what is delivered is the judge's. Whoever chooses recipes and bars must
not know these pictures. Shapes: P prompts, K recipes, S seeds, O orders, M tries.
"""

import math
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from actors.recipe import Recipe
from training.judge.frontier import Point, Rule

SINGLE, BEST_OF_N, ONE_BAR = "one recipe for all", "best of n", "one bar for all"  # names of rules
MOST_ORDERS = 240
BEST_OF = 4  # pictures of a row, the best of which is kept, whatever the first scores
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of scores that fall short of one bar for all


@dataclass(frozen=True)
class Pictures:
    """Pictures of prompts by every recipe and seed. quality, seen (P, K, S): the judge's scores, the chooser's.

    costs (K,): of one picture with its decode and score, in those of one picture of the reference recipe.
    """

    choices: tuple[Recipe, ...]
    quality: np.ndarray
    seen: np.ndarray
    costs: np.ndarray

    @property
    def num_prompts(self) -> int:
        """P."""
        return len(self.quality)

    def take(self, rows: np.ndarray) -> "Pictures":
        """Those of some prompts."""
        return Pictures(self.choices, self.quality[rows], self.seen[rows], self.costs)


def seed_orders(num_seeds: int, most: int) -> np.ndarray:
    """(O, M) orders of seeds, M the smaller of `most` and num_seeds: all of them, or MOST_ORDERS drawn ones."""
    tries = min(num_seeds, most)
    if math.perm(num_seeds, tries) <= MOST_ORDERS:
        return np.array([*permutations(range(num_seeds), tries)])
    rng = np.random.default_rng(0)
    return np.array([rng.permutation(num_seeds)[:tries] for _ in range(MOST_ORDERS)])


def delivered(quality: np.ndarray, seen: np.ndarray, bars: np.ndarray, max_tries: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean quality of the picture kept, and mean tries, (P,) each, over the orders of a prompt's seeds.

    quality, seen (P, S) of each prompt's recipe; bars (P,): -inf takes the first picture, inf the best of all tries.
    """
    orders = seed_orders(quality.shape[1], max_tries)
    scores, judged = seen[:, orders], quality[:, orders]  # (P, O, M)
    passed = scores >= bars[:, None, None]
    some = passed.any(axis=2)
    kept = np.where(some, passed.argmax(axis=2), scores.argmax(axis=2))  # (P, O)
    tries = np.where(some, kept + 1, orders.shape[1])
    found = np.take_along_axis(judged, kept[:, :, None], axis=2)[:, :, 0]
    return found.mean(axis=1), tries.mean(axis=1)


def stopped(pictures: Pictures, recipe: np.ndarray, bars: np.ndarray, max_tries: int, setting: float) -> Point:
    """What prompts get by recipes and bars (P,); steps and cost are those of all tries."""
    rows, steps = np.arange(len(recipe)), np.array([choice.num_steps for choice in pictures.choices])
    quality, tries = delivered(pictures.quality[rows, recipe], pictures.seen[rows, recipe], bars, max_tries)
    return Point(setting, quality, tries * pictures.costs[recipe], tries * steps[recipe])


def for_all(pictures: Pictures, recipe: int, bar: float, max_tries: int, setting: float, name: str) -> Point:
    """One recipe and one bar for all prompts."""
    count = pictures.num_prompts
    point = stopped(pictures, np.full(count, recipe), np.full(count, bar), max_tries, setting)
    return replace(point, name=name, recipe=recipe)


def singles(pictures: Pictures) -> Rule:
    """Every recipe, one picture of each row: what a user has without this product."""
    points = [
        for_all(pictures, k, -math.inf, 1, choice.num_steps, choice.words) for k, choice in enumerate(pictures.choices)
    ]
    return Rule(SINGLE, tuple(points))


def best_of(pictures: Pictures) -> Rule:
    """Every recipe, one to BEST_OF pictures of each row, the best by the chooser: what needs no bar."""
    counts = range(1, min(BEST_OF, pictures.quality.shape[2]) + 1)
    points = [
        for_all(pictures, k, math.inf, count, count, f"best of {count}: {choice.words}" if count > 1 else choice.words)
        for k, choice in enumerate(pictures.choices)
        for count in counts
    ]
    return Rule(BEST_OF_N, tuple(points))


def one_bar(pictures: Pictures, known: np.ndarray, max_tries: int) -> Rule:
    """Every recipe with one bar for all prompts, at quantiles of scores that were known before, (P', K, S)."""
    points = []
    for k, choice in enumerate(pictures.choices):
        for quantile in (0.0, *QUANTILES):
            bar = float(np.quantile(known[:, k], quantile)) if quantile else -math.inf
            name = f"{choice.words}, again below {bar:.4g}" if quantile else choice.words
            points.append(for_all(pictures, k, bar, max_tries, quantile, name))
    return Rule(ONE_BAR, tuple(points))
