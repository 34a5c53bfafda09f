"""Reads a checkpoint's scheduler config for the chosen solver, as diffusers' `from_config` does.

The config's own words count, whatever class wrote them; where it is silent the class that is asked for takes its own
default. Keys that the solver would read and that no table can follow are refused by name. No tensors and no tables:
those are `actors.solver`.
"""

import math
from collections.abc import Mapping
from typing import Any

from actors.actor_error import ActorError

SOLVERS = ("ddim", "dpmpp_2m")
SPACINGS = ("leading", "trailing", "linspace")
PREDICTION_TYPES = ("epsilon", "v_prediction")
PIPELINE = "_pipeline"  # in a config: which pipeline has loaded it, "sd" or "sdxl"
MOST_TIMESTEPS = 100_000

READ_AS = {"ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "ddim": {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "clip_sample": True,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "epsilon",
        "thresholding": False,
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    },
    "dpmpp_2m": {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "solver_order": 2,
        "prediction_type": "epsilon",
        "thresholding": False,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    },
}
# Where it has another value the grid or the step is another one. lower_order_final and euler_at_final are not here:
# with a final sigma of zero and order 2 they change nothing.
_FOLLOWED: dict[str, tuple[Any, ...]] = {
    "thresholding": (False, None),
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # that class reads the last three as midpoint
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "final_sigmas_type": ("zero",),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),  # not the learned ones
}
_FLAGS = ("clip_sample", "set_alpha_to_one", "rescale_betas_zero_snr")

ALLOWED = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
_KNOWN_OTHERS = {
    "EDM": "an EDM schedule, whose UNet wants EDM's preconditioning",
    "LCM": "a latent consistency model's solver",
    "TCD": "a consistency-distilled model's solver",
    "FlowMatch": "a flow-matching schedule",
    "CMStochastic": "a consistency model's solver",
    "ScoreSde": "a variance-exploding schedule",
    "Cosine": "an EDM schedule, whose model wants EDM's preconditioning",
    "SASolver": "a stochastic solver",
    "DPMSolverSDE": "a stochastic solver",
    "UnCLIP": "unCLIP's solver",
}


class InvalidSteps(ActorError, ValueError):
    """A number of steps for which the checkpoint's time grid does not exist, or a schedule no table can be made for."""


def class_fault(name: Any) -> str | None:
    """What a scheduler class that cannot be read is; None: it can."""
    if name in ALLOWED:
        return None
    known = next((what for start, what in _KNOWN_OTHERS.items() if str(name).startswith(start)), None)
    return f"{name} is {known}" if known else f"{name} is not one of {', '.join(ALLOWED)}"


def schedule_fault(config: Mapping[str, Any]) -> str | None:
    """What says that the UNet was trained on a schedule of another kind, whatever the solver; None: nothing."""
    if config.get("timestep_type") not in (None, "discrete"):
        return f"timestep_type is {config['timestep_type']!r}: an EDM schedule, whose UNet wants EDM's preconditioning"
    for key in ("sigma_min", "sigma_max", "sigma_data"):
        if config.get(key) is not None:
            return f"{key} is {config[key]!r}: an EDM schedule, whose noise levels are not those of its betas"
    if config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        return f"prediction_type {config['prediction_type']!r} is not one of {', '.join(PREDICTION_TYPES)}"
    betas, num = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    if isinstance(betas, list) and len(betas) != num:
        return f"trained_betas holds {len(betas)} values for num_train_timesteps {num}"
    for key in ("use_flow_sigmas", "shift_terminal"):
        if config.get(key):
            return f"{key} is {config[key]!r}: a flow-matching schedule"
    return None


def solver_config(config: Mapping[str, Any], solver: str) -> dict[str, Any]:
    """Every key that the solver reads, as `from_config` of the loaded scheduler fills it. Raises InvalidSteps."""
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is not one of {', '.join(SOLVERS)}")
    defaults, own = DEFAULTS[solver], config.get("_class_name", READ_AS[solver]) == READ_AS[solver]
    silent = () if own else config.get("_use_default_values", ())
    said = {key: config[key] for key in defaults if key in config and key not in silent}
    read = defaults | said
    if config.get(PIPELINE) == "sd":  # StableDiffusionPipeline rewrites these two of the scheduler that it loads
        rewritten = read if own else said
        if "steps_offset" in rewritten:
            read["steps_offset"] = 1
        if rewritten.get("clip_sample") is True:
            read["clip_sample"] = False
    _check_followed(read, solver)
    _check_values(read)
    return read


def _check_followed(read: Mapping[str, Any], solver: str) -> None:
    for key, good in _FOLLOWED.items():
        if key in read and not any(read[key] is value or read[key] == value for value in good):
            raise InvalidSteps(
                f"the scheduler config says {key}: {read[key]!r}, which {solver} here cannot follow; "
                f"set it to {good[0]!r} there{'' if solver == 'ddim' or key == 'thresholding' else ', or take ddim'}"
            )


def _check_values(read: Mapping[str, Any]) -> None:
    if read["timestep_spacing"] not in SPACINGS:
        raise InvalidSteps(f"timestep_spacing {read['timestep_spacing']!r} is not one of {', '.join(SPACINGS)}")
    if read["prediction_type"] not in PREDICTION_TYPES:
        raise InvalidSteps(f"prediction_type {read['prediction_type']!r} is not one of {', '.join(PREDICTION_TYPES)}")
    for key in _FLAGS:
        if key in read and not isinstance(read[key], bool):
            raise InvalidSteps(f"the scheduler config says {key}: {read[key]!r}, which must be true or false")
    num, offset = read["num_train_timesteps"], read["steps_offset"]
    if not _is_whole(num) or not 2 <= num <= MOST_TIMESTEPS:
        raise InvalidSteps(f"num_train_timesteps {num!r} must be a whole number from 2 to {MOST_TIMESTEPS}")
    if not _is_whole(offset):
        raise InvalidSteps(f"steps_offset {offset!r} must be a whole number")
    for key in ("beta_start", "beta_end", "clip_sample_range", "lambda_min_clipped"):
        if key in read and not _is_number(read[key]):
            raise InvalidSteps(f"the scheduler config says {key}: {read[key]!r}, which must be a number")
    betas = read["trained_betas"] if read["trained_betas"] is not None else [read["beta_start"], read["beta_end"]]
    if not isinstance(betas, list | tuple) or not all(_is_number(beta) and 0 < beta < 1 for beta in betas):
        raise InvalidSteps("the scheduler config's betas must be numbers between 0 and 1")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
