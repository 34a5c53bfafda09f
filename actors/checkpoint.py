"""What a diffusers folder says about itself, from its JSON files and the list of its weights.

Not the model: no weight is loaded and torch is not imported, so that a driver can refuse a bad folder at once.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_BLOCK, _NUM_BLOCKS = 1 << 16, 16


class CheckpointError(ValueError):
    """A folder that cannot be rendered with: the message names the folder, what is wrong and the remedy."""


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


def inspect_checkpoint(folder: str, variant: str | None = None) -> CheckpointInfo:
    """Reads model_index.json and the components' configs. Raises CheckpointError."""
    root = Path(folder)
    index = _json(root, "model_index.json")
    family = FAMILIES.get(index.get("_class_name", ""))
    if family is None:
        raise CheckpointError(
            f"{root}/model_index.json: {index.get('_class_name')} cannot be rendered here; "
            f"use a checkpoint of {' or '.join(FAMILIES)}"
        )
    components = _components(family)
    for component in components:
        _check_weights(root, component, variant)
    unet, vae = _json(root, "unet/config.json"), _json(root, "vae/config.json")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    sample = unet.get("sample_size") or 64
    height, width = (sample, sample) if isinstance(sample, int) else sample
    scheduler = _json(root, "scheduler/scheduler_config.json")
    return CheckpointInfo(
        path=str(root),
        variant=variant,
        family=family,
        width=width * scale,
        height=height * scale,
        vae_scale_factor=scale,
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        scheduler_config=_as_pipeline(scheduler, family),
        scheduler_class=scheduler.get("_class_name", "unknown"),
        zero_unconditional=family == "sdxl" and index.get("force_zeros_for_empty_prompt", True),
        fingerprint=_fingerprint(root, components, variant),
    )


def _components(family: str) -> tuple[str, ...]:
    return ("unet", "vae", "text_encoder", "text_encoder_2") if family == "sdxl" else ("unet", "vae", "text_encoder")


def _as_pipeline(scheduler: dict[str, Any], family: str) -> dict[str, Any]:
    """StableDiffusionPipeline.__init__ rewrites two values of any scheduler it is given; the SDXL pipeline does not."""
    return scheduler | {"steps_offset": 1, "clip_sample": False} if family == "sd" else scheduler


def _json(root: Path, name: str) -> dict[str, Any]:
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder; model.path takes a diffusers folder, a hub id or s3://...")
    try:
        return json.loads((root / name).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{root}: no {name}, so this is not a whole diffusers folder") from None
    except ValueError as error:
        raise CheckpointError(f"{root}/{name}: not valid JSON ({error})") from None


def _check_weights(root: Path, component: str, variant: str | None) -> None:
    if list(_weights(root, component, variant)):
        return
    pickled = [*(root / component).glob("*.bin"), *(root / component).glob("*.ckpt")]
    if pickled:
        raise CheckpointError(
            f"{root}/{component}: only pickled weights ({pickled[0].name}), which can run code when they are read; "
            "save the checkpoint with safe_serialization=True"
        )
    wanted = f"variant {variant!r}" if variant else "no variant (model.variant picks one, for example fp16)"
    raise CheckpointError(f"{root}/{component}: no safetensors weights for {wanted}")


def _weights(root: Path, component: str, variant: str | None) -> Iterator[Path]:
    stem = _WEIGHTS.get(component, "model") + (f".{variant}" if variant else "")
    return (p for p in sorted((root / component).glob(f"{stem}*.safetensors")) if _is_plain(p.name, stem))


def _is_plain(name: str, stem: str) -> bool:
    """The file itself, or a part of it (model-00001-of-00002.safetensors); not another variant's."""
    rest = name[len(stem) : -len(".safetensors")]
    return rest == "" or rest.startswith("-")


def _fingerprint(root: Path, components: tuple[str, ...], variant: str | None) -> str:
    """16 hex digits of the configs and of blocks sampled from every weight file: cheap for gigabytes, too."""
    digest = hashlib.blake2b((root / "scheduler/scheduler_config.json").read_bytes(), digest_size=8)
    for component in components:
        digest.update((root / component / "config.json").read_bytes())
        for path in _weights(root, component, variant):
            size = path.stat().st_size
            digest.update(f"{component} {size}".encode())
            with path.open("rb") as file:
                for offset in sorted({size * i // _NUM_BLOCKS for i in range(_NUM_BLOCKS)}):
                    file.seek(offset)
                    digest.update(file.read(_BLOCK))
    return digest.hexdigest()
