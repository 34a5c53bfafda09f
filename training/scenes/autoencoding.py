"""Trains the autoencoder: a fixed noise bounds what a latent cell may say, and objects weigh more than the background.

Latents have mean 0 and deviation 1: the loss sees them normalised over the batch, and `fold` writes the same
normalisation into the encoder's last convolution, so scaling_factor stays 1. B batch, C latent channels, h = w = 8.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from training.scenes.architecture import LATENT_CHANNELS, autoencoder
from training.scenes.fit import FitLoop, FitSettings
from training.scenes.training_files import pixels

SIGMA = 0.2  # the posterior's fixed deviation: the decoder learns to read latents that are this far off
OBJECT_WEIGHT, BATCH = 6.0, 16


def _loss(model: AutoencoderKL, images: np.ndarray, generator: torch.Generator) -> Tensor:
    x = pixels(images)
    colourful = ((x.amax(1, keepdim=True) - x.amin(1, keepdim=True)) > 0.3).float()
    weight = 1 + (OBJECT_WEIGHT - 1) * F.max_pool2d(colourful, 3, 1, 1)
    mean = model.encode(x).latent_dist.mean
    z = (mean - mean.mean((0, 2, 3), keepdim=True)) / (mean.std((0, 2, 3), keepdim=True) + 1e-4)
    error = model.decode(z + SIGMA * torch.randn(z.shape, generator=generator)).sample - x
    return (weight * error.abs()).mean() + (weight * error.pow(2)).mean() + 1e-4 * mean.pow(2).mean()


@torch.no_grad()
def fold(model: AutoencoderKL, images: np.ndarray) -> None:
    """Writes the channels' mean and deviation over `images` into quant_conv, and the posterior's deviation SIGMA."""
    parts = [model.encode(pixels(images[i : i + 100])).latent_dist.mean for i in range(0, len(images), 100)]
    z = torch.cat(parts)  # (B, C, h, w)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    quant, c = model.quant_conv, LATENT_CHANNELS
    assert quant is not None
    assert quant.bias is not None
    quant.weight[:c] /= std[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - mean) / std
    quant.weight[c:] = 0
    quant.bias[c:] = 2 * float(np.log(SIGMA))


def train(work: Path, plan: FitSettings, before_step: Callable[[], None] = lambda: None) -> AutoencoderKL:
    """The trained and folded autoencoder; resumes from work/autoencoder.ckpt."""
    images = np.load(work / "images.npy", mmap_mode="r")
    torch.manual_seed(0)
    model = autoencoder().to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    average = copy.deepcopy(model).requires_grad_(False)
    run = FitLoop(work / "autoencoder.ckpt", {"autoencoder": model}, {"autoencoder": average}, plan)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (BATCH,), generator=generator).sort().values.numpy()
        return _loss(model, images[rows], generator)

    run.train(loss_of, before_step)
    average.eval()
    fold(average, images[:3000])
    return average
