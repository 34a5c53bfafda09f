"""Does one step of learning a policy, the same on one process and on many; no Ray, no files.

The loop around it is `training.learn.trainer`, the losses `training.learn.reinforce`, the rewards
`training.learn.reward`. Shapes: N rows, K recipes, M draws a row, S seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.policy import Network, choose_steps
from actors.policy_network import PolicyOutput, StepPolicy
from actors.recipe import Recipe
from training.learn.batches import Batch, uniforms
from training.learn.hyperparameters import Hyperparameters
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
from training.learn.reward import paper_reward, priced_reward, rise, sample_prices

WARM_UP, VALIDATION_PRICES = 0.05, 8
OverWorkers = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Units:
    """What the network's outputs are counted in while it learns: scores in temperatures, quality in spreads.

    Rewards differ by hundredths; heads of unit scale let one learning rate fit every scorer. mean, spread: (K,), in
    the scorer's units. rise: what rewards, prices and the temperature are counted in (`training.learn.reward.rise`).
    """

    temperature: float
    rise: float
    mean: np.ndarray
    spread: np.ndarray

    def finished(self, policy: StepPolicy) -> StepPolicy:
        """A copy with scores in rises and quality in the scorer's units: the scale goes into each head's last layer."""
        scale = torch.from_numpy(self.spread).float()
        shift = torch.from_numpy(self.mean).float()
        done = StepPolicy(policy.network)
        done.load_state_dict({name: tensor.detach().cpu() for name, tensor in policy.state_dict().items()})
        scores, quality = done.score_head[-1], done.quality_head[-1]
        assert isinstance(scores, nn.Linear)
        assert isinstance(quality, nn.Linear)
        scores.weight.data *= self.temperature
        scores.bias.data *= self.temperature
        num = len(scale)
        quality.weight.data[:num] *= scale[:, None]
        quality.bias.data[:num] = quality.bias.data[:num] * scale + shift
        quality.bias.data[num:] += 2 * scale.log()
        return done.eval().requires_grad_(False)


def units_of(quality: np.ndarray, temperature: float) -> Units:
    """The units of a training table (P, K, S)."""
    return Units(temperature, rise(quality), quality.mean(axis=(0, 2)), quality.std(axis=(0, 2)) + 1e-6)


def new_policy(network: Network, seed: int, units: Units | None = None) -> StepPolicy:
    """An untrained network that says the same of every prompt: the quality head the table's mean.

    The score head says with `units` what a budget gains on average, so that at every price it begins as the best fixed
    budget and what is learned is how prompts differ; without, 0.
    """
    torch.manual_seed(seed)
    policy = StepPolicy(network)
    for head in (policy.score_head, policy.quality_head):
        last = head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    if units is not None:
        last = policy.score_head[-1]
        assert isinstance(last, nn.Linear)
        gain = (units.mean - units.mean.mean()) / units.rise / units.temperature
        last.bias.data.copy_(torch.from_numpy(gain))
    return policy


def start_of(learning: Hyperparameters, units: Units) -> Units | None:
    """What a new policy begins with: the paper's reward has no price, and begins with nothing."""
    return units if learning.reward == "priced" else None


