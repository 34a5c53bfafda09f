"""`convert`: a checkpoint of one file becomes the folder that the engine renders from, and its pictures stay."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from actors.single_file import KINDS, inspect_single_file, tokenizer, write_configs
from actors.tensors import clip_text_shapes, unet_shapes, vae_shapes
from actors.weights import CheckpointError
from jobs.__main__ import main
from tests.checkpoints import make_checkpoint
from tests.engine import latents, loaded, row
from tests.single_files import write_single_file

PUBLISHED = {  # parameters, in millions, as their papers and model cards have them
    "sd1": (859.52, 123.06),
    "sd2": (865.91, 340.39),
    "sd2-base": (865.91, 340.39),
    "sdxl": (2567.46, 123.06),
}


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    made = make_checkpoint(request.param, folder / "original")
    return request.param, made, write_single_file(made, request.param, folder / "one.safetensors")


def convert(*words: object) -> int:
    return main(["convert", *map(str, words)])


def refusal(capsys, *words: object) -> str:
    assert convert(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_weight_arrives_and_the_picture_is_that_of_the_file(tiny, tmp_path: Path, capsys) -> None:
    kind, original, file = tiny
    folder = tmp_path / "made"
    assert convert(file, folder, "--config", original, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == kind
    for weights in original.glob("*/*.safetensors"):
        ours, theirs = load_file(folder / weights.relative_to(original)), load_file(weights)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    pipeline_class = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    options = {} if kind == "sdxl" else {"safety_checker": None}
    pipe = pipeline_class.from_single_file(str(file), config=str(original), local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    (expected,) = pipe(
        "a red fox", num_inference_steps=4, guidance_scale=5.0, generator=torch.Generator().manual_seed(3),
        height=16, width=16, output_type="np",
    ).images  # fmt: skip
    sampler = loaded(folder, lanes=2)
    found = latents(sampler, [row("a", "a red fox", seed=3, guidance_scale=5.0, num_steps=4)])
    picture, _ = sampler.model.decode(found["a"][None])
    assert np.abs(picture[0] - (expected * 255).round()).max() <= 1


def test_half_precision_stays(tiny, tmp_path: Path) -> None:
    kind, original, _ = tiny
    file = write_single_file(original, kind, tmp_path / "half.safetensors", torch.float16)
    assert convert(file, tmp_path / "made", "--config", original) == 0
    unet = load_file(tmp_path / "made/unet/diffusion_pytorch_model.safetensors")
    assert {each.dtype for each in unet.values()} == {torch.float16}


def test_a_file_that_lacks_a_weight_makes_no_folder(tiny, tmp_path: Path, capsys) -> None:
    _, original, file = tiny
    for part in ("model.diffusion_model.middle_block.0", "first_stage_model.decoder.conv_in"):
        weights = load_file(file)
        lost = next(name for name in weights if name.startswith(part))
        save_file({name: each for name, each in weights.items() if name != lost}, tmp_path / "torn.safetensors")
        assert "torn.safetensors" in refusal(
            capsys, tmp_path / "torn.safetensors", tmp_path / "x", "--config", original
        )
        assert [each.name for each in tmp_path.iterdir()] == ["torn.safetensors"]


def test_what_is_no_whole_checkpoint_is_named(tmp_path: Path, capsys) -> None:
    def told(**weights: tuple[int, ...]) -> str:
        names = {name.replace("__", "."): torch.zeros(shape) for name, shape in weights.items()}
        save_file(names, tmp_path / "a.safetensors")
        return refusal(capsys, tmp_path / "a.safetensors", tmp_path / "x")

    unet = "model__diffusion_model__input_blocks__0__0__weight"
    assert "an adapter (LoRA)" in told(lora_unet_x=(1,))
    assert "no UNet" in told(x=(1,))
    assert "takes 9 channels" in told(**{unet: (8, 9, 3, 3)})
    assert "no VAE" in told(**{unet: (8, 4, 3, 3)})
    assert "no text encoder" in told(**{unet: (8, 4, 3, 3), "first_stage_model__x": (1,)})
    assert "a refiner" in told(**{unet: (8, 4, 3, 3), "conditioner__embedders__0__model__x": (1,)})
    assert "a pickle can run code" in refusal(capsys, "a.ckpt", tmp_path / "x")
    assert "no such file" in refusal(capsys, "none.safetensors", tmp_path / "x")
    assert "disk" in refusal(capsys, "s3://b/a.safetensors", tmp_path / "x")


def test_a_folder_that_is_there_stays(tiny, tmp_path: Path, capsys) -> None:
    _, original, file = tiny
    (tmp_path / "there").mkdir()
    assert "is there already" in refusal(capsys, file, tmp_path / "there", "--config", original)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_configs_are_those_of_the_published_models(kind: str, tmp_path: Path) -> None:
    def config(part: str) -> dict:
        return json.loads((tmp_path / part / "config.json").read_text())

    def millions(shapes: dict) -> float:
        return round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 2)

    write_configs(kind, tmp_path)
    assert (
        millions(unet_shapes(config("unet"))),
        millions(clip_text_shapes(config("text_encoder"), False)),
    ) == PUBLISHED[kind]
    assert millions(vae_shapes(config("vae"))) == 83.65
    if kind == "sdxl":
        assert millions(clip_text_shapes(config("text_encoder_2"), True)) == 694.66


def test_the_shipped_tokenizer_is_clips() -> None:
    """Ids as OpenAI's own tokenizer gives them."""
    ids = tokenizer("!")("A photo of a cat, 2 dogs & naïve café!")["input_ids"]
    assert ids[:6] == [49406, 320, 1125, 539, 320, 2368]
    assert ids[-1] == 49407
    assert len(tokenizer("<|endoftext|>")) == 49408
    assert tokenizer("!").pad_token_id == 0


def test_the_kind_is_read_from_the_header(tiny) -> None:
    kind, _, file = tiny
    assert (inspect_single_file(str(file)).kind, inspect_single_file(str(file)).dtype) == (kind, "F32")
    with pytest.raises(CheckpointError, match="there is no such file"):
        inspect_single_file("none.safetensors")
