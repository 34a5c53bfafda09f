"""Another try under one price, against the optimum: `python -m benchmarks.offers [--cases 1000] [--write]`.

Random recipes, banks, prices and caps: the chosen offer's net worth against the best rule of stopping, by dynamic
programming; its modelled cost as the price rises; the closed forms against simulation. Then worlds by formula: prompts
that differ in need, seeds that make no difference, and nothing that does. No picture is rendered.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.offers import (
    Bank,
    bank_of,
    modelled_cost,
    offer_costs,
    offer_menu,
    offer_worths,
)
from actors.policy import choice_probabilities, choose_steps
from benchmarks.measure import alternate, arguments, machine, markdown, report
from benchmarks.offer_controls import TEMPERATURE, controls
from benchmarks.offer_worlds import SKEW, optimum, simulated, skewed

PRICES = np.geomspace(0.02, 20.0, 25)  # sigma_ref per cost of a reference picture
Row = list[Any]


@dataclass(frozen=True)
class Case:
    """One row and its menu of K recipes: mu, sigma, share, costs (K,)."""

    banks: tuple[Bank, ...]
    mu: np.ndarray
    sigma: np.ndarray
    share: np.ndarray
    costs: np.ndarray
    price: float
    max_tries: int
    unit: float


def random_case(rng: np.random.Generator) -> Case:
    """1 to 8 recipes, banks of 50 to 1,000 residuals (normal, skewed, with ties), prices over three decades."""
    count = int(rng.integers(1, 9))
    costs = np.sort(rng.uniform(0.1, 1.5, count))
    sigma, share = rng.uniform(0.07, 0.15, count), rng.uniform(0.4, 1.2) * rng.uniform(0.8, 1.25, count)
    reference = int(rng.integers(count))
    return Case(
        banks=tuple(_random_bank(rng) for _ in range(count)),
        mu=rng.uniform(0.0, 0.3) * -np.exp(-3 * costs) + rng.normal(0, 0.02, count),
        sigma=sigma,
        share=share,
        costs=costs / costs[reference],
        price=float(np.exp(rng.uniform(np.log(PRICES[0]), np.log(PRICES[-1])))),
        max_tries=int(rng.integers(1, 9)),
        unit=float(sigma[reference] * share[reference]),
    )


def _random_bank(rng: np.random.Generator) -> Bank:
    residuals = skewed(rng, (int(rng.integers(50, 1001)),), float(rng.uniform(-1.5, 1.0)))
    return bank_of(np.round(residuals, 1) if rng.random() < 0.25 else residuals)


def shortfall(case: Case) -> float:
    """The optimum over recipes less the chosen offer's net worth, in sigma_ref."""
    menu = offer_menu(case.banks, case.max_tries)
    worths = offer_worths(menu, case.mu[None], case.sigma, case.share, case.unit)
    costs = offer_costs(menu, case.costs)
    chosen, _ = choose_steps(worths, costs, case.price, TEMPERATURE)
    scale = case.share * case.sigma / case.unit
    best = max(
        mu / case.unit + optimum(bank.values, scale[k], case.price * case.costs[k], case.max_tries)
        for k, (bank, mu) in enumerate(zip(case.banks, case.mu, strict=True))
    )
    return float(best - (worths[0] - case.price * costs)[chosen[0]])


def worst_rise(case: Case) -> float:
    """The largest rise of modelled cost from one price to the next, softmax or argmax; 0 or less is monotone."""
    menu = offer_menu(case.banks, case.max_tries)
    worths = offer_worths(menu, case.mu[None], case.sigma, case.share, case.unit)
    costs, found = offer_costs(menu, case.costs), []
    for price in PRICES:
        chosen, _ = choose_steps(worths, costs, price, TEMPERATURE)
        soft = modelled_cost(choice_probabilities(worths, costs, price, TEMPERATURE), costs)
        found.append([float(costs[chosen[0]]), float(soft[0])])
    return float(np.diff(found, axis=0).max())