class Learner:
    """A policy with its optimizer, at some step of `num_steps`. `forward`: the policy, or its data-parallel wrapper.

    `over_workers` averages a tensor over all workers; alone it is the identity.
    """

    def __init__(
        self,
        policy: StepPolicy,
        learning: Hyperparameters,
        units: Units,
        choices: Sequence[Recipe],
        costs: np.ndarray,
        num_steps: int,
        forward: Callable[..., Any] | None = None,
        over_workers: OverWorkers = lambda mean: mean,
    ) -> None:
        self.policy, self.learning, self.units = policy, learning, units
        self.choices, self.num_steps = tuple(choices), num_steps
        self.forward, self.over_workers = forward or policy, over_workers
        self.costs = np.asarray(costs, np.float64)
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), learning.learning_rate, weight_decay=learning.weight_decay
        )
        self.step = 0

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One step; what is worth watching of it, means over this worker's rows."""
        watched = self.backward(batch)
        if self.learning.max_grad_norm:
            watched["grad_norm"] = nn.utils.clip_grad_norm_(self.policy.parameters(), self.learning.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.step += 1
        return watched

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """The gradients of this step's loss in the parameters, averaged over workers by the wrapper."""
        self.policy.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, watched = self.loss(self.forward(batch.embeds, batch.mask), batch)
        loss.backward()
        return watched

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """- expected reward - entropy bonus, both in temperatures, + the quality head's likelihood, in spreads."""
        learning = self.learning
        numbers = uniforms(learning.seed, self.step, batch.rows, 1 + 2 * learning.samples)  # (N, 1 + 2 M)
        prices, reward = self._rewards(batch.quality, numbers[:, 0])
        table = _like(out.scores, reward / learning.temperature)
        costs = _like(out.scores, self.costs / learning.temperature)
        log_pi = log_policy(out.scores, costs, _like(out.scores, prices), 1.0)
        if learning.gradient == "expected":
            policy_loss = expected_loss(log_pi, table)
        else:
            policy_loss = self._sampled_loss(log_pi, table, torch.from_numpy(numbers[:, 1:]).to(out.scores.device))
        bonus = entropy(log_pi).mean()
        weight = entropy_weight(self.progress, learning.entropy, learning.entropy_end)
        spreads = (batch.quality - self.units.mean[:, None]) / self.units.spread[:, None]
        fit = quality_loss(out.quality_mean, out.quality_log_var, _like(out.scores, spreads))
        total = policy_loss - weight * bonus + learning.quality_weight * fit
        reward_now = -expected_loss(log_pi, table) * learning.temperature
        watched = {"loss": total, "reward": reward_now, "entropy": bonus, "quality_loss": fit}
        return total, {name: value.detach() for name, value in watched.items()}

    def _rewards(self, quality: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prices (N,) and rewards (N, K, S)."""
        if self.learning.reward == "paper":
            return np.zeros(len(quality)), paper_reward(quality, [choice.num_steps for choice in self.choices])
        prices = sample_prices(numbers, *self.learning.prices)
        return prices, priced_reward(quality / self.units.rise, self.costs, prices)

    def _sampled_loss(self, log_pi: Tensor, table: Tensor, numbers: Tensor) -> Tensor:
        """numbers (N, 2 M): M for the budgets, M for the seeds."""
        for_budgets, for_seeds = numbers.chunk(2, dim=1)
        budgets, seeds = draw(log_pi, for_budgets), draw_seeds(for_seeds, table.shape[2])
        rewards = rewards_of(table, budgets, seeds)
        return reinforce_loss(log_pi, budgets, rewards - baseline(self.learning.baseline, rewards, self.over_workers))

    @property
    def progress(self) -> float:
        """0 at the first step, 1 at the end."""
        return self.step / max(1, self.num_steps)

    def rate(self) -> float:
        """The learning rate: a short warm-up, then a straight line to 0."""
        if self.learning.constant_rate:
            return self.learning.learning_rate
        warm = min(1.0, (self.step + 1) / max(1.0, WARM_UP * self.num_steps))
        return self.learning.learning_rate * min(warm, (1 - self.progress) / (1 - WARM_UP))

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs; its randomness is a function of the step."""
        return {"step": self.step, "policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step = int(state["step"])
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])


def _like(tensor: Tensor, values: np.ndarray) -> Tensor:
    """Values on a tensor's device, in its precision."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(tensor.device, tensor.dtype)


@torch.no_grad()
def outputs(policy: StepPolicy, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and expected quality (P, K) of rows in several batches, in their order."""
    policy.eval()
    outs = [policy(batch.embeds, batch.mask) for batch in batches]
    return (
        torch.cat([out.scores for out in outs]).cpu().double().numpy(),
        torch.cat([out.quality_mean for out in outs]).cpu().double().numpy(),
    )


def validate(
    policy: StepPolicy, batches: Sequence[Batch], costs: np.ndarray, learning: Hyperparameters, rise: float
) -> dict[str, float]:
    """How the policy does on held-out rows when it decides by argmax, means over prices of the trained range.

    val_gain is quality, in rises, - price * cost above the best fixed budget's at each price: what adaptivity is worth.
    """
    scores, estimate = outputs(policy, batches)
    quality = np.concatenate([batch.quality for batch in batches]).mean(axis=2)  # (P, K)
    paper = learning.reward == "paper"
    prices = [0.0] if paper else np.geomspace(*learning.prices, VALIDATION_PRICES).tolist()
    gains, mean_costs = [], []
    for price in prices:
        index, _ = choose_steps(scores, costs, price, learning.temperature)
        value = quality / rise - price * costs
        gains.append(value[np.arange(len(value)), index].mean() - value.mean(axis=0).max())
        mean_costs.append(costs[index].mean())
    error = float(np.sqrt(np.mean((estimate - quality) ** 2)))
    return {"val_gain": float(np.mean(gains)), "val_cost": float(np.mean(mean_costs)), "val_quality_error": error}
