"""Builds the small models, untrained: autoencoder, denoiser, text encoder, scheduler, and the CLIP that scores.

Only shapes and sizes live here; training is train.py's, weights are the folder's. B batch, C = 8 latent channels, h = w
= 8, L = 40 tokens.
"""

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from training.scenes.world import CELL, SIZE

MAX_TOKENS = 40  # the longest caption of six objects has 39
LATENT_CHANNELS, LATENT_SIDE = 8, SIZE // CELL
TEXT_DIM = 128


def autoencoder() -> AutoencoderKL:
    """(B, 3, 32, 32) <-> (B, 8, 8, 8)."""
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def denoiser(channels: tuple[int, ...] = (64, 128), layers: int = 1) -> UNet2DConditionModel:
    """v-prediction at 8 x 8 and 4 x 4, with attention to the text everywhere."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=layers,
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
    )


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The sizes that the denoiser's text encoder and CLIP's share."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=4 * TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_DIM,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """(B, L) -> (B, L, 128)."""
    return CLIPTextModel(text_config(tokenizer))


def clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The scorer: 8 x 8 patches of 4 px, 128 dimensions, three layers."""
    vision = CLIPVisionConfig(
        hidden_size=TEXT_DIM,
        intermediate_size=4 * TEXT_DIM,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=CELL,
        projection_dim=TEXT_DIM,
    )
    text = text_config(tokenizer)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_DIM))


def scheduler() -> DDIMScheduler:
    """Cosine schedule (8 x 8 latents have too little redundancy for SD's noise), zero terminal SNR, v-prediction."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
