"""Seeded changes to tiny checkpoints and scorers: each is refused in one line, or gives diffusers' own picture.

`python -m tests.mutated_checkpoints [--seeds 0:500] [--scorers 0:200] [--harmless 0:100]` runs all and prints counts.
"""

import argparse
import atexit
import json
import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from actors.checkpoint import inspect_checkpoint
from actors.checkpoint_check import check_checkpoint, check_solver
from actors.scorer import QualityScorer, ScorerConfig, ScorerSpec
from actors.scorer_check import check_clip, check_head
from actors.weights import CheckpointError
from tests.checkpoints import make_checkpoint, make_tokenizer
from tests.engine import latents, loaded, row

KINDS = ("sd1", "sd2", "sdxl")
PROMPTS = ["a <fox-toy> in the snow", "Two boats"]
SEEDS = [3, 11]
STEPS = 3
SOLVERS = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 3\n"
VALUES: list[Any] = [
    None,
    0,
    1,
    -1,
    2,
    3,
    4,
    5,
    8,
    9,
    12,
    16,
    32,
    0.5,
    2.5,
    True,
    False,
    "",
    "x",
    "silu",
    "zero",
    "none",
]
VALUES += [
    [],
    [1],
    [16, 32],
    [32, 16],
    [2, 4],
    {},
    {"a": 1},
    "linspace",
    "trailing",
    "leading",
    "epsilon",
    "v_prediction",
]
VALUES += ["DownBlock2D", "AutoencoderTiny", "EulerDiscreteScheduler", "LCMScheduler"]
ADDED: dict[str, list[tuple[str, Any]]] = {
    "unet": [
        ("time_cond_proj_dim", 8),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 10),
        ("addition_embed_type", "text"),
        ("encoder_hid_dim", 8),
        ("attention_type", "gated"),
        ("mid_block_type", "UNetMidBlock2D"),
        ("in_channels", 9),
        ("in_channels", 8),
        ("sample_size", [8, 12]),
        ("_diffusers_version", "0.6.0"),
        ("resnet_time_scale_shift", "scale_shift"),
        ("dropout", 0.5),
        ("norm_eps", 1e-3),
        ("center_input_sample", True),
        ("upcast_attention", True),
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("decay", 0.9999),
        ("attention_head_dim", 8),
        ("mid_block_scale_factor", 2),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ],
    "vae": [
        ("_class_name", "AutoencoderTiny"),
        ("scaling_factor", 0.13025),
        ("shift_factor", 0.1),
        ("latents_mean", [0.1, 0.2, 0.3, 0.4]),
        ("latents_std", [1.0, 2.0, 1.0, 2.0]),
        ("force_upcast", False),
        ("act_fn", "gelu"),
        ("use_post_quant_conv", False),
        ("mid_block_add_attention", False),
        ("latent_channels", 16),
    ],
    "text_encoder": [
        ("hidden_act", "gelu"),
        ("num_attention_heads", 4),
        ("eos_token_id", 2),
        ("use_attention_mask", True),
        ("model_type", "bert"),
        ("model_type", "clip"),
        ("max_position_embeddings", 20),
        ("vocab_size", 189),
        ("layer_norm_eps", 1e-3),
        ("num_hidden_layers", 2),
        ("num_hidden_layers", 4),
        ("architectures", ["T5EncoderModel"]),
        ("auto_map", {"AutoModel": "evil.Model"}),
    ],
    "scheduler": [
        ("_class_name", "EDMDPMSolverMultistepScheduler"),
        ("_class_name", "LCMScheduler"),
        ("_class_name", "TCDScheduler"),
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("_class_name", "EulerDiscreteScheduler"),
        ("use_karras_sigmas", True),
        ("use_lu_lambdas", True),
        ("algorithm_type", "sde-dpmsolver++"),
        ("solver_order", 3),
        ("solver_type", "heun"),
        ("thresholding", True),
        ("final_sigmas_type", "sigma_min"),
        ("lower_order_final", False),
        ("euler_at_final", True),
        ("timestep_spacing", "linspace"),
        ("timestep_spacing", "trailing"),
        ("clip_sample", True),
        ("clip_sample_range", 0.5),
        ("set_alpha_to_one", True),
        ("steps_offset", 3),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("beta_end", 0.03),
        ("num_train_timesteps", 500),
        ("lambda_min_clipped", -2.0),
        ("variance_type", "learned_range"),
        ("trained_betas", [0.1, 0.2]),
        ("prediction_type", "sample"),
        ("timestep_type", "continuous"),
        ("sigma_max", 120.0),
        ("rescale_betas_zero_snr", False),
    ],
    "index": [
        ("_class_name", "StableDiffusionInpaintPipeline"),
        ("_class_name", "LatentConsistencyModelPipeline"),
        ("_class_name", ["pipeline", "Own"]),
        ("scheduler", ["diffusers", "EulerDiscreteScheduler"]),
        ("scheduler", ["diffusers", "EDMEulerScheduler"]),
        ("vae", ["diffusers", "AutoencoderTiny"]),
        ("unet", ["unet_of_mine", "UNet"]),
        ("text_encoder", [None, None]),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("tokenizer", ["transformers", "BertTokenizer"]),
        ("requires_aesthetics_score", True),
        ("force_zeros_for_empty_prompt", False),
        ("controlnet", ["diffusers", "ControlNetModel"]),
        ("feature_extractor", [None, None]),
    ],
    "tokenizer": [
        ("model_max_length", 77),
        ("model_max_length", 10),
        ("model_max_length", 1000000000000000019884624838656),
        ("pad_token", "!"),
        ("pad_token", "<pad>"),
        ("unk_token", None),
        ("tokenizer_class", "BertTokenizer"),
        ("additional_special_tokens", ["<new>"]),
        ("extra_special_tokens", ["<new>"]),
        ("padding_side", "left"),
        ("truncation_side", "left"),
        ("add_prefix_space", True),
    ],
}
PUBLISHED = ["PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "UniPCMultistep", "DEISMultistep", "DDPM"]
PUBLISHED += ["HeunDiscrete", "LMSDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "KDPM2Discrete"]
ODD_KEYS = [
    "down_blocks.1.attentions.0.lora.up.weight",
    "encoder.layers.0.self_attn.q_proj.base_layer.weight",
    "module.conv_in.weight",
    "position_ids",
    "text_model.embeddings.position_ids",
    "logit_scale",
    "vision_model.post_layernorm.weight",
    "something.else",
    "add_embedding.linear_1.weight",
]
PREFIXES = ["module.", "_orig_mod.", "cond_stage_model.transformer.", "base_model.model.", "text_model.", "model.", "x"]


def configs_of(folder: Path) -> dict[str, Path]:
    """Every JSON config by the name under which values for it stand in ADDED."""
    found = {"index": folder / "model_index.json", "scheduler": folder / "scheduler/scheduler_config.json"}
    for name in FILES:
        if (folder / name).is_dir():
            found[name] = folder / name / "config.json"
    for name in ("tokenizer", "tokenizer_2"):
        if (folder / name).is_dir():
            found[name] = folder / name / "tokenizer_config.json"
    return {name: path for name, path in found.items() if path.exists()}


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def edit_json(path: Path, change: Callable[[dict], Any]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config, indent=2))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


# --- what may be done to a folder: each takes its folder and a generator, and says what it did


def drop_key(folder: Path, rng: random.Random) -> str:
    path = rng.choice(weights_of(folder))
    name = rng.choice(sorted(load_file(path)))
    edit_tensors(path, lambda t: t.pop(name))
    return f"dropped {name} of {path.parent.name}"


def rename_key(folder: Path, rng: random.Random) -> str:
    path = rng.choice(weights_of(folder))
    name = rng.choice(sorted(load_file(path)))
    other = rng.choice(
        [
            name + "_",
            "text_model." + name,
            name.removeprefix("text_model."),
            name.replace("weight", "bias"),
            "x." + name,
        ]
    )
    edit_tensors(path, lambda t: t.__setitem__(other, t.pop(name)))
    return f"renamed {name} to {other} of {path.parent.name}"


def add_key(folder: Path, rng: random.Random) -> str:
    path, name = rng.choice(weights_of(folder)), rng.choice(ODD_KEYS)
    edit_tensors(path, lambda t: t.setdefault(name, torch.zeros(2, 2)))
    return f"added {name} to {path.parent.name}"


def prefix_keys(folder: Path, rng: random.Random) -> str:
    path, prefix = rng.choice(weights_of(folder)), rng.choice(PREFIXES)
    tensors = load_file(path)
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return f"prefix {prefix} in {path.parent.name}"


def reshape(folder: Path, rng: random.Random) -> str:
    path = rng.choice(weights_of(folder))
    name = rng.choice(sorted(name for name, tensor in load_file(path).items() if tensor.numel() > 1))
    how = rng.choice(["flat", "cut", "turned", "longer"])

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensor = tensors[name]
        by_name = {"flat": lambda: tensor.reshape(-1), "cut": lambda: tensor[: len(tensor) // 2].clone()}
        by_name |= {"turned": lambda: tensor.transpose(0, -1), "longer": lambda: torch.cat([tensor, tensor])}
        tensors[name] = by_name[how]()

    edit_tensors(path, change)
    return f"{how} {name} of {path.parent.name}"


def retype(folder: Path, rng: random.Random) -> str:
    path = rng.choice(weights_of(folder))
    name = rng.choice(sorted(load_file(path)))
    dtype = rng.choice([torch.int8, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
    edit_tensors(path, lambda t: t.__setitem__(name, t[name].to(dtype)))
    return f"{name} of {path.parent.name} as {dtype}"


def exchange(folder: Path, rng: random.Random) -> str:
    path = rng.choice(weights_of(folder))
    tensors = load_file(path)
    pairs = [(a, b) for a in tensors for b in tensors if a < b and tensors[a].shape == tensors[b].shape]
    a, b = rng.choice(sorted(pairs))
    tensors[a], tensors[b] = tensors[b], tensors[a]
    save_file(tensors, path, metadata={"format": "pt"})
    return f"exchanged {a} and {b} of {path.parent.name}"


def damage_file(folder: Path, rng: random.Random) -> str:
    path = rng.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
    data, how = path.read_bytes(), rng.choice(["cut", "empty", "pointer", "gone", "longer", "html", "zeros", "flipped"])
    if how == "gone":
        path.unlink()
        return f"{how} {path.relative_to(folder)}"
    at = rng.randrange(max(1, len(data)))
    flipped = bytearray(data or b"x")
    flipped[min(at, len(flipped) - 1) if rng.random() < 0.5 else 0] ^= 1 << rng.randrange(8)
    contents = {"cut": data[:at], "empty": b"", "pointer": LFS, "longer": data + b"\0" * 7}
    contents |= {"html": b"<!DOCTYPE html>", "zeros": bytes(len(data)), "flipped": bytes(flipped)}
    path.write_bytes(contents[how])
    return f"{how} {path.relative_to(folder)}"


def change_value(folder: Path, rng: random.Random) -> str:
    name, path = rng.choice(sorted(configs_of(folder).items()))
    key, value = rng.choice(sorted(json.loads(path.read_text()))), rng.choice(VALUES)
    edit_json(path, lambda c: c.__setitem__(key, value))
    return f"{name}: {key} = {value!r}"


def remove_value(folder: Path, rng: random.Random) -> str:
    name, path = rng.choice(sorted(configs_of(folder).items()))
    key = rng.choice(sorted(json.loads(path.read_text())))
    edit_json(path, lambda c: c.pop(key))
    return f"{name}: without {key}"


def add_value(folder: Path, rng: random.Random) -> str:
    name, path = rng.choice(sorted(configs_of(folder).items()))
    key, value = rng.choice([*ADDED[name.removesuffix("_2")], ("of_no_use", 1)])
    edit_json(path, lambda c: c.__setitem__(key, value))
    return f"{name}: {key} = {value!r}"


def swap_files(folder: Path, rng: random.Random) -> str:
    """Within the folder, or with another family's."""
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    here = rng.choice(files)
    if rng.random() < 0.5:
        alike = [f for f in files if f.suffix == here.suffix and f != here]
        there = rng.choice(alike)
        data = (folder / there).read_bytes()
        (folder / there).write_bytes((folder / here).read_bytes())
        (folder / here).write_bytes(data)
        return f"swapped {here} and {there}"
    other = rng.choice([k for k in KINDS if (base_of(k) / here).exists()])
    shutil.copy(base_of(other) / here, folder / here)
    return f"{here} of {other}"


def swap_component(folder: Path, rng: random.Random) -> str:
    other = rng.choice(KINDS)
    part = rng.choice([p.name for p in sorted(folder.iterdir()) if p.is_dir() and (base_of(other) / p.name).is_dir()])
    shutil.rmtree(folder / part)
    shutil.copytree(base_of(other) / part, folder / part)
    return f"{part} of {other}"


def break_index(folder: Path, rng: random.Random) -> str:
    part = rng.choice([name for name in FILES if (folder / name / FILES[name]).exists()])
    shard(folder / part, FILES[part])
    index = folder / part / f"{FILES[part]}.index.json"
    how = rng.choice(["a shard gone", "a key unlisted", "a key too many", "no metadata", "a path", "single beside it"])

    def change(listing: dict) -> None:
        places = listing["weight_map"]
        name = rng.choice(sorted(places))
        if how == "a key unlisted":
            places.pop(name)
        elif how == "a key too many":
            places[name + "x"] = places[name]
        elif how == "no metadata":
            listing.pop("metadata")
        elif how == "a path":
            places[name] = "../" + places[name]

    edit_json(index, change)
    if how == "a shard gone":
        rng.choice(sorted((folder / part).glob("*-of-*.safetensors"))).unlink()
    if how == "single beside it":
        shutil.copy(base_of(rng.choice(KINDS)) / "unet" / FILES["unet"], folder / part / FILES[part])
    return f"index of {part}: {how}"


def change_tokenizer(folder: Path, rng: random.Random) -> str:
    part = rng.choice([n for n in ("tokenizer", "tokenizer_2") if (folder / n).is_dir()])
    path, how = folder / part, rng.choice(["plain", "shifted", "fewer", "merge", "no vocabulary", "added", "no merges"])
    whole = json.loads((path / "tokenizer.json").read_text())
    vocab = whole["model"]["vocab"]
    if how in ("plain", "merge", "no merges", "added"):
        (path / "tokenizer.json").unlink()
        (path / "vocab.json").write_text(json.dumps(vocab))
        (path / "merges.txt").write_text("#version: 0.2\n" + ("qq zz\n" if how == "merge" else ""))
        if how == "no merges":
            (path / "merges.txt").unlink()
        if how == "added":
            (path / "added_tokens.json").write_text(json.dumps({"<fox-toy>": rng.choice([5, 190, 400])}))
    elif how == "no vocabulary":
        (path / "tokenizer.json").unlink()
    else:
        names = sorted(vocab)
        if how == "fewer":
            vocab.pop(rng.choice(names))
        else:
            by = rng.choice([1, 3, 300])
            whole["model"]["vocab"] = {name: number + by for name, number in vocab.items()}
        (path / "tokenizer.json").write_text(json.dumps(whole))
    return f"{part}: {how}"


# --- what must be accepted


def shard(folder: Path, name: str, parts: int = 3) -> None:
    tensors = load_file(folder / name)
    (folder / name).unlink()
    stem, places = name.removesuffix(".safetensors"), {}
    for n in range(parts):
        file = f"{stem}-{n + 1:05d}-of-{parts:05d}.safetensors"
        some = {key: tensors[key] for key in sorted(tensors)[n::parts]}
        places |= dict.fromkeys(some, file)
        save_file(some, folder / file, metadata={"format": "pt"})
    listing = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{name}.index.json").write_text(json.dumps(listing))


def shards(folder: Path, rng: random.Random) -> str:
    for name, file in FILES.items():
        old = (
            name == "vae"
            and (folder / name / file).exists()
            and any(".query." in key for key in load_file(folder / name / file))
        )
        if (folder / name / file).exists() and rng.random() < 0.7 and not old:  # old names are read in one file alone
            shard(folder / name, file, rng.choice([1, 2, 4]))
    return "sharded"


def position_ids(folder: Path, rng: random.Random) -> str:
    for path in weights_of(folder):
        if path.parent.name.startswith("text_encoder"):
            edit_tensors(path, lambda t: t.setdefault("text_model.embeddings.position_ids", torch.arange(24)[None]))
    return "position_ids"


def layout(folder: Path, rng: random.Random) -> str:
    prefix = rng.choice(["", "text_model."])
    for path in weights_of(folder):
        if path.parent.name.startswith("text_encoder"):
            tensors = load_file(path)
            renamed = {
                (k if k.startswith("text_projection") else prefix + k.removeprefix("text_model.")): v
                for k, v in tensors.items()
            }
            save_file(renamed, path, metadata={"format": "pt"})
    return f"layout {prefix!r}"


def half(folder: Path, rng: random.Random) -> str:
    dtype = rng.choice([torch.float16, torch.bfloat16])
    for path in weights_of(folder):
        tensors = load_file(path)
        cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        save_file(cast, path, metadata={"format": "pt"})
    return f"weights in {dtype}"


def published_scheduler(folder: Path, rng: random.Random) -> str:
    name = rng.choice(PUBLISHED)
    kind = getattr(diffusers, f"{name}Scheduler")
    kind.from_pretrained(folder, subfolder="scheduler").save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", lambda c: c.__setitem__("scheduler", ["diffusers", f"{name}Scheduler"]))
    return f"{name}Scheduler"


def beside(folder: Path, rng: random.Random) -> str:
    (folder / "README.md").write_text("# a model\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "unet" / "README.md").write_text("the UNet\n")
    (folder / "safety_checker").mkdir(exist_ok=True)
    (folder / "safety_checker" / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, folder / "safety_checker" / "model.safetensors")
    save_file({"lora_up": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")
    return "files beside it"


def old_attention(folder: Path, rng: random.Random) -> str:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = folder / "vae" / FILES["vae"]
    if not path.exists():
        return "as it was"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            for new, old in names.items():
                if f".attentions.0.{new}." in name:
                    tensors[name.replace(new, old)] = tensors.pop(name)

    edit_tensors(path, change)
    return "old names of the VAE's attention"


def slow_tokenizer(folder: Path, rng: random.Random) -> str:
    for part in ("tokenizer", "tokenizer_2"):
        if (folder / part / "tokenizer.json").exists():
            vocab = json.loads((folder / part / "tokenizer.json").read_text())["model"]["vocab"]
            (folder / part / "vocab.json").write_text(json.dumps(vocab))
            (folder / part / "merges.txt").write_text("#version: 0.2\n")
            (folder / part / "tokenizer.json").unlink()
    return "vocab.json and merges.txt"


def ema_keys(folder: Path, rng: random.Random) -> str:
    edit_json(folder / "unet/config.json", lambda c: c.update(decay=0.9999, optimization_step=100, power=0.75))
    return "EMA's keys"


def inversion(folder: Path, rng: random.Random) -> str:
    """A textual inversion of one to three vectors, as a pipeline that loaded one saves it."""
    words = ["<fox-toy>", "<fox-toy>_1", "<fox-toy>_2"][: rng.choice([1, 2, 3])]
    for part in ("", "_2"):
        if (folder / f"tokenizer{part}").is_dir() and (
            path := folder / f"text_encoder{part}" / FILES["text_encoder"]
        ).exists():
            tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{part}")
            tokenizer.add_tokens(words)
            shutil.rmtree(folder / f"tokenizer{part}")
            tokenizer.save_pretrained(folder / f"tokenizer{part}")
            grown = len(tokenizer)

            def change(tensors: dict[str, torch.Tensor]) -> None:
                name = next(n for n in tensors if n.endswith("token_embedding.weight"))
                more = torch.linspace(-1, 1, len(words) * tensors[name].shape[1]).reshape(len(words), -1)
                tensors[name] = torch.cat([tensors[name], more.to(tensors[name].dtype)])

            edit_tensors(path, change)
            edit_json(folder / f"text_encoder{part}" / "config.json", lambda c, n=grown: c.__setitem__("vocab_size", n))
    return f"a textual inversion of {len(words)} vectors"


MUTATIONS = [drop_key, rename_key, add_key, prefix_keys, reshape, retype, exchange, damage_file, change_value]
MUTATIONS += [change_value, remove_value, add_value, add_value, add_value, swap_files, swap_component, break_index]
MUTATIONS += [change_tokenizer, inversion, published_scheduler]
HARMLESS = [position_ids, layout, half, published_scheduler, beside, old_attention, slow_tokenizer, ema_keys, inversion]
HARMLESS += [published_scheduler, shards]


@dataclass(frozen=True)
class Outcome:
    """verdict: refused, equal, or what must not be: differs, traceback, or refused by diffusers alone."""

    verdict: str
    what: str
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.verdict in ("refused", "equal")


_BASES: dict[str, Path] = {}


def base_of(kind: str) -> Path:
    """The unchanged folder of a kind, made once; `clip` is a scorer with a head beside it."""
    if kind not in _BASES:
        folder = Path(tempfile.mkdtemp(prefix=f"base-{kind}-")) / kind
        atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
        _BASES[kind] = make_clip(folder) if kind == "clip" else make_checkpoint(kind, folder)
    return _BASES[kind]


def make_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = layers | {"vocab_size": 190, "max_position_embeddings": 24, "bos_token_id": 188, "eos_token_id": 189}
    vision = layers | {"image_size": 16, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size=side, crop_size=side).save_pretrained(folder)
    save_file(
        {"weight": torch.linspace(-1, 1, 24)[None], "bias": torch.tensor([5.0])}, folder.parent / "head.safetensors"
    )
    return folder


def mutated(kind: str, folder: Path, changes: list[Callable], count: int, rng: random.Random) -> str:
    shutil.copytree(base_of(kind), folder, dirs_exist_ok=True)
    chosen = sorted(rng.sample(changes, count), key=lambda change: change is shards)  # an index is written last
    return f"{kind}: " + "; ".join(change(folder, rng) for change in chosen)


def one_checkpoint(seed: int, harmless: bool = False) -> Outcome:
    """One seeded change, judged with a seeded solver."""
    rng = random.Random(f"{'harmless' if harmless else 'mutation'}{seed}")
    kind, solver = rng.choice(KINDS), rng.choice(["ddim", "ddim", "dpmpp_2m"])
    with tempfile.TemporaryDirectory(prefix="mutated-") as place:
        folder = Path(place) / "model"
        what = mutated(kind, folder, HARMLESS if harmless else MUTATIONS, rng.choice([1, 2]) if harmless else 1, rng)
        if harmless and "DEIS" in what:
            solver = "ddim"  # diffusers' own DPMSolverMultistepScheduler.from_config refuses algorithm_type deis
        return judge(folder, f"{what} [{solver}]", solver)


def judge(folder: Path, what: str, solver: str) -> Outcome:
    try:
        check_checkpoint(str(folder))
        info = inspect_checkpoint(str(folder))
        check_solver(info, solver)
    except CheckpointError as error:
        return Outcome("refused" if "\n" not in str(error) else "traceback", what, str(error))
    except Exception:  # noqa: BLE001
        return Outcome("traceback", what, traceback.format_exc(limit=-3))
    side_px = max(16, 8 * info.vae_scale_factor)
    try:
        ours = our_pictures(folder, solver, side_px)
    except Exception:  # noqa: BLE001
        return Outcome("traceback", what, traceback.format_exc(limit=-3))
    try:
        theirs, default = their_pictures(folder, solver, side_px)
    except Exception as error:  # noqa: BLE001
        return Outcome("refused by diffusers alone", what, repr(error)[:300])
    if default is not None and default != (info.height, info.width):
        return Outcome("differs", what, f"size {default} here {(info.height, info.width)}")
    zero_snr = solver == "dpmpp_2m" and info.scheduler_config.get("rescale_betas_zero_snr")
    worst = float(np.abs(ours - theirs).max()) if np.isfinite(theirs).all() else 0.0
    same_nan = bool((np.isfinite(ours) == np.isfinite(theirs)).all())
    return Outcome("equal" if same_nan and worst <= (12 if zero_snr else 1.01) else "differs", what, f"{worst} levels")


def our_pictures(folder: Path, solver: str, side_px: int) -> np.ndarray:
    """(N, H, W, 3) in levels; NaN where it is not finite."""
    sampler = loaded(str(folder), solver=solver, lanes=4)
    rows = [
        row(str(i), prompt, seed=seed, num_steps=STEPS, width=side_px, height=side_px)
        for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True))
    ]
    found = latents(sampler, rows)
    images, finite = sampler.model.decode(torch.stack([found[str(i)] for i in range(len(rows))]))
    return np.where(finite[:, None, None, None], images.astype(np.float32), np.nan)


def their_pictures(folder: Path, solver: str, side_px: int) -> tuple[np.ndarray, tuple[int, int] | None]:
    """The same by diffusers' pipeline, and its default height and width, None where it has none of its own."""
    options = {"use_safetensors": True, "torch_dtype": torch.float32, "local_files_only": True}
    if "XL" not in json.loads((folder / "model_index.json").read_text())["_class_name"]:
        options["safety_checker"] = None
    pipe = DiffusionPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    if not isinstance(pipe.scheduler, SOLVERS[solver]):
        pipe.scheduler = SOLVERS[solver].from_config(pipe.scheduler.config)
    size = pipe.unet.config.sample_size
    default = (size * pipe.vae_scale_factor,) * 2 if isinstance(size, int) else None
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipe(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=generators,
        height=side_px,
        width=side_px,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.float32), default


# --- scorers


def one_scorer(seed: int) -> Outcome:
    rng = random.Random(f"scorer{seed}")
    with tempfile.TemporaryDirectory(prefix="mutated-") as place:
        folder, head = Path(place) / "clip", Path(place) / "head.safetensors"
        shutil.copytree(base_of("clip"), folder)
        shutil.copy(base_of("clip").parent / "head.safetensors", head)
        at_head = rng.random() < 0.2
        root = folder if not at_head else Path(place) / "heads"
        if at_head:
            root.mkdir()
            head = Path(shutil.move(head, root / "head.safetensors"))
        changes = [drop_key, rename_key, add_key, prefix_keys, reshape, retype, damage_file]
        changes += (
            [] if at_head else [exchange, change_clip_value, change_clip_value, remove_clip_value, swap_clip_files]
        )
        what = rng.choice(changes)(root, rng)
        return judge_scorer(folder, head, what)


def clip_configs(folder: Path) -> list[Path]:
    return [folder / name for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json")]


def _level(config: dict, rng: random.Random) -> dict:
    inner = [value for value in config.values() if isinstance(value, dict)]
    return rng.choice([config, *inner])


def change_clip_value(folder: Path, rng: random.Random) -> str:
    path, said = rng.choice(clip_configs(folder)), []

    def change(config: dict) -> None:
        level = _level(config, rng)
        key, value = rng.choice(sorted(level)), rng.choice(VALUES)
        level[key] = value
        said.append(f"{path.name}: {key} = {value!r}")

    edit_json(path, change)
    return said[0]


def remove_clip_value(folder: Path, rng: random.Random) -> str:
    path, said = rng.choice(clip_configs(folder)), []

    def change(config: dict) -> None:
        level = _level(config, rng)
        said.append(f"{path.name}: without {(key := rng.choice(sorted(level)))}")
        level.pop(key)

    edit_json(path, change)
    return said[0]


def swap_clip_files(folder: Path, rng: random.Random) -> str:
    part = rng.choice(["text_encoder", "unet", "tokenizer"])
    here = rng.choice([p for p in sorted(folder.iterdir()) if p.is_file()])
    there = rng.choice([p for p in sorted((base_of(rng.choice(KINDS)) / part).iterdir()) if p.is_file()])
    shutil.copy(there, here)
    return f"{there.name} of {part} as {here.name}"


def judge_scorer(folder: Path, head: Path, what: str) -> Outcome:
    try:
        check_head(str(head), check_clip(str(folder)))
    except CheckpointError as error:
        return Outcome("refused" if "\n" not in str(error) else "traceback", what, str(error))
    except Exception:  # noqa: BLE001
        return Outcome("traceback", what, traceback.format_exc(limit=-3))
    pictures = [np.random.default_rng(n).integers(0, 256, (20, 24, 3), np.uint8) for n in range(2)]
    specs = (
        ScorerSpec("clip", "clip", path=str(folder)),
        ScorerSpec("looks", "aesthetic", path=str(folder), head=str(head)),
    )
    try:
        ours, _ = QualityScorer(ScorerConfig(specs, "cpu")).score(pictures, PROMPTS)
    except Exception:  # noqa: BLE001
        return Outcome("traceback", what, traceback.format_exc(limit=-3))
    try:
        theirs = their_scores(folder, head, pictures)
    except Exception as error:  # noqa: BLE001
        return Outcome("refused by transformers alone", what, repr(error)[:300])
    worst = max(float(np.nanmax(np.abs(ours[name] - theirs[name]), initial=0.0)) for name in theirs)
    return Outcome("equal" if worst < 1e-4 else "differs", what, f"{worst}")


def their_scores(folder: Path, head: Path, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    model, info = CLIPModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ValueError(f"made up: {sorted(info['missing_keys'])[:1]}")
    tokenizer, processor = CLIPTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    length = min(tokenizer.model_max_length, 24)
    tokens = tokenizer(PROMPTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        out = model.eval()(pixel_values=pixels, **tokens)
    linear = load_file(head)
    looks = out.image_embeds @ linear["weight"].float().reshape(-1) + linear["bias"].float().reshape(())
    return {"clip": (out.image_embeds * out.text_embeds).sum(1).numpy(), "looks": looks.numpy()}


def report(name: str, outcomes: list[Outcome]) -> bool:
    counts = Counter(outcome.verdict for outcome in outcomes)
    print(f"{name}: {len(outcomes)} tried: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())))
    for outcome in outcomes:
        if not outcome.good:
            print(f"  {outcome.verdict}: {outcome.what}\n    {outcome.detail}")
    return all(outcome.good for outcome in outcomes)


def _range(text: str) -> range:
    start, _, end = text.partition(":")
    return range(int(start), int(end))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("seeds", "0:500"), ("scorers", "0:200"), ("harmless", "0:100")):
        parser.add_argument(f"--{name}", type=_range, default=_range(default))
    given = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    harmless = [one_checkpoint(seed, harmless=True) for seed in given.harmless]
    good = report("harmless", harmless) and all(outcome.verdict == "equal" for outcome in harmless)
    for outcome in harmless:
        if outcome.verdict == "refused":
            print(f"  refused although harmless: {outcome.what}\n    {outcome.detail}")
    good &= report("checkpoints", [one_checkpoint(seed) for seed in given.seeds])
    good &= report("scorers", [one_scorer(seed) for seed in given.scorers])
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
