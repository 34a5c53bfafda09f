"""Reads what a diffusers folder says about itself, from its JSON files and the list of its weights.

Not the model: no weight is loaded and torch is not imported, so that a driver can refuse a bad folder at once. Whether
the weights are those that the configs ask for is `actors.checkpoint_check`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.component_configs import FAMILIES, is_count, pipeline_fault
from actors.schedulers import PIPELINE
from actors.weights import CheckpointError, read_json, variant_of

_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_BLOCK, _NUM_BLOCKS = 1 << 16, 16
_OLD = (0, 9)  # diffusers before it wrote half the sample_size of its checkpoints


@dataclass(frozen=True)
class CheckpointInfo:
    """width, height: the checkpoint's own size in px. scheduler_config: as its pipeline would rewrite it."""

    path: str
    variant: str | None
    family: str  # sd or sdxl
    width: int
    height: int
    vae_scale_factor: int
    prediction_type: str
    scheduler_config: dict[str, Any]
    scheduler_class: str
    zero_unconditional: bool  # SDXL: a negative prompt of None is an embedding of zeros
    fingerprint: str
    has_safety_checker: bool = False  # which is not run


def inspect_checkpoint(folder: str, variant: str | None = None) -> CheckpointInfo:
    """Reads model_index.json and the components' configs. Raises CheckpointError."""
    root = Path(folder)
    index = read_json(root, "model_index.json")
    if fault := pipeline_fault(index.get("_class_name")):
        raise CheckpointError(f"{root}/model_index.json: {fault}")
    family = FAMILIES[index["_class_name"]]
    components = components_of(family)
    if variant and not any(variant_of(root / name, stem_of(name), variant) for name in components):
        raise CheckpointError(
            f"{root}: no component has safetensors weights for variant {variant!r}; leave model.variant out"
        )
    for component in components:
        _check_weights(root, component, variant)
    unet, vae = read_json(root, "unet/config.json"), read_json(root, "vae/config.json")
    scale = _vae_scale(root, vae)
    height, width = _sample_size(root, unet, family)
    scheduler = read_json(root, "scheduler/scheduler_config.json")
    return CheckpointInfo(
        path=str(root),
        variant=variant,
        family=family,
        width=width * scale,
        height=height * scale,
        vae_scale_factor=scale,
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        scheduler_config=scheduler | {PIPELINE: family, "_class_name": scheduler_class(index, scheduler)},
        scheduler_class=scheduler_class(index, scheduler),
        zero_unconditional=family == "sdxl" and bool(index.get("force_zeros_for_empty_prompt", True)),
        fingerprint=_fingerprint(root, components, variant),
        has_safety_checker=any(index.get("safety_checker") or ()),
    )


def components_of(family: str) -> tuple[str, ...]:
    """Those with weights."""
    return ("unet", "vae", "text_encoder", "text_encoder_2") if family == "sdxl" else ("unet", "vae", "text_encoder")


def stem_of(component: str) -> str:
    """What its weight files' names begin with."""
    return _STEMS.get(component, "model")


def component_variant(folder: str, component: str, variant: str | None) -> str | None:
    """The variant asked for where the component has it, else None: its plain files, as diffusers takes them."""
    return variant_of(Path(folder) / component, stem_of(component), variant)


def scheduler_class(index: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
    """The class that the pipeline loads: the index names it; the config does in a folder whose index is silent."""
    entry = index.get("scheduler")
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else scheduler.get("_class_name")
    return named if isinstance(named, str) else "DDIMScheduler"


def _vae_scale(root: Path, vae: Mapping[str, Any]) -> int:
    blocks = vae.get("block_out_channels", [64])
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 8:
        raise CheckpointError(f"{root}/vae/config.json: block_out_channels {blocks!r} is no list of widths")
    return 2 ** (len(blocks) - 1)


def _sample_size(root: Path, unet: Mapping[str, Any], family: str) -> tuple[int, int]:
    """Latent height and width; 64 for what diffusers before 0.9 wrote smaller, as StableDiffusionPipeline reads it."""
    sample = unet.get("sample_size") or 64
    if is_count(sample):
        old = family == "sd" and sample < 64 and _is_old(unet.get("_diffusers_version"))
        return (64, 64) if old else (sample, sample)
    if not isinstance(sample, list) or len(sample) != 2 or not all(map(is_count, sample)):
        raise CheckpointError(f"{root}/unet/config.json: sample_size {sample!r} is no size of a latent")
    return sample[0], sample[1]


def _is_old(version: Any) -> bool:
    numbers = str(version).split(".")[:2]
    return len(numbers) == 2 and all(n.isdecimal() for n in numbers) and tuple(map(int, numbers)) < _OLD


def _check_weights(root: Path, component: str, variant: str | None) -> None:
    if list(_weights(root, component, variant)):
        return
    pickled = [*(root / component).glob("*.bin"), *(root / component).glob("*.ckpt")]
    if pickled:
        raise CheckpointError(
            f"{root}/{component}: only pickled weights ({pickled[0].name}), which can run code when they are read; "
            "save the checkpoint with safe_serialization=True"
        )
    if not (root / component).is_dir():
        raise CheckpointError(f"{root}: no folder {component}, so this is not a whole diffusers folder")
    wanted = f"variant {variant!r}" if variant else "no variant (model.variant picks one, for example fp16)"
    raise CheckpointError(f"{root}/{component}: no safetensors weights for {wanted}")


def _weights(root: Path, component: str, variant: str | None) -> Iterator[Path]:
    variant = component_variant(str(root), component, variant)
    stem = stem_of(component) + (f".{variant}" if variant else "")
    parts = [p for p in sorted((root / component).glob(f"{stem}*.safetensors")) if _is_plain(p.name, stem)]
    return iter(parts or sorted((root / component).glob(f"{stem_of(component)}-*.{variant}.safetensors")))


def _is_plain(name: str, stem: str) -> bool:
    """The file itself, or a part of it (model-00001-of-00002.safetensors); not another variant's."""
    rest = name[len(stem) : -len(".safetensors")]
    return rest == "" or rest.startswith("-")


def _fingerprint(root: Path, components: tuple[str, ...], variant: str | None) -> str:
    """16 hex digits of the configs and of blocks sampled from every weight file: cheap for gigabytes, too."""
    digest = hashlib.blake2b((root / "scheduler/scheduler_config.json").read_bytes(), digest_size=8)
    for component in components:
        digest.update(_bytes(root / component / "config.json"))
        for path in _weights(root, component, variant):
            size = path.stat().st_size
            digest.update(f"{component} {size}".encode())
            with path.open("rb") as file:
                for offset in sorted({size * i // _NUM_BLOCKS for i in range(_NUM_BLOCKS)}):
                    file.seek(offset)
                    digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); download it again") from None
