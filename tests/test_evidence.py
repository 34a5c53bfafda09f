"""Tables and a policy's card -> what an evaluation is made from: who judges, which guidance stands for a solver."""

from dataclasses import replace

import numpy as np
import pytest
from tables import CHOICES, world

from actors.policy import Network, PolicyCard, Setting
from training.judge.evidence import PolicyScores, Setup, evidence, labels, tuned
from training.reward_table import RewardTable, TableError

CARD = PolicyCard(
    choices=CHOICES,
    costs=(0.2, 0.3, 0.6, 1.0),
    temperature=0.1,
    text_encoder="x",
    network=Network(8, 4),
    setting=Setting(solver="ddim", guidance_scale=2.0),
    calibration=(
        {"price": 0.1, "least_steps": 4, "most_steps": 16},
        {"price": 1.0, "least_steps": 2, "most_steps": 8},
    ),
)


def reading(table: RewardTable) -> PolicyScores:
    count = len(table.prompts)
    return PolicyScores(CARD, np.zeros((count, 4)), np.zeros((count, 2)), None)


def scored(seed: int = 0) -> RewardTable:
    table = world(40, seed=seed)
    return replace(table, scores={"clip": table.quality, "truth": table.quality[:, ::-1] * 2})


def test_the_judge_judges() -> None:
    table = scored()
    made = evidence(reading(table), table, None, "truth")
    assert np.array_equal(made.held_out.quality, table.scores["truth"])
    assert list(made.prices) == [0.1, 1.0]
    assert made.held_out.costs == pytest.approx(CARD.costs)
    assert made.allowed is not None
    assert made.allowed(0.5).tolist() == [True, True, True, True]
    assert made.allowed(1.0).tolist() == [True, True, True, False]
    assert made.margin == pytest.approx(2 * evidence(reading(table), table, None).margin, rel=0.2)
    with pytest.raises(TableError, match="clip, truth"):
        evidence(reading(table), table, None, "fame")


def test_a_solver_stands_with_its_best_guidance_at_every_budget() -> None:
    own, other = scored(), scored()
    better = np.array([1, 1, -1, -1])[None, :, None] * 0.5
    variant = replace(other, quality=own.quality + better)
    found = tuned(own, {Setup("ddim", 4.0): variant, Setup("dpmpp_2m", 4.0): variant}, None, CARD)
    assert list(found) == ["DDIM, best guidance", "DPM-Solver++ 2M, best guidance"]
    best = found["DDIM, best guidance"].quality
    assert np.array_equal(best[:, :2], variant.quality[:, :2])
    assert np.array_equal(best[:, 2:], own.quality[:, 2:])
    assert np.array_equal(found["DPM-Solver++ 2M, best guidance"].quality, variant.quality)


def test_prompts_are_grouped_by_category_and_words() -> None:
    table = replace(world(90), prompts=tuple("w " * (1 + row % 30) for row in range(90)))
    found = labels(table)
    assert set(found["category"]) == {"plain", "rich"}
    assert len(set(found["words"])) == 4
    for prompt, name in zip(table.prompts, found["words"], strict=True):
        low, high = map(int, name.split(" to "))
        assert low <= len(prompt.split()) <= high
    same = replace(table, categories=(None,) * 90, prompts=("two words",) * 90)
    assert labels(same) == {}
