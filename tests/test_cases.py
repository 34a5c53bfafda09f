"""The table of cases sees what is wrong; and two of its lines, as one types them, on a real Ray."""

import json
import re
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipelines.run.layout import RunFolder
from tests.cases import CASES, CODE, NEWCOMERS, ROOT, Case, by_tests, outcomes, row, tried

JOB = "input: {path: prompts.csv}\nsteps: {selector: fixed, fixed: 2}\npools: [{name: default, lanes: 4}]\n"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text("inptu: {path: x}\n")
    return tmp_path


def test_a_case_that_is_answered_as_it_should(broken: Path) -> None:
    good = tried(Case((("validate", (2,)),), ("unknown key inptu",)), broken)
    assert (good.codes, good.wrong) == ("2", "")
    assert row("typo", good).endswith("| ok")
    assert "unknown key inptu" in row("typo", good)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case((("validate", (0, 3)),)), "exit 2, not (0, 3)"),
        (Case((("validate", (2,)),), ("nothing like this",)), "nothing says 'nothing like this'"),
        (Case((("validate", (2,)),), never=("inptu",)), "it says 'inptu'"),
        (Case((("validate", (2,)),), look=lambda folder: "the picture is black"), "the picture is black"),
        (Case((("no-such-verb", (2,)),)), "refused without a line"),
    ],
)
def test_a_case_that_is_not(case: Case, words: str, broken: Path) -> None:
    assert words in tried(case, broken).wrong
    assert "| WRONG: " in row("case", tried(case, broken))


def test_a_case_that_nobody_knows_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/new_fault.py").write_text("")
    (found,) = outcomes(tmp_path, [])
    assert found[0] == "code/new_fault.py"
    assert "no line of tests/cases.py" in found[1].wrong


def test_a_case_is_as_good_as_the_tests_that_cover_it() -> None:
    case = Case(tests=("tests/test_a.py::test_one", "tests/test_a.py::test_two"))
    passed = {test: ["passed"] for test in case.tests}
    assert by_tests(case, passed).wrong == ""
    assert by_tests(case, passed | {case.tests[1]: ["passed", "failure"]}).wrong == "not all passed: failure"
    assert by_tests(case, passed | {case.tests[1]: ["skipped"]}).wrong == "not all passed: skipped"
    assert by_tests(case, {}).wrong == "not all passed: not run"


def test_every_test_that_the_table_names_is_there() -> None:
    named = {test for case in (*CASES.values(), *CODE.values(), *NEWCOMERS.values()) for test in case.tests}
    assert named
    missing = [
        test
        for path, name in (test.split("::") for test in named)
        if not re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)
        for test in [f"{path}::{name}"]
    ]
    assert missing == []


@pytest.mark.ray
def test_validate_says_how_a_run_of_bad_rows_will_end(
    ray_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["a fox,1", ",2", "a dog,3", "a cat,x", "a cow,5", "a hen,6", "an ox,7"]
    Path("prompts.csv").write_text("\n".join(["prompt,seed", *rows]) + "\n")
    Path("job.yaml").write_text(JOB)
    assert main(["validate", "job.yaml"]) == 3
    out = capsys.readouterr().out
    assert "2 of 7 rows are bad: the run will end with exit 3" in out
    assert "prompts.csv row 2: the prompt is" in out
    assert "prompts.csv row 4: seed" in out
    assert "all is well" not in out
    assert main(["validate", "job.yaml", "-s", "failures.max_fraction=0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["bad_rows"], found["exit_code"]) == (2, None)
    assert main(["validate", "job.yaml", "-s", "failures.max_fraction=0.5"]) == 0
    out = capsys.readouterr().out
    assert "the rest is well" in out
    assert "all is well" not in out


@pytest.mark.ray
def test_a_run_ends_well_where_pictures_are_gone(
    ray_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("prompt\na fox\na dog\na cat\na hen\n")
    Path("job.yaml").write_text(f"{JOB}output: {{path: run}}\n")
    assert main(["run", "job.yaml"]) == 0
    run = RunFolder("run")
    gone, torn, folder, _ = [row["uri"] for table in run.manifests() for row in table.to_pylist()]
    run.write(torn, run.read(torn)[:50])
    run.delete([gone, folder])
    run.write(f"{folder}/x", b"x")
    capsys.readouterr()
    assert main(["run", "job.yaml"]) == 0
    captured = capsys.readouterr()
    assert "4 of 4 rows: 4 ok, 0 failed" in captured.out
    assert "Traceback" not in captured.err
    assert captured.err.count("its picture cannot be shown") == 2
    page = Path("run/report.html").read_text()
    assert page.count("no picture is there: run repair") == 3
    assert page.count("data:image/jpeg") == 1
