"""Defines the records that go into the engine and come out, without torch, so that a driver can hold them."""

from dataclasses import dataclass, fields

import numpy as np

from actors.actor_error import ActorError


class EngineBroken(ActorError, RuntimeError):
    """The device or the model fails for a known-good row, too: no row is to blame, and the process is of no use."""


class NotFinite(RuntimeError):
    """The picture holds inf or nan."""


class FlatPicture(RuntimeError):
    """All pixels are alike: there is nothing in the picture."""


JUNK = (NotFinite.__name__, FlatPicture.__name__)  # what a row failed with that another seed may mend
FLAT_LEVELS = 2  # of 255, between the darkest and the brightest pixel of each channel


@dataclass(frozen=True)
class Row:
    """What decides a picture, with the render class. width, height in px; seed in [0, 2**64)."""

    id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    guidance_scale: float
    width: int
    height: int
    num_steps: int
    solver: str | None = None  # None: the engine's, as guidance_interval
    guidance_interval: tuple[float, float] | None = None


ROW_COLUMNS = tuple(each.name for each in fields(Row))


@dataclass(frozen=True)
class SamplerConfig:
    """model_path: a local diffusers folder. lanes: of a call; None: calibrated, or by size. num_threads: CPU only."""

    model_path: str
    variant: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    solver: str = "ddim"
    timestep_spacing: str | None = None
    guidance_interval: tuple[float, float] | None = None
    lanes: int | None = None
    num_threads: int | None = None
    compile: bool = False
    channels_last: bool | None = None  # None: on CUDA
    calibrated: tuple[tuple[str, int], ...] = ()  # places and their lanes, where `lanes` is None


@dataclass(frozen=True)
class Picture:
    """image (H, W, 3) uint8; truncated, negative_truncated: the prompt, the negative prompt was not read whole.

    seconds: device time of the calls it was in (text encoder, UNet, decoder), each divided among its rows or lanes.
    """

    image: np.ndarray
    lane_steps: int
    seconds: float
    render_class: str
    truncated: bool
    negative_truncated: bool = False
