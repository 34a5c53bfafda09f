"""Calibration: which number of lanes is chosen, where the probe stops, and that `lanes: auto` reads what it found."""

import json

import pytest
import torch

from actors.calibration import Trial, calibrate, choose, sweep
from actors.rows import SamplerConfig
from actors.sampler import DDIMSampler
from jobs.__main__ import main
from jobs.job_file import settings
from jobs.job_file.read import load_job
from jobs.job_file.storage import run_folder
from jobs.steps.planning import estimates, plan_text
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan
from tests.checkpoints import make_checkpoint
from tests.engine import loaded, row


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def checkpoint(request, tmp_path_factory):
    return make_checkpoint(request.param, tmp_path_factory.mktemp("model") / request.param)


def trials(*rates: float) -> list[Trial]:
    """Two lanes, four, eight, ..."""
    return [Trial(2 << i, (2 << i) / rate, 0.1) for i, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("rates", "lanes"),
    [((10, 20, 30), 8), ((10, 29.2, 30), 4), ((10, 29.0, 30), 8), ((30, 20, 10), 2), ((10, 30, 29, 30.5), 4)],
)
def test_the_smallest_count_within_three_percent_of_the_best(rates, lanes):
    assert choose(trials(*rates)).lanes == lanes


def swept(rates, memory=lambda lanes: 0.1, fits=lambda lanes: True) -> list[int]:
    seen = []

    def measure(lanes: int) -> Trial:
        seen.append(lanes)
        if not fits(lanes):
            raise torch.OutOfMemoryError("no room")
        return Trial(lanes, lanes / rates(lanes), memory(lanes))

    found = sweep(measure, (2, 4, 8, 16, 32, 64))
    assert [trial.lanes for trial in found] == [lanes for lanes in seen if fits(lanes) and memory(lanes) <= 0.9]
    return seen


def test_the_probe_ends_where_more_lanes_bring_nothing_or_memory_is_short():
    assert swept(lambda lanes: lanes) == [2, 4, 8, 16, 32, 64]
    assert swept(lambda lanes: min(lanes, 8)) == [2, 4, 8, 16, 32]
    assert swept(lambda lanes: lanes, memory=lambda lanes: lanes / 20) == [2, 4, 8, 16, 32]
    assert swept(lambda lanes: lanes, fits=lambda lanes: lanes < 16) == [2, 4, 8, 16]
    with pytest.raises(MemoryError, match="smaller size"):
        swept(lambda lanes: lanes, fits=lambda lanes: False)


def test_a_sampler_is_measured_and_takes_the_lanes_of_its_place_alone(checkpoint):
    sampler = loaded(checkpoint)
    found = calibrate(sampler, 16, 24, calls=1, candidates=(2, 6))
    assert [trial.lanes for trial in found.trials] == [2, 6]
    assert found.place.endswith("/float32/16x24")
    assert min(found.seconds_per_lane_step, found.seconds_per_decode, found.seconds_per_prompt) > 0
    calibrated = ((found.place, 6), (found.place.replace("float32", "float16"), 10))
    aware = loaded(checkpoint, calibrated=calibrated)
    tall, square = aware.model.latent_shape(16, 24), aware.model.latent_shape(16, 16)
    assert aware.denoiser.num_lanes(tall) == 6
    assert aware.denoiser.num_lanes(square) == sampler.denoiser.num_lanes(square)
    assert loaded(checkpoint, calibrated=calibrated, lanes=4).denoiser.num_lanes(tall) == 4


def test_the_verb_writes_what_render_reads(checkpoint, tmp_path, capsys):
    (tmp_path / "prompts.csv").write_text("prompt\na fox\n")
    job = tmp_path / "job.yaml"
    job.write_text(
        f"model: {{path: {checkpoint}}}\ninput: {{path: {tmp_path}/prompts.csv}}\nsteps: {{selector: words}}\n"
        f"quality: [{{scorer: 'tests.plans:brightness'}}]\noutput: {{path: {tmp_path}/run}}\n"
    )
    assert main(["calibrate", str(job), "--calls", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["seconds_per_score"] > 0
    loaded_job = load_job(str(job))
    (kept,) = settings.read_calibrations(run_folder(loaded_job)).items()
    assert kept[0] == shown["place"]
    assert kept[1]["lanes"] == shown["lanes"] in {trial["lanes"] for trial in shown["trials"]}
    sampler_config = settings.resolve(loaded_job).render.sampler
    assert sampler_config.calibrated == ((shown["place"], shown["lanes"]),)
    sampler = DDIMSampler(SamplerConfig(str(checkpoint), num_threads=1, calibrated=sampler_config.calibrated))
    picture = sampler.submit(row()).result()
    assert f"16x16-{shown['lanes']}lanes" in picture.render_class
    sampler.close()


def test_a_plan_says_what_it_will_take_where_it_was_calibrated(tmp_path):
    assert estimates({}, 10, 100) == []
    h100 = {"lanes": 32, "seconds_per_lane_step": 0.02, "seconds_per_decode": 0.1, "seconds_per_prompt": 0.01}
    a10 = h100 | {"seconds_per_lane_step": 0.2, "seconds_per_score": 0.05}
    measured = {"h100": h100, "a10": a10}
    assert estimates(measured, 0, 0) == []
    fast, slow = estimates(measured, 10, 100)
    assert (fast["place"], slow["place"]) == ("h100", "a10")
    assert fast["actor_seconds"] == pytest.approx(100 * 0.02 + 10 * 0.11)
    assert slow["actor_seconds"] == pytest.approx(100 * 0.2 + 10 * 0.16)
    assert slow["actor_seconds_per_1000"] == pytest.approx(2160)
    words = plan_text("run", Plan(RunFolder(str(tmp_path / "run"))).totals() | {"estimates": [fast, slow]})
    assert "about 0:03 of one actor, 5:10 for 1,000 images, on h100" in words
    assert "about 0:22 of one actor, 36:00 for 1,000 images, on a10" in words
