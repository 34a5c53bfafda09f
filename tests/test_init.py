"""`init --model` writes what fits the checkpoint that it names."""

import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.job_file.read import load_job
from jobs.job_file.settings import prompt_source, read_checkpoint
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("sdxl", tmp_path_factory.mktemp("model") / "an xl: model")


def written(folder: Path, model: Path, **scheduler: object) -> dict:
    """The job file's values; every one of its budgets has a grid."""
    place = model / "scheduler/scheduler_config.json"
    before, index = place.read_text(), (model / "model_index.json").read_text()
    named = scheduler.get("_class_name", json.loads(before)["_class_name"])
    place.write_text(json.dumps(json.loads(before) | scheduler))
    (model / "model_index.json").write_text(json.dumps(json.loads(index) | {"scheduler": ["diffusers", named]}))
    try:
        assert main(["init", str(folder / "job.yaml"), "--model", str(model)]) == 0
        job = load_job(str(folder / "job.yaml"))
        prompt_source(job, read_checkpoint(job))
    finally:
        place.write_text(before)
        (model / "model_index.json").write_text(index)
    return job.config.model_dump()


def test_size_guidance_and_a_menu_of_the_family(sdxl: Path, tmp_path: Path) -> None:
    config = written(tmp_path, sdxl)
    assert config["model"]["path"] == str(sdxl)
    assert (config["sampling"]["width"], config["sampling"]["height"]) == (16, 16)
    assert (config["sampling"]["solver"], config["sampling"]["guidance_scale"]) == ("ddim", 5.0)
    assert config["steps"]["selector"] == "words"
    assert config["steps"]["choices"] == [10, 15, 20, 30, 50]
    assert "stored as float32" in (tmp_path / "job.yaml").read_text()


def test_a_checkpoint_distilled_for_few_steps_gets_no_guidance(sdxl: Path, tmp_path: Path) -> None:
    turbo = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    config = written(tmp_path, sdxl, **turbo)
    assert (config["sampling"]["guidance_scale"], config["steps"]["choices"]) == (1.0, [1, 2, 3, 4])


def test_a_checkpoint_of_another_solver_keeps_it(sdxl: Path, tmp_path: Path) -> None:
    config = written(tmp_path, sdxl, _class_name="DPMSolverMultistepScheduler")
    assert (config["sampling"]["solver"], config["steps"]["choices"]) == ("dpmpp_2m", [8, 10, 15, 20, 25])


def test_one_file_is_answered_with_the_command_that_converts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "job.yaml"), "--model", "models/my model.safetensors"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --model: models/my model.safetensors is one file")
    assert "python -m jobs convert 'models/my model.safetensors' FOLDER" in line
    assert not (tmp_path / "job.yaml").exists()
