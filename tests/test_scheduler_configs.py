"""The scheduler configs that SD 1.5, SD 2.1 and SDXL publish, read for DDIM and 2M as diffusers' `from_config` does."""

import inspect
import json

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler

from actors.checkpoint import inspect_checkpoint
from actors.checkpoint_check import check_checkpoint, check_solver
from actors.schedulers import DEFAULTS, InvalidSteps, class_fault, schedule_fault, solver_config
from actors.solver import allowed_steps, noise_schedule, timesteps
from tests.checkpoints import make_checkpoint
from tests.engine import latents, loaded, row

SOLVERS = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PUBLISHED = {
    "sd1": {  # stable-diffusion-v1-5
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        **BETAS,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "sd2": {  # stable-diffusion-2-1
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        **BETAS,
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sdxl": {  # stable-diffusion-xl-base-1.0
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        **BETAS,
        "clip_sample": False,
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    },
}
PROMPTS, SEEDS = ["a red fox in the snow", "two boats"], [3, 2**40 + 1]


def with_scheduler(folder, config):
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config.get("_class_name", "DDIMScheduler")]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def pipeline_of(folder, solver):
    """The pipeline as it loads where its scheduler is the one asked for, else with `from_config` of it."""
    options = {} if "sdxl" in str(folder) else {"safety_checker": None}
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **options)
    pipe.set_progress_bar_config(disable=True)
    if not isinstance(pipe.scheduler, SOLVERS[solver]):
        pipe.scheduler = SOLVERS[solver].from_config(pipe.scheduler.config)
    return pipe


def errors(folder, solver, budgets):
    """By budget, the largest relative difference of latents from diffusers'."""
    pipe, sampler, found = pipeline_of(folder, solver), loaded(folder, solver=solver, lanes=4), {}
    for num_steps in budgets:
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        theirs = pipe(
            PROMPTS,
            num_inference_steps=num_steps,
            guidance_scale=5.0,
            generator=generators,
            height=16,
            width=16,
            output_type="latent",
        ).images
        rows = [
            row(str(i), prompt, seed=seed, num_steps=num_steps)
            for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True))
        ]
        ours = latents(sampler, rows)
        ours = torch.stack([ours[str(i)] for i in range(2)])
        found[num_steps] = float((ours - theirs).abs().max() / theirs.abs().max())
    return found


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_configs_give_diffusers_latents(kind, solver, tmp_path):
    folder = with_scheduler(make_checkpoint(kind, tmp_path / kind), PUBLISHED[kind])
    check_checkpoint(str(folder))
    check_solver(inspect_checkpoint(str(folder)), solver)
    found = errors(folder, solver, (1, 2, 7, 50))
    assert max(found.values()) < 1e-5, found


SILENT = {  # class, keys that its config leaves out or has otherwise
    "PNDM without offset and clipping": ("PNDMScheduler", {"steps_offset": None, "clip_sample": None}),
    "PNDM with an old offset": ("PNDMScheduler", {"steps_offset": 0}),
    "DDIM without offset": ("DDIMScheduler", {"steps_offset": None, "clip_sample": None, "set_alpha_to_one": None}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {"set_alpha_to_one": None}),
    "UniPC": ("UniPCMultistepScheduler", {"solver_type": "bh2", "solver_order": 2, "predict_x0": True}),
    "DDPM": ("DDPMScheduler", {"variance_type": "fixed_small", "timestep_spacing": "trailing"}),
    "2M without spacing": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "steps_offset": None}),
    "2M, other ends": ("DPMSolverMultistepScheduler", {"lower_order_final": False, "euler_at_final": True}),
    "2M, leading": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "solver_type": "logrho"}),
    "few timesteps": ("PNDMScheduler", {"num_train_timesteps": 500, "timestep_spacing": "leading"}),
    "two betas kinds": ("DPMSolverSinglestepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", SILENT)
