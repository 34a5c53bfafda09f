"""One step of learning: the same on one worker and on two, resumable to the bit, and it finds what pays."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tables import CHOICES, world
from torch import Tensor

from actors.policy import Network
from training.learn.batches import TrainingRows, num_slots, own_slots, padded, rows_at, uniforms
from training.learn.hyperparameters import Hyperparameters, as_in_the_paper
from training.learn.learner import Learner
from training.learn.reward import rise
from training.learn.step_loss import VALIDATION_PRICES, StepLoss, new_policy, outputs, units_of, validate
from training.reward_table import RewardTable

NETWORK = Network(hidden_size=6, num_choices=len(CHOICES), width=16, num_layers=1, num_heads=2)
LEARNING = Hyperparameters(prices=(0.15, 6.0), temperature=0.36, batch_size=64, epochs=30, learning_rate=3e-3)


def embeddings(table: RewardTable, seed: int = 0) -> dict[int, np.ndarray]:
    """A few noise tokens a prompt; one of them tells its kind."""
    rng = np.random.default_rng(seed)
    made = {}
    for row, kind in enumerate(table.categories):
        tokens = rng.normal(size=(int(rng.integers(2, 6)), 6)).astype(np.float16)
        tokens[rng.integers(len(tokens)), 0] = 4.0 if kind == "rich" else -4.0
        made[row] = tokens
    return made


def rows_of(table: RewardTable) -> TrainingRows:
    return TrainingRows(embeddings(table), dict(enumerate(table.quality)))


def learner(table: RewardTable, learning: Hyperparameters = LEARNING, **values: object) -> Learner:
    slots = num_slots(learning.batch_size, len(table.prompts), 1)
    policy = new_policy(NETWORK, learning.seed)
    units = units_of(table.quality, learning.temperature)
    steps = learning.num_steps(len(table.prompts), slots)
    loss = StepLoss(learning, units, table.choices, table.costs, **values)  # type: ignore[arg-type]
    return Learner(policy, learning, loss, steps)


def train(learner: Learner, rows: TrainingRows, until: int | None = None) -> None:
    count = len(rows.quality)
    slots = num_slots(learner.learning.batch_size, count, 1)
    while learner.step < (until or learner.num_steps):
        picked = rows_at(learner.step, range(slots), slots, count, learner.learning.seed)
        learner.learn(rows.batch(picked))


def moved(learner: Learner, table: RewardTable, steps: int = 3) -> None:
    """A policy that is no longer uniform, so that gradients reach every layer."""
    train(learner, rows_of(table), until=steps)


def gradient(learner: Learner) -> Tensor:
    return torch.cat([p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None])


# batches


@pytest.mark.parametrize(("rows", "batch", "workers"), [(100, 8, 2), (7, 64, 2), (65, 64, 1), (12, 12, 3)])
def test_every_row_comes_once_a_pass_of_its_slot(rows: int, batch: int, workers: int) -> None:
    slots = num_slots(batch, rows, workers)
    assert slots % workers == 0
    seen = [rows_at(step, range(slots), slots, rows, seed=5) for step in range(rows // slots)]
    flat = np.concatenate(seen)
    assert len(set(flat.tolist())) == len(flat)
    assert all(((batch_rows % slots) == np.arange(slots)).all() for batch_rows in seen)
    many = np.concatenate([rows_at(step, range(slots), slots, rows, 5) for step in range(20 * rows // slots)])
    assert set(many.tolist()) == set(range(rows))


def test_workers_share_out_the_batch() -> None:
    whole = rows_at(7, range(12), 12, 100, seed=1)
    parts = [rows_at(7, own_slots(12, rank, 3), 12, 100, seed=1) for rank in range(3)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert rows_at(8, range(12), 12, 100, seed=1).tolist() != whole.tolist()
    with pytest.raises(ValueError, match="too few"):
        num_slots(64, 1, 2)


def test_a_rows_random_numbers_are_its_own() -> None:
    rows = np.arange(4000)
    numbers = uniforms(3, 11, rows, 5)
    np.testing.assert_array_equal(uniforms(3, 11, rows[[7, 2]], 5), numbers[[7, 2]])
    assert 0 <= numbers.min() < numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(numbers.T) - np.eye(5)).max() < 0.06
    for other in (uniforms(3, 12, rows, 5), uniforms(4, 11, rows, 5)):
        assert abs(np.corrcoef(other[:, 0], numbers[:, 0])[0, 1]) < 0.06


def test_padding() -> None:
    embeds, mask = padded([np.ones((2, 3), np.float16), np.full((4, 3), 2, np.float16)])
    assert embeds.shape == (2, 4, 3)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert embeds[0, 2:].abs().max() == 0


# one step


@pytest.mark.parametrize(
    "learning",
    [
        LEARNING,
        replace(LEARNING, gradient="expected"),
        replace(LEARNING, baseline="none"),
        replace(as_in_the_paper(LEARNING), batch_size=64),
    ],
    ids=["leave_one_out", "expected", "none", "paper"],
)
def test_two_halves_average_to_the_whole_batchs_gradient(learning: Hyperparameters) -> None:
    """What data-parallel workers do, without them: to 1e-6."""
    table = world(64)
    rows, one = rows_of(table), learner(table, learning)
    moved(one, table)
    order = rows_at(one.step, range(64), 64, 64, 0)
    one.backward(rows.batch(order))
    whole, halves = gradient(one), []
    for half in (order[:32], order[32:]):
        one.backward(rows.batch(half))
        halves.append(gradient(one))
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, atol=1e-6, rtol=0)


def test_the_batch_mean_of_two_halves_needs_their_common_mean() -> None:
    table, learning = world(64), replace(LEARNING, baseline="batch_mean")
    rows = rows_of(table)
    means: list[Tensor] = []

    def gradient_of(picked: np.ndarray, over_workers: object) -> Tensor:
        one = learner(table, learning, over_workers=over_workers)
        one.backward(rows.batch(picked))
        return gradient(one)

    def note(mean: Tensor) -> Tensor:
        means.append(mean)
        return mean

    whole = gradient_of(np.arange(64), note)
    halves = [gradient_of(np.arange(64)[part], lambda _: means[0]) for part in (slice(0, 32), slice(32, 64))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, atol=1e-6, rtol=0)


def test_resumed_training_ends_with_the_same_bits() -> None:
    table = world(60)
    rows, learning = rows_of(table), replace(LEARNING, epochs=6)
    straight = learner(table, learning)
    train(straight, rows)
    first = learner(table, learning)
    train(first, rows, until=3)
    state = copy.deepcopy(first.state())
    second = learner(table, learning)
    second.load_state(state)
    train(second, rows)
    for one, other in zip(straight.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_outputs_in_the_scorers_units() -> None:
    table = world(50)
    one = learner(table)
    train(one, rows_of(table), until=5)
    batch = rows_of(table).batch(np.arange(50))
    with torch.no_grad():
        raw, done = (
            one.policy.eval()(batch.embeds, batch.mask),
            one.loss.units.finished(one.policy)(batch.embeds, batch.mask),
        )
    mean, spread = torch.from_numpy(one.loss.units.mean), torch.from_numpy(one.loss.units.spread)
    close = {"atol": 1e-5, "rtol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(done.scores, raw.scores * LEARNING.temperature, **close)
    torch.testing.assert_close(done.quality_mean, raw.quality_mean * spread + mean, **close)
    torch.testing.assert_close((done.quality_log_var / 2).exp(), (raw.quality_log_var / 2).exp() * spread, **close)


def known_gain(table: RewardTable, learning: Hyperparameters) -> float:
    """val_gain of who knows each prompt's kind and the mean quality of a kind."""
    quality, kinds, gains = table.quality.mean(axis=2), np.array(table.categories), []
    for price in np.geomspace(*learning.prices, VALIDATION_PRICES):
        value = quality / rise(table.quality) - price * table.costs
        best = [value[kinds == kind].mean(axis=0).max() for kind in ("plain", "rich")]
        gains.append(np.mean(best) - value.mean(axis=0).max())
    return float(np.mean(gains))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_it_learns_which_prompts_need_steps(scale: float) -> None:
    """On held-out prompts, whatever the scorer's scale; where all prompts are alike it gains nothing."""
    gains = {}
    for alike in (False, True):
        table, held_out = (world(200, seed=seed, alike=alike) for seed in (0, 1))
        one = learner(replace(table, quality=table.quality * scale), LEARNING)
        train(one, TrainingRows(embeddings(table), dict(enumerate(table.quality * scale))))
        policy = one.loss.units.finished(one.policy)
        batch = TrainingRows(embeddings(held_out, 1), dict(enumerate(held_out.quality * scale))).batch(np.arange(200))
        found = validate(policy, [batch], table.costs, LEARNING, rise(table.quality * scale))
        gains[alike] = found["val_gain"]
        scores, quality = outputs(policy, [batch])
        assert scores.shape == quality.shape == (200, 4)
    assert gains[False] > 0.7 * known_gain(world(200, seed=1), LEARNING) > 0.07
    assert gains[True] < 0.035