def against_simulation(case: Case, rng: np.random.Generator, rows: int = 20_000) -> list[float]:
    """Standard errors by which simulated tries and gain differ from the closed forms, for one offer of a case."""
    bank = Bank(case.banks[0].residuals, float(rng.choice([0.0, 0.5])))
    offset = float(rng.uniform(-1.5, 2.0))
    tries, kept = simulated(bank, offset, case.max_tries, rng, rows)
    pairs = ((tries, bank.expected_tries(offset, case.max_tries)), (kept, bank.gain(offset, case.max_tries)))
    return [float((drawn.mean() - formula) / max(drawn.std() / math.sqrt(rows), 1e-9)) for drawn, formula in pairs]


def formulas(cases: int, rng: np.random.Generator) -> list[Row]:
    """Rows of the first table: what was found over all cases, and what is wanted."""
    drawn = [random_case(rng) for _ in range(cases)]
    short = np.array([shortfall(case) for case in drawn])
    rises = np.array([worst_rise(case) for case in drawn])
    errors = np.abs([against_simulation(case, rng) for case in drawn[:200]]).ravel()
    within = float((short <= 0.01).mean())
    return [
        [f"net worth below the optimum, sigma_ref: mean, largest of {cases}", f"{short.mean():.4f}, {short.max():.4f}"],
        ["cases within 1 % of sigma_ref of it", f"{within:.1%}"],
        ["cases whose modelled cost rises with the price", int((rises > 1e-9).sum())],
        [f"simulation against formula, {len(errors)} figures: beyond 2 and 4 standard errors", _beyond(errors)],
        *skew_and_level(rng),
    ]


def _beyond(errors: np.ndarray) -> str:
    return f"{(errors > 2).mean():.1%}, {(errors > 4).mean():.1%}"


def skew_and_level(rng: np.random.Generator) -> list[Row]:
    """What a normal bank, and one that does not know that a row's tries share a level, get wrong in tries."""
    normal, skew = (bank_of(skewed(rng, (200_000,), each), size=4000) for each in (0.0, SKEW))
    bars, rows = np.array([-0.5, 0.0, 0.5]), 200_000
    wrong = normal.expected_tries(bars, 4) / skew.expected_tries(bars, 4) - 1
    level = Bank(skew.residuals, 0.55)
    total = bank_of(skew.values + 0.55 * rng.normal(size=len(skew.values)))  # one bank of what is between and within
    drawn = np.array([simulated(level, bar, 4, rng, rows) for bar in bars]).mean(axis=2)  # (3, 2)
    figures = [
        (f"tries by a normal bank, skew {SKEW}", wrong),
        ("tries by a bank without its level, level_sd .55", total.expected_tries(bars, 4) / drawn[:, 0] - 1),
        ("gain by it", total.gain(bars, 4) / drawn[:, 1] - 1),
        ("tries by the bank with its level", level.expected_tries(bars, 4) / drawn[:, 0] - 1),
        ("gain by it", level.gain(bars, 4) / drawn[:, 1] - 1),
    ]
    return [[f"{name}: too many at bars -.5, 0, .5", ", ".join(f"{x:+.1%}" for x in found)] for name, found in figures]


def seconds_a_row(rng: np.random.Generator, rows: int = 2000) -> list[Row]:
    """Choosing among offers, beside choosing among recipes: microseconds a row."""
    case = random_case(rng)
    banks = (case.banks * 9)[:9]
    menu, few = offer_menu(banks, 4), offer_menu(banks, 1)
    mu, sigma, costs = rng.normal(size=(rows, 9)), np.full(9, 0.1), np.linspace(0.1, 1, 9)

    def chosen(of: Any) -> None:
        choose_steps(offer_worths(of, mu, sigma, np.ones(9), 0.1), offer_costs(of, costs), 0.5, TEMPERATURE)

    turns = alternate({"offers": lambda: chosen(menu), "recipes": lambda: chosen(few)}, 5)
    return [
        [f"us a row, {len(of.recipe)} {name}", 1e6 * turns[name].median / rows]
        for name, of in (("offers", menu), ("recipes", few))
    ]


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="random rows and menus")
    parser.add_argument("--worlds", type=int, default=40, help="of each control")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    where, rng = machine(), np.random.default_rng(given.seed)
    rows = [*formulas(given.cases, rng), *controls(given.worlds, rng), *seconds_a_row(rng)]
    report("offers", markdown(("what", "found"), rows), {"options": vars(given), "rows": rows}, where, given.write)


if __name__ == "__main__":
    main()
