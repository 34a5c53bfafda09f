"""Computes each budget's time grid and the coefficients of its steps: DDIM and DPM-Solver++ 2M as one table.

Not a scheduler object: nothing here holds state or touches a tensor; all is known on the host before the first step.
Legend: T training timesteps, K steps of one budget. s is the old time of a step, t the new one. alpha_s =
sqrt(alpha_bar_s), sigma_s = sqrt(1 - alpha_bar_s).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from actors.schedulers import SOLVERS, SPACINGS, InvalidSteps, solver_config


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """What a checkpoint's scheduler config says to one solver about noise and time; hashed by identity.

    Another solver may read another schedule from the same config: `schedule_of`.
    """

    config: Mapping[str, Any]
    timestep_spacing: str | None  # what the job asks for, whatever the config says
    solver: str
    alpha_bar: np.ndarray  # (T,) float32
    final_alpha_bar: float  # after the last DDIM step: 1, or alpha_bar[0]
    prediction_type: str
    spacing: str
    steps_offset: int
    clip: float | None  # x0 is clamped to [-clip, clip]; None: it is not
    zero_snr: bool

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return len(self.alpha_bar)


@dataclass(frozen=True, eq=False)
class StepTable:
    """One budget's steps: x <- a x + b (1 + c) x0 - b c x0_prev, in float32.

    x0 is read from the model's output with alpha, sigma: (x - sigma eps) / alpha, or alpha x - sigma v.
    DDIM (arXiv 2010.02502, eq. 12, eta 0) has c = 0; DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2, midpoint) has
    c = h / (2 h_prev) with h the step in half log-SNR.
    """

    t: np.ndarray  # (K,) int64
    alpha: np.ndarray  # (K,) float64, as all below
    sigma: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    guided: np.ndarray  # (K,) bool

    def __len__(self) -> int:
        return len(self.t)

    @property
    def lane_steps(self) -> int:
        """Two lanes a guided step, one an unguided step."""
        return len(self.t) + int(self.guided.sum())


def noise_schedule(
    config: Mapping[str, Any], timestep_spacing: str | None = None, solver: str = "ddim"
) -> NoiseSchedule:
    """The schedule of a diffusers scheduler config, any scheduler's, read as `from_config` of the solver's class does.

    Raises InvalidSteps for a prediction type, beta schedule, spacing or option that no table can be made for.
    """
    if timestep_spacing not in (None, *SPACINGS):
        raise InvalidSteps(f"timestep_spacing {timestep_spacing!r} is not one of {', '.join(SPACINGS)}")
    said = {"timestep_spacing": timestep_spacing} if timestep_spacing else {}
    read = solver_config({**config, **said}, solver)
    zero_snr = read["rescale_betas_zero_snr"]
    if zero_snr and read["prediction_type"] == "epsilon":
        raise InvalidSteps("epsilon prediction at zero terminal SNR has no x0: the scheduler config contradicts itself")
    alpha_bar = _alpha_bar(read, zero_snr)
    _check_lowest(alpha_bar, read, zero_snr)
    return NoiseSchedule(
        config=config,
        timestep_spacing=timestep_spacing,
        solver=solver,
        alpha_bar=alpha_bar,
        final_alpha_bar=1.0 if read.get("set_alpha_to_one", True) else float(alpha_bar[0]),
        prediction_type=read["prediction_type"],
        spacing=read["timestep_spacing"],
        steps_offset=read["steps_offset"],
        clip=float(read["clip_sample_range"]) if read.get("clip_sample") else None,
        zero_snr=zero_snr,
    )


@lru_cache(maxsize=64)
def schedule_of(schedule: NoiseSchedule, solver: str) -> NoiseSchedule:
    """The schedule that this solver reads from the same config. Raises InvalidSteps."""
    if schedule.solver == solver:
        return schedule
    return noise_schedule(schedule.config, schedule.timestep_spacing, solver)


def _check_lowest(alpha_bar: np.ndarray, read: Mapping[str, Any], zero_snr: bool) -> None:
    """Raises InvalidSteps where the noisiest timestep has no log-SNR, or is cut off for its log-SNR."""
    if not zero_snr and not alpha_bar[-1] > 0:
        raise InvalidSteps("the betas leave nothing of the picture at the last timestep: no step starts there")
    limit = read.get("lambda_min_clipped", -math.inf)
    if limit > -math.inf and (zero_snr or limit > 0.5 * math.log(alpha_bar[-1] / (1 - alpha_bar[-1]))):
        raise InvalidSteps(f"the scheduler config says lambda_min_clipped: {limit}, which cuts the grid: take ddim")


def _alpha_bar(config: Mapping[str, Any], zero_snr: bool) -> np.ndarray:
    """(T,) float32, rounded where torch rounds, so that it equals `DDIMScheduler.alphas_cumprod`."""
    alphas = np.float32(1) - (_betas(config) if not zero_snr else _zero_snr(_betas(config)))
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    if config["trained_betas"] is not None:
        return np.asarray(config["trained_betas"], np.float32)
    num, kind, start, end = (config[k] for k in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end"))
    if kind == "linear":
        return _linspace(start, end, num)
    if kind == "scaled_linear":
        return _linspace(start**0.5, end**0.5, num) ** 2
    if kind == "squaredcos_cap_v2":
        bar = [math.cos((i / num + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(num + 1)]
        return np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(num)], np.float32)
    raise InvalidSteps(f"beta_schedule {kind!r} is not one of linear, scaled_linear, squaredcos_cap_v2")


def _linspace(start: float, end: float, num: int) -> np.ndarray:
    """(num,) float32, filled from both ends as torch does."""
    first, last, index = np.float32(start), np.float32(end), np.arange(num)
    step = np.float64((last - first) / np.float32(num - 1))  # the product is rounded once, with the sum
    return np.where(index < num // 2, first + step * index, last - step * (num - 1 - index)).astype(np.float32)


def _zero_snr(betas: np.ndarray) -> np.ndarray:
    """(T,) betas rescaled to zero terminal SNR (arXiv 2305.08891, algorithm 1)."""
    root = np.sqrt(np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    bar = root**2
    return np.float32(1) - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


def timesteps(schedule: NoiseSchedule, num_steps: int, solver: str = "ddim") -> np.ndarray:
    """(K,) int64, falling: the grid of diffusers' DDIMScheduler or DPMSolverMultistepScheduler.

    Raises InvalidSteps where that grid has not `num_steps` steps, all in [0, T).
    """
    schedule = schedule_of(schedule, solver)
    num_train = schedule.num_train_timesteps
    if not 1 <= num_steps <= num_train:
        raise InvalidSteps(f"{num_steps} steps: a checkpoint trained on {num_train} timesteps takes 1 to {num_train}")
    points = num_steps + (solver == "dpmpp_2m")  # 2M leaves the last point of its grid to sigma = 0
    grid: np.ndarray
    if schedule.spacing == "linspace":
        grid = np.linspace(0, num_train - 1, points).round()[::-1][:num_steps]
    elif schedule.spacing == "leading":
        grid = (np.arange(points) * (num_train // points))[::-1][:num_steps] + schedule.steps_offset
    else:
        grid = np.round(np.arange(num_train, 0, -num_train / num_steps)) - 1
    grid = grid.astype(np.int64)
    if len(grid) != num_steps or grid.min() < 0 or grid.max() >= num_train or (np.diff(grid) >= 0).any():
        raise InvalidSteps(f"{num_steps} steps: the {schedule.spacing} grid of this checkpoint has no such budget")
    return grid


@lru_cache(maxsize=64)
def allowed_steps(schedule: NoiseSchedule, solver: str = "ddim") -> frozenset[int]:
    """Every num_steps whose grid exists. Raises InvalidSteps where no table can be made for the solver."""
    schedule = schedule_of(schedule, solver)
    return frozenset(n for n in range(1, schedule.num_train_timesteps + 1) if _has_grid(schedule, n, solver))


def _has_grid(schedule: NoiseSchedule, num_steps: int, solver: str) -> bool:
    try:
        timesteps(schedule, num_steps, solver)
    except InvalidSteps:
        return False
    return True


def guided_steps(num_steps: int, guidance_scale: float, interval: tuple[float, float] | None = None) -> np.ndarray:
    """(K,) bool: guidance is on above scale 1, at the steps whose share of the schedule, 0 to 1, is in the interval.

    Step k of K stands at (k + 1/2) / K, so that an interval means the same at every budget (arXiv 2404.07724).
    """
    if guidance_scale <= 1:
        return np.zeros(num_steps, bool)
    share = (np.arange(num_steps) + 0.5) / num_steps
    low, high = interval or (0.0, 1.0)
    return (share >= low) & (share <= high)


def lane_steps(num_steps: int, guidance_scale: float, interval: tuple[float, float] | None = None) -> int:
    """What a row costs: two lanes a guided step, one an unguided step."""
    return num_steps + int(guided_steps(num_steps, guidance_scale, interval).sum())


def step_table(schedule: NoiseSchedule, num_steps: int, solver: str, guided: np.ndarray) -> StepTable:
    """guided: (K,) bool. Raises InvalidSteps as `timesteps` does, ValueError for an unknown solver."""
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is not one of {', '.join(SOLVERS)}")
    schedule = schedule_of(schedule, solver)
    grid = timesteps(schedule, num_steps, solver)
    bar_s = schedule.alpha_bar[grid].astype(np.float64)
    bar_t = _next_alpha_bar(schedule, grid, num_steps, solver)
    alpha, sigma = np.sqrt(bar_s), np.sqrt(1 - bar_s)
    alpha_t, sigma_t = np.sqrt(bar_t), np.sqrt(1 - bar_t)
    a = sigma_t / sigma
    b = alpha_t - alpha * a
    c = _second_order(alpha, sigma, alpha_t, sigma_t, guided) if solver == "dpmpp_2m" else np.zeros(num_steps)
    return StepTable(grid, alpha, sigma, a, b, c, guided)


def _next_alpha_bar(schedule: NoiseSchedule, grid: np.ndarray, num_steps: int, solver: str) -> np.ndarray:
    """(K,) alpha_bar after each step. DDIM looks T // K back, not at its next timestep; 2M goes along its grid to 1."""
    if solver == "dpmpp_2m":
        return np.append(schedule.alpha_bar[grid[1:]].astype(np.float64), 1.0)
    previous = grid - schedule.num_train_timesteps // num_steps
    inside = schedule.alpha_bar[np.maximum(previous, 0)].astype(np.float64)
    return np.where(previous >= 0, inside, schedule.final_alpha_bar)


def _second_order(
    alpha: np.ndarray, sigma: np.ndarray, alpha_t: np.ndarray, sigma_t: np.ndarray, guided: np.ndarray
) -> np.ndarray:
    """(K,) c = h / (2 h_prev): 0 at the first and last step, where guidance toggles and where h_prev is infinite."""
    with np.errstate(divide="ignore"):
        lambda_s, lambda_t = np.log(alpha / sigma), np.log(alpha_t) - np.log(sigma_t)
    h = lambda_t - lambda_s  # (K,)
    c = np.zeros(len(h))
    inner = np.arange(1, len(h) - 1)
    usable = np.isfinite(h[inner]) & np.isfinite(h[inner - 1]) & (guided[inner] == guided[inner - 1])
    c[inner[usable]] = h[inner[usable]] / (2 * h[inner[usable] - 1])
    return c
