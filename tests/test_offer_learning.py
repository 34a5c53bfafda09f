"""REINFORCE over offers: unbiased, resumable, better than heads that are wrong, unused where there is nothing."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.offer_correction import SCALES
from actors.recipe import menu_of
from training.learn.batches import TrainingRows, num_slots, rows_at
from training.learn.correction_scale import scaled, validate_correction
from training.learn.hyperparameters import Hyperparameters
from training.learn.learner import At, Learner
from training.learn.offers import offer_stage
from training.learn.stages import OfferStage
from training.reward_table import RewardTable

COSTS = np.array([0.3, 0.5, 1.0])
LEARNING = Hyperparameters((0.2, 5.0), 0.3, batch_size=128, epochs=60, learning_rate=5e-3, samples=16)
ROOMY = 32  # hidden units


def world(prompts: int, seed: int = 0, loss: float = 0.12, permuted: bool = False) -> tuple[RewardTable, np.ndarray]:
    """A table and tokens (P, 1, 6): a prompt needs dear recipes where exactly one of its two words is there.

    loss: what the cheapest recipe loses there. permuted: no prompt has a need, and the pictures of a prompt are
    shuffled, so that nothing is to be known of recipes.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(prompts, 1, 6))
    tokens[:, 0, :2] = rng.choice([-1.0, 1.0], (prompts, 2))
    need = tokens[:, 0, 0] * tokens[:, 0, 1] < 0
    lost = np.where(need & (not permuted), loss, 0.01)[:, None] * np.array([1.0, 0.5, 0.0])  # (P, K)
    score = 0.7 - lost[:, :, None] + 0.06 * rng.normal(size=(prompts, 3, 4))
    if permuted:
        score = np.stack([rng.permutation(each.ravel()).reshape(each.shape) for each in score])
    names = tuple(f"{seed}-{number}" for number in range(prompts))
    table = RewardTable(names, names, (None,) * prompts, menu_of([2, 4, 8]), score, COSTS, {"clip": score})
    return table, tokens.astype(np.float16)


def features(tokens: np.ndarray) -> np.ndarray:
    """One token a prompt: it is the last one and the mean."""
    return np.concatenate([tokens[:, 0], tokens[:, 0]], axis=1).astype(np.float32)


def stage_of(
    learned: tuple[RewardTable, np.ndarray],
    held_out: tuple[RewardTable, np.ndarray],
    learning: Hyperparameters = LEARNING,
    read: bool = True,
) -> OfferStage:
    pairs = [(table, features(tokens)) for table, tokens in (learned, held_out)]
    return offer_stage(pairs[0], pairs[1], None, learning, ROOMY, read)


def rows_of(table: RewardTable, tokens: np.ndarray) -> TrainingRows:
    return TrainingRows(dict(enumerate(tokens)), dict(enumerate(table.quality.astype(np.float32))))


def learner(stage: OfferStage, num_rows: int) -> Learner:
    slots = num_slots(stage.learning.batch_size, num_rows, 1)
    steps = stage.learning.num_steps(num_rows, slots)
    return Learner(stage.network(), stage.learning, stage.loss(lambda mean: mean), steps)


def train(one: Learner, rows: TrainingRows, until: int | None = None) -> None:
    count = len(rows.quality)
    slots = num_slots(one.learning.batch_size, count, 1)
    while one.step < (until or one.num_steps):
        one.learn(rows.batch(rows_at(one.step, range(slots), slots, count, one.learning.seed)))


def gradients(stage: OfferStage, rows: TrainingRows, steps: range) -> tuple[np.ndarray, np.ndarray]:
    """(steps, N, 2 K) of a correction that is not zero: sampled, and expected at the same prices."""
    batch, found = rows.batch(np.arange(len(rows.quality))), []
    start = 0.5 * torch.from_numpy(np.random.default_rng(5).normal(size=(len(rows.quality), 6))).float()
    for gradient in ("sampled", "expected"):
        loss = replace(stage, learning=replace(stage.learning, gradient=gradient)).loss(lambda mean: mean)
        each = []
        for step in steps:
            out = start.clone().requires_grad_(True)
            total, _ = loss(out, batch, At(step, 0.5))
            total.backward()
            assert out.grad is not None
            each.append(out.grad.numpy().copy())
        found.append(np.stack(each))
    return found[0], found[1]


@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
def test_the_sampled_gradient_is_the_expected_one_in_the_mean(baseline: str) -> None:
    learned, held_out = world(120, loss=0.02), world(60, 1, loss=0.02)
    stage = stage_of(learned, held_out, replace(LEARNING, baseline=baseline))
    table, tokens = learned[0].take(range(8)), learned[1][:8]
    sampled, expected = gradients(stage, rows_of(table, tokens), range(1500))
    difference = (sampled - expected).reshape(len(sampled), -1)
    errors = difference.std(axis=0) / np.sqrt(len(difference))
    apart = np.abs(difference.mean(axis=0) / errors)
    assert apart.max() < 4.2  # of 48 numbers
    means = np.abs(expected.reshape(len(expected), -1).mean(axis=0))
    assert (means > 10 * errors).mean() > 0.25  # else a gradient of nothing would pass


