"""Computes REINFORCE over step budgets: draws, baselines, losses. Pure torch, no data and no loop.

A loss is a mean over rows, so the mean of equal workers' gradients is the gradient of their joint batch. Randomness
comes in as uniforms in [0, 1), a row's own, so that it does not depend on which worker holds the row. Shapes: N rows
(one prompt at one price), K budgets, M budgets drawn a row, S seeds.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BASELINES = ("leave_one_out", "batch_mean", "none")


def log_policy(scores: Tensor, costs: Tensor, prices: Tensor, temperature: float) -> Tensor:
    """log pi(b | prompt, price) = log softmax((scores - price * cost) / temperature), (N, K); prices (N,)."""
    return torch.log_softmax((scores - prices[:, None] * costs) / temperature, dim=1)


def draw(log_pi: Tensor, uniforms: Tensor) -> Tensor:
    """Budgets (N, M) int64 drawn from the policy by inverse transform of uniforms (N, M)."""
    cumulative = log_pi.detach().double().exp().cumsum(dim=1)  # (N, K)
    index = torch.searchsorted(cumulative, uniforms.double().contiguous(), right=True)
    return index.clamp(max=log_pi.shape[1] - 1)  # rounding may leave the sum just under 1


def draw_seeds(uniforms: Tensor, num_seeds: int) -> Tensor:
    """Seeds (N, M) int64, each as likely."""
    return (uniforms * num_seeds).long().clamp(max=num_seeds - 1)


def rewards_of(reward: Tensor, budgets: Tensor, seeds: Tensor) -> Tensor:
    """Reward (N, M) of drawn budgets and seeds (N, M), from a table (N, K, S)."""
    rows = torch.arange(len(reward), device=reward.device)[:, None]
    return reward[rows, budgets, seeds]


def baseline(kind: str, rewards: Tensor, over_workers: Callable[[Tensor], Tensor] = lambda mean: mean) -> Tensor:
    """What a reward (N, M) is compared with, (N, M); ValueError for another kind or too few draws.

    leave_one_out: the mean of the row's other draws, never its own (unbiased, Kool et al. 2019). batch_mean: the mean
    of the batch, made the same on all workers by `over_workers`; its own reward is in it, a bias of 1 / (N M). none: 0.
    """
    match kind:
        case "leave_one_out":
            num_draws = rewards.shape[1]
            if num_draws < 2:
                raise ValueError("leave_one_out needs two draws a row or more")
            return (rewards.sum(dim=1, keepdim=True) - rewards) / (num_draws - 1)
        case "batch_mean":
            return over_workers(rewards.mean()).expand_as(rewards)
        case "none":
            return torch.zeros_like(rewards)
    raise ValueError(f"baseline {kind!r} must be one of {', '.join(BASELINES)}")


def reinforce_loss(log_pi: Tensor, budgets: Tensor, advantage: Tensor) -> Tensor:
    """- mean of advantage * log pi(drawn budget): its gradient is an estimate of minus that of the expected reward."""
    return -(advantage.detach() * log_pi.gather(1, budgets)).mean()


def expected_loss(log_pi: Tensor, reward: Tensor) -> Tensor:
    """- expected reward over all budgets and seeds of a table (N, K, S): the exact gradient, nothing drawn."""
    return -(log_pi.exp() * reward.mean(dim=2)).sum(dim=1).mean()


def entropy(log_pi: Tensor) -> Tensor:
    """Entropy (N,) in nats."""
    return -(log_pi.exp() * log_pi).sum(dim=1)


def entropy_weight(progress: float, start: float, end: float) -> float:
    """The weight of the entropy bonus, from start to end in a straight line; progress 0 to 1."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def quality_loss(mean: Tensor, log_var: Tensor, quality: Tensor) -> Tensor:
    """Gaussian negative log-likelihood of quality (N, K, S) under mean and log variance (N, K), less its constant."""
    error = (quality - mean[:, :, None]).square()
    return 0.5 * (log_var[:, :, None] + error * (-log_var[:, :, None]).exp()).mean()
