"""A path of a job file is a place, however it is spelt and wherever the command is typed."""

import json
import os
from pathlib import Path

import pytest

from jobs.job_file import settings
from jobs.job_file.keys import changed_picture_keys
from jobs.job_file.places import ROOT, elsewhere, place, placed, placed_fingerprint
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import load_job, read_job
from jobs.job_file.storage import run_folder
from pipelines.plan.earlier import Changes
from pipelines.run.plan import read_plan

JOB = """
input: {path: p.csv}
model: {path: model}
steps: {policy: policies/one}
quality: [{scorer: aesthetic, path: clip, head: clip/head.safetensors}, {scorer: fidelity, name: same}]
output: {path: out}
train: {table: table}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two working directories; in the first one."""
    for name in ("monday/model", "monday/clip", "tuesday"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "monday")
    return tmp_path


@pytest.mark.parametrize("spelling", ["p.csv", "./p.csv", "../monday/p.csv", "sub/../p.csv", "p.csv/", "{here}/p.csv"])
def test_spellings_of_one_place(spelling: str, folder: Path) -> None:
    assert place(spelling.format(here=folder / "monday")) == str(folder / "monday" / "p.csv")


@pytest.mark.parametrize(
    ("path", "may_be_hub"),
    [
        ("s3://bucket/p.csv", False),
        ("https://host/p.csv", False),
        ("hf://datasets/x/y", False),
        ("org/model", True),
        (None, False),
    ],
)
def test_what_is_no_local_path_stays(path: str | None, may_be_hub: bool, folder: Path) -> None:
    assert place(path, may_be_hub) == path


def test_a_home_is_a_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert place("~/p.csv") == str(folder / "p.csv")


def test_what_is_written_down_is_found_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = placed(read_job(JOB, "job.yaml").config)
    monkeypatch.chdir(folder / "tuesday")
    again = read_job(config.dump(), "job.yaml").config
    monday = folder / "monday"
    assert (again.input.path, again.output.path) == (str(monday / "p.csv"), str(monday / "out"))
    assert (again.model.path, again.steps.policy) == (str(monday / "model"), str(monday / "policies/one"))
    assert (again.quality[0].path, again.quality[0].head) == (
        str(monday / "clip"),
        str(monday / "clip/head.safetensors"),
    )
    assert (again.quality[1].path, again.train.table) == (None, str(monday / "table"))
    assert placed(again) == again


@pytest.mark.parametrize("spelling", ["./model", "{here}/model", "../monday/model"])
def test_one_place_is_no_change_of_the_job(spelling: str, folder: Path) -> None:
    before = placed_fingerprint(read_job(JOB, "job.yaml").config.fingerprint())
    other = JOB.replace("path: model", f"path: {spelling.format(here=folder / 'monday')}")
    assert changed_picture_keys(before, placed_fingerprint(read_job(other, "job.yaml").config.fingerprint())) == {}


def test_a_plan_of_an_earlier_version_has_the_places_of_today(folder: Path) -> None:
    config = read_job(JOB, "job.yaml").config
    assert (
        changed_picture_keys(placed_fingerprint(config.fingerprint()), placed_fingerprint(placed(config).fingerprint()))
        == {}
    )


def test_what_lies_in_the_project_is_one_place_in_each_copy_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"steps.policy": "training/scenes/policy", "model.path": "training/scenes/model"}
    monkeypatch.chdir(ROOT)
    assert placed_fingerprint(found) == placed_fingerprint({k: str(ROOT / v) for k, v in found.items()})
    assert placed_fingerprint(found)["steps.policy"] == "training/scenes/policy"


def test_the_same_text_in_another_folder_is_another_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = placed_fingerprint(read_job(JOB, "job.yaml").config.fingerprint())
    monkeypatch.chdir(folder / "tuesday")
    (folder / "tuesday" / "model").mkdir()
    assert "model.path" in changed_picture_keys(
        before, placed_fingerprint(read_job(JOB, "job.yaml").config.fingerprint())
    )


def test_paths_that_lead_elsewhere_are_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "monday" / "job.yaml").write_text(JOB)
    load_job("job.yaml")
    load_job(str(folder / "monday" / "job.yaml"))
    assert caplog.messages == []
    monkeypatch.chdir(folder / "tuesday")
    load_job("../monday/job.yaml")
    (said,) = caplog.messages
    assert f"looked for below {folder / 'tuesday'}" in said
    assert f"input.path is {folder / 'tuesday' / 'p.csv'}" in said
    assert f"output.path is {folder / 'tuesday' / 'out'}" in said


def test_nothing_is_said_of_absolute_paths(folder: Path) -> None:
    config = read_job(f"input: {{path: {folder}/p.csv}}\noutput: {{path: s3://bucket/out}}", "../job.yaml").config
    assert elsewhere(config, "../job.yaml") is None


def test_a_moved_list_with_the_same_rows_goes_on_and_another_list_does_not() -> None:
    moved = ("/monday/p.csv", "/tuesday/p.csv")
    assert not Changes(moved=moved).is_refused
    assert not Changes(gone=3).is_refused
    other = Changes(moved=moved, gone=3)
    assert other.is_refused
    assert "the input was /monday/p.csv in out and is /tuesday/p.csv now, where 3 rows" in other.refusal("out")


def test_the_text_of_input_path_alone_refuses_nothing(folder: Path) -> None:
    """Its rows are held against the plan; every other picture key is."""
    (folder / "monday" / "p.csv").write_text("prompt\nx\n")
    job = read_job("input: {path: p.csv}\noutput: {path: out}", "job.yaml")
    run = run_folder(job)
    run.commit_plan(1, {"fingerprint": placed_fingerprint(job.config.fingerprint()), "price": None})
    moved = read_job(f"input: {{path: {folder}/q.csv}}\noutput: {{path: out}}", "job.yaml")
    settings.refuse_changed(moved, read_plan(run), placed_fingerprint(moved.config.fingerprint()))
    other = read_job("input: {path: p.csv, images_per_prompt: 2}\noutput: {path: out}", "job.yaml")
    with pytest.raises(ConfigError, match=r"input\.images_per_prompt was 1"):
        settings.refuse_changed(other, read_plan(run), placed_fingerprint(other.config.fingerprint()))
    assert json.loads(run.read("plan/0001/plan.json"))["price"] is None


def test_a_run_folder_is_one_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder(read_job("input: {path: p.csv}\noutput: {path: out}", "job.yaml"))
    run.write("a", b"1")
    monkeypatch.chdir(folder / "tuesday")
    assert run.read("a") == b"1"
    assert run.url == os.path.join(folder, "monday", "out")
