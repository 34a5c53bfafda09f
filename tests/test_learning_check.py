"""What `validate` says of the sections `train` and `evaluate`, by the key at fault; and the two verbs' own refusals."""

from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.job_file import settings
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import Job, load_job, read_job
from jobs.steps.checking import FaultCollector
from jobs.steps.training_check import check_variants, learning_checks
from pipelines.run.layout import RunFolder

JOB = "input: {path: prompts.csv}\nsteps: {selector: words}\n"
QUALITY = "quality: [{scorer: 'tests.plans:brightness', name: bright}, {scorer: fidelity}]\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("prompt\na fox\n")


def job(text: str, head: str = JOB) -> Job:
    Path("job.yaml").write_text(head + text)
    return load_job("job.yaml")


def faults(text: str, head: str = JOB) -> list[str]:
    """What is wrong with the two sections, each with its place."""
    found = job(text, head)
    checks = FaultCollector(found)
    for check, key in learning_checks(found, None):
        checks.run(check, key)
    return [str(fault) for fault in checks.faults]


def rolled_out(path: str, scorers: tuple[str, ...] = ("clip",), selector: str = "rollout") -> RunFolder:
    """As far as a plan goes: nothing is rendered yet."""
    run = RunFolder(path)
    quality = [{"scorer": name, "name": None} for name in scorers]
    run.commit_plan(1, {"selector": selector, "fingerprint": {"quality": quality, "rollout": selector == "rollout"}})
    return run


def test_sections_that_are_not_there_are_not_looked_at() -> None:
    assert faults(QUALITY) == []
    assert faults(f"{QUALITY}train: {{quality: {{bright: 1, fidelity: 0.2}}}}\nevaluate: {{judge: fidelity}}\n") == []


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (
            "train: {quality: {brigth: 1}}",
            "4:27",
            "no scorer is named 'brigth', there are bright, fidelity; did you mean bright?",
        ),
        ("evaluate: {judge: clip}", "4:19", "evaluate.judge: no scorer is named 'clip', there are bright, fidelity"),
        ("train: {table: nowhere}", "4:16", "nowhere holds no rollout yet: roll it out first"),
        ("train: {table: plain}", "4:16", "plain is no rollout"),
        ("evaluate: {table: nowhere}", "4:19", "nowhere holds no rollout yet"),
        ("train: {table: begun}", "4:16", "the run has no manifest yet"),
        ("train: {table: begun, quality: {bright: 1}}", "4:41", "no scorer is named 'bright', there are clip"),
        ("train: {path: prompts.csv/policy}", "4:15", "a part of the path is a file"),
        ("train: {table: 's3://'}", "4:16", ""),
        ("evaluate: {table: 'gs://bucket/table'}", "4:19", "gs:// needs the package gcsfs"),
    ],
)
def test_each_fault_is_one_line_at_its_key(text: str, place: str, words: str) -> None:
    rolled_out("begun")
    rolled_out("plain", selector="words")
    found = faults(f"{QUALITY}{text}\n")
    assert found[0].startswith(f"job.yaml:{place}: ")
    assert any(words in fault for fault in found), found
    assert all("\n" not in fault for fault in found)


def test_without_quality_no_scorer_is_known() -> None:
    (fault,) = faults("train: {quality: {clip: 1}}\n")
    assert "there are none: quality is empty" in fault


@pytest.mark.parametrize(
    ("variants", "key", "words"),
    [
        (
            "[{solver: ddim, guidance_scale: 3}, {solver: ddim, guidance_scale: 3}]",
            "evaluate.variants.1",
            "is there already",
        ),
        ("[{solver: dpmpp_2m, guidance_scale: 3}]", "steps.choices", "dpmpp_2m with trailing has no grid of 61 steps"),
    ],
)
def test_variants_that_cannot_be_rendered(variants: str, key: str, words: str) -> None:
    text = JOB.replace("words", "words, choices: [5, 61]") if key == "steps.choices" else JOB
    spacing = "sampling: {timestep_spacing: trailing}\n"
    found = read_job(f"{text}{spacing}evaluate: {{variants: {variants}}}\n", "j.yaml")
    with pytest.raises(ConfigError, match=words) as caught:
        check_variants(found, settings.read_checkpoint(found))
    assert caught.value.faults[0].message.startswith(key)


def test_a_policy_to_be_judged_that_is_not_there() -> None:
    (fault,) = faults("evaluate: {}\n", JOB.replace("words", "words, policy: none"))
    assert fault.startswith("job.yaml:2:34: ")
    assert "no policy there" in fault


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no rollout yet"),
        ("train: {table: begun}\n", "begun: the run has no manifest yet: render the rollout first"),
        ("train: {table: torn}\n", "plan.json cannot be read"),
        ("train: {table: damaged}\n", "manifest/0001-000000.parquet cannot be read"),
        ("train: {table: 'hf://datasets/a/b'}\n", "hf://"),
    ],
)
def test_the_verbs_refuse_in_one_line(verb: str, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    job(text)
    rolled_out("begun")
    RunFolder("torn").write("plan/0001/plan.json", b"{torn")
    rolled_out("damaged").write("manifest/0001-000000.parquet", b"PAR1")
    assert main([verb, "job.yaml"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.ray
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {workers: 99}\n", "train.workers: 99 workers take a CPU each, and this machine has 4"),
        ("train: {gpu: true}\n", "train.gpu: 1 workers take a GPU each, and this machine has 0"),
    ],
)
def test_workers_that_would_wait_for_ever(
    ray_cluster, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job(f"{QUALITY}{text}")
    assert main(["validate", "job.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: job.yaml:4:")
    assert words in err