def test_where_a_config_is_silent_the_class_asked_for_decides(case, solver, tmp_path):
    name, keys = SILENT[case]
    config = {"_class_name": name, **PUBLISHED["sd1"], **keys} | {"_class_name": name}
    config = {key: value for key, value in config.items() if value is not None}
    folder = with_scheduler(make_checkpoint("sd1", tmp_path / "sd1"), config)
    check_checkpoint(str(folder))
    check_solver(inspect_checkpoint(str(folder)), solver)
    found = errors(folder, solver, (1, 7, 10))
    clips = "clip_sample" not in config and name != "DDIMScheduler"  # the clamp magnifies what rounding leaves
    assert max(found.values()) < (1e-3 if clips else 1e-5), found


@pytest.mark.parametrize("solver", SOLVERS)
def test_our_defaults_are_those_of_diffusers_class(solver):
    theirs = {key: p.default for key, p in inspect.signature(SOLVERS[solver].__init__).parameters.items()}
    assert {key: theirs[key] for key in DEFAULTS[solver]} == DEFAULTS[solver]


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_grid_of_a_published_config_is_diffusers(kind, solver):
    config = PUBLISHED[kind]
    schedule = noise_schedule(config)
    scheduler = SOLVERS[solver].from_config(config)
    allowed = allowed_steps(schedule, solver)
    assert {1, 2, 7, 10, 25, 50} <= allowed
    for num_steps in sorted(allowed)[:60]:
        scheduler.set_timesteps(num_steps)
        assert timesteps(schedule, num_steps, solver).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("keys", "ddim_follows"),
    [
        ({"use_karras_sigmas": True}, True),
        ({"use_lu_lambdas": True}, True),
        ({"use_exponential_sigmas": True}, True),
        ({"use_beta_sigmas": True}, True),
        ({"algorithm_type": "sde-dpmsolver++"}, True),
        ({"algorithm_type": "dpmsolver"}, True),
        ({"algorithm_type": "deis"}, True),
        ({"solver_order": 3}, True),
        ({"solver_order": 1}, True),
        ({"solver_type": "heun"}, True),
        ({"final_sigmas_type": "sigma_min"}, True),
        ({"variance_type": "learned_range"}, True),
        ({"lambda_min_clipped": -2.0}, True),
        ({"use_dynamic_shifting": True}, True),
        ({"thresholding": True}, False),
        ({"clip_sample": "yes"}, False),
        ({"beta_start": "0.1"}, False),
        ({"num_train_timesteps": 1}, False),
        ({"steps_offset": 0.5}, False),
        ({"trained_betas": [2.0] * 1000}, False),
    ],
)
def test_keys_that_cannot_be_followed_are_named_for_the_solver_that_reads_them(keys, ddim_follows):
    config, name = PUBLISHED["sd1"] | keys, next(iter(keys)).removeprefix("trained_")
    if ddim_follows:
        noise_schedule(config)
        with pytest.raises(InvalidSteps, match=name):
            noise_schedule(config, None, "dpmpp_2m")
    else:
        with pytest.raises(InvalidSteps, match=name):
            noise_schedule(config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EDMDPMSolverMultistepScheduler", "an EDM schedule"),
        ("EDMEulerScheduler", "an EDM schedule"),
        ("LCMScheduler", "latent consistency"),
        ("TCDScheduler", "consistency-distilled"),
        ("FlowMatchEulerDiscreteScheduler", "flow-matching"),
        ("ScoreSdeVeScheduler", "variance-exploding"),
        ("MyScheduler", "not one of DDIMScheduler"),
        (None, "not one of"),
        (["a"], "not one of"),
    ],
)
def test_schedulers_of_another_kind_are_named(name, words):
    assert words in class_fault(name)


def test_schedules_of_another_kind_are_named():
    assert "EDM" in schedule_fault({"timestep_type": "continuous"})
    assert "EDM" in schedule_fault({"sigma_max": 120.0})
    assert "prediction_type" in schedule_fault({"prediction_type": "sample"})
    assert "flow" in schedule_fault({"use_flow_sigmas": True})
    assert "100" in schedule_fault({"trained_betas": [0.1] * 100})
    assert all(schedule_fault(config) is None for config in PUBLISHED.values())


def test_an_unknown_solver_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="solver 'euler'"):
        solver_config({}, "euler")
