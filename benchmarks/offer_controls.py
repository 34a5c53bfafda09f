"""What learned heads find in worlds by formula where it is known what there is to find. Its command: benchmarks.offers.

Shapes: N rows, K recipes, S seeds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.offers import Bank, offer_bars, offer_costs, offer_menu, offer_worths
from actors.policy import choose_steps
from benchmarks.offer_worlds import COSTS, REFERENCE, Kind, World, delivered, stopped, true_bank, world
from training.judge.frontier import Bootstrap, FixedCurve, Point
from training.learn.heads import ScoreHeads, fit_heads

TEMPERATURE = 0.05


@dataclass(frozen=True)
class Known:
    """What a chooser knows of rows: banks (K), mu (N, K), sigma (N, K) or (K,), share (K,)."""

    banks: tuple[Bank, ...]
    mu: np.ndarray
    sigma: np.ndarray
    share: np.ndarray

    def choose(self, price: float, max_tries: int) -> tuple[np.ndarray, np.ndarray]:
        """Recipe and bar (N,) at a price in the scorer's units."""
        menu = offer_menu(self.banks, max_tries)
        worths = offer_worths(menu, self.mu, self.sigma, self.share, 1.0)
        chosen, _ = choose_steps(worths, offer_costs(menu, COSTS), price, TEMPERATURE)
        return menu.recipe[chosen], offer_bars(menu, chosen, self.mu, self.sigma)

    def best_for_all(self, price: float, max_tries: int) -> float:
        """Net worth of the one offer that is best for all rows; bars do know the prompt."""
        menu = offer_menu(self.banks, max_tries)
        worth = offer_worths(menu, self.mu, self.sigma, self.share, 1.0).mean(axis=0)
        return float((worth - price * offer_costs(menu, COSTS)).max())


def learned(heads: ScoreHeads, here: World) -> Known:
    """What heads say of a world's prompts."""
    return Known(heads.banks, heads.mean(here.features), heads.sigmas(here.features), heads.share)


def found_of_optimum(rng: np.random.Generator, kind: Kind, prompts: int = 1500) -> tuple[float, float]:
    """Share of what reading prompts can gain at all that heads find: over the best recipe, and the best offer, for all.

    Summed over prices. The optimum knows all that the features say, and the world's bank with its unread level.
    """
    learn, here = (world(rng, prompts, kind) for _ in range(2))
    heads, seeds_only = fit_heads(learn.features, *learn.draw(rng, 4)), true_bank(rng)
    bank = Bank(seeds_only.residuals, kind.unread / kind.sigma)
    truth, totals = Known((bank,) * len(COSTS), here.readable, here.sigma, here.share), np.zeros(4)
    for price in (0.02, 0.04, 0.08, 0.16):
        nets = [
            delivered(here, *known.choose(price, 4), seeds_only, 4).net(price)
            for known in (learned(heads, here), truth)
        ]
        totals += *nets, truth.best_for_all(price, 1), truth.best_for_all(price, 4)
    found, best, single, offer = totals
    return float((found - single) / (best - single)), float((found - offer) / (best - offer))


def tries_bought(rng: np.random.Generator, sigma: float, prompts: int = 500) -> float:
    """Mean tries at a low price where prompts differ and seeds do not."""
    here = world(rng, prompts, Kind(sigma=sigma, share=1.0, judge_noise=0.0))
    heads = fit_heads(here.features, *here.draw(rng, 4))
    chosen = learned(heads, here).choose(0.05 * heads.unit(REFERENCE), 4)
    return float(delivered(here, *chosen, true_bank(rng), 4).tries.mean())


def says_pays(rng: np.random.Generator, kind: Kind, prompts: int = 400) -> bool:
    """Whether offers beat every mixture of single recipes of equal cost on held-out prompts, for certain at 95 %.

    As an evaluation would: from a table of four seeds, tries in their order, one price set in advance.
    """
    learn, hold = (world(rng, prompts, kind) for _ in range(2))
    heads = fit_heads(learn.features, *learn.draw(rng, 4))
    score, judge = hold.draw(rng, 4)
    rows = np.arange(prompts)
    recipe, bars = learned(heads, hold).choose(0.5 * heads.unit(REFERENCE), 4)
    tries, kept = stopped(score[rows, recipe], bars)
    quality = judge[rows, recipe, (score[rows, recipe] == kept[:, None]).argmax(axis=1)]
    point = Point(0.5, quality, tries * COSTS[recipe], tries.astype(float))
    singles = [Point(c, judge[:, k].mean(axis=1), np.full(prompts, c), np.ones(prompts)) for k, c in enumerate(COSTS)]
    return FixedCurve(singles, Bootstrap(prompts)).gain(point).low > 0


def controls(worlds: int, rng: np.random.Generator) -> list[list[Any]]:
    """Rows of the second table."""
    over_single, over_offer = np.transpose([found_of_optimum(rng, Kind()) for _ in range(5)])
    null = sum(says_pays(rng, Kind(needs=0.0, share=0.0)) for _ in range(worlds))
    real = sum(says_pays(rng, Kind()) for _ in range(worlds))
    tries = ", ".join(f"{tries_bought(rng, sigma):.3f}" for sigma in (0.0, 1e-6))
    return [
        ["prompts differ in need: found of the gain over one recipe, mean and least of 5", _two(over_single)],
        ["the same over one offer for all, its bars by prompt", _two(over_offer)],
        ["prompts differ, seeds do not (sigma 0, 1e-6): mean tries", tries],
        [f"nothing differs, {worlds} worlds: says that it pays", null],
        [f"prompts and seeds differ, {worlds} worlds: says that it pays", real],
    ]


def _two(values: np.ndarray) -> str:
    return f"{values.mean():.1%}, {values.min():.1%}"
