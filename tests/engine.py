"""How the tests look into the engine: latents instead of pictures, in the calling thread; and lanes without a model."""

from concurrent.futures import Future
from typing import Any

import torch
from diffusers import DDIMScheduler

from actors.denoise import Denoiser, ListSource
from actors.lanes import Flight
from actors.rows import Row, SamplerConfig
from actors.sampler import DDIMSampler, _Request
from actors.solver import NoiseSchedule, guided_steps, noise_schedule, step_table

SHAPE = (2, 4, 4)
CPU = torch.device("cpu")
SCHEDULE = noise_schedule(DDIMScheduler(timestep_spacing="trailing", clip_sample=False).config)


class StandIn:
    """A CUDA event of a device that has passed everything; 1 ms between any two."""

    lost = False

    def query(self) -> bool:
        if self.lost:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "StandIn") -> float:
        return 1.0


def row(id: str = "a", prompt: str = "a red fox", **values: Any) -> Row:
    defaults = {
        "negative_prompt": None,
        "seed": 7,
        "guidance_scale": 5.0,
        "width": 16,
        "height": 16,
        "num_steps": 4,
    }
    return Row(id=id, prompt=prompt, **(defaults | values))


def loaded(path: str, **config: Any) -> DDIMSampler:
    """A sampler whose model lives in this thread."""
    sampler = DDIMSampler(SamplerConfig(model_path=str(path), device="cpu", **config))
    sampler._load()
    return sampler


def latents(sampler: DDIMSampler, rows: list[Row]) -> dict[str, torch.Tensor]:
    """{id: (C, h, w)}, each row in the company of all others. Raises what a row raised."""
    found: dict[str, torch.Tensor] = {}

    def deliver(flight: Flight, latent: torch.Tensor) -> None:
        found[flight.row.row.id] = latent

    def fail(request: _Request, error: Exception) -> None:
        raise error

    requests = [_Request(r, Future()) for r in rows]
    sampler.denoiser.run(ListSource(requests), deliver, fail)
    return found


def flight(name: str, num_steps: int, scale: float = 5.0, schedule: NoiseSchedule = SCHEDULE, shape=SHAPE) -> Flight:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(len(name) + num_steps))
    table = step_table(schedule, num_steps, "ddim", guided_steps(num_steps, scale))
    return Flight(name, table, scale, shape, noise, torch.zeros(2, 3, 4), {})


def quiet(x, t, embeds, added):
    return 0.1 * x


def denoiser(num_lanes: int, predict=quiet, batch: int = 8) -> Denoiser:
    return Denoiser(predict, lambda rows: rows, SCHEDULE, CPU, lambda shape: num_lanes, batch)


def run(loop: Denoiser, flights) -> tuple[dict, dict]:
    latents, errors = {}, {}
    loop.run(
        ListSource(flights),
        lambda f, latent: latents.__setitem__(f.row, latent),
        lambda f, error: errors.__setitem__(getattr(f, "row", f), error),
    )
    return latents, errors
