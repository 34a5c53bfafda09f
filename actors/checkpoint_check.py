"""Checks a checkpoint before anything starts: each part is of a kind that can be rendered with, and is whole.

From JSON files and the headers of the weights, in seconds and without torch. What passes is loaded without a single
weight made up; the loaders hold that again (`actors.loading`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.checkpoint import CheckpointInfo, components_of, inspect_checkpoint, scheduler_class, stem_of
from actors.component_configs import text_encoder_fault, unet_fault, vae_fault
from actors.schedulers import InvalidSteps, class_fault, schedule_fault
from actors.solver import noise_schedule, schedule_of
from actors.tensors import (
    CLIP_TEXT_DEFAULTS,
    UNET_DEFAULTS,
    VAE_DEFAULTS,
    Shapes,
    clip_text_shapes,
    unet_shapes,
    vae_shapes,
)
from actors.tokenizer_files import TOKENIZERS, check_tokenizer
from actors.weights import CheckpointError, Tensor, check_weights, is_sharded, read_json, tensors_fault, variant_of

_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": TOKENIZERS,
    "tokenizer_2": TOKENIZERS,
}
_OTHERS = {
    "AutoencoderTiny": "a tiny VAE (TAESD)",
    "AsymmetricAutoencoderKL": "a VAE for inpainting",
    "ConsistencyDecoderVAE": "a consistency decoder",
    "VQModel": "a VAE of another kind",
    "UNet3DConditionModel": "a video model's UNet",
    "UNetMotionModel": "a video model's UNet",
    "UNet2DModel": "a UNet without text",
    "T5EncoderModel": "another text encoder",
    "BertModel": "another text encoder",
}
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # no picture here is made with them
_LIBRARIES = ("diffusers", "transformers")
_OF_A_WHOLE_CLIP = ("vision_model.", "visual_projection.")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class _Parts:
    """A folder's configs, each checked for itself."""

    root: Path
    variant: str | None
    family: str
    configs: Mapping[str, Mapping[str, Any]]  # by component


def check_checkpoint(folder: str, variant: str | None = None) -> CheckpointInfo:
    """Raises CheckpointError, one line, for whatever is of another kind, missing, torn, or left over."""
    info = inspect_checkpoint(folder, variant)
    root = Path(folder)
    index = read_json(root, "model_index.json")
    _check_index(root, index, info.family)
    _check_scheduler(root, index)
    parts = _Parts(root, variant, info.family, {name: _config(root, name) for name in components_of(info.family)})
    _check_configs(parts)
    _check_fit(parts, bool(index.get("requires_aesthetics_score")))
    for component in parts.configs:
        _check_component(parts, component)
    for component, config in parts.configs.items():
        if component.startswith("text_encoder"):
            text = CLIP_TEXT_DEFAULTS | dict(config)
            folder_of = root / component.replace("text_encoder", "tokenizer")
            check_tokenizer(folder_of, text["vocab_size"], text["max_position_embeddings"])
    _check_lengths(parts)
    return info


def check_solver(info: CheckpointInfo, solver: str, timestep_spacing: str | None = None) -> None:
    """Raises CheckpointError where the scheduler config says what this solver would read and does not follow here."""
    place = f"{info.path}/scheduler/scheduler_config.json"
    try:
        first = noise_schedule(info.scheduler_config, timestep_spacing)
        schedule_of(first, solver)
    except InvalidSteps as error:
        raise CheckpointError(f"{place}: {error}") from error


def _check_index(root: Path, index: Mapping[str, Any], family: str) -> None:
    place = f"{root}/model_index.json"
    wanted = [*components_of(family), "scheduler", "tokenizer", *(["tokenizer_2"] if family == "sdxl" else [])]
    for name in wanted:
        entry = index.get(name)
        if not isinstance(entry, list) or len(entry) != 2:
            raise CheckpointError(f"{place}: {name} is {entry!r:.80}, not a library and a class; take the original")
        library, kind = entry
        if kind is None:
            what = ": a refiner, which goes on from another picture" if name == "text_encoder" else ""
            raise CheckpointError(f"{place}: it has no {name}{what}; use a whole text-to-image checkpoint")
        if library not in _LIBRARIES:
            raise CheckpointError(f"{place}: {name} is of {library!r:.60}, code of its own, which is never run")
        if name in _CLASSES and kind not in _CLASSES[name]:
            raise CheckpointError(f"{place}: {_class_fault(name, kind)}")
    for name in _OPTIONAL:
        entry = index.get(name)
        if entry is not None and not (isinstance(entry, list) and len(entry) == 2):
            raise CheckpointError(f"{place}: {name} is {entry!r:.80}, not a library and a class; write [null, null]")
    for name, entry in index.items():
        empty = entry in (None, [None, None])
        if isinstance(entry, list) and name not in (*wanted, *_OPTIONAL) and not empty:
            raise CheckpointError(
                f"{place}: {name} ({entry!r:.80}) is no part of {index['_class_name']}; use its own class"
            )


def _class_fault(name: str, kind: Any) -> str:
    what = f", {_OTHERS[kind]}" if isinstance(kind, str) and kind in _OTHERS else ""
    return f"{name} is {kind}{what}; only {' or '.join(_CLASSES[name])} can be loaded: put one in its place"


def _check_scheduler(root: Path, index: Mapping[str, Any]) -> None:
    config = read_json(root, "scheduler/scheduler_config.json")
    name = config.get("_class_name", scheduler_class(index, config))
    place = f"{root}/scheduler/scheduler_config.json"
    for fault in (class_fault(name), class_fault(scheduler_class(index, config)), schedule_fault(config)):
        if fault:
            raise CheckpointError(f"{place}: {fault}; use a checkpoint trained on Stable Diffusion's noise schedule")


