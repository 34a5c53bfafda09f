"""The command line: help, exit codes, one document under --json, and messages in place of tracebacks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import VERBS, main
from jobs.job_file import settings
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import Job, load_job, read_job
from jobs.job_file.storage import run_folder, storage_options
from jobs.steps import checking
from pipelines.run.plan import read_plan

ROOT = Path(__file__).parent.parent
LEARNING = ("train", "evaluate", "pilot")
MODEL = ROOT / "training/scenes/model"
has_model = pytest.mark.skipif(not MODEL.is_dir(), reason="the embedded model is not there")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text("id,prompt\na,a red circle\nb,a blue square\n")
    (tmp_path / "job.yaml").write_text("input: {path: prompts.csv}\nsteps: {selector: words}\n")


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return code, captured.err


def test_help_names_every_verb_and_the_exit_codes() -> None:
    """That it imports nothing heavy, and so answers at once, is in tests/test_house.py."""
    shown = subprocess.run(
        [sys.executable, "-m", "jobs", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(f"\n  {verb} " in shown.stdout for verb in VERBS)
    assert "130, 143" in shown.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "--debug" in shown
    assert ("--set" in shown) == (verb not in ("init", "convert", "schema"))
    assert ("--address" in shown) == (verb in ("validate", "plan", "render", "run", "rollout", "repair", *LEARNING))
    assert ("--limit" in shown) == (verb in ("demo", "validate", "plan", "render", "run", "rollout"))


def test_an_unknown_verb_is_guessed_at(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = failing(capsys, "rnder")
    assert code == 2
    assert "Did you mean 'render'?" in err


def test_init_writes_a_job_that_reads_and_never_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "spring.yaml"]) == 0
    assert "python -m jobs validate spring.yaml" in capsys.readouterr().out
    text = Path("spring.yaml").read_text()
    assert len(text.splitlines()) <= 16
    config = load_job("spring.yaml").config
    assert config.output.path == "runs/spring"
    assert (ROOT / config.input.path).name == "prompts.csv"
    assert failing(capsys, "init", "spring.yaml") == (2, "error: spring.yaml: is there already; give another name\n")
    assert Path("spring.yaml").read_text() == text
    assert failing(capsys, "init", "none/spring.yaml")[0] == 2


@pytest.mark.parametrize("verb", ["validate", "plan", "render", "run"])
def test_every_fault_of_a_job_file_is_said_before_anything_starts(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yaml").write_text("inptu: {path: x}\nsteps: {price: -1}\n")
    code, err = failing(capsys, verb, "bad.yaml", "-s", "output.format=gif")
    assert code == 2
    assert err.splitlines() == [
        "error: bad.yaml:1:1: input is missing",
        "error: bad.yaml:1:1: unknown key inptu; did you mean input?",
        "error: bad.yaml:2:16: steps.price must be 0 or more, got -1",
        "error: --set output.format=gif: output.format must be 'png', 'jpeg' or 'webp', got 'gif'",
    ]
    assert not Path("runs").exists()


def test_json_is_one_document_also_of_a_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "job.yaml", "--json", "-s", "steps.price=x"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "status": "refused",
        "errors": [{"where": "--set steps.price=x", "message": "steps.price must be a number, got 'x'"}],
    }


def test_json_is_one_document_also_of_a_wrong_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--json", "--sett", "x"]) == 2
    assert json.loads(capsys.readouterr().out)["status"] == "refused"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ConfigError):
        main(["run", "job.yaml", "--debug", "-s", "steps.price=x"])


def test_a_missing_job_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(capsys, "run", "none.yaml") == (
        2,
        "error: none.yaml: no such file; `python -m jobs init none.yaml` writes one\n",
    )


def test_a_run_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("not a folder")
    code, err = failing(capsys, "run", "job.yaml", "-s", "output.path=file/run")
    assert code == 2
    assert "file/run" in err


@pytest.mark.parametrize("break_it", ["no folder", "no index", "pickled", "other family"])
def test_a_model_that_cannot_be_rendered_with(break_it: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("model")
    if break_it != "no folder":
        folder.mkdir()
    if break_it in ("pickled", "other family"):
        kind = "StableDiffusionPipeline" if break_it == "pickled" else "FluxPipeline"
        (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        for component in ("unet", "vae", "text_encoder"):
            (folder / component).mkdir()
            (folder / component / "diffusion_pytorch_model.bin").write_bytes(b"x")
    code, err = failing(capsys, "run", "job.yaml", "-s", f"model.path={folder.resolve()}")
    assert code == 2
    assert err.startswith(f"error: --set model.path={folder.resolve()}: ")
    assert len(err.splitlines()) == 1


@has_model
def test_render_without_a_plan_names_the_verb_that_makes_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = failing(capsys, "render", "job.yaml")
    assert code == 2
    assert "python -m jobs plan job.yaml" in err


@has_model
def test_the_shipped_policy_is_for_the_embedded_model_alone(capsys: pytest.CaptureFixture[str]) -> None:
    other = str(ROOT / settings.EMBEDDED_MODEL)  # named, it may be any checkpoint
    code, err = failing(capsys, "plan", "job.yaml", "-s", "steps.selector=policy", "-s", f"model.path={other}")
    assert code == 2
    assert err.startswith("error: --set steps.selector=policy: the shipped policy reads the embedded model's text")
    assert "steps.selector: words" in err


@has_model
def test_a_changed_picture_key_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    job = load_job("job.yaml")
    run, info = run_folder(job), settings.read_checkpoint(job)
    run.commit_plan(1, {"fingerprint": settings.fingerprint(job, info), "price": None})
    settings.refuse_changed(job, read_plan(run), settings.fingerprint(job, info))
    code, err = failing(capsys, "run", "job.yaml", "-s", "sampling.guidance_scale=2", "-s", "pools.0.actors=3")
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith(
        "error: --set sampling.guidance_scale=2: sampling.guidance_scale was 7.5 in this run and is 2.0 now"
    )


@has_model
def test_other_weights_under_the_same_path_are_refused() -> None:
    job = load_job("job.yaml")
    run, info = run_folder(job), settings.read_checkpoint(job)
    run.commit_plan(1, {"fingerprint": settings.fingerprint(job, info) | {"model.weights": "others"}})
    with pytest.raises(ConfigError, match=r"model\.weights was 'others'"):
        settings.refuse_changed(job, read_plan(run), settings.fingerprint(job, info))


@has_model
def test_a_budget_without_a_time_grid_is_named() -> None:
    text = "input: {path: p}\nsteps: {selector: words, choices: [5, 61]}\nsampling: {timestep_spacing: trailing}"
    job = read_job(text, "j.yaml")
    info = settings.read_checkpoint(job)
    with pytest.raises(ConfigError, match=r"^j\.yaml:2:\d+: steps\.choices: .* no grid of 61 steps"):
        settings.prompt_source(job, info)


def full_job() -> Job:
    text = """
