"""Trains the denoiser and its text encoder together, on latents made beforehand.

v-prediction (arXiv 2202.00512) with the alphas of the very scheduler that is shipped.
B batch, L tokens, C = 8 latent channels, h = w = 8.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training.scenes.architecture import denoiser, scheduler, text_encoder
from training.scenes.fit import FitLoop, FitSettings
from training.scenes.mixed import halve_products
from training.scenes.training_files import token_ids

BATCH, PROMPT_DROPOUT, OBJECT_WEIGHT = 64, 0.1, 3.0


def noise_levels(count: int, num_timesteps: int, generator: torch.Generator) -> Tensor:
    """(count,) timesteps: one eighth uniform, the others logit-normal around .8 of the range.

    Between .6 and .95 the error of x0 falls from 1.4 to .02: counts, places and shapes are decided there. Below, it is
    less than the noise that the decoder was trained to read through.
    """
    uniform = torch.rand(count, generator=generator)
    deciding = (0.8 * torch.randn(count, generator=generator) + 1.4).sigmoid()
    chosen = torch.where(torch.arange(count) % 8 == 0, uniform, deciding)
    return (chosen * num_timesteps).long().clamp(0, num_timesteps - 1)


class DenoisingObjective:
    """Draws a batch and gives the loss of both models on it."""

    def __init__(self, work: Path, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel, text: CLIPTextModel) -> None:
        self.unet, self.text = unet, text
        self.latents = np.load(work / "latents.npy", mmap_mode="r")
        self.cells = np.load(work / "cells.npy", mmap_mode="r")
        self.tokens = np.load(work / "tokens.npy", mmap_mode="r")
        self.blank = torch.from_numpy(token_ids(tokenizer, [""])[0])
        self.alphas = scheduler().alphas_cumprod

    def __call__(self, generator: torch.Generator) -> Tensor:
        """The weighted squared error of v; an object's cells weigh more, which moves no optimum."""
        rows = torch.randint(len(self.latents), (BATCH,), generator=generator).sort().values.numpy()
        x0 = torch.from_numpy(self.latents[rows].astype(np.float32))
        weight = 1 + (OBJECT_WEIGHT - 1) * torch.from_numpy(self.cells[rows]).float()[:, None]
        tokens = torch.from_numpy(self.tokens[rows])
        tokens[torch.rand(BATCH, generator=generator) < PROMPT_DROPOUT] = self.blank
        t = noise_levels(BATCH, len(self.alphas), generator)
        eps = torch.randn(x0.shape, generator=generator)
        alpha = self.alphas[t].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas[t]).sqrt()[:, None, None, None]
        v = self.unet(alpha * x0 + sigma * eps, t, self.text(tokens).last_hidden_state).sample
        return (weight * (v - (alpha * eps - sigma * x0)).pow(2)).mean() / weight.mean()


def train(
    work: Path, tokenizer: CLIPTokenizer, plan: FitSettings, before_step: Callable[[], None] = lambda: None
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The averaged denoiser and text encoder; resumes from work/denoiser.ckpt."""
    torch.manual_seed(0)
    unet, text = denoiser(), text_encoder(tokenizer)
    unet_average, text_average = copy.deepcopy(unet).requires_grad_(False), copy.deepcopy(text).requires_grad_(False)
    averages = {"unet": unet_average, "text_encoder": text_average}
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    for module in (unet, text):
        halve_products(module)
    run = FitLoop(work / "denoiser.ckpt", {"unet": unet, "text_encoder": text}, averages, plan)
    run.train(DenoisingObjective(work, tokenizer, unet, text), before_step)
    return unet_average.eval(), text_average.eval()
