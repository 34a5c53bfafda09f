"""Rows that changed, were mended or are gone since they were planned: refused, kept, planned again, told."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from jobs.job_file.positions import ConfigError
from jobs.job_file.read import read_job
from jobs.steps.checking import certain_exit, read_earlier, refuse_inside_input
from pipelines.cluster.pools import PoolSpec
from pipelines.files.readers import InputError
from pipelines.plan.earlier import Changes, KnownRows, _newest, earlier_rows, known_rows
from pipelines.plan.make import PlanConfig, make_plan
from pipelines.prompts.canonical_rows import RowDefaults, Rules, content_hashes, id_key, read_raw
from pipelines.prompts.inspection import PromptSource
from pipelines.prompts.two_passes import inspect
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from tests.test_plan import FakeConfig, WordSelector

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
cloudpickle.register_pickle_by_value(sys.modules[WordSelector.__module__])
DEFAULTS = RowDefaults(guidance_scale=7.5, width=64, height=64, allowed_steps=frozenset(range(1, 101)))
ROWS = [
    {"id": "a", "prompt": "a cat", "seed": 1},
    {"id": "b", "prompt": "", "seed": 2},
    {"id": "c", "prompt": "a dog", "num_inference_steps": 5},
    {"id": "d", "prompt": "a bird", "seed": -1},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(path: Path, **changes: Any) -> PlanConfig:
    source = PromptSource(str(path), defaults=DEFAULTS, **changes.pop("source", {}))
    given = {"selector": FakeConfig(), "pools": (PoolSpec("p"),), "selector_class": WordSelector}
    return PlanConfig(source, **(given | changes))


def changed(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [row | fields if index == number else row for index, row in enumerate(ROWS)]


def planned(run: RunFolder, generation: int) -> dict[str, dict[str, Any]]:
    rows = [
        row
        for entry in run.shard_index(generation).to_pylist()
        for row in run.read_shard(entry["part"], entry["row_group"]).to_pylist()
    ]
    return {row["id"]: row for row in rows}


# ---- the hash


def hash_of(**fields: Any) -> int:
    given = read_raw({name: [value] for name, value in fields.items()}, 1, Rules(DEFAULTS, 1))
    return content_hashes(given)[0]


def test_the_hash_is_of_what_decides_the_picture() -> None:
    row = {"prompt": "a cat", "negative_prompt": "x", "seed": 1, "guidance_scale": 7, "width": 64, "height": 64}
    row |= {"num_inference_steps": 5}
    variants = [{name: None} for name in row] + [
        {"prompt": "a cat "}, {"negative_prompt": ""}, {"seed": 2}, {"guidance_scale": 7.5}, {"num_inference_steps": 6},
        {"prompt": "a cax", "negative_prompt": "t"}, {"width": 128}, {"height": 128},
    ]  # fmt: skip
    hashes = [hash_of(**row), *(hash_of(**(row | variant)) for variant in variants)]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= each < 2**63 for each in hashes)
    same = {"category": "z", "seed": "1", "guidance_scale": 7.0, "width": "64.0", "id": "other"}
    assert hash_of(**(row | same)) == hashes[0]


def test_known_rows_are_the_newest_of_each_id() -> None:
    keys = np.array([id_key(name) for name in ("a", "b", "a", "c", "b", "a")], "S16")
    found = _newest(keys, np.array([3, 4, 6, 8, 10, 12], np.uint64))
    assert len(found) == 3
    known, states = found.look_up(np.array([id_key(name) for name in ("a", "b", "c", "d")], "S16"))
    assert (known.tolist(), states[:3].tolist()) == ([True, True, True, False], [12, 10, 8])
    empty = KnownRows(np.empty(0, "S16"), np.empty(0, np.uint64))
    assert empty.look_up(keys)[0].tolist() == [False] * 6


def test_known_rows_take_24_bytes_each() -> None:
    found = _newest(np.array([id_key(str(n)) for n in range(1000)], "S16"), np.zeros(1000, np.uint64))
    assert found.keys.nbytes + found.states.nbytes == 24 * 1000


# ---- on Ray


@pytest.mark.ray
@pytest.mark.parametrize(
    ("number", "fields"),
    [
        (0, {"prompt": "a red cat"}),
        (0, {"seed": 9}),
        (0, {"seed": None}),
        (0, {"negative_prompt": "dark"}),
        (0, {"guidance_scale": 3}),
        (0, {"width": 128}),
        (0, {"prompt": ""}),
        (2, {"num_inference_steps": 10}),
        (2, {"num_inference_steps": "abc"}),
    ],
)
def test_a_changed_row_is_refused_with_its_id(
    ray_cluster: Any, tmp_path: Path, number: int, fields: dict[str, Any]
) -> None:
    made = config(write(tmp_path / "a.jsonl", ROWS))
    run = RunFolder(str(tmp_path / "run"))
    make_plan(read_plan(run), made)
    before = sorted(run.walk())
    write(tmp_path / "a.jsonl", [*changed(number, **fields), {"id": "new", "prompt": "new"}])
    wanted = (
        rf"1 row changed \('{ROWS[number]['id']}'\) since they were planned in .*/run, .*new output.path.*changed: keep"
    )
    with pytest.raises(InputError, match=wanted):
        make_plan(read_plan(run), made)
    assert sorted(run.walk()) == before


@pytest.mark.ray
def test_changed_rows_can_keep_their_pictures(ray_cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"id": f"r{n}", "prompt": f"p {n}"} for n in range(40)])
    made = config(file, source={"images_per_prompt": 2})
    run = RunFolder(str(tmp_path / "run"))
    make_plan(read_plan(run), made)
    write(file, [{"id": f"r{n}", "prompt": f"q {n}" if n < 12 else f"p {n}"} for n in range(41)])
    with pytest.raises(InputError, match=r"24 rows changed \('r0-0', 'r0-1', 'r1-0', 'r1-1', 'r2-0', \.\.\.\)"):
        make_plan(read_plan(run), made)
    kept = make_plan(read_plan(run), replace(made, keep_changed=True))
    assert (kept.generation, kept.rows) == (2, 2)
    plan = run.read_plan(2)
    assert (plan["changed_rows"], plan["replaced_rows"]) == (24, 0)
    assert plan["notes"] == list(kept.notes)
    assert "24 rows changed" in plan["notes"][0]
    assert "their old pictures stay" in plan["notes"][0]
    assert planned(run, 1)["r0-0"]["prompt"] == "p 0"
    with pytest.raises(InputError, match="24 rows changed"):  # the same files, without keep
        make_plan(read_plan(run), made)


@pytest.mark.ray
def test_what_does_not_decide_the_picture_may_change(ray_cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    run = RunFolder(str(tmp_path / "run"))
    make_plan(read_plan(run), config(file))
    write(file, [row | {"category": "x", "sku": 1} for row in reversed(ROWS)])
    again = make_plan(read_plan(run), config(file))
    assert (again.generation, again.notes) == (None, ())
    write(file, changed(0, seed="1"))
    assert make_plan(read_plan(run), config(file)).generation is None


@pytest.mark.ray
def test_a_mended_row_is_planned_again_once(ray_cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    run = RunFolder(str(tmp_path / "run"))
    assert make_plan(read_plan(run), config(file)).failed_rows == 2
    write(file, changed(1, prompt="a fox"))
    second = make_plan(read_plan(run), config(file))
    assert (second.generation, second.rows, second.failed_rows) == (2, 1, 0)
    assert "1 row that could not be rendered is good now: planned again" in second.notes
    assert (planned(run, 2)["b"]["prompt"], planned(run, 2)["b"]["replaces"]) == ("a fox", True)
    assert run.read_plan(2)["replaced_rows"] == 1
    assert make_plan(read_plan(run), config(file)).generation is None
    write(file, [*changed(1, prompt="a fox")[:3], ROWS[3] | {"seed": 4}, {"id": "e", "prompt": "new"}])
    assert make_plan(read_plan(run), config(file)).rows == 2
    assert read_plan(run).replaced_ids == {"b": 2, "d": 3}
    assert [planned(run, 3)[name]["replaces"] for name in ("d", "e")] == [True, False]
    write(file, [*changed(1, prompt="a wolf")[:3], ROWS[3] | {"seed": 4}, {"id": "e", "prompt": "new"}])
    with pytest.raises(InputError, match=r"1 row changed \('b'\)"):  # now it has a picture
        make_plan(read_plan(run), config(file))


@pytest.mark.ray
@pytest.mark.parametrize("fields", [{"prompt": " "}, {"seed": -5}, {"width": 3}, {"num_inference_steps": "x"}])
def test_a_bad_row_that_is_still_bad_stays_as_it_is(ray_cluster: Any, tmp_path: Path, fields: dict[str, Any]) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    run = RunFolder(str(tmp_path / "run"))
    make_plan(read_plan(run), config(file))
    write(file, changed(1, prompt="mended?") if "prompt" not in fields else ROWS)
    write(file, changed(1, **({"prompt": "x"} | fields)))
    again = make_plan(read_plan(run), config(file))
    assert (again.generation, again.notes) == (None, ())


@pytest.mark.ray
def test_rows_without_ids_are_mended_by_their_content(ray_cluster: Any, tmp_path: Path) -> None:
    """Steps are no part of a derived id, so that a pin can be mended; an edited prompt is a new row, which is told."""
    file = write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b", "num_inference_steps": "abc"}])
    run = RunFolder(str(tmp_path / "run"))
    assert make_plan(read_plan(run), config(file)).failed_rows == 1
    write(file, [{"prompt": "a"}, {"prompt": "b", "num_inference_steps": 7}])
    assert (make_plan(read_plan(run), config(file)).rows, run.read_plan(2)["replaced_rows"]) == (1, 1)
    write(file, [{"prompt": "a!"}, {"prompt": "b", "num_inference_steps": 7}])
    third = make_plan(read_plan(run), config(file))
    assert third.rows == 1
    assert any("1 row of earlier plans is no longer in the input" in note for note in third.notes)
    assert make_plan(read_plan(run), config(file, source={"limit": 1})).notes == ()


@pytest.mark.ray
def test_a_row_that_no_pool_served_waits_for_one_that_does(ray_cluster: Any, tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl", [{"id": "a", "prompt": "a"}, {"id": "b", "prompt": "b", "num_inference_steps": 7}]
    )
    run = RunFolder(str(tmp_path / "run"))
    narrow = config(file, pools=(PoolSpec("p", (5, 10, 20)),))
    assert make_plan(read_plan(run), narrow).failed_rows == 1
    assert make_plan(read_plan(run), narrow).generation is None
    wide = make_plan(read_plan(run), config(file))
    assert (wide.rows, wide.failed_rows, read_plan(run).replaced_ids) == (1, 0, {"b": 2})


@pytest.mark.ray
def test_a_limit_compares_what_it_reads(ray_cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    run = RunFolder(str(tmp_path / "run"))
    make_plan(read_plan(run), config(file))
    write(file, changed(2, prompt="a wolf"))
    assert make_plan(read_plan(run), config(file, source={"limit": 2})).notes == ()
    with pytest.raises(InputError, match=r"\('c'\)"):
        make_plan(read_plan(run), config(file))


@pytest.mark.ray
def test_changed_rows_of_a_rollout(ray_cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    run = RunFolder(str(tmp_path / "run"))
    made = config(file, rollout=True)
    assert make_plan(read_plan(run), made).rows == 4 * 3
    write(file, changed(1, prompt="a fox"))
    assert (make_plan(read_plan(run), made).rows, run.read_plan(2)["replaced_rows"]) == (3, 3)
    assert read_plan(run).replaced_ids == dict.fromkeys(("b-steps5", "b-steps10", "b-steps20"), 2)
    write(file, [*changed(0, prompt="a wolf")[:1], *changed(1, prompt="a fox")[1:]])
    with pytest.raises(InputError, match=r"1 row changed \('a'\)"):
        make_plan(read_plan(run), made)


def as_earlier_versions_wrote(run: RunFolder) -> None:
    """The first generation without what this version adds."""
    plan = run.read_plan(1)
    for key in plan["parts"]:
        file = pq.ParquetFile(pa.BufferReader(run.read(key)))
        groups = [file.read_row_group(group) for group in range(file.num_row_groups)]
        sink = pa.BufferOutputStream()
        kept = groups[0].drop_columns(["content_hash", "replaces"]).schema
        with pq.ParquetWriter(sink, kept) as writer:
            for group in groups:
                writer.write_table(group.select(kept.names))
        run.write(key, sink.getvalue().to_pybytes())
    old = {name: value for name, value in plan.items() if name not in ("changed_rows", "replaced_rows")}
    run.write("plan/0001/plan.json", json.dumps(old).encode())


@pytest.mark.ray
def test_plans_of_earlier_versions_are_told_of_and_go_on(ray_cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    run = RunFolder(str(tmp_path / "run"))
    make_plan(read_plan(run), config(file))
    as_earlier_versions_wrote(run)
    assert make_plan(read_plan(run), config(file)).notes == ()  # the files are the same
    write(file, [*changed(0, prompt="a red cat")[:1], ROWS[1] | {"prompt": "mended"}, *ROWS[2:]])
    again = make_plan(read_plan(run), config(file))
    assert (again.rows, read_plan(run).replaced_ids) == (1, {"b": 2})
    assert "2 rows were planned by an earlier version, which kept no hash of them" in "\n".join(again.notes)
    assert len(known_rows(read_plan(run))) == 4


@pytest.mark.ray
def test_another_place_under_one_relative_path_is_told(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        write(tmp_path / day / "p.jsonl", [{"id": day, "prompt": "x"}])
        monkeypatch.chdir(tmp_path / day)
        made = make_plan(read_plan(run), config(Path("p.jsonl")))
    assert (
        f"this run was planned from {tmp_path}/monday/p.jsonl, and is planned from another place now" in made.notes[0]
    )
    assert run.read_plan(2)["input_place"] == f"{tmp_path}/tuesday/p.jsonl"


@pytest.mark.ray
def test_no_second_look_where_the_files_are_the_same(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    run = RunFolder(str(tmp_path / "run"))
    make_plan(read_plan(run), config(file))
    found = inspect(config(file).source)
    monkeypatch.setattr("pipelines.plan.earlier.rows", lambda *given, **more: pytest.fail("a pass over the input"))
    assert earlier_rows(read_plan(run), found).changes == Changes(seen=len(ROWS))


# ---- in the job


@pytest.mark.ray
def test_the_job_file_decides_what_becomes_of_changed_rows(ray_cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    run = RunFolder(str(tmp_path / "run"))
    make_plan(read_plan(run), config(file))
    write(file, changed(0, prompt="a wolf"))
    found = inspect(config(file).source)
    text = f"input: {{path: {file}}}\noutput: {{path: {run.url}}}\n"
    with pytest.raises(ConfigError, match=r"^job\.yaml:1:15: 1 row changed \('a'\)"):
        read_earlier(read_job(text, "job.yaml"), read_plan(run), found)
    assert read_earlier(read_job(text, "job.yaml", ["input.changed=keep"]), read_plan(run), found).changes.changed == 1
    with pytest.raises(ConfigError, match="did you mean keep"):
        read_job(text, "job.yaml", ["input.changed=keeep"])
    assert certain_exit(read_job(text, "job.yaml"), found, 0) == 3
    assert certain_exit(read_job(text, "job.yaml", ["failures.max_fraction=0.5"]), found, 0) is None
    assert certain_exit(read_job(text, "job.yaml", ["failures.max_fraction=0.25"]), found, 100) is None


@pytest.mark.ray
def test_a_run_among_its_prompts_is_refused_at_first_and_goes_on_later(ray_cluster: Any, tmp_path: Path) -> None:
    home = tmp_path / "project"
    home.mkdir()
    write(home / "a.jsonl", ROWS)
    run = RunFolder(str(home / "renders"))
    job = read_job(f"input: {{path: {home}}}\noutput: {{path: {run.url}}}\n", "job.yaml")
    with pytest.raises(ConfigError, match=r"^job\.yaml:2:16: output\.path .* lies inside input\.path"):
        refuse_inside_input(job, run)
    run.write_job("an earlier version's")
    make_plan(read_plan(run), config(home))
    refuse_inside_input(job, run)
    write(home / "b.jsonl", [{"id": "e", "prompt": "new"}])
    again = make_plan(read_plan(run), config(home))
    assert again.rows == 1
    assert again.notes == (f"{home}: not read: 1 run folder of earlier jobs (renders/)",)
