"""Checks scorers before anything starts: their models are whole CLIPs, heads fit, names differ.

From JSON files and headers alone, without torch. What passes is loaded by `actors.clip` and `actors.scorer`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.component_configs import clip_fault, processor_fault, text_encoder_fault, vision_fault
from actors.tensors import CLIP_TEXT_DEFAULTS, CLIP_VISION_DEFAULTS, clip_shapes
from actors.tokenizer_files import check_tokenizer
from actors.weights import FLOATS, CheckpointError, Tensor, check_weights, read_header, read_json, tensors_fault


def scorers_fault(names: Sequence[str], weights: Sequence[float]) -> str | None:
    """What is wrong with scorers taken together; None: nothing."""
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        return f"two scorers are named {', '.join(twice)}: give each a name of its own"
    return None if any(weights) else "no scorer has a weight: there would be no quality"


def check_clip(folder: str) -> int:
    """A CLIPModel with tokenizer and image processor; returns the width of its embeddings. Raises CheckpointError."""
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder; a scorer's path takes a CLIPModel's folder, hub id or s3://...")
    config = read_json(root, "config.json")
    text, vision = _part(root, config, "text"), _part(root, config, "vision")
    width = config.get("projection_dim", 512)
    fault = clip_fault(config) or text_encoder_fault(text) or vision_fault(vision)
    if fault:
        raise CheckpointError(f"{root}/config.json: {fault}")
    if (root / "adapter_config.json").exists():
        raise CheckpointError(f"{root}: adapter_config.json, an adapter that is not merged; merge it and save")
    wanted = clip_shapes(text, vision, width)

    def fit(found: Mapping[str, Tensor]) -> str | None:
        fault = tensors_fault(found, wanted, model="CLIPModel")
        return fault or (None if "logit_scale" in found else "no logit_scale; not a whole CLIPModel")

    _check_there(root)
    check_weights(root, "model", None, False, fit)
    of_text = CLIP_TEXT_DEFAULTS | text
    check_tokenizer(root, of_text["vocab_size"], of_text["max_position_embeddings"], bounded=False)
    processor, side_px = read_json(root, "preprocessor_config.json"), (CLIP_VISION_DEFAULTS | vision)["image_size"]
    if fault := processor_fault(processor, side_px):
        raise CheckpointError(f"{root}/preprocessor_config.json: {fault}")
    return width


def _part(root: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """text_config or vision_config; an old `..._config_dict` wins over it, with every default of its own."""
    own, old = config.get(f"{name}_config") or {}, config.get(f"{name}_config_dict")
    if not isinstance(own, dict) or not isinstance(old, dict | None):
        raise CheckpointError(f"{root}/config.json: {name}_config is no JSON object; take the model's own file again")
    defaults = CLIP_TEXT_DEFAULTS if name == "text" else CLIP_VISION_DEFAULTS
    found = own if old is None else {**own, **defaults, **old}
    return {key: value for key, value in found.items() if key != "model_type"}


def _check_there(root: Path) -> None:
    if any(root.glob("model.safetensors*")):
        return
    pickled = [*root.glob("*.bin"), *root.glob("*.pt"), *root.glob("*.ckpt")]
    what = f"only pickled weights ({pickled[0].name}), which can run code" if pickled else "no weights"
    raise CheckpointError(f"{root}: {what}; a scorer needs model.safetensors: save_pretrained of a CLIPModel writes it")


def check_head(head: str, width: int) -> None:
    """The linear head of an aesthetic scorer over embeddings of this width. Raises CheckpointError."""
    path = Path(head)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; an aesthetic head is safetensors with weight (1, D) and bias (1)")
    found = read_header(path)
    for name, good in (("weight", ((1, width), (width,))), ("bias", ((1,), ()))):
        tensor = found.get(name)
        if tensor is None or tensor.shape not in good or tensor.dtype not in FLOATS:
            shape = "missing" if tensor is None else f"of shape {tensor.shape} in {tensor.dtype}"
            raise CheckpointError(
                f"{path}: {name} is {shape}; this CLIP's embeddings need weight (1, {width}) and bias (1) in floats"
            )
    if extra := sorted(found.keys() - {"weight", "bias"}):
        raise CheckpointError(f"{path}: {extra[0]} is nothing that a linear head has; a deeper one cannot be used")
