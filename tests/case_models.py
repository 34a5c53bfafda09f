"""The checkpoint that a case asks for: a tiny one of `tests.checkpoints`, changed as the case says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from tests.checkpoints import make_checkpoint, make_tokenizer

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_keys(path: Path, change: Callable[[str], str | None]) -> None:
    """The same tensors under other keys; None: without it."""
    renamed = {change(key): tensor for key, tensor in load_file(path).items()}
    save_file({key: tensor for key, tensor in renamed.items() if key is not None}, path, {"format": "pt"})


def schedule_by(kind: str, **values: Any) -> Callable[[Path], None]:
    return lambda model: change_json(model / "scheduler/scheduler_config.json", _class_name=kind, **values)


def rebuilt_unet(**values: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        config = UNet2DConditionModel.load_config(model / "unet")
        UNet2DConditionModel.from_config(config, **values).save_pretrained(model / "unet")

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for name in names:
            path = model / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def lfs_pointer(model: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 492265168\n"
    (model / TEXT).write_text(pointer)


def in_shards(model: Path) -> None:
    """An index of several files, one of which is not there."""
    UNet2DConditionModel.from_pretrained(model / "unet").save_pretrained(model / "unet", max_shard_size="40KB")
    (model / UNET).unlink(missing_ok=True)
    sorted((model / "unet").glob("*-of-*.safetensors"))[-1].unlink()


def tokenizer_config_alone(model: Path) -> None:
    for path in (model / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()


def textual_inversion(model: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(model / "text_encoder")
    tokenizer.add_tokens(["<fox-toy>", "<fox-toy>_1", "<fox-toy>_2"])
    encoder.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(model / "tokenizer")
    encoder.save_pretrained(model / "text_encoder")


def tiny_vae(model: Path) -> None:
    shutil.rmtree(model / "vae")
    widths: dict[str, Any] = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    counts: dict[str, Any] = {f"num_{side}_blocks": (1, 1) for side in ("encoder", "decoder")}
    AutoencoderTiny(**widths, **counts).save_pretrained(model / "vae")
    change_json(model / "model_index.json", vae=["diffusers", "AutoencoderTiny"])


def fp16_unet(model: Path) -> None:
    UNet2DConditionModel.from_pretrained(model / "unet").half().save_pretrained(model / "unet", variant="fp16")


def drop(path: str, part: str) -> Callable[[Path], None]:
    return lambda model: change_keys(model / path, lambda key: None if part in key else key)


CHANGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "model-edm-scheduler": ("sdxl", schedule_by("EDMDPMSolverMultistepScheduler")),
    "model-lcm-time-cond": ("sdxl", rebuilt_unet(time_cond_proj_dim=32)),
    "model-karras": ("sd1", schedule_by("DPMSolverMultistepScheduler", use_karras_sigmas=True)),
    "model-textual-inversion": ("sd1", textual_inversion),
    "model-lfs-pointer": ("sd1", lfs_pointer),
    "model-shard-missing": ("sd1", in_shards),
    "model-unet-keys-missing": ("sd1", drop(UNET, "mid_block")),
    "model-nine-channels": ("sd1", rebuilt_unet(in_channels=9)),
    "model-tiny-vae": ("sd1", tiny_vae),
    "model-fp16-in-part": ("sd1", fp16_unet),
    "model-text-encoder-prefix": ("sd1", lambda model: change_keys(model / TEXT, lambda key: f"module.{key}")),
    "model-text-encoder-part-missing": ("sd1", drop(TEXT, "layers.1.")),
    "model-tokenizer-missing": ("sd1", without("tokenizer")),
    "model-tokenizer-without-vocabulary": ("sd1", tokenizer_config_alone),
}


def make_model(name: str, folder: Path) -> None:
    """The checkpoint of a case, into its folder."""
    family, change = CHANGES[name]
    torch.manual_seed(0)
    change(make_checkpoint(family, folder / "model"))


def make_scorer(folder: Path) -> None:
    """A whole CLIPModel whose weights stand under another prefix."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 190,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text |= {"max_position_embeddings": 24, "bos_token_id": 188, "eos_token_id": 189, "pad_token_id": 189}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    place = folder / "scorer"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side).save_pretrained(place)
    change_keys(place / "model.safetensors", lambda key: f"clip.{key}")