def test_two_halves_average_to_the_whole_batchs_gradient() -> None:
    learned = world(120)
    stage, rows = stage_of(learned, world(60, 1)), rows_of(*learned)
    one = learner(stage, 120)
    train(one, rows, until=3)

    def gradient(picked: np.ndarray) -> Tensor:
        one.backward(rows.batch(picked))
        return torch.cat([p.grad.flatten() for p in one.policy.parameters() if p.grad is not None])

    whole = gradient(np.arange(64)).clone()
    halves = [gradient(np.arange(64)[part]).clone() for part in (slice(0, 32), slice(32, 64))]
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, atol=1e-6, rtol=0)


def test_resumed_training_ends_with_the_same_bits() -> None:
    learned = world(120)
    stage, rows = stage_of(learned, world(60, 1), replace(LEARNING, epochs=6)), rows_of(*learned)
    straight, first, second = (learner(stage, 120) for _ in range(3))
    train(straight, rows)
    train(first, rows, until=3)
    second.load_state(copy.deepcopy(first.state()))
    train(second, rows)
    assert straight.policy.state_dict().keys() == second.policy.state_dict().keys()
    for name, tensor in straight.policy.state_dict().items():
        assert torch.equal(tensor, second.policy.state_dict()[name])


def test_it_begins_as_the_heads() -> None:
    learned, held_out = world(120), world(60, 1)
    stage = stage_of(learned, held_out)
    found = stage.measure(stage.network(), rows_of(*held_out).chunks())
    assert found["val_gain"] == 0.0


def test_a_finished_correction_is_its_network() -> None:
    learned = world(120)
    stage, rows = stage_of(learned, world(60, 1)), rows_of(*learned)
    one = learner(stage, 120)
    train(one, rows, until=20)
    batch = rows.batch(np.arange(120))
    with torch.no_grad():
        out = one.policy(batch.embeds, batch.mask).double().numpy()
    correction = stage.finished(one.policy)
    found = np.concatenate(correction(features(learned[1])), axis=1)
    unit = stage.learned.heads.unit
    np.testing.assert_allclose(found, 0.1 * unit * out, atol=1e-5 * np.abs(found).max())
    np.testing.assert_allclose(replace(correction, scale=0.5)(features(learned[1]))[0], found[:, :3] / 2)
    assert not np.any(replace(correction, scale=0.0)(features(learned[1])))


def improvement(learning: Hyperparameters, read: bool = True) -> tuple[float, float, float]:
    """(gain on other prompts, mean; of one who knows the need; the scale chosen)."""
    learned, held_out, other = world(400), world(200, 1), world(400, 2)
    stage = stage_of(learned, held_out, learning, read)
    one = learner(stage, 400)
    train(one, rows_of(*learned))
    correction = stage.finished(one.policy)
    prices = stage.learning.prices
    chosen = scaled(correction, stage.held_out, rows_of(*held_out).chunks(), prices)
    unseen = stage_of(learned, other, learning, read).held_out
    gain = validate_correction(correction, unseen, rows_of(*other).chunks(), prices)["val_gain"]
    return gain, known_gain(stage, other), chosen.scale


def known_gain(stage: OfferStage, other: tuple[RewardTable, np.ndarray]) -> float:
    """What one offer for each kind of prompts gains over one for all, mean over the prices: no less than this."""
    table = replace(stage.held_out, mu=np.broadcast_to(other[0].quality.mean(axis=(0, 2)), (len(other[1]), 3)))
    value, tries = table.expected(np.arange(len(other[1])), other[0].quality)
    needy, gains = other[1][:, 0, 0] * other[1][:, 0, 1] < 0, []
    for price in np.geomspace(*stage.learning.prices, 8):
        net = value - price * tries * table.costs_of_one
        gains.append(np.mean([net[kind].mean(axis=0).max() for kind in (needy, ~needy)]) - net.mean(axis=0).max())
    return float(np.mean(gains))


@pytest.mark.parametrize("read", [True, False])
def test_reinforce_finds_what_linear_heads_cannot(read: bool) -> None:
    gain, known, scale = improvement(LEARNING, read)
    assert gain > 0.5 * known > 0.05
    assert scale > 0


def test_nothing_is_used_where_pictures_are_permuted_within_prompts() -> None:
    learned, held_out = world(400, permuted=True), world(200, 1, permuted=True)
    stage = stage_of(learned, held_out, replace(LEARNING, epochs=20))
    one = learner(stage, 400)
    train(one, rows_of(*learned))
    found = scaled(stage.finished(one.policy), stage.held_out, rows_of(*held_out).chunks(), stage.learning.prices)
    assert (found.scale, found.gain) == (0.0, 0.0)
    assert found.scale in SCALES
    assert "not at all" in found.words
