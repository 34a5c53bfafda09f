"""Defines StepPolicy, the network, and its file: safetensors and JSON, never a pickle.

Choosing a budget from its scores is `actors.policy`; encoding prompts is `actors.prompt_encoder`. Shapes: B prompts, L
tokens, H the text encoder's width, D the network's, K budgets.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from actors.policy import CARD, WEIGHTS, Network, PolicyCard, PolicyError, card_text, content_version, policy_folder
from actors.policy import read_card as read_card_of


class PolicyOutput(NamedTuple):
    """(B, K) each, float32. Scores are the policy's logits; quality is in the scorer's own units."""

    scores: torch.Tensor
    quality_mean: torch.Tensor
    quality_log_var: torch.Tensor


class StepPolicy(nn.Module):
    """Token embeddings of the frozen text encoder -> a few self-attention layers -> two heads (AdaDiff, section 3)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        width, num_choices = network.width, network.num_choices
        self.project = nn.Linear(network.hidden_size, width)
        self.summary = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, network.num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, network.num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.score_head = _head(width, num_choices)
        self.quality_head = _head(width, 2 * num_choices)

    def forward(self, prompt_embeds: torch.Tensor, mask: torch.Tensor) -> PolicyOutput:
        """prompt_embeds (B, L, H), mask (B, L): 1 at tokens, 0 at padding, which changes nothing."""
        x = self.project(prompt_embeds.float())  # (B, L, D)
        x = torch.cat([self.summary.expand(len(x), 1, -1), x], dim=1)
        padding = torch.cat([mask.new_zeros(len(x), 1, dtype=torch.bool), mask == 0], dim=1)  # (B, 1 + L)
        pooled = self.norm(self.layers(x, src_key_padding_mask=padding)[:, 0])  # (B, D)
        mean, log_var = self.quality_head(pooled).chunk(2, dim=-1)
        return PolicyOutput(self.score_head(pooled), mean, log_var.clamp(-12.0, 12.0))


def _head(width: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_outputs))


def save_policy(path: str, policy: StepPolicy, card: PolicyCard) -> PolicyCard:
    """Write policy.safetensors, then policy.json, into a folder; returns the card with its version."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: tensor.detach().float().cpu().contiguous() for name, tensor in policy.state_dict().items()})
    card = replace(card, version="")
    card = replace(card, version=content_version(card, weights))
    for name, data in ((WEIGHTS, weights), (CARD, card_text(card).encode())):
        temporary = folder / f".{name}.tmp"
        temporary.write_bytes(data)
        os.replace(temporary, folder / name)
    return card


def load_policy(path: str) -> tuple[StepPolicy, PolicyCard]:
    """The network in eval mode, on the CPU, and its card. PolicyError where card and weights are no whole policy."""
    file = policy_folder(path) / WEIGHTS
    card = read_card_of(path)
    if card.version != content_version(card, file.read_bytes()):
        raise PolicyError(f"{file.parent}: {CARD} and {WEIGHTS} do not belong together, or one was changed by hand")
    try:
        weights = load_file(str(file))
        policy = StepPolicy(card.network)
        policy.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError, AssertionError) as error:
        raise PolicyError(f"{file}: not the weights of this policy ({str(error).splitlines()[0]})") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise PolicyError(f"{file}: has weights that are not finite; train it again")
    return policy.eval().requires_grad_(False), card


def weights_fingerprint(component: str, variant: str | None = None) -> str:
    """16 hex digits of a component's weights, such as <checkpoint>/text_encoder, equal for its fp32 and fp16 copies.

    Every tensor is taken in fp16, in order of its name. PolicyError where the folder has no safetensors.
    """
    digest = hashlib.blake2b(digest_size=8)
    places: dict[str, tuple[Path, str]] = {}
    for file in _weight_files(Path(component), variant):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                places[name.removeprefix("text_model.")] = file, name  # releases of transformers differ in this
    for name in sorted(places.keys() - {"embeddings.position_ids"}):
        file, stored = places[name]
        with safe_open(str(file), framework="pt") as tensors:
            tensor = tensors.get_tensor(stored).to(torch.float16).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy() if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """One variant's files; a component without that variant has its plain ones; sorted."""
    every = sorted(folder.glob("*.safetensors"))
    plain = [file for file in every if "." not in file.name.removesuffix(".safetensors")]
    files = [file for file in every if variant and f".{variant}" in file.name] or plain or every[:1]
    if not files:
        raise PolicyError(f"{folder}: no safetensors weights")
    return files
