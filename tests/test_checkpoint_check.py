"""A checkpoint that is not what it seems is refused in one line before anything starts; what is whole is accepted."""

import json
import math
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from actors.checkpoint import inspect_checkpoint
from actors.checkpoint_check import check_checkpoint
from actors.diffusion import Diffusion
from actors.loading import load_whole
from actors.prompt_encoder import PromptEncoder
from actors.scorer_check import check_clip, check_head, scorers_fault
from actors.tensors import Shapes, clip_shapes, clip_text_shapes, unet_shapes, vae_shapes
from actors.textual_inversion import expander
from actors.weights import CheckpointError, read_header
from benchmarks.checkpoint_check import UNET as SDXL
from jobs.__main__ import main
from jobs.job_file import settings
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import Job, read_job
from jobs.job_file.scorers import check_scorers
from pipelines.storage.checkpoints import fetch_model
from pipelines.storage.folder import Folder, StorageError, StorageOptions
from tests import mutated_checkpoints as mutations
from tests.checkpoints import make_checkpoint
from tests.inputs import MemoryFolder

ROOT = Path(__file__).parent.parent
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: make_checkpoint(kind, folder / kind) for kind in ("sd1", "sd2", "sdxl")}


@pytest.fixture
def sd1(bases: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases["sd1"], tmp_path / "sd1"))


