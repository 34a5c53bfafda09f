"""Writes a diffusers folder as one file in Stable Diffusion's original layout: the reverse of `convert`."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "encoder.layers.": "transformer.resblocks.",
}


def write_single_file(folder: Path, kind: str, file: Path, dtype: torch.dtype = torch.float32) -> Path:
    """kind: sd1, sd2 or sdxl."""
    weights = {f"model.diffusion_model.{name}": each for name, each in _unet(folder).items()}
    weights |= {f"first_stage_model.{name}": each for name, each in _vae(folder).items()}
    text = {f"text_model.{name}": each for name, each in _text(folder / "text_encoder").items()}
    if kind == "sd1":
        weights |= {f"cond_stage_model.transformer.{name}": each for name, each in text.items()}
    elif kind == "sd2":
        weights |= {
            f"cond_stage_model.model.{name}": each for name, each in _open_clip(folder / "text_encoder").items()
        }
    else:
        weights |= {f"conditioner.embedders.0.transformer.{name}": each for name, each in text.items()}
        second = _open_clip(folder / "text_encoder_2")
        weights |= {f"conditioner.embedders.1.model.{name}": each for name, each in second.items()}
    save_file({name: each.to(dtype).contiguous() for name, each in weights.items()}, file)
    return file


def _unet(folder: Path) -> Weights:
    config = json.loads((folder / "unet/config.json").read_text())
    layers = config["layers_per_block"]
    found = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    return {_unet_name(name, layers, config["up_block_types"]): each for name, each in found.items()}


def _unet_name(name: str, layers: int, up_types: list[str]) -> str:
    for ours, theirs in _UNET.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        at = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{at}.{_in_resnet(found[3]) if at != 1 else found[3]}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert found, name
    way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind in ("downsamplers", "upsamplers"):
        layer = layers
    at = block * (layers + 1) + layer + (way == "down")
    place = f"{'input' if way == 'down' else 'output'}_blocks.{at}"
    if kind == "downsamplers":
        return f"{place}.0.op{rest.removeprefix('conv')}"
    if kind == "upsamplers":
        return f"{place}.{2 if up_types[block].startswith('Cross') else 1}.{rest}"
    return f"{place}.0.{_in_resnet(rest)}" if kind == "resnets" else f"{place}.1.{rest}"


def _in_resnet(name: str) -> str:
    part, _, end = name.rpartition(".")
    return f"{_RESNET[part]}.{end}"


def _vae(folder: Path) -> Weights:
    blocks = len(json.loads((folder / "vae/config.json").read_text())["up_block_types"])
    renamed = {}
    for name, each in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        new = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{1 + int(m[1])}", new)
        if "mid_block.attentions.0." in new:
            head, _, tail = new.partition("mid_block.attentions.0.")
            part, _, end = tail.rpartition(".")
            new = f"{head}mid.attn_1.{_ATTENTION[part]}.{end}"
            each = each[:, :, None, None] if each.dim() == 2 else each
        renamed[new] = each
    return renamed


def _text(folder: Path) -> Weights:
    found = load_file(folder / "model.safetensors")
    return {name.removeprefix("text_model."): each for name, each in found.items() if "position_ids" not in name}


def _open_clip(folder: Path) -> Weights:
    renamed, found = {}, _text(folder)
    for name in list(found):
        if ".q_proj." in name:
            parts = [found.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
            end = name.rpartition(".")[2]
            layer = re.search(r"layers\.(\d+)", name)
            assert layer
            renamed[f"transformer.resblocks.{layer[1]}.attn.in_proj_{end}"] = torch.cat(parts)
    if "text_projection.weight" in found:
        renamed["text_projection"] = found.pop("text_projection.weight").T
    for name, each in found.items():
        for ours, theirs in _OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        renamed[name] = each
    return renamed
