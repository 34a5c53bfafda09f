"""Writes the trained parts as folders that diffusers and transformers load: `model/` and `scorer/`, fp16 safetensors.

Weights go in as they are; nothing is trained or measured here.
"""

import shutil
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from training.scenes.architecture import scheduler
from training.scenes.world import SIZE

MODEL_FOLDER, SCORER_FOLDER = Path(__file__).parent / "model", Path(__file__).parent / "scorer"


def pipeline(
    autoencoder: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The parts as one diffusers pipeline."""
    build: Any = StableDiffusionPipeline  # its annotations refuse the parts that it takes None for
    return build(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_model(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Replaces the folder; weights in fp16."""
    shutil.rmtree(folder, ignore_errors=True)
    parts = (pipe.vae, pipe.unet, pipe.text_encoder)
    for part in parts:
        part.half()
    pipe.save_pretrained(folder, safe_serialization=True)
    for part in parts:
        part.float()


def save_scorer(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Replaces the folder: CLIPModel, tokenizer and image processor; pixels become (x - .5) / .5 at 32 px."""
    shutil.rmtree(folder, ignore_errors=True)
    clip.half().save_pretrained(folder)
    clip.float()
    tokenizer.save_pretrained(folder)
    side = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessor(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder)
