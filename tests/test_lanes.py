"""Lanes without a network: which rows a call takes, what a step does, what a call may not do."""

import math
import random

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from actors.lanes import Lanes, pick
from actors.solver import guided_steps, noise_schedule, step_table
from tests.engine import CPU, SCHEDULE, SHAPE, denoiser, flight, run


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_is_ddim_schedulers_step(prediction_type, clip):
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=clip, timestep_spacing="leading")
    scheduler.set_timesteps(11)
    row = flight("a", 11, 1.0, noise_schedule(scheduler.config))
    outputs = torch.randn(11, *SHAPE, generator=torch.Generator().manual_seed(5))
    expected = row.noise[None]
    for t, output in zip(scheduler.timesteps, outputs, strict=True):
        expected = scheduler.step(output[None], t, expected).prev_sample

    lanes = Lanes(noise_schedule(scheduler.config), 2, row, CPU)
    lanes.admit(row)
    seen = []
    for output in outputs:
        ended = lanes.advance(
            [row], lambda x, t, e, a, o=output: (seen.append(int(t[0])), o.expand(len(x), *o.shape))[1]
        )
    assert seen == scheduler.timesteps.tolist()
    assert torch.allclose(ended[0][1], expected[0], rtol=1e-5, atol=1e-5)


def test_a_call_takes_the_rows_with_most_left_and_fills_the_last_lane():
    rows = [flight("long", 20), flight("longest", 30), flight("short", 3), flight("single", 2, 1.0)]
    assert [f.row for f in pick(rows, 4)] == ["longest", "long"]
    assert [f.row for f in pick(rows, 5)] == ["longest", "long", "single"]


def test_unet_calls_stay_within_one_percent_of_the_bound():
    rng = random.Random(4)
    menu = tuple(range(5, 55, 5))
    rows = [flight(str(i), rng.choice(menu), 1.0 if i % 3 == 0 else 5.0) for i in range(500)]
    total, longest = sum(f.table.lane_steps for f in rows), max(len(f.table) for f in rows)
    loop = denoiser(16)
    latents, errors = run(loop, sorted(rows, key=lambda f: -f.table.lane_steps))
    assert not errors
    assert len(latents) == 500
    assert loop.counts["lanes_filled"] == total
    assert loop.counts["unet_calls"] <= 1.01 * max(math.ceil(total / 16), longest)


def test_every_call_has_one_shape():
    shapes = set()
    loop = denoiser(6, lambda x, t, e, a: (shapes.add((x.shape, t.shape, e.shape)), x)[1])
    run(loop, [flight(str(i), 1 + i % 7, 1.0 if i % 2 else 4.0) for i in range(23)])
    assert shapes == {((6, *SHAPE), (6,), (6, 3, 4))}


def test_nan_of_one_row_does_not_reach_the_next_in_its_slot():
    def poisoned(x, t, embeds, added):
        return torch.where(embeds.amax((1, 2))[:, None, None, None] > 0, torch.nan, 0.1 * x)

    bad = flight("bad", 2)
    bad.embeds = torch.ones(2, 3, 4)
    clean, _ = run(denoiser(2), [flight("good", 3)])
    latents, _ = run(denoiser(2, poisoned, batch=1), [bad, flight("good", 3)])
    assert latents["bad"].isnan().any()
    assert torch.equal(latents["good"], clean["good"])


def test_a_row_whose_call_raises_fails_alone():
    def raising(x, t, embeds, added):
        if (embeds.amax((1, 2)) > 0).any():
            raise RuntimeError("boom")
        return 0.1 * x

    rows = [flight(str(i), 2 + i) for i in range(6)]
    rows[3].embeds = torch.ones(2, 3, 4)
    alone, _ = run(denoiser(8), [flight(str(i), 2 + i) for i in range(6)])
    latents, errors = run(denoiser(8, raising), rows)
    assert {name: str(error) for name, error in errors.items()} == {"3": "boom"}
    assert sorted(latents) == ["0", "1", "2", "4", "5"]
    assert all(torch.equal(latents[name], alone[name]) for name in latents)


def test_out_of_memory_halves_the_lanes_and_loses_no_row():
    sizes = []

    def tight(x, t, embeds, added):
        sizes.append(len(x))
        if len(x) > 4:
            raise torch.OutOfMemoryError("not enough for 5")
        return 0.1 * x

    loop = denoiser(16, tight)
    latents, errors = run(loop, [flight(str(i), 3) for i in range(30)])
    assert not errors
    assert len(latents) == 30
    assert sizes[:3] == [16, 8, 4]
    assert loop.num_lanes(SHAPE) == 4
    expected, _ = run(denoiser(4), [flight(str(i), 3) for i in range(30)])
    assert all(torch.equal(latents[name], expected[name]) for name in expected)


def test_out_of_memory_while_rows_are_made_ready_loses_no_row():
    loop, calls = denoiser(16), []

    def prepare(rows):
        calls.append(len(rows))
        if len(calls) in (2, 4):
            raise torch.OutOfMemoryError("no room for prompts")
        return rows

    loop.prepare = prepare
    latents, errors = run(loop, [flight(str(i), 3) for i in range(40)])
    assert not errors
    assert sorted(latents, key=int) == [str(i) for i in range(40)]
    assert loop.num_lanes(SHAPE) == 4
    expected, _ = run(denoiser(4), [flight(str(i), 3) for i in range(40)])
    assert all(torch.equal(latents[name], expected[name]) for name in expected)


def test_out_of_memory_with_two_lanes_fails_the_rows_in_flight():
    def none(x, t, embeds, added):
        raise torch.OutOfMemoryError("nothing left")

    latents, errors = run(denoiser(4, none), [flight(str(i), 3) for i in range(5)])
    assert not latents
    assert {type(error) for error in errors.values()} == {MemoryError}
    assert len(errors) == 5


def test_rows_of_two_sizes_share_the_loop_but_no_call():
    shapes = set()
    loop = denoiser(4, lambda x, t, e, a: (shapes.add(tuple(x.shape)), 0.1 * x)[1])
    rows = [flight(f"{i}", 3, shape=(2, 4, 4) if i % 2 else (2, 6, 4)) for i in range(10)]
    latents, errors = run(loop, rows)
    assert not errors
    assert len(latents) == 10
    assert shapes == {(4, 2, 4, 4), (4, 2, 6, 4)}


class _Syncs(TorchDispatchMode):
    """Counts the operations that would make the host wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += 1
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.found.append(name)
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found.append("boolean index")
        return func(*args, **(kwargs or {}))


def test_the_spy_sees_a_sync():
    with _Syncs() as spy:
        float(torch.ones(3).sum())
        torch.ones(3)[torch.tensor([True, False, True])]
    assert spy.found == ["_local_scalar_dense", "boolean index"]


def test_the_loop_never_waits_for_the_device():
    with _Syncs() as spy:
        run(denoiser(6), [flight(str(i), 1 + i % 5, 1.0 if i % 2 else 4.0) for i in range(20)])
    assert spy.ops > 100
    assert spy.found == []


def test_two_lanes_are_the_least():
    with pytest.raises(ValueError, match="2 lanes"):
        Lanes(SCHEDULE, 1, flight("a", 2), CPU)


def test_lane_steps_count_two_for_a_guided_step():
    guided = guided_steps(10, 5.0, (0.2, 0.6))
    assert guided.tolist() == [False] * 2 + [True] * 4 + [False] * 4
    assert step_table(SCHEDULE, 10, "ddim", guided).lane_steps == 14
    assert np.count_nonzero(guided_steps(10, 1.0)) == 0