@pytest.fixture
def sdxl(bases: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases["sdxl"], tmp_path / "sdxl"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return Path(shutil.copytree(mutations.base_of("clip"), tmp_path / "clip"))


def set_in(path: Path, **values: Any) -> None:
    mutations.edit_json(path, lambda config: config.update(values))


def refusal(folder: Path, variant: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_checkpoint(str(folder), variant)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# --- the lists of tensors are those of the libraries' own models

SD15 = {"cross_attention_dim": 768, "sample_size": 64}
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SSD = SDXL | {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [0, 2, 4],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
UNETS = {
    "sd15": SD15,
    "sd21": SD21,
    "sdxl": SDXL,
    "ssd": SSD,
    "no middle": SDXL | {"mid_block_type": None},
    "layers by block": SD15 | {"layers_per_block": [1, 2, 1, 3]},
    "embedded": json.loads((ROOT / "training/scenes/model/unet/config.json").read_text()),
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
VIT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}


def shapes(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_asks_for_what_diffusers_builds(name: str) -> None:
    with torch.device("meta"):
        assert unet_shapes(UNETS[name]) == shapes(UNet2DConditionModel.from_config(UNETS[name]))


@pytest.mark.parametrize(
    "extra", [{}, {"mid_block_add_attention": False, "use_quant_conv": False, "latent_channels": 8}]
)
def test_a_vae_asks_for_what_diffusers_builds(extra: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert vae_shapes(VAE | extra) == shapes(AutoencoderKL(**VAE | extra))


def test_clip_asks_for_what_transformers_builds() -> None:
    with torch.device("meta"):
        text, projected = CLIPTextModel(CLIPTextConfig(**VIT_L)), CLIPTextModelWithProjection(CLIPTextConfig(**VIT_L))
        whole = CLIPModel(CLIPConfig(text_config=VIT_L, vision_config={}, projection_dim=640))

    def bare(model: torch.nn.Module) -> Shapes:
        return {name.removeprefix("text_model."): shape for name, shape in shapes(model).items()}

    assert clip_text_shapes(VIT_L) == bare(text)
    assert clip_text_shapes(VIT_L, projection=True) == bare(projected)
    assert clip_shapes(VIT_L, {}, 640) == shapes(whole)


# --- what is whole


def test_the_tiny_and_the_embedded_checkpoints_pass(bases: dict[str, Path]) -> None:
    for folder in (*bases.values(), ROOT / "training/scenes/model"):
        check_checkpoint(str(folder))
    assert check_clip(str(ROOT / "training/scenes/scorer")) == 128
    assert inspect_checkpoint(str(ROOT / "training/scenes/model")).fingerprint == "8ea63bbe97579178"


def test_no_torch_is_needed() -> None:
    code = (
        "import sys; from actors.checkpoint_check import check_checkpoint; from actors.scorer_check import check_clip; "
        "check_checkpoint('training/scenes/model'); check_clip('training/scenes/scorer'); "
        "sys.exit(bool({'torch', 'diffusers', 'transformers', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_layouts_of_a_text_encoder_are_loaded(sdxl: Path, prefix: str) -> None:
    for part in ("text_encoder", "text_encoder_2"):
        path = sdxl / part / "model.safetensors"
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
        renamed = {(n if n.startswith("text_projection") else prefix + n): t for n, t in tensors.items()}
        save_file(renamed, path, metadata={"format": "pt"})
        check_checkpoint(str(sdxl))
        model = load_whole(CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection, str(sdxl / part))
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, tensors[name.removeprefix("text_model.")])


def test_a_variant_in_part_takes_the_plain_files_of_the_others(sd1: Path) -> None:
    half = {name: tensor.half() for name, tensor in load_file(sd1 / UNET).items()}
    save_file(half, sd1 / UNET.replace(".safetensors", ".fp16.safetensors"), metadata={"format": "pt"})
    (sd1 / UNET).unlink()
    check_checkpoint(str(sd1), "fp16")
    ours = Diffusion(inspect_checkpoint(str(sd1), "fp16"), "float32", "cpu")
    theirs = DiffusionPipeline.from_pretrained(sd1, variant="fp16", safety_checker=None, torch_dtype=torch.float32)
    for part in ("unet", "vae"):
        for a, b in zip(getattr(ours, part).parameters(), getattr(theirs, part).parameters(), strict=True):
            assert torch.equal(a, b)
    assert "no component has safetensors weights for variant 'bf16'" in refusal(sd1, "bf16")
    assert "unet: no safetensors weights for no variant" in refusal(sd1)


def test_a_variant_that_is_only_pickled(sd1: Path) -> None:
    save_file(load_file(sd1 / UNET), sd1 / UNET.replace(".safetensors", ".fp16.safetensors"))
    (sd1 / "vae/diffusion_pytorch_model.fp16.bin").write_bytes(b"x")
    assert "of variant 'fp16'" in refusal(sd1, "fp16")


@pytest.mark.parametrize(
    ("version", "size", "side"),
    [("0.6.0", 32, 64), ("0.8.1", 8, 64), ("0.9.0", 8, 8), ("0.42.1", 8, 8), ("0.6.0", 96, 96)],
)
def test_an_old_sample_size_is_read_as_diffusers_reads_it(sd1: Path, version: str, size: int, side: int) -> None:
    set_in(sd1 / "unet/config.json", _diffusers_version=version, sample_size=size)
    info = inspect_checkpoint(str(sd1))
    pipe = DiffusionPipeline.from_pretrained(sd1, safety_checker=None)
    assert info.width == info.height == side * info.vae_scale_factor
    assert info.width == pipe.unet.config.sample_size * pipe.vae_scale_factor


@pytest.mark.parametrize("vectors", [1, 2, 3])
def test_a_textual_inversion_is_expanded_as_diffusers_does(sdxl: Path, vectors: int) -> None:
    rng = random.Random()
    rng.choice = lambda options: options[vectors - 1]  # type: ignore[method-assign]
    mutations.inversion(sdxl, rng)
    check_checkpoint(str(sdxl))
    pipe = DiffusionPipeline.from_pretrained(sdxl, torch_dtype=torch.float32)
    model = Diffusion(inspect_checkpoint(str(sdxl)), "float32", "cpu")
    for prompt in ("a <fox-toy> in the snow", "<fox-toy> <fox-toy>", "no toy", "a<fox-toy>b"):
        assert expander(model.tokenizers[0])(prompt) == pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
        theirs, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, device="cpu")
        ours = model.encode([prompt])
        assert torch.allclose(ours.prompt_embeds, theirs, atol=1e-5)
        assert ours.pooled is not None
        assert torch.allclose(ours.pooled, pooled, atol=1e-5)
    PromptEncoder(str(sdxl), "cpu")


# --- what is not


def renamed(folder: Path, name: str, prefix: str) -> None:
    tensors = load_file(folder / name)
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})


def without(folder: Path, name: str, part: str) -> None:
    tensors = load_file(folder / name)
    kept = {key: tensor for key, tensor in tensors.items() if part not in key}
    assert len(kept) < len(tensors)
    save_file(kept, folder / name, metadata={"format": "pt"})


def with_more(folder: Path, name: str, *keys: str) -> None:
    mutations.edit_tensors(folder / name, lambda t: t.update({key: torch.zeros(2, 2) for key in keys}))


def index_class(folder: Path, part: str, library: str | None, name: str | None) -> None:
    set_in(folder / "model_index.json", **{part: [library, name]})


def sharded(folder: Path, part: str, file: str) -> Path:
    mutations.shard(folder / part, file)
    return folder / part


def only_settings(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()


CASES: dict[str, tuple[Any, str]] = {
    # of shared/cases
    "text encoder prefix": (lambda f: renamed(f, TEXT, "module."), "DataParallel"),
    "text encoder part missing": (lambda f: without(f, TEXT, "layers.1."), "16 of the 52 tensors of CLIPTextModel"),
    "tokenizer without vocabulary": (only_settings, "no vocab.json and no merges.txt, nor tokenizer.json"),
    "tokenizer missing": (lambda f: shutil.rmtree(f / "tokenizer"), "the tokenizer is missing"),
    "EDM": (
        lambda f: set_in(f / "scheduler/scheduler_config.json", _class_name="EDMDPMSolverMultistepScheduler"),
        "an EDM schedule",
    ),
    "LCM": (lambda f: set_in(f / "unet/config.json", time_cond_proj_dim=8), "a latent consistency model"),
    "LFS pointer": (lambda f: (f / TEXT).write_bytes(mutations.LFS), "git lfs pull"),
    "shard missing": (
        lambda f: (sharded(f, "unet", UNET[5:]) / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink(),
        "names diffusion_pytorch_model-00002-of-00003.safetensors, which is not there",
    ),
    "UNet keys missing": (lambda f: without(f, UNET, "mid_block"), "of UNet2DConditionModel are not in its files"),
    "nine channels": (lambda f: set_in(f / "unet/config.json", in_channels=9), "an inpainting UNet"),
    "tiny VAE": (lambda f: index_class(f, "vae", "diffusers", "AutoencoderTiny"), "TAESD"),
    # others of the kind
    "torch.compile's prefix": (lambda f: renamed(f, UNET, "_orig_mod."), "torch.compile"),
    "one-file prefix": (lambda f: renamed(f, TEXT, "cond_stage_model.transformer."), "original one-file layout"),
    "PEFT's prefix": (lambda f: renamed(f, UNET, "base_model.model."), "PEFT"),
    "an unknown prefix": (lambda f: renamed(f, UNET, "net."), "686|tensors of UNet2DConditionModel are not"),
    "base_layer": (lambda f: with_more(f, UNET, "conv_in.base_layer.weight"), "adapter that is not merged"),
    "LoRA keys": (lambda f: with_more(f, TEXT, "encoder.layers.0.lora_A.weight"), "adapter that is not merged"),
    "an adapter's config": (lambda f: (f / "text_encoder/adapter_config.json").write_text("{}"), "adapter_config.json"),
    "left over": (
        lambda f: with_more(f, UNET, "down_blocks.7.weight"),
        "1 tensors that UNet2DConditionModel does not read",
    ),
    "an empty file": (lambda f: (f / UNET).write_bytes(b""), "empty (0 bytes)"),
    "a truncated file": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-9]), "truncated"),
    "a torn header": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:99]), "truncated"),
    "a page": (lambda f: (f / UNET).write_bytes(b"<!DOCTYPE html><html>" * 9), "not a safetensors file"),
    "a longer file": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes() + b"xx"), "2 bytes too long"),
    "a config's pointer": (lambda f: (f / "unet/config.json").write_bytes(mutations.LFS), "git lfs pull"),
    "an empty config": (lambda f: (f / "vae/config.json").write_bytes(b""), "empty; download"),
    "a list for a config": (lambda f: (f / "vae/config.json").write_text("[]"), "not a JSON object"),
    "merges' pointer": (
        lambda f: [
            mutations.slow_tokenizer(f, random.Random()),
            (f / "tokenizer/merges.txt").write_bytes(mutations.LFS),
        ],
        "git lfs pull",
    ),
    "instruct": (lambda f: set_in(f / "unet/config.json", in_channels=8), "InstructPix2Pix"),
    "depth": (lambda f: set_in(f / "unet/config.json", in_channels=5), "depth map"),
    "upscaler": (lambda f: set_in(f / "unet/config.json", in_channels=7), "an upscaler"),
    "class labels": (lambda f: set_in(f / "unet/config.json", num_class_embeds=1000), "class labels"),
    "unCLIP": (lambda f: set_in(f / "unet/config.json", class_embed_type="projection"), "class labels"),
    "GLIGEN": (lambda f: set_in(f / "unet/config.json", attention_type="gated"), "GLIGEN"),
    "image embeddings": (lambda f: set_in(f / "unet/config.json", addition_embed_type="image"), "another conditioning"),
    "an unknown key": (lambda f: set_in(f / "unet/config.json", motion_modules=True), "motion_modules"),
    "quantised": (lambda f: set_in(f / "unet/config.json", quantization_config={"bits": 8}), "quantised"),
    "a video UNet": (lambda f: set_in(f / "unet/config.json", _class_name="UNetMotionModel"), "a video model's UNet"),
    "a VAE for inpainting": (
        lambda f: set_in(f / "vae/config.json", _class_name="AsymmetricAutoencoderKL"),
        "a VAE for inpainting",
    ),
    "another text encoder": (
        lambda f: index_class(f, "text_encoder", "transformers", "T5EncoderModel"),
        "another text",
    ),
    "no text encoder": (lambda f: index_class(f, "text_encoder", None, None), "it has no text_encoder"),
    "own code": (lambda f: index_class(f, "unet", "my_unet", "UNet"), "which is never run"),
    "own code in a config": (lambda f: set_in(f / "text_encoder/config.json", auto_map={"A": "b"}), "never run"),
    "a ControlNet": (lambda f: index_class(f, "controlnet", "diffusers", "ControlNetModel"), "no part of"),
    "inpainting": (
        lambda f: set_in(f / "model_index.json", _class_name="StableDiffusionInpaintPipeline"),
        "an inpainting model",
    ),
    "LCM's pipeline": (
        lambda f: set_in(f / "model_index.json", _class_name="LatentConsistencyModelPipeline"),
        "a latent consistency model",
    ),
    "refiner's pipeline": (
        lambda f: set_in(f / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline"),
        "a refiner",
    ),
    "another width of text": (lambda f: set_in(f / "unet/config.json", cross_attention_dim=64), "cross_attention_dim"),
    "a larger vocabulary": (lambda f: mutations_shift(f), "embedding has 190 rows|among its added tokens"),
    "a longer tokenizer": (
        lambda f: set_in(f / "tokenizer/tokenizer_config.json", model_max_length=77),
        "24 positions",
    ),
    "a tokenizer without length": (
        lambda f: mutations.edit_json(f / "tokenizer/tokenizer_config.json", lambda c: c.pop("model_max_length")),
        "model_max_length is None",
    ),
    "an unknown pad token": (lambda f: set_in(f / "tokenizer/tokenizer_config.json", pad_token="<pad>"), "<pad>"),
    "no sample_size": (lambda f: set_in(f / "unet/config.json", sample_size=None), "no sample_size"),
    "8 bit": (lambda f: mutations.edit_tensors(f / UNET, to_int8), "quantised weights"),
    "another shape": (
        lambda f: mutations.edit_tensors(f / UNET, lambda t: t.__setitem__("conv_in.bias", torch.zeros(7))),
        "conv_in.bias is 7 in the file, and by config.json it must be 16",
    ),
    "index without a key": (lambda f: cut_index(f), "is in that file but not listed"),
}