def test_the_papers_own_is_one_value_away() -> None:
    paper = as_in_the_paper(LEARNING)
    assert (paper.reward, paper.baseline, paper.samples, paper.learning_rate, paper.epochs) == (
        "paper",
        "none",
        1,
        1e-5,
        200,
    )
    table = world(64)
    one = learner(table, paper)
    watched = one.learn(rows_of(table).batch(np.arange(64)))
    assert {"loss", "reward", "entropy", "quality_loss"} <= watched.keys()
    assert one.rate() == 1e-5
    assert validate(
        one.loss.units.finished(one.policy),
        [rows_of(table).batch(np.arange(64))],
        table.costs,
        paper,
        rise(table.quality),
    )


def test_what_cannot_be_learned_from() -> None:
    for values, message in (
        ({"reward": "fame"}, "priced, paper"),
        ({"gradient": "guess"}, "sampled, expected"),
        ({"baseline": "luck"}, "leave_one_out"),
        ({"samples": 1}, "two samples"),
        ({"temperature": 0.0}, "positive"),
        ({"prices": (0.0, 1.0)}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(LEARNING, **values)  # type: ignore[arg-type]


def test_the_rate_warms_up_and_ends_at_nothing() -> None:
    one = learner(world(60))
    rates = []
    for step in range(one.num_steps + 1):
        one.step = step
        rates.append(one.rate())
    assert rates[0] < max(rates) == pytest.approx(LEARNING.learning_rate, rel=0.05)
    assert rates[-1] == 0
