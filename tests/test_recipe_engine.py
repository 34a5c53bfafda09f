"""One engine call mixes recipes: each row's picture is that of an engine which is configured for it alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from actors.rows import Row, SamplerConfig
from actors.sampler import DDIMSampler
from tests.checkpoints import make_checkpoint
from tests.engine import latents, loaded, row

HALF, FIRST = (0.2, 0.8), (0.0, 0.5)
ROWS = [
    row("plain", num_steps=6),
    row("ddim", solver="ddim", num_steps=3),
    row("dpm", "two boats", solver="dpmpp_2m", num_steps=5, seed=2**40),
    row("half", guidance_interval=HALF, num_steps=8),
    row("dpm half", solver="dpmpp_2m", guidance_interval=HALF, guidance_scale=3.0, num_steps=6),
    row("first", "a boat", guidance_interval=FIRST, num_steps=5),
    row("unguided", solver="dpmpp_2m", guidance_scale=1.0, num_steps=4),
]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(request.param, tmp_path_factory.mktemp("model") / request.param))


def configured(each: Row) -> tuple[Row, SamplerConfig]:
    """The row with nothing of its own, and the engine that is configured for it."""
    config = SamplerConfig("", device="cpu", lanes=8, solver=each.solver or "ddim")
    return (
        replace(each, solver=None, guidance_interval=None),
        replace(config, guidance_interval=each.guidance_interval),
    )


def test_each_row_of_a_mixed_call_is_the_picture_of_its_own_engine(checkpoint: str) -> None:
    mixed = DDIMSampler(SamplerConfig(checkpoint, device="cpu", lanes=8))
    together = [future.result() for future in [mixed.submit(each) for each in ROWS]]
    mixed.close()
    for each, picture in zip(ROWS, together, strict=True):
        bare, config = configured(each)
        own = DDIMSampler(replace(config, model_path=checkpoint))
        alone = own.submit(bare).result()
        own.close()
        assert picture.image.tobytes() == alone.image.tobytes(), each.id
        assert (picture.lane_steps, picture.render_class) == (alone.lane_steps, alone.render_class)
    assert [picture.lane_steps for picture in together] == [12, 6, 10, 12, 10, 8, 4]


def test_a_batch_may_have_the_columns_of_recipes(checkpoint: str) -> None:
    """As Ray Data gives them: an interval is a list, and a row without one has None."""
    names = ("id", "prompt", "negative_prompt", "seed", "guidance_scale", "width", "height", "num_steps")
    batch = {name: np.array([getattr(each, name) for each in ROWS], object) for name in names}
    own = {name: np.empty(len(ROWS), object) for name in ("solver", "guidance_interval")}
    for at, each in enumerate(ROWS):
        own["solver"][at] = each.solver
        own["guidance_interval"][at] = each.guidance_interval and list(each.guidance_interval)
    sampler = DDIMSampler(SamplerConfig(checkpoint, device="cpu", lanes=8))
    out = sampler(batch | own)
    plain = sampler(batch)
    sampler.close()
    assert list(out["error"]) == [""] * len(ROWS)
    differs = [bool((a != b).any()) for a, b in zip(out["image"], plain["image"], strict=True)]
    assert differs == [False, False, True, True, True, True, True]


class GuidedBetween:
    """diffusers' callback that switches guidance off outside an interval, by the middle of each step."""

    def __init__(self, num_steps: int, interval: tuple[float, float], scale: float) -> None:
        share = (np.arange(num_steps) + 0.5) / num_steps
        self.scales = np.where((share >= interval[0]) & (share <= interval[1]), scale, 1.0 + 1e-12)

    def __call__(self, pipe: DiffusionPipeline, step: int, timestep: int, values: dict) -> dict:
        pipe._guidance_scale = float(self.scales[min(step + 1, len(self.scales) - 1)])
        return {}


@pytest.mark.parametrize("interval", [HALF, FIRST, (0.5, 1.0)])
def test_latents_of_a_guided_interval_equal_diffusers(checkpoint: str, interval: tuple[float, float]) -> None:
    """A scale of 1 mixes the two predictions into the one with the prompt, which is what an unguided step takes."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint, safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    callback = GuidedBetween(8, interval, 5.0)
    expected = pipe(
        "a red fox", num_inference_steps=8, guidance_scale=float(callback.scales[0]), height=16, width=16,
        generator=torch.Generator().manual_seed(7), output_type="latent", callback_on_step_end=callback,
    ).images[0]  # fmt: skip
    found = latents(
        loaded(checkpoint, timestep_spacing="trailing", lanes=2), [row(num_steps=8, guidance_interval=interval)]
    )
    assert float((found["a"] - expected).abs().max() / expected.abs().max()) < 1e-5
