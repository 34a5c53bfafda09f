"""DDIMSampler: independence of a row's bytes, futures, failures, and the checkpoint's own errors."""

import json
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.allocator import keep_freed_memory
from actors.checkpoint import CheckpointError, inspect_checkpoint
from actors.rows import EngineBroken, SamplerConfig
from actors.sampler import DDIMSampler, NotFinite
from tests.checkpoints import make_checkpoint
from tests.engine import latents, loaded, row

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def checkpoint(request, tmp_path_factory):
    return make_checkpoint(request.param, tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1")


def mixed_rows(n=24):
    rng = random.Random(1)
    return [
        row(
            f"r{i}",
            rng.choice(["a fox", "two red boats on a lake", "snow"]),
            seed=100 + i,
            num_steps=rng.choice([1, 2, 5, 9]),
            guidance_scale=rng.choice([1.0, 3.0, 7.5]),
            negative_prompt=rng.choice([None, "", "dark"]),
        )
        for i in range(n)
    ]


def test_a_row_does_not_depend_on_its_company(checkpoint):
    rows = mixed_rows()
    together = latents(loaded(checkpoint, lanes=6), rows)
    shuffled = rows[::-1]
    random.Random(2).shuffle(shuffled)
    again = latents(loaded(checkpoint, lanes=6), shuffled)
    sampler = loaded(checkpoint, lanes=6)
    for r in rows:
        assert torch.equal(together[r.id], again[r.id])
        assert torch.equal(together[r.id], latents(sampler, [r])[r.id])


def test_pictures_do_not_depend_on_their_company(sd1):
    rows = mixed_rows(13)
    with_company, alone = DDIMSampler(SamplerConfig(str(sd1), lanes=6)), DDIMSampler(SamplerConfig(str(sd1), lanes=6))
    pictures = [f.result() for f in [with_company.submit(r) for r in rows]]
    for r, picture in zip(rows, pictures, strict=True):
        other = alone.submit(r).result()
        assert np.array_equal(picture.image, other.image)
        assert picture.render_class == other.render_class
        assert picture.lane_steps == r.num_steps * (2 if r.guidance_scale > 1 else 1)
    stats = with_company.stats()
    assert (stats["images"], stats["lanes_offered"]) == (13, 6 * stats["unet_calls"])  # the lanes that were asked for
    with_company.close()
    alone.close()


def test_guidance_interval_spares_lanes_but_not_for_negative_prompts(sd1):
    sampler = DDIMSampler(SamplerConfig(str(sd1), lanes=4, guidance_interval=(0.5, 1.0)))
    plain, negative = sampler.submit(row(num_steps=10)), sampler.submit(row(num_steps=10, negative_prompt="dark"))
    assert (plain.result().lane_steps, negative.result().lane_steps) == (15, 20)
    sampler.close()


def test_a_row_that_is_not_finite_fails_alone(sd1):
    sampler = DDIMSampler(SamplerConfig(str(sd1), lanes=4))
    sampler.load()
    honest = sampler.model.predict

    def predict(x, t, embeds, added):
        marked = x[:, 0, 0, 0] == sampler.model.noise(66, 16, 16)[0, 0, 0]
        return torch.where(marked[:, None, None, None], torch.inf, honest(x, t, embeds, added))

    sampler.model.predict = predict
    rows = [row(f"{seed}", seed=seed) for seed in (65, 66, 67)]
    errors = [f.exception() for f in [sampler.submit(r) for r in rows]]
    assert [type(e) for e in errors] == [type(None), NotFinite, type(None)]
    sampler.close()


def test_a_batch_of_columns_gains_images_and_errors(sd1):
    sampler = DDIMSampler(SamplerConfig(str(sd1), lanes=4))
    rows = [row("a"), row("b", num_steps=2000), row("c", width=24)]
    names = ("id", "prompt", "negative_prompt", "seed", "guidance_scale", "width", "height", "num_steps")
    batch = {name: np.array([getattr(r, name) for r in rows], object) for name in names}
    result = sampler(batch)
    assert [None if i is None else i.shape for i in result["image"]] == [(16, 16, 3), None, (16, 24, 3)]
    assert result["error"][0] == result["error"][2] == ""
    assert result["error"][1].startswith("InvalidSteps: 2000 steps")
    sampler.close()


def test_prompts_that_no_tokenizer_expects_are_rendered(sd1):
    sampler = DDIMSampler(SamplerConfig(str(sd1), lanes=4))
    prompts = ["", "\ud800 lone", "\x00\x07", "🦊" * 40, "狐", "word " * 5000]
    pictures = [f.result() for f in [sampler.submit(row(str(i), p)) for i, p in enumerate(prompts)]]
    assert [p.truncated for p in pictures] == [False, False, False, True, False, True]
    sampler.close()


def test_memory_for_the_decoder_is_halved_and_no_picture_lost(sd1):
    expected = DDIMSampler(SamplerConfig(str(sd1), lanes=4))
    sampler = DDIMSampler(SamplerConfig(str(sd1), lanes=4))
    sampler.load()
    honest, sizes = sampler.model.decode, []

    def tight(x):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room for 3")
        return honest(x)

    sampler.model.decode = tight
    rows = mixed_rows(9)
    pictures = [f.result() for f in [sampler.submit(r) for r in rows]]
    assert sizes[:3] == [8, 4, 2]
    assert "2decode" in pictures[-1].render_class
    for r, picture in zip(rows, pictures, strict=True):
        assert np.abs(picture.image.astype(int) - expected.submit(r).result().image).max() <= 1
    sampler.close()
    expected.close()


def test_a_loop_that_breaks_leaves_nobody_waiting(sd1):
    sampler = DDIMSampler(SamplerConfig(str(sd1), lanes=4))
    sampler.load()

    def broken(*args):
        raise KeyError("a bug in the loop")

    sampler.denoiser._advance = broken
    with pytest.raises(EngineBroken, match="the engine's loop ended with KeyError: 'a bug in the loop'"):
        sampler.submit(row()).result(timeout=300)
    with pytest.raises(EngineBroken):
        sampler.submit(row())


def test_loading_errors_reach_the_caller(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        DDIMSampler(SamplerConfig(str(tmp_path / "none"))).load()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "model_index.json").unlink(), "no model_index.json"),
        (lambda p: (p / "unet/config.json").write_text("{"), "not valid JSON"),
        (lambda p: (p / "vae/diffusion_pytorch_model.safetensors").rename(p / "vae/x.bin"), "only pickled weights"),
        (lambda p: (p / "vae/diffusion_pytorch_model.safetensors").unlink(), "no safetensors weights"),
        (
            lambda p: (p / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"})),
            "FluxPipeline cannot be rendered",
        ),
    ],
)
def test_a_damaged_checkpoint_is_named(sd1, tmp_path, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(sd1, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        inspect_checkpoint(str(folder))


def test_fingerprint_follows_the_weights(sd1, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sd1, folder)
    before = inspect_checkpoint(str(folder)).fingerprint
    assert before == inspect_checkpoint(str(sd1)).fingerprint
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert inspect_checkpoint(str(folder)).fingerprint != before


@pytest.mark.parametrize(
    ("config", "mark"),
    [
        pytest.param({"compile": True}, "float32-compiled", marks=pytest.mark.slow),  # minutes on a busy machine
        ({"channels_last": True}, "float32-nhwc"),
    ],
)
def test_a_compiled_or_channels_last_model_gives_the_picture_and_its_class_says_so(sd1, config, mark):
    plain, sampler = (
        DDIMSampler(SamplerConfig(str(sd1), lanes=4)),
        DDIMSampler(SamplerConfig(str(sd1), lanes=4, **config)),
    )
    expected, found = plain.submit(row()).result(), sampler.submit(row()).result()
    assert np.abs(found.image.astype(int) - expected.image).max() <= 1
    assert found.render_class.split("/")[2] == mark
    sampler.close()
    plain.close()


def test_freed_memory_stays_where_there_is_glibc():
    """In a process of its own: 128 MiB that are freed and asked for again are not fetched from the kernel anew."""
    if platform.libc_ver()[0] != "glibc":
        assert not keep_freed_memory()
        return
    code = """
import ctypes, resource
from actors.allocator import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults(size=8 << 20, blocks=16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [libc.malloc(size) for _ in range(blocks)]
    for block in held:
        libc.memset(block, 1, size)
    for block in held:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = [faults() for _ in range(4)][-1]
assert keep_freed_memory()
print(given_back, [faults() for _ in range(4)][-1])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    given_back, kept = map(int, found.stdout.split())
    assert given_back > 10_000  # pages of 4 KiB
    assert kept < 100