input: {path: p.csv, columns: {prompt: headline}, images_per_prompt: 2, limit: 9, storage: {endpoint_url: "http://in:1"}}
steps: {selector: words, choices: [5, 10], min: 5, max: 10, actors: 3}
sampling: {guidance_scale: 3, guidance_interval: [0.2, 0.8], width: 64, solver: dpmpp_2m}
pools:
  - {name: a, budgets: [5], actors: 4, num_gpus: 0.5, lanes: 8, resources: {spot: 1}}
  - {name: b, budgets: [5, 10], num_cpus: 2}
output: {path: out, layout: webdataset, format: webp}
storage: {endpoint_url: "http://all:1", region: eu, put_options: {ServerSideEncryption: AES256}}
"""
    return read_job(text, "full.yaml")


@has_model
def test_the_rooms_get_what_the_job_file_says() -> None:
    job = full_job()
    info = settings.read_checkpoint(job)
    source = settings.prompt_source(job, info)
    assert (source.path, dict(source.columns), source.images_per_prompt, source.limit) == (
        "p.csv",
        {"prompt": "headline"},
        2,
        9,
    )
    assert source.storage.endpoint_url == "http://in:1"
    defaults = source.defaults
    assert (defaults.guidance_scale, defaults.width, defaults.height) == (3, 64, info.height)
    output = storage_options(job, "output")
    assert (output.endpoint_url, output.region, dict(output.put_options)) == (
        "http://all:1",
        "eu",
        {"ServerSideEncryption": "AES256"},
    )
    config = settings.resolve(job).render
    assert (config.layout, config.image_format, config.model.path) == ("webdataset", "webp", settings.EMBEDDED_MODEL)
    assert (config.sampler.solver, config.sampler.guidance_interval) == ("dpmpp_2m", (0.2, 0.8))
    one, other = config.pools
    assert (one.budgets, one.actors, one.num_gpus, one.lanes, dict(one.resources)) == (
        (5,),
        4,
        0.5,
        8,
        {"spot": 1},
    )
    assert (other.budgets, other.actors, other.num_gpus, other.num_cpus, other.lanes) == ((5, 10), 1, None, 2, None)


@has_model
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test's may be
    code, err = failing(capsys, "plan", "job.yaml", "--address", address)
    assert code == 2
    assert err.startswith(f"error: --address {address}: no Ray cluster answers: 127.0.0.1:1: ") or "ray://" in err
    assert len(err.splitlines()) == 1


@has_model
@pytest.mark.parametrize("key", ["output.path", "model.path"])
def test_a_store_that_cannot_be_reached(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("STEPTHRIFT_STORAGE_DEADLINE_S", "1")
    at = ["-s", "storage.endpoint_url=http://127.0.0.1:1"]
    code, err = failing(capsys, "plan", "job.yaml", "-s", f"{key}=s3://bucket/x", *at)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: --set {key}=s3://bucket/x: cannot ")
    assert "http://127.0.0.1:1 cannot be reached" in err.splitlines()[-1]
    assert "hunter2" not in err


def test_an_input_store_that_cannot_be_reached_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setattr(checking, "REACH_S", 0.5)
    job = read_job('input: {path: "s3://bucket/p*.csv", storage: {endpoint_url: "http://127.0.0.1:1"}}', "j.yaml")
    with pytest.raises(ConfigError, match=r"^j\.yaml:1:15: .*127\.0\.0\.1:1 cannot be reached"):
        checking.check_reachable(job)
    checking.check_reachable(read_job("input: {path: here.csv}", "j.yaml"))


def command_line(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """A run of its own, from a folder of its own, as a user has it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "jobs", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=environment)


