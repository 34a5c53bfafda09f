"""The two stages of a training, as its workers take them: the policy over recipes, then the correction of offers.

Each says which network it is, what a step of it maximises and what held-out rows say. Shapes: P prompts, K recipes, D
features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from actors.offer_correction import Correction
from actors.policy import Network
from actors.policy_network import StepPolicy
from actors.recipe import Recipe
from training.learn.batches import Batch
from training.learn.correction_scale import validate_correction
from training.learn.hyperparameters import Hyperparameters
from training.learn.journal import TRAINING
from training.learn.learner import Loss, OverWorkers
from training.learn.offer_loss import CorrectionNetwork, OfferLoss
from training.learn.offer_table import OfferTable
from training.learn.step_loss import StepLoss, Units, new_policy, start_of, validate


class Stage(Protocol):
    """What the loop of a worker asks for."""

    @property
    def place(self) -> str:
        """Of its journal, in the training's folder."""

    @property
    def learning(self) -> Hyperparameters:
        """Its own: prices and temperature in its units."""

    def network(self) -> nn.Module:
        """The untrained network, the same on every worker."""

    def loss(self, over_workers: OverWorkers) -> Loss:
        """What a step makes smaller."""

    def measure(self, network: nn.Module, held_out: Sequence[Batch]) -> dict[str, float]:
        """What held-out rows say; val_gain is what the best weights are kept by."""


@dataclass(frozen=True)
class StepStage:
    """The policy over recipes; costs (K,)."""

    size: Network
    learning: Hyperparameters
    units: Units
    choices: tuple[Recipe, ...]
    costs: np.ndarray
    place: str = TRAINING

    def network(self) -> StepPolicy:
        """As good as the best fixed recipe of each price."""
        return new_policy(self.size, self.learning.seed, start_of(self.learning, self.units))

    def loss(self, over_workers: OverWorkers) -> StepLoss:
        """REINFORCE over recipes."""
        return StepLoss(self.learning, self.units, self.choices, self.costs, over_workers)

    def measure(self, network: nn.Module, held_out: Sequence[Batch]) -> dict[str, float]:
        """As `validate`, in the scorer's units."""
        return validate(self.finished(network), held_out, self.costs, self.learning, self.units.rise)

    def finished(self, network: nn.Module) -> StepPolicy:
        """A copy in the scorer's units."""
        assert isinstance(network, StepPolicy)
        return self.units.finished(network)


@dataclass(frozen=True)
class OfferStage:
    """The correction of what offers are worth; tables of the prompts learned from and held out, mean, spread (D,)."""

    learned: OfferTable
    held_out: OfferTable
    learning: Hyperparameters  # prices in those of offers
    mean: np.ndarray
    spread: np.ndarray
    width: int
    place: str = f"{TRAINING}/offers"

    def network(self) -> CorrectionNetwork:
        """As good as the heads."""
        count = len(self.learned.heads.costs)
        return CorrectionNetwork(self.mean, self.spread, self.width, count, self.learning.seed)

    def loss(self, over_workers: OverWorkers) -> OfferLoss:
        """REINFORCE over offers."""
        return OfferLoss(self.learned, self.learning, over_workers)

    def measure(self, network: nn.Module, held_out: Sequence[Batch]) -> dict[str, float]:
        """As `validate_correction`."""
        return validate_correction(self.finished(network), self.held_out, held_out, self.learning.prices)

    def finished(self, network: nn.Module) -> Correction:
        """In the scorer's units."""
        assert isinstance(network, CorrectionNetwork)
        return network.finished(self.learned.heads.unit)
