"""The reward table: what it holds, what it drops and says so, and what it refuses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tables import CHOICES, STEPS, manifest_rows, world

from pipelines.run.layout import RunFolder
from pipelines.run.schema import manifest_schema
from training.reward_table import TableError, measured_seconds, read_table, split, table_of


def test_every_cell_is_in_its_place() -> None:
    rows = manifest_rows()
    np.random.default_rng(3).shuffle(rows)  # type: ignore[arg-type]
    table = table_of(rows)
    assert table.prompt_ids == ("p0", "p1", "p2")
    assert table.prompts == ("a fox number 0", "a fox number 1", "a fox number 2")
    assert table.categories == (None, "animals", None)
    assert (table.choices, table.num_seeds, table.dropped) == (CHOICES, 2, {})
    for row in rows:
        at = int(row["prompt_id"][1:]), STEPS.index(row["num_steps"]), row["sample"]
        assert table.quality[at] == row["quality"]
        assert table.scores["truth"][at] == dict(row["scores"])["truth"]


def test_it_reads_the_manifests_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    rows = manifest_rows()
    schema = manifest_schema(pa.schema([]))
    for shard, part in (("0001-000000", rows[:10]), ("0001-000001", rows[10:])):
        run.commit_manifest(shard, pa.Table.from_pylist(part, schema=schema))
    table, direct = read_table(run.manifests()), table_of(rows)
    np.testing.assert_array_equal(table.quality, direct.quality)
    np.testing.assert_array_equal(table.seconds, direct.seconds)
    assert table.scores.keys() == direct.scores.keys()
    with pytest.raises(TableError, match="no manifest yet"):
        read_table(RunFolder(str(tmp_path / "empty")).manifests())


def test_a_prompt_with_a_failed_row_is_left_out_and_counted() -> None:
    rows = manifest_rows()
    rows[0] |= {"status": "failed", "quality": None, "lane_steps": None, "seconds": None}
    table = table_of(rows)
    assert table.prompt_ids == ("p1", "p2")
    assert table.dropped == {"failed": 1}
    with pytest.raises(TableError, match="no prompt has all its pictures"):
        table_of([row | {"status": "failed"} for row in rows])


def test_a_missing_budget_is_an_error_that_names_it() -> None:
    rows = manifest_rows()
    with pytest.raises(TableError, match=r"1 prompts lack 1 of 24 pictures \('p0' sample 0 at 4 steps\)"):
        table_of([row for at, row in enumerate(rows) if at != 1])
    with pytest.raises(TableError, match=r"2 prompts lack 8 .*, \.\.\.\)"):
        table_of([row for row in rows if row["prompt_id"] == "p0" or row["sample"] == 0])
    with pytest.raises(TableError, match="one seed"):
        table_of([row for row in rows if row["sample"] == 0])


def test_what_is_no_table() -> None:
    rows = manifest_rows()
    with pytest.raises(TableError, match="two pictures at 2 steps"):
        table_of([*rows, rows[0]])
    for error, message in (
        (None, "roll out with a quality scorer"),
        ("mine: gave nan", "the first with: mine: gave nan"),
    ):
        with pytest.raises(TableError, match=message):
            table_of([row | {"quality": None, "score_error": error} for row in rows])
    with pytest.raises(TableError, match="share their noise"):
        table_of([rows[0] | {"seed": 9}, *rows[1:]])


def test_costs_are_a_line_through_the_measured_seconds() -> None:
    rows = manifest_rows(prompts=200)
    expected = np.array([0.1 + 0.04 * k for k in STEPS])
    np.testing.assert_allclose(measured_seconds(rows, CHOICES), expected, rtol=1e-9)
    np.testing.assert_allclose(table_of(rows).costs, expected / expected[-1], rtol=1e-9)
    rng = np.random.default_rng(0)
    noisy = [row | {"seconds": row["seconds"] * rng.lognormal(0, 0.3)} for row in rows]
    seconds = measured_seconds(noisy, CHOICES)
    assert (np.diff(seconds) > 0).all()
    np.testing.assert_allclose(seconds / seconds[-1], expected / expected[-1], rtol=0.15)
    for flat in (None, 1.0):
        found = measured_seconds([row | {"seconds": flat} for row in rows], CHOICES)
        np.testing.assert_allclose(found, 2 * np.array(STEPS))


def test_another_judge() -> None:
    table = table_of(manifest_rows())
    judged = table.judged_by("truth")
    np.testing.assert_array_equal(judged.quality, table.scores["truth"])
    assert judged.fingerprint() != table.fingerprint()
    with pytest.raises(TableError, match="clip, truth"):
        table.judged_by("beauty")
    rows = manifest_rows()
    for row in rows[3:]:
        row["scores"] = [("clip", 0.5)]
    with pytest.raises(TableError, match="did not score every picture"):
        table_of(rows).judged_by("truth")


@pytest.mark.parametrize("lost", [{"quality": None}, {"quality": math.nan}, {"quality": math.inf}, {"scores": []}])
def test_a_picture_that_was_not_scored_costs_its_prompt_and_is_counted(lost: dict[str, Any]) -> None:
    rows = manifest_rows()
    table = table_of([rows[0] | lost, *rows[1:]])
    assert table.prompt_ids == ("p1", "p2")
    assert table.dropped == {"unscored": 1}


def test_a_judge_that_lacks_one_picture_costs_that_prompt() -> None:
    rows = manifest_rows()
    rows[3]["scores"] = [("clip", 0.5)]
    assert table_of(rows).judged_by("truth").prompt_ids == ("p1", "p2")


def test_a_prompt_is_held_out_by_its_text() -> None:
    table = world(400)
    train, held_out = split(table, 0.25)
    assert len(train.prompts) + len(held_out.prompts) == 400
    assert 60 < len(held_out.prompts) < 140
    assert not set(train.prompts) & set(held_out.prompts)
    again, _ = split(table.take(np.arange(400)[::-1]), 0.25)
    assert set(again.prompts) == set(train.prompts)
    with pytest.raises(TableError, match="both sides"):
        split(table.take([0]), 0.5)