MENU = ["-s", "steps.choices=[2, 4]", "-s", "model.device=cpu", "-s", "sampling.guidance_scale=2"]


@pytest.mark.ray
@has_model
def test_a_run_of_its_own_prints_one_document() -> None:
    found = command_line("run", "job.yaml", "--json", "--limit", "1", *MENU)
    assert found.returncode == 0, found.stderr
    (line,) = found.stdout.splitlines()
    summary: dict[str, Any] = json.loads(line)
    contract = {"run", "status", "rows", "ok", "failed", "filtered", "mean_steps", "unet_calls", "lane_fill", "seconds"}
    assert contract | {"images_per_second"} <= set(summary)
    assert (summary["run"], summary["status"], summary["rows"], summary["ok"]) == ("runs/job", "done", 1, 1)
    assert "Traceback" not in found.stderr


@pytest.mark.ray
@has_model
@pytest.mark.usefixtures("ray_cluster", "sleeping")
def test_a_whole_job_its_growth_and_its_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(*arguments: str) -> tuple[int, str, str]:
        return main([*arguments, *MENU]), *capsys.readouterr()

    assert verb("validate", "job.yaml")[:2] == (
        0,
        "input: 2 prompts in prompts.csv, 2 images\ncolumns used: prompt, id\ncolumns carried along: none\n"
        "rows: 2 new, 0 changed, 0 bad, 0 done\nall is well: into runs/job\n",
    )
    code, out, err = verb("plan", "job.yaml", "--limit", "1")
    assert code == 0, err
    assert "runs/job: 1 rows, in 1 shards" in out
    code, out, err = verb("render", "job.yaml")
    assert code == 0, err
    assert "1 of 1 rows: 1 ok, 0 failed" in out
    code, out, err = verb("run", "job.yaml")
    assert code == 0, err
    assert "2 of 2 rows: 2 ok, 0 failed" in out
    assert "this run: 1 rows" in out

    run = tmp_path / "runs/job"
    assert sorted(path.name for path in run.glob("images/*/*/*.png")) == ["a.png", "b.png"]
    assert json.loads((run / "summary.json").read_text())["ok"] == 2
    assert "<svg" in (run / "report.html").read_text()
    assert load_job(str(run / "job.yaml")).config.output.path == str(run)

    (tmp_path / "prompts.csv").write_text("id,prompt,seed\na,a red circle,\nb,a blue square,\nc,,\nd,a ring,-4\n")
    code, out, err = verb("run", "job.yaml", "-s", "input.strict=true")
    assert (code, out) == (2, "")
    assert "--set input.strict=true: input.strict: 2 bad rows" in err
    code, out, err = verb("run", "job.yaml")
    assert code == 3, err
    assert "too many failed: 4 of 4 rows: 2 ok, 2 failed" in out
    assert "  failed c: " in out
    code, out, err = verb("run", "job.yaml", "-s", "failures.max_fraction=0.5")
    assert code == 0, err


@pytest.mark.ray
@has_model
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "none.csv"),
        ("", "prompts.csv"),
        ("id,prompt\n", "prompts.csv"),
        ("id,headline\n1,x\n", "prompt"),
        ("prompt,caption\nx,y\n", "caption"),
        ("id,prompt\n1,x\n1,y\n", "1"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused(
    content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "prompts.csv").write_text(content)
    code, err = failing(capsys, "run", "job.yaml", *([] if content is not None else ["-s", "input.path=none.csv"]))
    assert code == 2
    assert len(err.splitlines()) == 1
    assert words in err
    assert not list(tmp_path.glob("runs/job/manifest/*"))
