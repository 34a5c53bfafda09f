"""Says by their configs which pipelines, UNets, VAEs and text encoders can be rendered with; refuses others by name.

A key that may have one value only is one that the engine does not follow, or that makes another kind of model of it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from actors.tensors import CLIP_TEXT_DEFAULTS, CLIP_VISION_DEFAULTS, UNET_DEFAULTS, VAE_DEFAULTS

FAMILIES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
_OTHER_PIPELINES = {
    "LatentConsistency": "a latent consistency model",
    "InstructPix2Pix": "a model that edits pictures",
    "Inpaint": "an inpainting model",
    "Upscale": "an upscaler",
    "Depth2Img": "a model that wants a depth map",
    "ControlNet": "a pipeline with a ControlNet",
    "Adapter": "a pipeline with an adapter",
    "Img2Img": "a refiner, or a model that starts from a picture",
    "StableDiffusion3": "a transformer model",
    "Flux": "a transformer model",
    "PixArt": "a transformer model",
    "Hunyuan": "a transformer model",
    "Sana": "a transformer model",
    "AuraFlow": "a transformer model",
    "Lumina": "a transformer model",
    "Video": "a video model",
    "Animate": "a video model",
    "Kandinsky": "a Kandinsky model",
    "Wuerstchen": "a cascade",
    "StableCascade": "a cascade",
    "IF": "a model of pixels, not of latents",
    "Alt": "a model with another text encoder",
    "Paint": "a model that edits pictures",
}
_CHANNELS = {
    5: "a UNet that wants a depth map",
    7: "an upscaler",
    8: "a UNet that edits a picture (InstructPix2Pix)",
    9: "an inpainting UNet",
}
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "time_cond_proj_dim": ((None,), "a latent consistency model, whose UNet is told the guidance scale"),
    "class_embed_type": ((None,), "a UNet with class labels (an upscaler, or unCLIP)"),
    "num_class_embeds": ((None,), "a UNet with class labels (an upscaler, or unCLIP)"),
    "class_embeddings_concat": ((False, None), "a UNet with class labels"),
    "encoder_hid_dim": ((None,), "a UNet with another conditioning (Kandinsky, IF, or an IP-Adapter)"),
    "encoder_hid_dim_type": ((None,), "a UNet with another conditioning (Kandinsky, IF, or an IP-Adapter)"),
    "attention_type": (("default", None), "a UNet with gated attention (GLIGEN)"),
    "time_embedding_type": (("positional",), "a UNet with another time embedding"),
    "time_embedding_dim": ((None,), "a UNet with another time embedding"),
    "time_embedding_act_fn": ((None,), "a UNet with another time embedding"),
    "timestep_post_act": ((None,), "a UNet with another time embedding"),
    "num_attention_heads": ((None,), "a UNet that diffusers itself refuses"),
    "dual_cross_attention": ((False, None), "a UNet with two cross-attentions"),
    "only_cross_attention": ((False, None), "a UNet without self-attention"),
    "mid_block_only_cross_attention": ((False, None), "a UNet without self-attention"),
    "cross_attention_norm": ((None,), "a UNet with normed cross-attention"),
    "resnet_time_scale_shift": (("default",), "a UNet with another time embedding in its blocks"),
    "resnet_skip_time_act": ((False,), "a UNet with another time embedding in its blocks"),
    "downsample_padding": ((1,), "a UNet with another padding"),
    "conv_in_kernel": ((3,), "a UNet with another first layer"),
    "conv_out_kernel": ((3,), "a UNet with another last layer"),
    "quantization_config": ((None,), "a UNet with quantised weights"),
}
_ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
_CLIP_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")
_LEFT_BY_TRAINING = (  # diffusers' EMAModel writes them beside the UNet's own keys
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
Check = Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """A whole number from 1 on, and none that no memory holds."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 20


def is_number(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _counts(value: Any) -> bool:
    return is_count(value) or (isinstance(value, list) and bool(value) and all(map(is_count, value)))


def _depths(value: Any) -> bool:
    """A number of layers, or lists of such; 0 where a block has none."""
    if isinstance(value, list):
        return bool(value) and all(map(_depths, value))
    return (value == 0 and not isinstance(value, bool)) or is_count(value)


def _widths(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_count, value))


def _all_of(*kinds: str) -> Check:
    return lambda value: isinstance(value, list) and bool(value) and all(kind in kinds for kind in value)


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _sample_size(value: Any) -> bool:
    return is_count(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_count, value)))


