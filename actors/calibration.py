"""Measures the best number of lanes of a UNet call on this device, and the cost of a call, a picture and a prompt.

Not a benchmark: nothing is compared with anybody else's. It owns a sampler that renders nothing meanwhile.
"""

import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from actors.diffusion import ENCODE_BATCH, unet_inputs
from actors.sampler import DDIMSampler

CANDIDATES = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
NEAR_BEST, MOST_MEMORY, PATIENCE = 0.97, 0.90, 2  # share of the best rate; of the memory; counts without a gain


@dataclass(frozen=True)
class Trial:
    """One number of lanes: seconds of a UNet call, and the share of the device's memory that was taken by then."""

    lanes: int
    seconds: float
    memory: float

    @property
    def rate(self) -> float:
        """Lane-steps a second."""
        return self.lanes / self.seconds


@dataclass(frozen=True)
class Calibration:
    """place: model, device, precision and size that it holds for. seconds_*: of one lane-step, picture and prompt."""

    place: str
    lanes: int
    trials: tuple[Trial, ...]
    seconds_per_lane_step: float
    seconds_per_decode: float
    seconds_per_prompt: float


def calibrate(
    sampler: DDIMSampler, width: int, height: int, calls: int = 5, candidates: Iterable[int] = CANDIDATES
) -> Calibration:
    """sampler: loaded, and idle. The fastest of `calls` calls counts: what else the machine does only slows them."""
    trials = sweep(lambda lanes: _trial(sampler, lanes, width, height, calls), candidates)
    chosen = choose(trials)
    decode, prompt = _decode_seconds(sampler, width, height, calls), _prompt_seconds(sampler, calls)
    return Calibration(
        sampler.place(width, height), chosen.lanes, tuple(trials), chosen.seconds / chosen.lanes, decode, prompt
    )


def sweep(measure: Callable[[int], Trial], candidates: Iterable[int]) -> list[Trial]:
    """Rising counts, until memory is short or PATIENCE counts brought nothing. Raises MemoryError where none fits."""
    trials: list[Trial] = []
    since_best = 0
    for lanes in candidates:
        try:
            trial = measure(lanes)
        except torch.OutOfMemoryError:
            break
        if trial.memory > MOST_MEMORY:
            break
        gained = not trials or trial.rate > max(t.rate for t in trials) / NEAR_BEST
        trials.append(trial)
        since_best = 0 if gained else since_best + 1
        if since_best == PATIENCE:
            break
    if not trials:
        raise MemoryError("there is no memory for the smallest call; a smaller size or a half-precision dtype may fit")
    return trials


def choose(trials: Iterable[Trial]) -> Trial:
    """The smallest count whose rate is within 3 % of the best: spare lanes cost rows their latency and memory."""
    trials = list(trials)
    best = max(trial.rate for trial in trials)
    return min((trial for trial in trials if trial.rate >= NEAR_BEST * best), key=lambda trial: trial.lanes)


def _trial(sampler: DDIMSampler, lanes: int, width: int, height: int, calls: int) -> Trial:
    model = sampler.model
    inputs = unet_inputs(model, width, height, lanes)
    seconds = fastest(lambda: model.predict(*inputs), calls, model.device)
    return Trial(lanes, seconds, _memory_share(model.device))


def _decode_seconds(sampler: DDIMSampler, width: int, height: int, calls: int) -> float:
    """Of one picture, in calls of the size that the sampler makes."""
    model, batch = sampler.model, sampler.decode_batch(width, height)
    latents = torch.randn(batch, *model.latent_shape(width, height), device=model.device)
    return fastest(lambda: model.decode(latents), calls, model.device) / batch


def _prompt_seconds(sampler: DDIMSampler, calls: int) -> float:
    prompts = [f"a red fox number {i} in the snow" for i in range(ENCODE_BATCH)]
    return fastest(lambda: sampler.model.encode(prompts), calls, sampler.model.device) / ENCODE_BATCH


def fastest(call: Callable[[], object], calls: int, device: torch.device, warm_up: int = 1) -> float:
    """Seconds of the fastest call, after some that are not counted."""
    found = []
    for _ in range(warm_up + calls):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found[warm_up:])


def _memory_share(device: torch.device) -> float:
    """The most that was taken so far, of all there is; on a CPU this process's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return 1 - free / total
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / total
