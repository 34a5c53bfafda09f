"""Does one step of learning, the same on one process and on many: gradient, optimizer, rate; no Ray, no files.

The loop around it is `training.learn.worker`'s; what is maximised is `training.learn.step_loss`' and
`training.learn.offer_loss`'. Shapes: N rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from training.learn.batches import Batch
from training.learn.hyperparameters import Hyperparameters

WARM_UP = 0.05
OverWorkers = Callable[[Tensor], Tensor]


class At(NamedTuple):
    """Where a training is: its step, and its progress from 0 at the first step to 1 at the end."""

    step: int
    progress: float


class Loss(Protocol):
    """Of a network's outputs for a batch, with what is worth watching; randomness is a function of the step."""

    def __call__(self, out: Any, batch: Batch, at: At) -> tuple[Tensor, dict[str, Tensor]]:
        """Means over the batch's rows."""


class Learner:
    """A network with its optimizer, at some step of `num_steps`. `forward`: the network, or its parallel wrapper."""

    def __init__(
        self,
        policy: nn.Module,
        learning: Hyperparameters,
        loss: Loss,
        num_steps: int,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self.policy, self.learning, self.loss, self.num_steps = policy, learning, loss, num_steps
        self.forward = forward or policy
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
        loss, watched = self.loss(self.forward(batch.embeds, batch.mask), batch, At(self.step, self.progress))
        loss.backward()
        return watched

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


def like(tensor: Tensor, values: np.ndarray) -> Tensor:
    """Values on a tensor's device, in its precision."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(tensor.device, tensor.dtype)