def is_token(value: Any) -> bool:
    """The number of a token; transformers writes its lack as -1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= -1


def _share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _fraction(value: Any) -> bool:
    """transformers takes no whole number here."""
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _dtype(value: Any) -> bool:
    return value in ("float32", "float16", "bfloat16", "float64", "auto", None)


_DTYPES: dict[str, Check] = {"dtype": _dtype, "torch_dtype": _dtype}
_UNET: dict[str, Check] = {
    "sample_size": _or_none(_sample_size),
    "in_channels": is_count,
    "out_channels": is_count,
    "center_input_sample": _is_flag,
    "flip_sin_to_cos": _is_flag,
    "freq_shift": is_number,
    "down_block_types": _all_of("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": lambda value: value in (None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "up_block_types": _all_of("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": _widths,
    "layers_per_block": _counts,
    "mid_block_scale_factor": _positive,
    "dropout": is_number,
    "act_fn": lambda value: value in _ACTIVATIONS,
    "norm_num_groups": is_count,
    "norm_eps": _positive,
    "cross_attention_dim": is_count,
    "transformer_layers_per_block": _depths,
    "reverse_transformer_layers_per_block": _or_none(_depths),
    "attention_head_dim": _counts,
    "use_linear_projection": _is_flag,
    "upcast_attention": _or_none(_is_flag),
    "resnet_out_scale_factor": _positive,
    "addition_embed_type": lambda value: value in (None, "text_time"),
    "addition_time_embed_dim": _or_none(is_count),
    "addition_embed_type_num_heads": _or_none(is_count),
    "projection_class_embeddings_input_dim": _or_none(is_count),
}
_VAE: dict[str, Check] = {
    "in_channels": lambda value: value == 3,
    "out_channels": lambda value: value == 3,
    "down_block_types": _all_of("DownEncoderBlock2D"),
    "up_block_types": _all_of("UpDecoderBlock2D"),
    "block_out_channels": _widths,
    "layers_per_block": is_count,
    "latent_channels": is_count,
    "act_fn": lambda value: value in _ACTIVATIONS,
    "norm_num_groups": is_count,
    "scaling_factor": _positive,
    "shift_factor": _or_none(is_number),
    "force_upcast": _is_flag,
    "use_quant_conv": _is_flag,
    "use_post_quant_conv": _is_flag,
    "mid_block_add_attention": _is_flag,
    "quantization_config": lambda value: value is None,
}
_CLIP_TEXT: dict[str, Check] = {
    **dict.fromkeys((name for name in CLIP_TEXT_DEFAULTS if name != "hidden_act"), is_count),
    "hidden_act": lambda value: value in _CLIP_ACTIVATIONS,
    "layer_norm_eps": _fraction,
    "bos_token_id": _or_none(is_token),
    "pad_token_id": _or_none(is_token),
    "eos_token_id": _or_none(is_token),
    "attention_dropout": _share,
    "dropout": _share,
    "initializer_range": _fraction,
    "initializer_factor": _fraction,
    "use_attention_mask": _is_flag,
    "architectures": _or_none(lambda value: isinstance(value, list)),
    "quantization_config": lambda value: value is None,
    **_DTYPES,
}
_CLIP_VISION: dict[str, Check] = {
    **dict.fromkeys((name for name in CLIP_VISION_DEFAULTS if name != "hidden_act"), is_count),
    "hidden_act": lambda value: value in _CLIP_ACTIVATIONS,
    "layer_norm_eps": _fraction,
    "attention_dropout": _share,
    "dropout": _share,
    "initializer_range": _fraction,
    "initializer_factor": _fraction,
    **_DTYPES,
}

_CLIP: dict[str, Check] = {
    "projection_dim": is_count,
    "initializer_factor": _fraction,
    "logit_scale_init_value": is_number,
    "architectures": _or_none(lambda value: isinstance(value, list)),
    **_DTYPES,
}


def _size(value: Any) -> bool:
    sides = isinstance(value, dict) and set(value) in ({"height", "width"}, {"shortest_edge"})
    return is_count(value) or (sides and all(map(is_count, value.values())))


def _crop(value: Any) -> bool:
    return is_count(value) or (isinstance(value, dict) and set(value) == {"height", "width"} and _size(value))


def _by_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


_PROCESSOR: dict[str, Check] = {
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), _is_flag),
    "size": _size,
    "crop_size": _crop,
    "image_mean": _by_colour,
    "image_std": lambda value: _by_colour(value) and all(value),
    "rescale_factor": _fraction,
    "resample": lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 5,
}


def pipeline_fault(name: Any) -> str | None:
    """Why a pipeline class cannot be rendered with; None: it can."""
    if isinstance(name, str) and name in FAMILIES:
        return None
    what = next((what for part, what in _OTHER_PIPELINES.items() if part in str(name)), None)
    kind = f" ({what})" if what else ""
    return f"{name} cannot be rendered here{kind}; use a checkpoint of {' or '.join(FAMILIES)}"


def unet_fault(config: Mapping[str, Any], latent_channels: int) -> str | None:
    """What a UNet config says that cannot be rendered with; latent_channels: of its VAE."""
    for key, (good, what) in _ONLY.items():
        if key in config and not any(config[key] is value or _same(config[key], value) for value in good):
            return f"{key} is {config[key]!r}: {what}; use a text-to-image checkpoint of Stable Diffusion"
    if (embed := config.get("addition_embed_type")) not in (None, "text_time"):
        return f"addition_embed_type is {embed!r}: a UNet with another conditioning; use a checkpoint of SDXL"
    channels = config.get("in_channels", UNET_DEFAULTS["in_channels"])
    if channels != latent_channels:
        what = _CHANNELS.get(channels, "a UNet of another VAE") if is_count(channels) else "no number of channels"
        return f"in_channels is {channels!r} and the VAE's latents have {latent_channels}: {what}"
    if config.get("out_channels", UNET_DEFAULTS["out_channels"]) != channels:
        return f"out_channels is {config.get('out_channels')!r}, not in_channels {channels}: a UNet of another kind"
    for key, value in config.items():
        known = key in _UNET or key in _ONLY or key in _LEFT_BY_TRAINING or key.startswith("_")
        if not known and value not in (None, False):
            return f"{key} is {value!r:.60}, a key of no Stable Diffusion UNet; use the checkpoint's own config"
    return _value_fault(config, _UNET) or _unet_size_fault(UNET_DEFAULTS | dict(config))


def _same(value: Any, good: Any) -> bool:
    return type(value) is type(good) and value == good


def _unet_size_fault(c: Mapping[str, Any]) -> str | None:
    """Of a config whose values are each good."""
    count, heads = len(c["block_out_channels"]), c["attention_head_dim"]
    for key in ("down_block_types", "up_block_types"):
        if len(c[key]) != count:
            return f"{key} has {len(c[key])} entries for {count} block_out_channels"
    heads = heads if isinstance(heads, list) else [heads] * count
    if len(heads) != count:
        return f"attention_head_dim has {len(heads)} entries for {count} block_out_channels"
    attends = [i for i in range(count) if "CrossAttn" in c["down_block_types"][i] + c["up_block_types"][count - 1 - i]]
    attends += [count - 1] if c["mid_block_type"] == "UNetMidBlock2DCrossAttn" else []
    for i in attends:
        if c["block_out_channels"][i] % heads[i]:
            return f"attention_head_dim {heads[i]} does not divide block_out_channels {c['block_out_channels'][i]}"
    if c["block_out_channels"][0] % 2:
        return f"block_out_channels begins with {c['block_out_channels'][0]}, an odd number"
    return None


def vae_fault(config: Mapping[str, Any]) -> str | None:
    """What an AutoencoderKL's config says that cannot be decoded with."""
    if fault := _value_fault(config, _VAE):
        return fault
    c = VAE_DEFAULTS | dict(config)
    for key in ("down_block_types", "up_block_types"):
        if len(c[key]) != len(c["block_out_channels"]):
            return f"{key} has {len(c[key])} entries for {len(c['block_out_channels'])} block_out_channels"
    for key in ("latents_mean", "latents_std"):
        values = c.get(key)
        if values is not None and not (
            isinstance(values, list) and len(values) == c["latent_channels"] and all(map(is_number, values))
        ):
            return f"{key} must be {c['latent_channels']} numbers, one a latent channel"
    return None


