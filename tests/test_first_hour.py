"""What a newcomer types first is answered in words: columns, precision, menus, calibration, repairs."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.calibration import Calibration, Trial
from actors.rows import SamplerConfig
from jobs.job_file.policy import menu_of
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import read_job
from jobs.job_file.settings import prompt_source
from jobs.steps.calibrating import calibration_text
from jobs.steps.input_lines import input_figures, input_lines
from jobs.steps.repair_run import repair_text
from jobs.steps.sole_driver import followed
from pipelines.cluster.pools import PoolSpec
from pipelines.prompts.inspection import Inspection, pinned_notes
from pipelines.render.driver import Progress
from pipelines.render.pool import RenderConfig, precision_note
from pipelines.run.drivers import claim, last_record
from pipelines.run.layout import RunFolder
from pipelines.storage.checkpoints import ModelSource
from tests.inputs import inspect_here, inspected, rows_of


def lines(found: Inspection) -> list[str]:
    return input_lines("p.csv", input_figures(found, None, None))


def test_four_lines_say_what_an_input_is(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("caption,price,negativ_prompt,sku,seed\na fox,1,blurry,7,\na cat,2,,8,x\n")
    assert lines(inspect_here(file)) == [
        "input: 2 prompts in p.csv, 2 images",
        "columns used: prompt (from caption), seed",
        "columns carried along: price (as input_price), negativ_prompt (is it the negative_prompt?), sku",
        "rows: 2 new, 0 changed, 1 bad, 0 done",
    ]


def test_a_column_is_left_out_by_null(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("prompt,brand,seed,sku\na fox,b,5,7\n")
    text = f"input: {{path: {file}, columns: {{brand: null, seed: null}}}}"
    found = inspected(prompt_source(read_job(text, "j.yaml"), None))
    assert (list(found.used), found.carried_schema.names) == (["prompt"], ["sku"])
    (row,) = rows_of(found)
    assert (row["seed_pinned"], "brand" in row) == (False, False)


def test_pictures_inside_a_table_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "image": [b"\x89PNG"]}), tmp_path / "a.parquet")
    (note,) = inspect_here(tmp_path).notes
    assert note.startswith("column image holds bytes, such as pictures")
    assert "input.drop: [image]" in note
    assert inspect_here(tmp_path, drop=("image",)).notes == ()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("fp16", "float16"), ("half", "float16"), ("bf16", "bfloat16"), ("fp32", "float32"), ("torch.float16", "float16")],
)
def test_a_precision_by_its_other_name_is_guessed(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        read_job(f"input: {{path: p}}\nmodel: {{dtype: {typed}}}", "j.yaml")


@pytest.mark.parametrize(
    ("dtype", "gpus", "said"),
    [
        ("float16", [0], "pool p0 renders on CPUs in float16 (model.dtype)"),
        ("bfloat16", [0, 1], "pool p0 renders on CPUs in bfloat16 (model.dtype)"),
        ("auto", [0, 1], "pool p0 renders on CPUs in the float16 of the GPU pools"),
        ("auto", [0], None),
        ("float32", [0], None),
        ("float16", [1], None),
    ],
)
def test_half_precision_on_cpus_is_remarked(dtype: str, gpus: list[int], said: str | None) -> None:
    pools = tuple(PoolSpec(f"p{at}", num_gpus=count) for at, count in enumerate(gpus))
    note = precision_note(RenderConfig(ModelSource(""), SamplerConfig("", dtype=dtype), pools))
    assert note is None if said is None else (note or "").startswith(said)


def test_the_menu_of_the_shipped_policy_is_known_before_a_plan() -> None:
    menu = menu_of(read_job("input: {path: p}\nsteps: {min: 3}", "j.yaml"))
    assert 3 <= menu[0] < menu[-1] == 20
    assert "some rows ask for 17 steps, which are not in the menu" in pinned_notes({17}, menu)[0]


def test_calibrate_gives_the_answer_first() -> None:
    trials = (Trial(4, 0.02, 0.1), Trial(8, 0.05, 0.1))
    first, *rest = calibration_text(Calibration("place", 4, trials, 0.005, 0.1, 0.01), None).splitlines()
    assert first == "lanes: auto is 4 lanes here; 1,000 images of 20 guided steps take one actor about 5:10"
    assert rest[-1] == "for place"


def test_a_repair_counts_what_it_repaired() -> None:
    done = {"shards": 1, "rows": 1, "ok": 1, "failed": 0, "same_bytes": 1, "render_classes": []}
    document = {
        "run": "runs/x",
        "status": "repaired",
        "repaired": done,
        "orphans_deleted": 0,
        "left": {},
        "findings": [],
    }
    assert repair_text(document).splitlines()[0] == "runs/x: repaired: 1 of 1 repaired, in 1 shard"


def test_progress_is_shown_and_told_in_the_heartbeat(tmp_path: Path) -> None:
    run, shown = RunFolder(str(tmp_path / "run")), list[Progress]()
    epoch = claim(run)
    state = Progress(5, 2, 2, 0, 0, 4.0, 1.5, 2.0, None, 1)
    followed(shown.append, epoch)(state)  # type: ignore[arg-type]
    assert epoch.heartbeat()
    record = last_record(run)
    assert record is not None
    assert (shown, record["progress"]["done"], record["progress"]["total"]) == ([state], 2, 5)
