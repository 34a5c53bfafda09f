"""What one step of learning the policy over recipes maximises, and what held-out rows say of it; no Ray, no files.

The losses are `training.learn.reinforce`'s, the rewards `training.learn.reward`'s; the optimizer and its steps are
`training.learn.learner`'s. Shapes: N rows, K recipes, M draws a row, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from actors.policy import Network, choose_steps
from actors.policy_network import PolicyOutput, StepPolicy
from actors.recipe import Recipe
from training.learn.batches import Batch, uniforms
from training.learn.hyperparameters import Hyperparameters
from training.learn.learner import At, OverWorkers, like
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

VALIDATION_PRICES = 8


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


@dataclass(frozen=True)
class StepLoss:
    """The loss of a policy over recipes, with its rewards from the batch's quality; costs (K,).

    `over_workers` averages a tensor over all workers; alone it is the identity.
    """

    learning: Hyperparameters
    units: Units
    choices: tuple[Recipe, ...]
    costs: np.ndarray
    over_workers: OverWorkers = lambda mean: mean

    def __call__(self, out: PolicyOutput, batch: Batch, at: At) -> tuple[Tensor, dict[str, Tensor]]:
        """- expected reward - entropy bonus, both in temperatures, + the quality head's likelihood, in spreads."""
        learning = self.learning
        numbers = uniforms(learning.seed, at.step, batch.rows, 1 + 2 * learning.samples)  # (N, 1 + 2 M)
        prices, reward = self._rewards(batch.quality, numbers[:, 0])
        table = like(out.scores, reward / learning.temperature)
        costs = like(out.scores, self.costs / learning.temperature)
        log_pi = log_policy(out.scores, costs, like(out.scores, prices), 1.0)
        if learning.gradient == "expected":
            policy_loss = expected_loss(log_pi, table)
        else:
            policy_loss = self._sampled_loss(log_pi, table, torch.from_numpy(numbers[:, 1:]).to(out.scores.device))
        bonus = entropy(log_pi).mean()
        weight = entropy_weight(at.progress, learning.entropy, learning.entropy_end)
        spreads = (batch.quality - self.units.mean[:, None]) / self.units.spread[:, None]
        fit = quality_loss(out.quality_mean, out.quality_log_var, like(out.scores, spreads))
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