def _config(root: Path, component: str) -> dict[str, Any]:
    """A component's config; of a whole CLIP's the part of its text encoder. Raises CheckpointError."""
    config = read_json(root, f"{component}/config.json")
    named = config.get("_class_name")
    if component in ("unet", "vae") and named is not None and named not in _CLASSES[component]:
        raise CheckpointError(f"{root}/{component}/config.json: {_class_fault(component, named)}")
    if (root / component / "adapter_config.json").exists():
        raise CheckpointError(
            f"{root}/{component}: adapter_config.json, an adapter that is not merged; merge it and save the whole model"
        )
    text = config.get("text_config")
    if component.startswith("text_encoder") and config.get("model_type") == "clip" and isinstance(text, dict):
        return {"model_type": "clip_text_model"} | text
    return config


def _check_configs(parts: _Parts) -> None:
    for component, config in parts.configs.items():
        if component == "unet":
            vae = parts.configs["vae"]
            fault = unet_fault(config, vae.get("latent_channels", VAE_DEFAULTS["latent_channels"]))
        else:
            fault = vae_fault(config) if component == "vae" else text_encoder_fault(config)
        if fault:
            raise CheckpointError(f"{parts.root}/{component}/config.json: {fault}")
    if parts.configs["unet"].get("sample_size") is None:
        raise CheckpointError(
            f"{parts.root}/unet/config.json: no sample_size, the side of its latents; write 64 there for 512 px"
        )


def _check_component(parts: _Parts, component: str) -> None:
    folder, config, stem = parts.root / component, parts.configs[component], stem_of(component)
    try:
        wanted = _wanted(component, config)
    except (ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"{folder}/config.json: no model can be made of it ({error})") from None
    model, diffusers = _CLASSES[component][0], component in ("unet", "vae")
    variant = variant_of(folder, stem, parts.variant)
    renames = component == "vae" and not is_sharded(folder, stem, variant)  # diffusers renames in a single file alone

    def fit(found: Mapping[str, Tensor]) -> str | None:
        if renames:
            found = _with_new_names(found)
        if diffusers:
            return tensors_fault(found, wanted, model=model)
        ignored = (*_OF_A_WHOLE_CLIP, *([] if component == "text_encoder_2" else ["text_projection."]))
        return tensors_fault(found, wanted, "text_model.", ignored, model)

    check_weights(folder, stem, variant, diffusers, fit)


def _wanted(component: str, config: Mapping[str, Any]) -> Shapes:
    if component == "unet":
        return unet_shapes(config)
    return vae_shapes(config) if component == "vae" else clip_text_shapes(config, component == "text_encoder_2")


def _with_new_names(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's attention as diffusers before 0.17 named it; it still reads those names."""
    renamed = {}
    for name, tensor in found.items():
        layer, _, end = name.rpartition(".")
        parent, _, last = layer.rpartition(".")
        old = "mid_block.attentions.0" in parent and last in _OLD_ATTENTION
        renamed[f"{parent}.{_OLD_ATTENTION[last]}.{end}" if old else name] = tensor
    return renamed if len(renamed) == len(found) else dict(found)


def _check_fit(parts: _Parts, aesthetics: bool) -> None:
    """What one component gives, the next must take."""
    unet = UNET_DEFAULTS | dict(parts.configs["unet"])
    texts = [CLIP_TEXT_DEFAULTS | dict(c) for name, c in parts.configs.items() if name.startswith("text_encoder")]
    width, place = sum(text["hidden_size"] for text in texts), f"{parts.root}/unet/config.json"
    if unet["cross_attention_dim"] != width:
        raise CheckpointError(
            f"{place}: cross_attention_dim is {unet['cross_attention_dim']} and the text encoders give {width}; "
            "take both from one checkpoint"
        )
    if parts.family == "sd":
        if unet["addition_embed_type"] is not None:
            raise CheckpointError(f"{place}: addition_embed_type is text_time: a UNet of SDXL; use its pipeline class")
        return
    if unet["addition_embed_type"] != "text_time":
        raise CheckpointError(f"{place}: no addition_embed_type text_time: not a UNet of SDXL; use the class of SD")
    given, wanted = unet["addition_time_embed_dim"], unet["projection_class_embeddings_input_dim"]
    pooled = texts[-1]["projection_dim"]
    if aesthetics or wanted == 5 * (given or 0) + pooled:
        raise CheckpointError(f"{place}: a refiner, which is told an aesthetic score; use the base checkpoint")
    if not given or given % 2 or wanted != 6 * given + pooled:
        raise CheckpointError(
            f"{place}: projection_class_embeddings_input_dim is {wanted}, and six sizes of {given} with the text's "
            f"{pooled} are {6 * (given or 0) + pooled}; take UNet and text encoders from one checkpoint"
        )


def _check_lengths(parts: _Parts) -> None:
    """SDXL's two encoders are laid side by side, token by token."""
    names = [name.replace("text_encoder", "tokenizer") for name in parts.configs if name.startswith("text_encoder")]
    lengths = {read_json(parts.root, f"{name}/tokenizer_config.json")["model_max_length"] for name in names}
    if len(lengths) > 1:
        raise CheckpointError(f"{parts.root}: its tokenizers' model_max_length differ ({sorted(lengths)}); write one")
