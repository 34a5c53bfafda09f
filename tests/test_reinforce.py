"""REINFORCE against exact expectations: unbiased, less variance with a baseline, and what it converges to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.learn.reinforce import (
    baseline,
    draw,
    draw_seeds,
    entropy,
    entropy_weight,
    expected_loss,
    log_policy,
    quality_loss,
    reinforce_loss,
    rewards_of,
)

NUM_DRAWS, TEMPERATURE = 4, 0.5
COSTS = torch.tensor([0.1, 0.3, 0.6, 1.0], dtype=torch.float64)


def problem(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """scores (N, K) and a reward table (N, K, S) with a level far from 0, so that a baseline matters; prices (N,)."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    reward = torch.randn(rows, 4, 2, generator=generator, dtype=torch.float64) + 3
    return scores, reward, torch.tensor([0.2, 0.7, 1.1], dtype=torch.float64)[:rows]


def exact_gradient() -> Tensor:
    scores, reward, prices = problem()
    scores.requires_grad_()
    expected_loss(log_policy(scores, COSTS, prices, TEMPERATURE), reward).backward()
    assert scores.grad is not None
    return scores.grad


def sampled_gradients(kind: str, repeats: int) -> Tensor:
    """(repeats, N, K): one estimate each, all repeats in one batch of `repeats * N` rows."""
    scores, reward, prices = problem()
    many = scores.repeat(repeats, 1).requires_grad_()
    log_pi = log_policy(many, COSTS, prices.repeat(repeats), TEMPERATURE)
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(2, len(many), NUM_DRAWS, generator=generator, dtype=torch.float64)
    budgets, seeds = draw(log_pi, uniforms[0]), draw_seeds(uniforms[1], 2)
    rewards = rewards_of(reward.repeat(repeats, 1, 1), budgets, seeds)
    reinforce_loss(log_pi, budgets, rewards - baseline(kind, rewards)).backward()
    assert many.grad is not None
    return many.grad.reshape(repeats, 3, 4) * repeats


@pytest.mark.parametrize("kind", ["leave_one_out", "batch_mean", "none"])
def test_the_sampled_gradient_is_unbiased(kind: str) -> None:
    """Its mean over 60,000 estimates is the exact gradient, within five standard errors."""
    gradients = sampled_gradients(kind, 60_000)
    error = (gradients.mean(dim=0) - exact_gradient()).abs()
    assert (error < 5 * gradients.std(dim=0) / len(gradients) ** 0.5).all()


def test_a_baseline_lowers_the_variance() -> None:
    variance = {kind: float(sampled_gradients(kind, 20_000).var(dim=0).sum()) for kind in ("none", "leave_one_out")}
    assert variance["leave_one_out"] < variance["none"] / 4


def test_leave_one_out_never_uses_its_own_draw() -> None:
    rewards = torch.randn(5, NUM_DRAWS, dtype=torch.float64)
    rewards.requires_grad_()
    for row in range(5):
        for m in range(NUM_DRAWS):
            (slope,) = torch.autograd.grad(baseline("leave_one_out", rewards)[row, m], rewards)
            assert slope[row, m] == 0
            assert slope.sum() == pytest.approx(1)
            assert (slope != 0).sum() == NUM_DRAWS - 1
    with pytest.raises(ValueError, match="two draws"):
        baseline("leave_one_out", rewards[:, :1])
    with pytest.raises(ValueError, match="guess"):
        baseline("guess", rewards)


def test_the_batch_mean_can_be_shared_by_workers() -> None:
    rewards = torch.arange(6.0).reshape(3, 2)
    assert (baseline("batch_mean", rewards) == 2.5).all()
    assert (baseline("batch_mean", rewards, lambda mean: mean + 1) == 3.5).all()
    assert (baseline("none", rewards) == 0).all()


def test_draws_come_as_often_as_the_policy_says() -> None:
    log_pi = log_policy(*[problem(1)[0].expand(20_000, 4), COSTS, torch.full((20_000,), 0.4).double()], TEMPERATURE)
    uniforms = torch.rand(20_000, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    counts = torch.bincount(draw(log_pi, uniforms).flatten(), minlength=4) / 100_000
    torch.testing.assert_close(counts.double(), log_pi[0].exp(), atol=0.01, rtol=0)
    ends = draw(log_pi[:2], torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert ends.flatten().tolist() == [0, 3]
    assert draw_seeds(torch.tensor([[0.0, 0.49, 0.5, 1.0]]), 2).tolist() == [[0, 0, 1, 1]]


def descend(scores: Tensor, loss: Callable[[Tensor], Tensor], steps: int = 1500) -> Tensor:
    optimizer = torch.optim.Adam([scores.requires_grad_()], 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(scores).backward()
        optimizer.step()
    return scores.detach()


def test_with_entropy_at_the_temperature_the_scores_become_the_quality() -> None:
    """Then one network is best at every price: s = q + const, whatever prices it was trained with."""
    quality = torch.tensor([[0.2, 0.7, 0.9, 0.95]], dtype=torch.float64)
    prices = torch.linspace(0.05, 1.0, 9, dtype=torch.float64)

    def loss(scores: Tensor) -> Tensor:
        log_pi = log_policy(scores.expand(9, 4), COSTS, prices, TEMPERATURE)
        reward = quality.expand(9, 4) - prices[:, None] * COSTS
        return expected_loss(log_pi, reward[:, :, None]) - TEMPERATURE * entropy(log_pi).mean()

    scores = descend(torch.zeros(1, 4, dtype=torch.float64), loss)
    torch.testing.assert_close(scores - scores.mean(), quality - quality.mean(), atol=1e-3, rtol=0)


def test_entropy() -> None:
    assert entropy(torch.full((2, 4), 0.25).log()).tolist() == pytest.approx([1.3863] * 2, abs=1e-4)
    assert entropy(torch.tensor([[0.0, -200.0]])).item() == pytest.approx(0, abs=1e-6)
    assert [entropy_weight(at, 4.0, 1.0) for at in (-1, 0, 0.5, 1, 2)] == [4, 4, 2.5, 1, 1]


def test_the_quality_head_finds_mean_and_variance() -> None:
    generator = torch.Generator().manual_seed(2)
    truth, spread = torch.tensor([[0.3, 0.6, 0.8, 0.9]]).double(), torch.tensor([[0.05, 0.1, 0.2, 0.4]]).double()
    quality = truth[:, :, None] + spread[:, :, None] * torch.randn(1, 4, 4000, generator=generator).double()

    def loss(head: Tensor) -> Tensor:
        return quality_loss(head[:, :4], head[:, 4:], quality)

    head = descend(torch.zeros(1, 8, dtype=torch.float64), loss, 1200)
    torch.testing.assert_close(head[:, :4], quality.mean(dim=2), atol=5e-3, rtol=0)
    torch.testing.assert_close(head[:, 4:].div(2).exp(), quality.std(dim=2), atol=0, rtol=0.02)


def test_the_losses_of_two_halves_average_to_that_of_the_whole() -> None:
    scores, reward, _ = problem(2)
    log_pi = log_policy(scores, COSTS, torch.tensor([0.2, 0.9]).double(), TEMPERATURE)
    mean, log_var = scores, -scores
    for loss in (
        lambda rows: expected_loss(log_pi[rows], reward[rows]),
        lambda rows: quality_loss(mean[rows], log_var[rows], reward[rows]),
        lambda rows: entropy(log_pi[rows]).mean(),
    ):
        halves = (loss(slice(0, 1)) + loss(slice(1, 2))) / 2
        torch.testing.assert_close(halves, loss(slice(0, 2)))
