"""Tiny random checkpoints in diffusers' folder layout, one of each family, and prompts to render with them."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SCHEDULERS = {
    "sd1": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False},
    "sd2": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "sdxl": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False},
}


def make_tokenizer(length: int = 24) -> CLIPTokenizer:
    """One token a letter."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(
        vocab=vocab, merges=[], model_max_length=length, pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def _text_config(width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=190,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=projection,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=189,
    )


def _unet(cross: int, xl: bool) -> UNet2DConditionModel:
    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8} if xl else {}
    if xl:
        extra["projection_class_embeddings_input_dim"] = 6 * 8 + 16
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=cross,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **extra,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def make_checkpoint(kind: str, folder: Path) -> Path:
    """kind: sd1 (epsilon), sd2 (v-prediction, zero terminal SNR) or sdxl; 16 x 16 px, random weights."""
    torch.manual_seed(0)
    scheduler = DDIMScheduler(**SCHEDULERS[kind])
    pipeline: Any
    if kind == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            _vae(),
            CLIPTextModel(_text_config(16, 16)),
            CLIPTextModelWithProjection(_text_config(24, 16)),
            make_tokenizer(),
            make_tokenizer(),
            _unet(40, xl=True),
            scheduler,
        )
    else:
        pipeline = StableDiffusionPipeline(
            _vae(),
            CLIPTextModel(_text_config(32, 32)),
            make_tokenizer(),
            _unet(32, xl=False),
            scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == type(pipeline).__name__
    return folder