def text_encoder_fault(config: Mapping[str, Any]) -> str | None:
    """What a CLIP text encoder's config says that cannot be encoded with."""
    if "auto_map" in config:
        return "auto_map asks for code of its own, which is never run"
    if config.get("model_type", "clip_text_model") != "clip_text_model":
        return f"model_type is {config['model_type']!r}: a text encoder of another kind than CLIP's"
    return _value_fault(config, _CLIP_TEXT) or _heads_fault(CLIP_TEXT_DEFAULTS | dict(config))


def clip_fault(config: Mapping[str, Any]) -> str | None:
    """What a CLIPModel's config says beside those of its two encoders."""
    if config.get("model_type", "clip") != "clip" or "auto_map" in config or config.get("quantization_config"):
        return f"model_type is {config.get('model_type')!r}: not a plain CLIPModel"
    return _value_fault(config, _CLIP)


def processor_fault(config: Mapping[str, Any], side_px: int) -> str | None:
    """What an image processor's config says that does not give pictures of this side."""
    if fault := _value_fault(config, _PROCESSOR):
        return fault
    key = "crop_size" if config.get("do_center_crop", True) else "size"
    size = config.get(key, 224 if key == "crop_size" else {"shortest_edge": 224})
    sides = {size} if is_count(size) else set(size.values())
    if sides != {side_px} or (key == "size" and "height" not in size):
        return f"{key} is {size}, and the image encoder takes {side_px} x {side_px} px; take both from one model"
    return None


def vision_fault(config: Mapping[str, Any]) -> str | None:
    """The same of a CLIP's image encoder."""
    if fault := _value_fault(config, _CLIP_VISION):
        return fault
    c = CLIP_VISION_DEFAULTS | dict(config)
    return _heads_fault(c) or (None if c["num_channels"] == 3 else f"num_channels is {c['num_channels']}, not 3")


def _heads_fault(c: Mapping[str, Any]) -> str | None:
    if c["hidden_size"] % c["num_attention_heads"]:
        return f"num_attention_heads {c['num_attention_heads']} does not divide hidden_size {c['hidden_size']}"
    return None


def _value_fault(config: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    for key, check in checks.items():
        if key in config and not _passes(check, config[key]):
            return f"{key} is {config[key]!r:.60}, which no model here has; use the checkpoint's own config"
    return None


def _passes(check: Check, value: Any) -> bool:
    try:
        return bool(check(value))
    except TypeError:  # a list where a name is looked up
        return False
