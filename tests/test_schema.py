"""`schema` explains every key and every column, for people; with --json for machines."""

import json

import pytest

from jobs.__main__ import main
from jobs.job_file.keys import JobConfig, leaf_kinds
from jobs.job_file.read import read_job
from jobs.steps.key_reference import reference
from jobs.steps.manifest_reference import MEANINGS
from pipelines.run.schema import MANIFEST_FIELDS

EXAMPLES = [line.split("example: ")[1] for line in reference().splitlines() if "example: " in line]
ALSO = {  # what an example cannot be without
    "steps.fixed": ("steps.selector=fixed",),
    "steps.selector": ("steps.fixed=20",),
    "tries.max": ("tries.bar=0.3", "quality=[{scorer: clip}]"),
    "tries.keep": ("output.layout=files",),
    "pools.0.budgets": ("steps.selector=words", "steps.choices=[10, 15]"),
    "train.width": ("train.heads=1",),
    "train.heads": ("train.width=300",),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_can_be_typed(example: str) -> None:
    name, _, value = example.partition("=")
    job = read_job("input: {path: p}", "j.yaml", (*ALSO.get(name, ()), example))
    assert job is not None
    assert value


def test_every_key_is_there_with_its_default_and_its_kind() -> None:
    text = reference(80)
    for name, kind in leaf_kinds().items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name}  (")] or [f"{name}: {kind})"]
        assert line.endswith(f"{kind})")
    assert max(map(len, text.splitlines())) <= 80
    assert "  steps.price  (default 0.3; price)" in text


def test_every_column_has_a_meaning() -> None:
    assert list(MEANINGS) == [field.name for field in MANIFEST_FIELDS]


def test_people_and_machines_get_the_same_keys_and_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert "steps.choices=[10, 15, 20, 30, 50]" in capsys.readouterr().out
    assert main(["schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == JobConfig.model_json_schema()
    assert main(["schema", "--manifest"]) == 0
    assert "share of the device's time that all tries took, s" in capsys.readouterr().out
    assert main(["schema", "--manifest", "--json"]) == 0
    columns = json.loads(capsys.readouterr().out)["columns"]
    assert [column["name"] for column in columns] == list(MEANINGS)
    assert columns[0] == {"name": "id", "type": "string", "meaning": MEANINGS["id"]}
