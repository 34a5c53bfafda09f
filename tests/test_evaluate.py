"""The whole comparison on worlds whose answer is known: where it pays, where it does not, where one cannot say."""

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from tables import CHOICES, world

from actors.recipe import menu_of
from training.judge.chart import frontier_svg
from training.judge.compare import Evaluation, Evidence, evaluate, quality_margin
from training.judge.verdict import evaluation_document, frontier_table, groups, pays, too_small, verdict
from training.learn.reward import centred, in_rises

PRICES = np.geomspace(0.04, 11, 12).tolist()


def evidence(prompts: int = 300, alike: bool = False, noise: float = 0.03, **values: object) -> Evidence:
    """A policy that knows each kind's curve: half the truth where there is one."""
    learned = world(300, noise=noise, alike=alike)
    held_out = world(prompts, seed=1, noise=noise, alike=alike)
    texts = tuple(f"held out {prompt}" for prompt in held_out.prompts)
    held_out = replace(held_out, prompts=texts)
    kinds, mean = np.array(held_out.categories), centred(learned.quality).mean(axis=2)
    by_kind = {k: mean[np.array(learned.categories) == k].mean(axis=0) for k in set(learned.categories)}
    scores = np.stack([by_kind[kind] for kind in kinds])
    made = {
        "learned": learned,
        "held_out": held_out,
        "scores": in_rises(scores, learned.quality),
        "prices": PRICES,
        "margin": 1.5 * quality_margin(learned),
        "labels": {"category": [str(kind) for kind in kinds]},
    }
    return Evidence(**(made | values))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(evidence(), resamples=400)


def test_a_world_where_it_pays(found: Evaluation) -> None:
    assert pays(found)
    assert not too_small(found)
    assert found.monotone
    assert found.rival.setting == 8
    assert found.savings["policy"].value > 0
    assert 0.1 < found.strict_savings["policy"].low < found.strict_savings["policy"].high < 0.5
    assert max(gain.low for gain in found.gains["policy"]) > 0.02
    assert all(gain.high >= 0 for gain in found.gains["policy"])
    assert found.kept > 0.8
    assert found.recommended.mean_cost < found.rival.mean_cost
    assert found.recommended_loss.low >= -found.margin
    by_name = {group.name: group for group in found.groups}
    assert by_name["category rich"].mean_steps > by_name["category plain"].mean_steps + 2
    assert "Adaptivity pays" in verdict(found)
    assert "Most steps go to category rich" in verdict(found)


def test_every_rival_is_there_and_counting_words_gains_nothing(found: Evaluation) -> None:
    names = {rule.name for rule in found.rules}
    assert names == {"words", "cross-seed oracle"}
    gains = {name: np.mean([gain.value for gain in each]) for name, each in found.gains.items()}
    assert gains["words"] < 0.005 < gains["policy"]


def test_a_world_where_all_prompts_are_alike() -> None:
    blank = evaluate(evidence(alike=True), resamples=400)
    assert not pays(blank)
    assert not too_small(blank)
    assert "Adaptivity does not pay" in verdict(blank)
    assert f"steps.selector: fixed with {blank.rival.name}" in verdict(blank)
    assert math.isnan(blank.kept)
    assert "the seed decides" in verdict(blank)


def test_a_sample_that_is_too_small() -> None:
    few = evaluate(evidence(prompts=20, noise=0.4), resamples=400)
    assert not pays(few)
    assert too_small(few)
    assert "too few to say" in verdict(few)


def test_a_policy_that_is_wrong_is_said_to_be() -> None:
    right = evidence()
    kinds = np.array(right.held_out.categories) == "rich"
    swapped = np.where(kinds[:, None], right.scores[~kinds][0], right.scores[kinds][0])
    bad = evaluate(replace(right, scores=swapped, labels={}), resamples=400)
    assert not pays(bad)
    assert bad.monotone
    assert bad.strict_savings["policy"].high < 0
    assert "the policy is worse than fixed budgets of the same cost, for certain" in verdict(bad)


def test_a_better_solver_raises_the_curve() -> None:
    plain = evidence()
    better = replace(plain.held_out, quality=plain.held_out.quality + 0.05, seconds=plain.held_out.seconds * 0.5)
    raised = evaluate(replace(plain, variants={"dpmpp_2m": better}), resamples=400)
    assert raised.best.at(0.5) > raised.curve.at(0.5) + 0.04
    assert not pays(raised)
    assert raised.gains["policy"] == evaluate(plain, resamples=400).gains["policy"]
    assert "There fixed budgets with dpmpp_2m, save" in verdict(raised)
    moved = next(rule for rule in raised.rules if rule.name == "policy, dpmpp_2m")
    for own, there in zip(raised.policy.points, moved.points, strict=True):
        assert there.quality == pytest.approx(own.quality + 0.05)
        assert there.cost == pytest.approx(own.cost * 0.5)
    assert [point.mean_cost for point in raised.rules[0].points][-1] == pytest.approx(0.5)


def test_the_page(found: Evaluation) -> None:
    text = frontier_table(found)
    assert text.count("\npolicy ") == 8
    assert all(rule.name[:30] in text for rule in found.rules)
    assert max(map(len, text.splitlines())) <= 100
    assert "category rich" in groups(found)
    data = json.loads(json.dumps(evaluation_document(found), allow_nan=False))
    assert data["pays"] is True
    assert len(data["rules"]["policy"]) == len(PRICES) + 1
    assert data["rules"]["fixed"][0]["gain"] is None
    svg = frontier_svg(found, "a < b & c")
    root = ElementTree.fromstring(svg)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) >= len(PRICES) + len(CHOICES)
    assert all(0 <= float(c.get("cx", "-1")) <= 860 and 0 <= float(c.get("cy", "-1")) <= 520 for c in circles)


def test_tables_that_do_not_belong_together() -> None:
    made = evidence(prompts=40)
    for values, message in (
        ({"variants": {"other": world(30)}}, "table of other"),
        ({"learned": made.held_out}, "both learned from and held out"),
        ({"scores": made.scores[:3]}, "scores has 3 rows for 40"),
        ({"labels": {"category": ["a"]}}, "label category has 1"),
        ({"learned": replace(made.learned, choices=menu_of((1, 2, 3, 4)))}, "another menu"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(replace(made, **values), resamples=10)  # type: ignore[arg-type]


def test_the_margin_is_set_by_the_learned_table() -> None:
    learned = world(100)
    assert quality_margin(learned) == pytest.approx(0.01 * np.ptp(np.quantile(learned.quality, [0.01, 0.99])))