def to_int8(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(torch.int8)


def cut_index(folder: Path) -> None:
    index = sharded(folder, "unet", UNET[5:]) / "diffusion_pytorch_model.safetensors.index.json"
    mutations.edit_json(index, lambda c: c["weight_map"].pop("conv_in.bias"))


def mutations_shift(folder: Path) -> None:
    def change(config: dict) -> None:
        config["model"]["vocab"] = {name: number + 9 for name, number in config["model"]["vocab"].items()}

    mutations.edit_json(folder / "tokenizer/tokenizer.json", change)


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_what_it_seems_is_refused_by_name(sd1: Path, case: str) -> None:
    damage, words = CASES[case]
    damage(sd1)
    assert any(word in refusal(sd1) for word in words.split("|"))


def test_what_is_no_base_sdxl(sdxl: Path) -> None:
    set_in(sdxl / "model_index.json", requires_aesthetics_score=True)
    assert "a refiner" in refusal(sdxl)
    index_class(sdxl, "text_encoder", None, None)
    assert "a refiner" in refusal(sdxl)
    index_class(sdxl, "text_encoder", "transformers", "CLIPTextModel")
    set_in(sdxl / "model_index.json", requires_aesthetics_score=False)
    set_in(sdxl / "unet/config.json", addition_embed_type=None)
    assert "not a UNet of SDXL" in refusal(sdxl)
    set_in(sdxl / "unet/config.json", addition_embed_type="text_time")
    set_in(sdxl / "tokenizer_2/tokenizer_config.json", model_max_length=20)
    assert "model_max_length differ" in refusal(sdxl)


def test_the_header_of_a_shape_that_no_bytes_stand_for(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match="a has 4 bytes for shape"):
        read_header(path)


def test_the_loaders_make_no_weight_up(sd1: Path) -> None:
    info = inspect_checkpoint(str(sd1))
    without(sd1, TEXT, "layers.1.mlp")
    with pytest.raises(CheckpointError, match="4 weights of CLIPTextModel were made up"):
        Diffusion(info, "float32", "cpu")
    with pytest.raises(ValueError, match="made up"):
        PromptEncoder(str(sd1), "cpu")
    without(sd1, UNET, "mid_block")
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        Diffusion(info, "float32", "cpu")


# --- scorers


def test_a_scorer_whose_weights_do_not_fit(clip: Path) -> None:
    assert check_clip(str(clip)) == 24
    renamed(clip, "model.safetensors", "model.")
    with pytest.raises(CheckpointError, match="of CLIPModel are not in its files"):
        check_clip(str(clip))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: set_in(f / "config.json", model_type="siglip"), "not a plain CLIPModel"),
        (lambda f: set_in(f / "config.json", projection_dim=25), "24 x 32 in the file, and by config.json"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda f: set_in(f / "preprocessor_config.json", crop_size={"height": 8, "width": 8}), "16 x 16 px"),
        (lambda f: (f / "tokenizer.json").unlink(), "no vocab.json"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only pickled weights"),
        (lambda f: (f / "model.safetensors").write_bytes(mutations.LFS), "git lfs pull"),
        (lambda f: with_more(f, "model.safetensors", "text_model.lora_A"), "adapter"),
        (lambda f: without(f, "model.safetensors", "visual_projection"), "visual_projection"),
    ],
)
def test_a_scorer_that_is_not_what_it_seems(clip: Path, damage: Any, words: str) -> None:
    damage(clip)
    with pytest.raises(CheckpointError, match=words):
        check_clip(str(clip))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": torch.zeros(1, 23), "bias": torch.zeros(1)}, r"weight is of shape \(1, 23\)"),
        ({"weight": torch.zeros(1, 24)}, "bias is missing"),
        ({"weight": torch.zeros(1, 24), "bias": torch.zeros(2)}, "bias is of shape"),
        ({"weight": torch.zeros(1, 24, dtype=torch.int8), "bias": torch.zeros(1)}, "I8"),
        ({"weight": torch.zeros(1, 24), "bias": torch.zeros(1), "layers.1.weight": torch.zeros(1)}, "a deeper one"),
    ],
)
def test_a_head_that_does_not_fit(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match=words):
        check_head(str(tmp_path / "head.safetensors"), 24)


