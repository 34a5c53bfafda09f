"""Ablations on a world whose answer is known, at toy size."""

from dataclasses import replace

import pytest
from tables import world
from test_learner import LEARNING, NETWORK, embeddings

from benchmarks.ablation import ablate, outcome_table, ways
from training.learn.batches import TrainingRows
from training.reward_table import RewardTable


def part(seed: int) -> tuple[RewardTable, TrainingRows]:
    table = world(160, seed=seed)
    return table, TrainingRows(embeddings(table, seed), dict(enumerate(table.quality)))


@pytest.mark.slow
def test_every_way_is_measured_with_every_seed() -> None:
    candidates = ways(replace(LEARNING, epochs=40), NETWORK)
    paper = candidates["paper's reward and gradient"]
    picked = {
        "all actions": candidates["all actions"],
        "paper's reward and gradient": replace(paper, learning=replace(paper.learning, epochs=2)),
        "regression head": replace(candidates["regression head"], learning=replace(LEARNING, epochs=1)),
    }
    table, rows = part(1)
    outcomes = [ablate(name, part(0), ({"truth": table}, rows), way, seeds=(0, 1)) for name, way in picked.items()]
    gains = {outcome.name: outcome.gains["truth"] for outcome in outcomes}
    assert all(len(each) == 2 for each in gains.values())
    assert min(gains["all actions"]) > 0.002
    assert max(gains["paper's reward and gradient"]) < min(gains["all actions"])
    text = outcome_table(outcomes)
    assert all(name in text for name in picked)
    assert max(map(len, text.splitlines())) < 80


def test_ways_differ_from_the_method_in_one_part() -> None:
    candidates = ways(LEARNING, replace(NETWORK, num_layers=2))
    base = candidates.pop("leave-one-out")
    assert all(way != base for way in candidates.values())
    assert candidates["no baseline"].learning.baseline == "none"
    assert candidates["twice as wide"].network.width == 2 * NETWORK.width
    assert candidates["a quarter as wide"].network.width % NETWORK.num_heads == 0
