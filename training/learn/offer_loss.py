"""What one step of correcting offers maximises: REINFORCE over offers, their tries simulated on the reward table.

An offer is worth what the heads say and a correction, 2 K numbers of a network over the prompt: a shift of each recipe,
and of what a sigma of gain is worth at it. Bars stay the heads'. The network starts at zero, so at the heads.
Shapes: N rows, P prompts, K recipes, A offers, M draws a row, S seeds, D features, W hidden units.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from actors.offer_correction import Correction
from actors.offer_heads import TEMPERATURE
from training.learn.batches import Batch, uniforms
from training.learn.hyperparameters import Hyperparameters
from training.learn.learner import At, OverWorkers, like
from training.learn.offer_table import OfferTable
from training.learn.reinforce import baseline, draw, entropy, entropy_weight, expected_loss, log_policy, reinforce_loss
from training.learn.reward import sample_prices


def pooled_features(embeds: Tensor, mask: Tensor) -> Tensor:
    """(N, D) as `actors.prompt_encoder.prompt_features` has them, of embeds (N, L, H), mask (N, L): 1 at tokens."""
    length = mask.sum(dim=1)  # (N,)
    last = embeds[torch.arange(len(embeds), device=embeds.device), length.long() - 1]
    return torch.cat([last, (embeds * mask[:, :, None]).sum(dim=1) / length[:, None]], dim=1)


class CorrectionNetwork(nn.Module):
    """A prompt's pooled features -> one hidden layer -> (N, 2 K).

    mean, spread (D,): of the features it learns from. Its outputs are counted in temperatures, as a policy's logits.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: np.ndarray, spread: np.ndarray, width: int, num_choices: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("mean", torch.from_numpy(mean).float())
        self.register_buffer("spread", torch.from_numpy(np.where(spread > 0, spread, np.inf)).float())
        self.hidden = nn.Linear(len(mean), width)
        self.out = nn.Linear(width, 2 * num_choices)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """embeds (N, L, H), mask (N, L): 1 at tokens -> (N, 2 K)."""
        features = (pooled_features(embeds, mask) - self.mean) / self.spread
        return self.out(torch.relu(self.hidden(features)))

    @torch.no_grad()
    def finished(self, unit: float) -> Correction:
        """In the scorer's units, of features as they are; unit: what prices are counted in."""
        mean, spread, hidden, bias, out, out_bias = (
            tensor.detach().cpu().double().numpy()
            for tensor in (self.mean, self.spread, self.hidden.weight, self.hidden.bias, self.out.weight, self.out.bias)
        )
        scaled, scale = np.ascontiguousarray((hidden / spread).T), TEMPERATURE * unit  # (D, W)
        return Correction(scaled, bias - mean @ scaled, np.ascontiguousarray(scale * out.T), scale * out_bias)


@dataclass(frozen=True)
class OfferLoss:
    """- expected reward - entropy bonus, in temperatures, of a correction (N, 2 K) of the table's offers.

    Rewards are the table's; prices are sampled and the baseline made as for a policy over recipes.
    """

    table: OfferTable
    learning: Hyperparameters  # prices in those of offers
    over_workers: OverWorkers = lambda mean: mean

    def __call__(self, out: Tensor, batch: Batch, at: At) -> tuple[Tensor, dict[str, Tensor]]:
        """Means over the batch's rows."""
        learning, table, draws = self.learning, self.table, self.learning.samples
        numbers = uniforms(learning.seed, at.step, batch.rows, 1 + draws * (1 + table.num_seeds))
        prices = sample_prices(numbers[:, 0], *learning.prices)
        log_pi = self.log_policy(out, batch.rows, prices)
        value, tries = table.expected(batch.rows, batch.quality)
        reward = like(out, (value - prices[:, None] * tries * table.costs_of_one) / TEMPERATURE)  # (N, A)
        if learning.gradient == "expected":
            policy_loss = expected_loss(log_pi, reward[:, :, None])
        else:
            policy_loss = self._sampled_loss(log_pi, batch, prices, numbers[:, 1:])
        bonus = entropy(log_pi).mean()
        weight = entropy_weight(at.progress, learning.entropy, learning.entropy_end)
        total = policy_loss - weight * bonus
        reward_now = -expected_loss(log_pi, reward[:, :, None]) * TEMPERATURE
        return total, {"loss": total.detach(), "reward": reward_now.detach(), "entropy": bonus.detach()}

    def log_policy(self, out: Tensor, rows: np.ndarray, prices: np.ndarray) -> Tensor:
        """log pi (N, A) over offers, of the heads' worths and a correction (N, 2 K) in temperatures."""
        menu = self.table.menu
        recipe, gain = torch.from_numpy(menu.recipe).to(out.device), like(out, menu.gain)
        shift, slope = out.chunk(2, dim=1)
        worths = like(out, self.table.worths(rows) / TEMPERATURE) + shift[:, recipe] + slope[:, recipe] * gain
        return log_policy(worths, like(out, self.table.costs / TEMPERATURE), like(out, prices), 1.0)

    def _sampled_loss(self, log_pi: Tensor, batch: Batch, prices: np.ndarray, numbers: np.ndarray) -> Tensor:
        """numbers (N, M + M S): M for the offers, S for the order of the seeds of each."""
        draws = self.learning.samples
        offers = draw(log_pi, torch.from_numpy(numbers[:, :draws].copy()).to(log_pi.device))
        orders = numbers[:, draws:].reshape(len(numbers), draws, -1)
        value, cost = self.table.drawn(batch.rows, batch.quality, offers.cpu().numpy(), orders)
        rewards = like(log_pi, (value - prices[:, None] * cost) / TEMPERATURE)
        return reinforce_loss(log_pi, offers, rewards - baseline(self.learning.baseline, rewards, self.over_workers))