def test_scorers_taken_together() -> None:
    assert scorers_fault(["a", "b"], [1.0, 0.0]) is None
    assert "named a" in str(scorers_fault(["a", "b", "a"], [1.0, 1.0, 1.0]))
    assert "no scorer has a weight" in str(scorers_fault(["a"], [0.0]))


# --- the verbs' side


def job_of(model: str, quality: str = "[]", extra: str = "") -> Job:
    text = (
        f"model: {{path: '{model}'{extra}}}\ninput: {{path: x.csv}}\nsteps: {{selector: words}}\nquality: {quality}\n"
    )
    return read_job(text, "job.yaml")


def faults_of(call: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call()
    assert all("\n" not in str(fault) for fault in caught.value.faults)
    return [str(fault) for fault in caught.value.faults]


def test_a_job_is_refused_where_its_key_stands(sd1: Path) -> None:
    assert settings.read_checkpoint(job_of(str(sd1))).family == "sd"
    (sd1 / TEXT).write_bytes(mutations.LFS)
    [fault] = faults_of(lambda: settings.read_checkpoint(job_of(str(sd1))))
    assert fault.startswith("job.yaml:1:")
    assert "git lfs pull" in fault


def test_karras_is_refused_for_2m_alone(sd1: Path) -> None:
    set_in(sd1 / "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler", use_karras_sigmas=True)
    index_class(sd1, "scheduler", "diffusers", "EulerDiscreteScheduler")
    job = job_of(str(sd1))
    settings.read_checkpoint(job)
    text = f"model: {{path: '{sd1}'}}\ninput: {{path: x.csv}}\nsampling: {{solver: dpmpp_2m}}\n"
    [fault] = faults_of(lambda: settings.read_checkpoint(read_job(text, "job.yaml")))
    assert "use_karras_sigmas: True" in fault
    assert "take ddim" in fault


@pytest.mark.parametrize(
    "path", ["models/dream.safetensors", "/nowhere/dream.ckpt", "memory://single/dream.safetensors"]
)
def test_a_single_file_is_said_to_be_one(path: str) -> None:
    [fault] = faults_of(lambda: settings.read_checkpoint(job_of(path)))
    assert "is one file" in fault
    assert f"python -m jobs convert {path} FOLDER" in fault


def test_scorers_are_refused_before_anything_is_loaded(sd1: Path, clip: Path, tmp_path: Path) -> None:
    good = f"[{{scorer: clip, path: '{clip}'}}, {{scorer: clip, name: other, path: '{clip}', weight: 0}}]"
    check_scorers(job_of(str(sd1), good))
    twice = f"[{{scorer: clip, path: '{clip}'}}, {{scorer: clip, path: '{clip}'}}]"
    [fault] = faults_of(lambda: check_scorers(job_of(str(sd1), twice)))
    assert "two scorers are named clip" in fault
    renamed(clip, "model.safetensors", "module.")
    [fault] = faults_of(lambda: check_scorers(job_of(str(sd1), f"[{{scorer: clip, path: '{clip}'}}]")))
    assert "quality.0" in fault
    assert "DataParallel" in fault
    none = f"[{{scorer: clip, path: '{clip}', weight: 0}}, {{scorer: clip, path: '{tmp_path}/no', name: b, weight: 0}}]"
    assert len(faults_of(lambda: check_scorers(job_of(str(sd1), none)))) == 3


def test_calibrate_says_it_in_one_line(sd1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.yaml"
    scorers = "[{scorer: 'tests.plans:brightness'}, {scorer: 'tests.plans:brightness', weight: 0}]"
    job.write_text(
        f"model: {{path: {sd1}}}\ninput: {{path: {tmp_path}/p.csv}}\nsteps: {{selector: words}}\nquality: {scorers}\n"
        f"output: {{path: {tmp_path}/run}}\n"
    )
    assert main(["calibrate", str(job), "--calls", "1"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "two scorers are named tests.plans.brightness" in lines[0]


# --- a checkpoint in a store


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("STEPTHRIFT_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        return Folder(f"s3://{server.bucket()}/models/big", StorageOptions(server.endpoint_url))
    return MemoryFolder(f"memory://{tmp_path.name}/models/big")


def upload(local: Path, folder: Folder) -> None:
    for file in local.rglob("*"):
        if file.is_file():
            folder.write(file.relative_to(local).as_posix(), file.read_bytes())


def test_headers_longer_than_a_block_are_brought_from_a_store(
    sd1: Path, store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose header ends behind the first sampled block, and is far longer than what is read of it."""
    tensors = load_file(sd1 / UNET)
    noise = {"format": "pt", "note": "x" * 200_000}
    save_file(tensors, sd1 / UNET, metadata=noise)
    upload(sd1, store)
    bare = fetch_model(store.url, options=store.options, metadata_only=True)
    check_checkpoint(bare)
    whole = fetch_model(store.url, options=store.options)
    assert inspect_checkpoint(bare).fingerprint == inspect_checkpoint(whole).fingerprint
    assert read_header(Path(bare) / UNET) == read_header(Path(whole) / UNET)


@pytest.mark.parametrize("name", [UNET, TEXT])
def test_what_is_torn_in_a_store_is_named(sd1: Path, store: Folder, name: str) -> None:
    upload(sd1, store)
    store.write(name, mutations.LFS)
    assert "git lfs pull" in refusal(Path(fetch_model(store.url, options=store.options, metadata_only=True)))
    store.write(name, (sd1 / name).read_bytes()[:-100])
    assert "truncated" in refusal(Path(fetch_model(store.url, options=store.options, metadata_only=True)))


def test_a_variant_in_part_in_a_store(sd1: Path, store: Folder) -> None:
    half = {name: tensor.half() for name, tensor in load_file(sd1 / UNET).items()}
    save_file(half, sd1 / UNET.replace(".safetensors", ".fp16.safetensors"), metadata={"format": "pt"})
    upload(sd1, store)
    for metadata_only in (True, False):
        folder = fetch_model(store.url, None, "fp16", store.options, metadata_only)
        check_checkpoint(folder, "fp16")
        assert inspect_checkpoint(folder, "fp16").fingerprint == inspect_checkpoint(str(sd1), "fp16").fingerprint


def test_the_hub_is_asked_again_for_what_has_no_variant(sd1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(path: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(sd1)

    monkeypatch.chdir(sd1)
    (sd1 / "vae/diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    fetch_model("owner/name", variant="fp16")
    assert asked[1:] == [["vae/*.safetensors"]]


def test_there_is_no_model_where_a_folder_is_missing() -> None:
    with pytest.raises(StorageError, match="there is no model"):
        fetch_model("./nothing")


def test_tokens_of_the_embedding_are_counted_as_transformers_counts(sd1: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(sd1 / "tokenizer")
    assert len(tokenizer) == 190
    assert math.isfinite(tokenizer.model_max_length)
    tokenizer.add_tokens(["<new>"])
    shutil.rmtree(sd1 / "tokenizer")
    tokenizer.save_pretrained(sd1 / "tokenizer")
    assert "reach number 190" in refusal(sd1)
