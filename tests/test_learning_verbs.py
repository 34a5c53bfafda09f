"""rollout, train, evaluate and pilot as a user types them, on the embedded model: from prompts to a verdict."""

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest
import yaml
from tables import world

from jobs.__main__ import main
from jobs.job_file.read import load_job, read_job
from jobs.steps.training_settings import hyperparameters_of
from training.scenes.captions import write

ROOT = Path(__file__).parent.parent
JOB = """\
model: {device: cpu}
input: {path: prompts.csv}
steps: {choices: [2, 4, 8]}
sampling: {guidance_scale: 1.5}
quality:
  - {scorer: clip, path: SCORER}
  - {scorer: "training.scenes.checker:agreement", name: truth, weight: 0}
output: {path: runs/table, layout: none}
train: {width: 32, epochs: 3, batch_size: 16, held_out: 0.2}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "prompts.csv", 60, 3, for_judging=False)
    (tmp_path / "table.yaml").write_text(JOB.replace("SCORER", str(ROOT / "training/scenes/scorer")))


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "here")
def test_from_a_rollout_to_a_verdict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = outcome(capsys, "rollout", "table.yaml")
    assert (done["rows"], done["ok"]) == (360, 360)
    assert "judged by truth" in Path("runs/table/curve.txt").read_text()

    card = outcome(capsys, "train", "table.yaml")
    assert card["choices"] == [2, 4, 8]
    costs = [point["mean_cost"] for point in card["calibration"]]
    assert costs == sorted(costs, reverse=True)
    assert outcome(capsys, "train", "table.yaml")["version"] == card["version"]

    variants = "evaluate.variants=[{solver: dpmpp_2m, guidance_scale: 2.0}]"
    judged = outcome(capsys, "evaluate", "table.yaml", "-s", variants)
    assert list(judged["judges"]) == ["truth", "the job's own scorer"]
    truth = judged["judges"]["truth"]
    assert truth["monotone"]
    assert {"policy", "words", "cross-seed oracle", "DPM-Solver++ 2M, best guidance"} <= set(truth["rules"])
    assert set(truth["spending"]["rules"]) == {
        "policy and tries", "policy, one picture", "one bar for all", "best of n", "one recipe for all"
    }  # fmt: skip
    assert len(truth["rules"]["policy"]) == len(card["calibration"])
    page = Path(judged["report"]).read_text()
    assert escape(truth["spending"]["verdict"].splitlines()[0]) in page
    assert set(yaml.safe_load(Path("runs/table/evaluation/job-lines.yaml").read_text())) <= {"steps", "tries"}
    assert (tmp_path / "runs/table-variants/dpmpp_2m-2/manifest").is_dir()
    assert json.loads(Path("runs/table/evaluation/evaluation.json").read_text())["headline"] == "truth"
    assert main(["verify", "runs/table", "--full"]) == 0
    capsys.readouterr()

    tried = outcome(capsys, "pilot", "table.yaml", "-s", "steps.policy=runs/table/policy", "-s", "steps.choices=null",
                    "-s", "output.path=runs/spring", "--rows", "24")  # fmt: skip
    assert tried["judges"]["truth"]["prompts"] == 24
    assert tried["judges"]["truth"]["too_small"]
    assert tried["judges"]["truth"]["spending"]["seeds"] == 4
    assert not tried["judges"]["truth"]["spending"]["tuned_elsewhere"]
    bare = outcome(capsys, "pilot", "table.yaml", "-s", "steps.selector=words", "-s", "output.path=runs/bare",
                   "--rows", "20", "--seeds", "2")  # fmt: skip
    assert set(bare["judges"]["truth"]["spending"]["rules"]) == {"one bar for all", "best of n", "one recipe for all"}
    assert not Path("runs/spring").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("verb", "sets", "message"),
    [
        ("train", (), "runs/table holds no rollout yet"),
        ("evaluate", (), "runs/table holds no rollout yet"),
        ("train", ("train.width=30",), "train.width 30 is no multiple of train.heads 4"),
        ("train", ("train.samples=1",), "leave_one_out needs train.samples of 2 or more"),
        ("train", ("train.recipe=paper",), "train.recipe must be 'stepthrift' or 'adadiff'"),
        ("rollout", ("quality=[]",), "a reward table needs scorers"),
        ("pilot", ("steps.choices=null", "steps.policy=nowhere"), "nowhere: no policy there"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    verb: str, sets: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "table.yaml", *(part for value in sets for part in ("-s", value))]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_the_papers_recipe_and_what_is_given_beside_it() -> None:
    job = read_job("input: {path: x}\ntrain: {recipe: adadiff, epochs: 3}", "job.yaml")
    learning = hyperparameters_of(job.config.train, world(40))
    assert (learning.reward, learning.baseline, learning.samples, learning.learning_rate) == ("paper", "none", 1, 1e-5)
    assert learning.epochs == 3
    ours = hyperparameters_of(read_job("input: {path: x}", "job.yaml").config.train, world(40))
    assert (ours.reward, ours.baseline) == ("priced", "leave_one_out")
    assert 0 < ours.prices[0] < 1 < ours.prices[1]


@pytest.mark.usefixtures("here")
def test_training_changes_nothing_of_what_decides_a_picture() -> None:
    plain, other = (load_job("table.yaml", sets).config for sets in ((), ("train.width=64", "evaluate.share=0.5")))
    assert plain.fingerprint() == other.fingerprint()
