"""Schedules and time grids against diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from actors.solver import InvalidSteps, allowed_steps, guided_steps, noise_schedule, step_table, timesteps

SPACINGS = ["leading", "trailing", "linspace"]


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_alpha_bar_is_diffusers(beta_schedule, zero_snr):
    config = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr, "prediction_type": "v_prediction"}
    scheduler = DDIMScheduler(**config)
    ours, theirs = noise_schedule(scheduler.config).alpha_bar, scheduler.alphas_cumprod.numpy()
    assert (ours[-1] == 0) == zero_snr
    if zero_snr:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_every_grid_is_diffusers_or_refused(spacing, offset, solver):
    scheduler = {"ddim": DDIMScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}[solver](
        timestep_spacing=spacing, steps_offset=offset
    )
    schedule = noise_schedule(scheduler.config)
    allowed = allowed_steps(schedule, solver)
    for num_steps in range(1, 1001):
        scheduler.set_timesteps(num_steps)
        theirs = scheduler.timesteps.numpy()
        good = len(theirs) == num_steps and theirs.min() >= 0 and theirs.max() < 1000 and (np.diff(theirs) < 0).all()
        assert (num_steps in allowed) == good, num_steps
        if good:
            np.testing.assert_array_equal(timesteps(schedule, num_steps, solver), theirs)
    assert {1, 2, 10, 50, 100} <= allowed


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_steps_out_of_range_are_named(num_steps):
    with pytest.raises(InvalidSteps, match=str(num_steps)):
        timesteps(noise_schedule({}), num_steps)


def test_a_grid_with_a_step_too_many_is_refused():
    with pytest.raises(InvalidSteps, match=r"61 steps.*trailing"):
        timesteps(noise_schedule({"timestep_spacing": "trailing"}), 61)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"prediction_type": "sample"}, "prediction_type 'sample'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ({"timestep_spacing": "random"}, "timestep_spacing 'random'"),
        ({"thresholding": True}, "thresholding"),
    ],
)
def test_what_no_table_can_be_made_for_is_refused(config, words):
    with pytest.raises(InvalidSteps, match=words):
        noise_schedule(config)


def test_coefficients_are_finite_at_zero_terminal_snr():
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for solver in ("ddim", "dpmpp_2m"):
        table = step_table(noise_schedule(config), 12, solver, guided_steps(12, 3.0))
        assert np.isfinite([table.a, table.b, table.c, table.alpha, table.sigma]).all()
        assert table.alpha[0] == 0
        assert table.c[1] == 0  # the step before it came from an infinite log-SNR


def test_second_order_stops_where_guidance_toggles():
    schedule = noise_schedule(DDIMScheduler(timestep_spacing="trailing").config)
    guided = guided_steps(10, 3.0, (0.3, 0.7))
    table = step_table(schedule, 10, "dpmpp_2m", guided)
    toggles = np.flatnonzero(np.diff(guided.astype(int))) + 1
    assert table.c[[0, 9, *toggles]].tolist() == [0] * (2 + len(toggles))
    assert np.count_nonzero(table.c) == 10 - 2 - len(toggles)


def test_trained_betas_are_used():
    betas = torch.linspace(0.001, 0.01, 100)
    scheduler = DDIMScheduler(trained_betas=betas.numpy(), num_train_timesteps=100)
    np.testing.assert_array_equal(
        noise_schedule({"trained_betas": betas.tolist()}).alpha_bar, scheduler.alphas_cumprod.numpy()
    )
