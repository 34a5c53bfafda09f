"""How the tests look into the engine: latents instead of pictures, in the calling thread."""

from concurrent.futures import Future
from typing import Any

import torch

from actors.denoise import ListSource
from actors.lanes import Flight
from actors.rows import Row, SamplerConfig
from actors.sampler import DDIMSampler, _Request


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
