"""Ways to spend, compared: tries by hand, hulls tuned elsewhere, worlds with a known answer, words and lines."""

import json
import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise, permutations

import numpy as np
import pytest
import yaml

from actors.offers import bank_of, offer_bars, offer_costs, offer_menu, offer_worths
from actors.policy import choose_steps
from actors.recipe import Recipe, menu_of
from training.judge.chart import spending_svg
from training.judge.frontier import Bootstrap, FixedCurve, Point, hull_corners, mixture_at
from training.judge.recommendation import Way, job_lines, recommend
from training.judge.spending import NAMED_COSTS, Choose, Spending, compare_spending
from training.judge.spending_words import spending_document, spending_table, spending_verdict
from training.judge.tries import MOST_ORDERS, Pictures, best_of, delivered, one_bar, seed_orders, singles

MENU = menu_of((3, 6, {"num_steps": 6, "guidance_scale": 3.0}, 12))
COSTS = np.array([0.3, 0.6, 0.62, 1.0])
MEANS = np.array([0.6, 0.72, 0.7, 0.76])


def pictures(
    prompts: int = 300, share: float = 1.0, differ: float = 0.1, spread: float = 0.1, seed: int = 0, seeds: int = 4
) -> tuple[Pictures, np.ndarray]:
    """Pictures whose score is the judge's quality for `share` of what seeds differ by, and each prompt's own level."""
    rng = np.random.default_rng(seed)
    level = differ * rng.normal(size=(prompts, 1, 1))
    luck = spread * rng.normal(size=(prompts, len(MENU), seeds))
    noise = spread * rng.normal(size=luck.shape)
    score = MEANS[None, :, None] + level + luck
    quality = MEANS[None, :, None] + level + share * luck + (1 - share) * noise
    return Pictures(MENU, quality, score, COSTS), level[:, 0, 0]


def knowing(level: np.ndarray) -> Choose:
    """Offers by somebody who knows each prompt's level."""
    bank, mu, sigma = bank_of(np.random.default_rng(9).normal(size=2000)), MEANS + level[:, None], np.full(4, 0.1)

    def choose(price: float, most: int) -> tuple[np.ndarray, np.ndarray]:
        menu = offer_menu((bank,) * 4, most)
        worths = offer_worths(menu, mu, sigma, np.ones(4), 0.1)
        chosen, _ = choose_steps(worths, offer_costs(menu, COSTS), price, 0.05)
        return menu.recipe[chosen], offer_bars(menu, chosen, mu, sigma)

    return choose


def test_delivered_by_hand() -> None:
    seen, quality = np.array([[0.1, 0.9, 0.5]]), np.array([[1.0, 2.0, 3.0]])
    first = delivered(quality, seen, np.array([-math.inf]), 3)
    assert [each.tolist() for each in first] == [[2.0], [1.0]]
    best = delivered(quality, seen, np.array([math.inf]), 3)
    assert [each.tolist() for each in best] == [[2.0], [3.0]]
    kept, tries = delivered(quality, seen, np.array([0.5]), 2)  # in order: 1 then 2 or 3; 2 or 3 at once
    assert kept[0] == pytest.approx((2 + 3 + 2 + 2 + 3 + 3) / 6)
    assert tries[0] == pytest.approx((2 + 2 + 1 + 1 + 1 + 1) / 6)


@pytest.mark.parametrize("seed", range(5))
def test_delivered_is_the_mean_of_its_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quality, seen, bars = rng.normal(size=(7, 4)), rng.normal(size=(7, 4)).round(1), rng.normal(size=7)
    most = int(rng.integers(1, 5))
    wanted = np.zeros((2, 7))
    for row in range(7):
        for order in permutations(range(4)):
            tried: list[int] = []
            while len(tried) < most and not any(seen[row, at] >= bars[row] for at in tried):
                tried.append(order[len(tried)])
            kept = max(tried, key=lambda at: seen[row, at])
            wanted[:, row] += quality[row, kept] / 24, len(tried) / 24
    for found, one in zip(delivered(quality, seen, bars, most), wanted, strict=True):
        assert found == pytest.approx(one)


def test_orders_are_all_or_many() -> None:
    assert len(seed_orders(4, 4)) == 24
    assert len(seed_orders(4, 2)) == 12
    assert seed_orders(3, 8).shape == (6, 3)
    many = seed_orders(9, 9)
    assert many.shape == (MOST_ORDERS, 9)
    assert all(sorted(order) == list(range(9)) for order in many.tolist())


def test_best_of_n_costs_n_and_more_is_better() -> None:
    here, _ = pictures()
    rule = best_of(here)
    assert [point.name for point in rule.points[:3]] == ["3 steps", "best of 2: 3 steps", "best of 3: 3 steps"]
    for k in range(len(MENU)):
        four = rule.points[4 * k : 4 * k + 4]
        assert [point.mean_cost for point in four] == pytest.approx([n * COSTS[k] for n in (1, 2, 3, 4)])
        assert all(a.mean_quality < b.mean_quality for a, b in pairwise(four))
    assert len(best_of(pictures(seeds=2)[0]).points) == 2 * len(MENU)


def test_one_bar_is_tuned_on_other_scores() -> None:
    here, _ = pictures()
    rule = one_bar(here, np.full((5, len(MENU), 2), 99.0), 4)  # a bar that nothing here reaches
    assert [point.mean_cost for point in rule.points[1:3]] == pytest.approx([4 * COSTS[0]] * 2)
    low = one_bar(here, np.full((5, len(MENU), 2), -99.0), 4)
    assert {round(float(tries), 9) for tries in low.points[1].cost} == {COSTS[0]}


