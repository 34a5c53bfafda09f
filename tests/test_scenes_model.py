"""The shipped model and scorer as folders, and the recipe's habit of being stopped."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from training.scenes import denoising, evaluate, prompts
from training.scenes.architecture import LATENT_CHANNELS, LATENT_SIDE, MAX_TOKENS
from training.scenes.checker import score
from training.scenes.export import MODEL_FOLDER, SCORER_FOLDER
from training.scenes.fit import FitLoop, FitSettings
from training.scenes.mixed import halve_products
from training.scenes.muon import Muon, orthogonalise
from training.scenes.training_files import encode_captions, held_out_scenes, pixels, token_ids, train_tokenizer
from training.scenes.world import SIZE, held_out, parse


@pytest.fixture(scope="module")
def pipe():
    return evaluate.load()


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(MODEL_FOLDER / "tokenizer")


def test_the_plain_pipeline_renders_the_caption(pipe):
    captions = [scene.caption() for scene, _ in held_out_scenes(20, seed=4, richness=1)]
    images = evaluate.render(pipe, captions, steps=10, guidance=2.0)
    assert {image.shape for image in images} == {(SIZE, SIZE, 3)}  # the pipeline's default size
    assert np.mean(score(images, captions)) >= 0.8


def test_the_autoencoder_keeps_what_the_checker_sees(pipe):
    pairs = held_out_scenes(60)
    images = evaluate.reconstruct(pipe.vae, [image for _, image in pairs])
    assert evaluate.tally([scene for scene, _ in pairs], images).objects_right() >= 0.97


def test_the_autoencoder_gives_latents_of_unit_scale(pipe):
    images = np.stack([image for _, image in held_out_scenes(60)])
    with torch.no_grad():
        z = pipe.vae.encode(pixels(images)).latent_dist.mean
    assert pipe.vae.config.scaling_factor == 1
    assert abs(z.mean()) < 0.1
    assert z.std() == pytest.approx(1, abs=0.1)


def test_the_scheduler_is_zero_snr_v_prediction_on_a_trailing_grid(pipe):
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    pipe.scheduler.set_timesteps(10)
    assert pipe.scheduler.timesteps[0] == 999
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_the_scorer_finds_the_caption_of_a_drawing():
    clip = CLIPModel.from_pretrained(SCORER_FOLDER, dtype=torch.float32)
    pairs = held_out_scenes(96, seed=3)
    scenes, images = [scene for scene, _ in pairs], [image for _, image in pairs]
    assert evaluate.retrieval(clip, CLIPTokenizer.from_pretrained(SCORER_FOLDER), scenes, images, 32) >= 0.8


def test_the_scorers_processors_read_a_picture_as_training_did():
    image = held_out_scenes(1)[0][1]
    for processor in (CLIPImageProcessor.from_pretrained(SCORER_FOLDER), CLIPProcessor.from_pretrained(SCORER_FOLDER)):
        out = processor(images=[image], return_tensors="pt")
        assert torch.allclose(out.pixel_values, pixels(image[None]), atol=1e-5)


def test_folders_are_small_and_hold_no_pickle():
    files = [path for folder in (MODEL_FOLDER, SCORER_FOLDER) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_every_printable_character_is_a_piece(tokenizer):
    for code in range(33, 127):
        ids = tokenizer(chr(code)).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "🦊🌋",
        "红色的圆",
        "\x00\x07\ttab\n",
        "ring " * 5000,
        "é" * 300,
        "\ud800".encode("utf-8", "replace").decode(),
    ],
)
def test_any_prompt_is_read(tokenizer, text):
    ids = token_ids(tokenizer, [text])
    assert ids.shape == (1, MAX_TOKENS)
    assert ids.max() < len(tokenizer)


def test_no_caption_is_cut(tokenizer):
    texts = [scene.caption() for scene, _ in held_out_scenes(50, richness=6)]
    assert max(len(tokenizer(text).input_ids) for text in texts) <= MAX_TOKENS


def test_the_demos_prompts_are_held_out_and_in_step_with_their_recipe():
    rows = list(csv.reader(prompts.PROMPTS_FILE.open()))
    assert [tuple(row) for row in rows[1:]] == prompts.choose()
    assert rows[0] == ["id", "prompt", "category"]
    assert len({row[0] for row in rows[1:]}) == 48
    for _, prompt, category in rows[1:]:
        assert held_out(prompt)
        assert category.split()[0] == str(parse(prompt).richness)


def test_orthogonalised_updates_have_singular_values_near_one():
    update = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(update))
    assert values.min() > 0.5
    assert values.max() < 1.4
    assert torch.allclose(orthogonalise(update.mT), orthogonalise(update).mT, atol=0.05)


def test_halved_products_differ_by_rounding_only():
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.Flatten(2), nn.Linear(16, 20))
    rough = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.Flatten(2), nn.Linear(16, 20))
    rough.load_state_dict(exact.state_dict())
    halve_products(rough)
    x = torch.randn(2, 24, 4, 4)
    for model in (exact, rough):
        model(x).pow(2).sum().backward()
    assert torch.allclose(rough(x), exact(x), atol=0.03)
    for a, b in zip(exact.parameters(), rough.parameters(), strict=True):
        assert (a.grad - b.grad).norm() < 0.02 * a.grad.norm()


def test_the_learning_rate_warms_up_holds_and_falls_to_zero():
    plan = FitSettings(steps=100, lr=1.0, warmup=10, decay_steps=20)
    assert [plan.lr_at(step) for step in (0, 9, 50, 80, 90, 100)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0])


def tiny_run(path: Path, plan: FitSettings) -> FitLoop:
    torch.manual_seed(0)
    model, average = (nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)) for _ in range(2))
    average.load_state_dict(model.state_dict())
    run = FitLoop(path, {"model": model}, {"model": average.requires_grad_(False)}, plan)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(8, 16, generator=generator)
        return (model(x) - x[:, :4]).pow(2).mean()

    run.train(loss_of, log=lambda line: None)
    return run


def weights(run: FitLoop) -> list[torch.Tensor]:
    return [*run.modules["model"].state_dict().values(), *run.averages["model"].state_dict().values()]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    whole = tiny_run(tmp_path / "whole.ckpt", FitSettings(30, 1e-2, warmup=5, decay_steps=10))
    tiny_run(tmp_path / "parts.ckpt", FitSettings(30, 1e-2, warmup=5, decay_steps=10, stop_after=13))
    parts = tiny_run(tmp_path / "parts.ckpt", FitSettings(30, 1e-2, warmup=5, decay_steps=10))
    assert any(isinstance(optimizer, Muon) for optimizer in parts.optimizers)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts), strict=True))


def test_a_longer_plan_goes_on_from_before_the_decay(tmp_path):
    whole = tiny_run(tmp_path / "whole.ckpt", FitSettings(40, 1e-2, decay_steps=10))
    tiny_run(tmp_path / "parts.ckpt", FitSettings(20, 1e-2, decay_steps=10))
    os.replace(tmp_path / "parts.constant.ckpt", tmp_path / "parts.ckpt")
    parts = tiny_run(tmp_path / "parts.ckpt", FitSettings(40, 1e-2, decay_steps=10))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts), strict=True))


@pytest.fixture
def work(tmp_path):
    pairs = held_out_scenes(12)
    (tmp_path / "captions.json").write_text(json.dumps([scene.caption() for scene, _ in pairs]))
    train_tokenizer(tmp_path, tmp_path / "tokenizer")
    encode_captions(tmp_path, CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"))
    rng = np.random.default_rng(0)
    shape = (12, LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)
    np.save(tmp_path / "latents.npy", rng.normal(size=shape).astype(np.float16))
    np.save(tmp_path / "cells.npy", rng.random((12, LATENT_SIDE, LATENT_SIDE)) < 0.3)
    return tmp_path


def test_the_denoisers_training_resumes_with_equal_weights(work, monkeypatch):
    monkeypatch.setattr(denoising, "BATCH", 2)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    whole = denoising.train(work, tokenizer, FitSettings(3, 1e-3))
    (work / "denoiser.ckpt").unlink()
    denoising.train(work, tokenizer, FitSettings(3, 1e-3, stop_after=1))
    parts = denoising.train(work, tokenizer, FitSettings(3, 1e-3))
    for a, b in zip(whole, parts, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
