"""Defines the hyperparameters of learning a policy, with units and extremes, and the paper's own choice.

What they do is `training.learn.step_loss` and `training.learn.offer_loss`'.
"""

import math
from dataclasses import dataclass, replace

from training.learn.reinforce import BASELINES
from training.learning_error import Unlearnable

REWARDS, GRADIENTS = ("priced", "paper"), ("sampled", "expected")


@dataclass(frozen=True)
class Hyperparameters:
    """How a policy learns. Prices and temperature are in the scorer's units of quality; entropy in temperatures.

    An entropy bonus of one temperature makes the scores the expected quality, the same network best at every price;
    more explores, less sharpens.
    """

    prices: tuple[float, float]  # sampled between these, as likely in each octave; the paper's reward has none
    temperature: float
    reward: str = "priced"  # or paper: AdaDiff's
    gradient: str = "sampled"  # or expected: over all actions, nothing drawn
    baseline: str = "leave_one_out"  # or batch_mean, none
    samples: int = 4  # budgets drawn a row and step
    entropy: float = 4.0  # weight of the bonus at the start
    entropy_end: float = 1.0
    quality_weight: float = 0.1  # of the quality head's loss beside the policy's
    learning_rate: float = 1e-3
    constant_rate: bool = False  # true: no warm-up and no decay
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0  # 0: no clipping
    batch_size: int = 256  # of all workers together
    epochs: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("reward", REWARDS), ("gradient", GRADIENTS), ("baseline", BASELINES)):
            if getattr(self, name) not in allowed:
                raise Unlearnable(f"{name} {getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.gradient == "sampled" and self.baseline == "leave_one_out" and self.samples < 2:
            raise Unlearnable("leave_one_out needs two samples or more")
        if not self.temperature > 0 or not 0 < self.prices[0] <= self.prices[1]:
            raise Unlearnable(f"temperature {self.temperature} and prices {self.prices} must be positive")

    def num_steps(self, num_rows: int, slots: int) -> int:
        """Steps of the whole training."""
        return self.epochs * math.ceil(num_rows / slots)


def as_in_the_paper(learning: Hyperparameters) -> Hyperparameters:
    """As AdaDiff has it: its reward, one draw, no baseline, no entropy, Adam at 1e-5, batches of 256, 200 epochs."""
    return replace(
        learning,
        reward="paper",
        gradient="sampled",
        baseline="none",
        samples=1,
        temperature=1.0,
        entropy=0.0,
        entropy_end=0.0,
        learning_rate=1e-5,
        constant_rate=True,
        weight_decay=0.0,
        max_grad_norm=0.0,
        batch_size=256,
        epochs=200,
    )