def test_nothing_is_made_up_beyond_a_rule() -> None:
    points = [Point(0, *(np.full(3, value) for value in (q, c, c))) for q, c in ((0.5, 1.0), (0.7, 2.0))]
    assert mixture_at(points, 0.9) is None
    assert mixture_at(points, 2.1) is None
    middle = mixture_at(points, 1.5)
    assert middle is not None
    assert (middle.mean_quality, middle.mean_cost) == pytest.approx((0.6, 1.5))
    assert mixture_at(points[:1], 1.0) is not None


def test_a_hull_that_was_tuned_elsewhere_keeps_its_corners() -> None:
    here, _ = pictures(seed=1)
    elsewhere, _ = pictures(seed=2)
    corners = hull_corners(best_of(elsewhere).points)
    frozen = FixedCurve(best_of(here).points, Bootstrap(300, 10), corners)
    own = FixedCurve(best_of(here).points, Bootstrap(300, 10))
    assert len(frozen.corners) == len(corners)
    costs = np.linspace(0.3, 3.9, 20)
    assert all(frozen.at(cost) <= own.at(cost) + 1e-12 for cost in costs)


@pytest.fixture(scope="module")
def found() -> Spending:
    learned, _ = pictures(seed=3)
    here, level = pictures(seed=4)
    return compare_spending(here, knowing(level), learned, 4, reference=3, resamples=300)


def test_where_bars_by_prompt_pay(found: Spending) -> None:
    advice = recommend(found)
    assert advice.way is Way.BOTH
    assert not advice.unsure
    assert advice.saved is not None
    assert advice.saved.low > 0.1
    assert advice.point.mean_quality >= found.references[0].point.mean_quality
    assert found.primary is not None
    assert found.primary.low > 0
    assert found.over_one_bar is not None
    assert found.over_one_bar.low > 0
    assert [at.cost for at in found.at] == list(NAMED_COSTS)
    assert found.references[0].point.name == "12 steps"
    lines = job_lines(advice, MENU, 4, "runs/pilot")
    assert lines == {"steps": {"price": float(f"{advice.point.setting:.3g}")}, "tries": {"max": 4}}


def test_where_all_prompts_are_alike_one_bar_does() -> None:
    here, _ = pictures(differ=0.0, seed=5)
    alone = compare_spending(here, None, pictures(differ=0.0, seed=6)[0], 4, 3, resamples=300)
    advice = recommend(alone)
    assert advice.way is Way.TRIES
    lines = job_lines(advice, MENU, 4, "runs/pilot")
    assert lines["steps"]["fixed"] == MENU[advice.point.recipe].plain()
    assert lines["tries"] == {"max": 4, "bar": {"quantile": advice.point.setting}, "scores": "runs/pilot"}
    assert advice.point.name.startswith(MENU[advice.point.recipe].words)
    assert alone.primary is None
    assert "another try" in spending_verdict(alone, advice)


@pytest.mark.parametrize("seed", range(4))
def test_where_the_score_says_nothing_of_quality_no_try_pays(seed: int) -> None:
    """Scores are another picture's: whatever is chosen by them gains nothing, and one recipe for all is the advice."""
    here, level = pictures(share=0.0, seed=10 + seed)
    there, _ = pictures(share=0.0, seed=20 + seed)
    null = compare_spending(here, knowing(level), there, 4, 3, resamples=300)
    assert null.primary is not None
    assert null.primary.value < 0
    advice = recommend(null)
    assert advice.way is Way.FIXED
    assert advice.saved is None
    assert job_lines(advice, MENU, 4, "") == {"steps": {"selector": "fixed", "fixed": 12}}
    assert "Take 12 steps for all" in spending_verdict(null, advice)


def test_few_prompts_are_said_to_be_few() -> None:
    here, level = pictures(prompts=24, spread=0.3, seed=7)
    few = compare_spending(here, knowing(level), None, 4, 3, resamples=300)
    advice = recommend(few)
    assert advice.unsure
    words = spending_verdict(few, advice)
    assert "few" in words
    assert "tuned on these very prompts" in words


def test_more_tries_than_seeds_are_said() -> None:
    here, level = pictures(seeds=2, seed=8)
    found = compare_spending(here, knowing(level), None, 4, 3, resamples=100)
    assert "simulated with 2 seeds" in spending_verdict(found, recommend(found))


def test_words_table_document_and_picture(found: Spending) -> None:
    advice = recommend(found)
    assert spending_verdict(found, advice).startswith("Let the policy choose each prompt's recipe and bar")
    table = spending_table(found)
    assert len(table.splitlines()) <= 1 + 5 * 5
    document = json.loads(json.dumps(spending_document(found, advice), allow_nan=False))
    assert document["way"] == "both"
    assert document["references"][0]["name"] == "12 steps"
    assert set(document["rules"]) == {rule.name for rule in found.rules.values()}
    yaml.safe_dump(job_lines(advice, MENU, 4, "x"))
    root = ElementTree.fromstring(spending_svg(found, "a < b & c"))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) >= len(MENU)
    assert all(0 <= float(c.get("cx", "-1")) <= 860 and 0 <= float(c.get("cy", "-1")) <= 520 for c in circles)


def test_singles_are_the_recipes() -> None:
    here, _ = pictures()
    assert [point.name for point in singles(here).points] == [recipe.words for recipe in MENU]
    assert Recipe(6) in MENU
