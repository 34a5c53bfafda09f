"""Runs a training that can be stopped anywhere and continues from its last checkpoint as if it had not been.

It knows parameters, optimizers, a schedule and a moving average; what is learned is the caller's `loss_of`. A
checkpoint holds all that the next step depends on: weights, averages, optimizers, step, generators.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.scenes.muon import Muon
from training.scenes.training_files import write_atomically


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast; a longer plan can take up the run of a shorter one."""

    steps: int
    lr: float
    warmup: int = 200
    decay_steps: int = 0  # the last of `steps`, over which the learning rate falls linearly to zero
    ema_decay: float = 0.9995
    muon: bool = True
    checkpoint_s: float = 120.0
    stop_after: int | None = None  # steps; for tests and slices: leave with a checkpoint and without the decay

    def lr_at(self, step: int) -> float:
        """Warm-up, then constant, then linear to zero."""
        left = (self.steps - step) / max(1, self.decay_steps)
        return self.lr * min(1.0, (step + 1) / self.warmup, left)


def _optimizers(modules: Mapping[str, nn.Module], plan: FitSettings) -> list[torch.optim.Optimizer]:
    named = [item for module in modules.values() for item in module.named_parameters()]
    matrices = [
        p
        for n, p in named
        if plan.muon and p.dim() > 1 and min(p.size(0), p.numel() // p.size(0)) > 8 and "embed" not in n
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, plan.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return [Muon(matrices, plan.lr), adam] if matrices else [adam]


def averages(path: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of one module, as the checkpoint at `path` holds them."""
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["averages"][name]
    return state


def _log(line: str) -> None:
    print(line, flush=True)


class FitLoop:
    """One training run: `modules` learn, `averages` (same keys) follow them, `loss_of` draws from `generator`."""

    def __init__(
        self, path: Path, modules: Mapping[str, nn.Module], averages: Mapping[str, nn.Module], plan: FitSettings
    ) -> None:
        self.path, self.modules, self.averages, self.plan = path, modules, averages, plan
        self.generator = torch.Generator().manual_seed(0)  # every random choice of `loss_of` is drawn from here
        self.optimizers = _optimizers(modules, plan)
        self.step, self.seconds = 0, 0.0
        if path.exists():
            self._load()

    def _load(self) -> None:
        saved = torch.load(self.path, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(saved["modules"][name])
            self.averages[name].load_state_dict(saved["averages"][name])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["global_generator"])
        self.step, self.seconds = saved["step"], saved["seconds"]

    def save(self, suffix: str = ".ckpt") -> None:
        """The checkpoint, in one atomic replacement."""
        buffer = io.BytesIO()
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "averages": {name: module.state_dict() for name, module in self.averages.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, buffer)
        write_atomically(self.path.with_suffix(suffix), buffer.getvalue())

    def train(
        self,
        loss_of: Callable[[torch.Generator], Tensor],
        before_step: Callable[[], None] = lambda: None,
        log: Callable[[str], None] = _log,
    ) -> None:
        """Runs until the plan's steps are done, or `stop_after`; saves every `checkpoint_s` and at the end.

        Where the decay begins it also leaves `.constant.ckpt`: from there a longer plan goes on.
        """
        params = [p for module in self.modules.values() for p in module.parameters()]
        end = min(self.plan.steps, self.plan.stop_after or self.plan.steps)
        started, saved, losses = time.monotonic() - self.seconds, self.seconds, []
        while self.step < end:
            if self.step == self.plan.steps - self.plan.decay_steps:
                self.save(".constant.ckpt")
            before_step()
            losses.append(self._update(params, loss_of))
            self.seconds = time.monotonic() - started
            if self.step % 200 == 0:
                loss = sum(losses) / len(losses)
                log(f"{self.path.stem} step {self.step}, {self.seconds:.0f} s, loss {loss:.4f}")
                losses = []
            if self.seconds - saved > self.plan.checkpoint_s:
                self.save()
                saved = self.seconds
        self.save()

    def _update(self, params: list[nn.Parameter], loss_of: Callable[[torch.Generator], Tensor]) -> float:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.plan.lr_at(self.step)
            optimizer.zero_grad()
        loss = loss_of(self.generator)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self._follow(params)
        return loss.item()

    @torch.no_grad()
    def _follow(self, params: Sequence[Tensor]) -> None:
        averages: list[Tensor] = [p for module in self.averages.values() for p in module.parameters()]
        decay = min(self.plan.ema_decay, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(averages, list(params), 1 - decay)
