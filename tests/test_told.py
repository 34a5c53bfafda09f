"""Numbers and text that would lose their meaning on reading, and what is told of prompts and of their siblings."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.checkpoint import inspect_checkpoint
from actors.recipe import menu_of
from actors.rows import Row, SamplerConfig
from actors.sampler import DDIMSampler
from actors.selector import MOST_WORDS, SelectorConfig, StepSelector, num_words
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import read_job
from jobs.pages.totals import Totals
from pipelines.prompts.canonical_rows import RowDefaults
from pipelines.prompts.inspection import Inspection, PromptSource
from tests.checkpoints import make_checkpoint
from tests.inputs import inspected, rows_of

DEFAULTS = RowDefaults(guidance_scale=7.5, width=64, height=64, allowed_steps=frozenset(range(1, 1001)))


def looked_at(path: Path, content: str | list[dict[str, Any]] | pa.Table, **defaults: Any) -> Inspection:
    """A CSV text, JSON rows or a Parquet table, inspected."""
    if isinstance(content, pa.Table):
        file = path / "p.parquet"
        pq.write_table(content, file)
    elif isinstance(content, list):
        file = path / "p.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        file = path / "p.csv"
        file.write_text(content, "utf-8")
    source = RowDefaults(**(vars(DEFAULTS) | defaults))
    return inspected(PromptSource(str(file), defaults=source))


# numbers


@pytest.mark.parametrize(
    "seed",
    [
        "007",
        "0777",
        "00",
        "1e3",
        "1E3",
        "1.5e3",
        "0x1F",
        "0b1",
        "1_000",
        "9007199254740993.0",
        "1.5",
        "True",
        "٧",
        "１",
        "inf",
    ],
)
def test_a_seed_that_may_have_been_another_number_is_a_failed_row(seed: str, tmp_path: Path) -> None:
    found = looked_at(tmp_path, f"id,prompt,seed\ngood,a fox,42\nbad,a fox,{seed}\n")
    good, bad = rows_of(found)
    assert (good["seed"], good["error_type"]) == (42, "")
    assert bad["error_type"] == "InvalidSeed"
    assert "seed must be a whole number" in bad["error_message"]
    assert found.bad_samples == (f"{tmp_path}/p.csv row 2: {bad['error_message']}",)


@pytest.mark.parametrize(
    ("seed", "read"),
    [
        ("42", 42),
        ("42.0", 42),
        ("42.", 42),
        ("0", 0),
        ("+7", 7),
        (" 8 ", 8),
        (str(2**62), 2**62),
        (str(2**64 - 1), 2**64 - 1),
    ],
)
def test_a_seed_that_is_plain_is_read(seed: str, read: int, tmp_path: Path) -> None:
    (row,) = rows_of(looked_at(tmp_path, f"prompt,seed\na fox,{seed}\n"))
    assert (row["seed"], row["seed_pinned"], row["error_type"]) == (read, True, "")


@pytest.mark.parametrize("seed", ["", "nan", "NaN"])
def test_an_empty_cell_is_no_seed(seed: str, tmp_path: Path) -> None:
    (row,) = rows_of(looked_at(tmp_path, f"prompt,seed\na fox,{seed}\n"))
    assert (row["seed_pinned"], row["error_type"]) == (False, "")


@pytest.mark.parametrize("seed", [True, False, 1.5, 2.0**60, -1, "1e3", "007", [1], {"a": 1}, 2**64])
def test_a_seed_of_json_that_is_none_is_a_failed_row(seed: Any, tmp_path: Path) -> None:
    (row,) = rows_of(looked_at(tmp_path, [{"prompt": "a fox", "seed": seed}]))
    assert row["error_type"] == "InvalidSeed"


@pytest.mark.parametrize(
    ("kind", "largest"), [(pa.float64(), 2**53 - 1), (pa.float32(), 2**24 - 1), (pa.float16(), 2**11 - 1)]
)
def test_floats_hold_seeds_as_far_as_they_are_exact(kind: pa.DataType, largest: int, tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "b"], "seed": pa.array([float(largest), float(largest + 1)]).cast(kind)})
    good, bad = rows_of(looked_at(tmp_path, table))
    assert (good["seed"], bad["error_type"]) == (largest, "InvalidSeed")
    assert "no longer the number that was drawn" in bad["error_message"]


@pytest.mark.parametrize(("column", "value"), [("width", "0512"), ("height", "5e2"), ("num_inference_steps", "010")])
def test_other_whole_numbers_are_read_as_strictly(column: str, value: str, tmp_path: Path) -> None:
    (row,) = rows_of(looked_at(tmp_path, f"prompt,{column}\na fox,{value}\n"))
    assert row["error_type"] in ("InvalidSize", "InvalidSteps")


@pytest.mark.parametrize(("value", "read"), [("7.50", 7.5), ("1e1", 10.0), ("007.5", 7.5), (".5", 0.5), ("3", 3.0)])
def test_a_scale_is_any_decimal(value: str, read: float, tmp_path: Path) -> None:
    (row,) = rows_of(looked_at(tmp_path, f"prompt,guidance_scale\na fox,{value}\n"))
    assert (row["guidance_scale"], row["error_type"]) == (read, "")


@pytest.mark.parametrize("name", ["007", "1e3", "0x1F", "True", "NaN-1", "1.0"])
def test_an_id_is_text(name: str, tmp_path: Path) -> None:
    (row,) = rows_of(looked_at(tmp_path, f"id,prompt\n{name},a fox\n"))
    assert row["id"] == name


@pytest.mark.parametrize("value", ["010", "0o17", "1:30", "08", "1_0x"])
def test_a_number_of_the_job_file_that_looks_octal_or_like_a_time_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"steps\.fixed must be a whole number"):
        read_job(f"input: {{path: p}}\nsteps: {{selector: fixed, fixed: {value}}}", "job.yaml")


@pytest.mark.parametrize(("value", "read"), [("7.5", 7.5), ("1e1", 10.0), ("7", 7.0), (".5", 0.5), ("1.5e+0", 1.5)])
def test_plain_numbers_of_the_job_file_are_read(value: str, read: float) -> None:
    config = read_job(f"input: {{path: p}}\nsampling: {{guidance_scale: {value}}}", "job.yaml").config
    assert config.sampling.guidance_scale == read


# words


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a small red fox", 4),
        ("", 0),
        ("masterpiece,best quality,1girl", 4),
        ("a fox; a bird | a tree", 6),
        ("雪の上を走る狐", 4),
        ("雪上奔跑的红狐", 4),
        ("สุนัขจิ้งจอก", 3),
        ("눈 위를 달리는 여우", 4),
        ("2024年の夏、東京タワー", 5),
        ("ក្រហម", 2),
        ("лиса бежит по снегу", 4),
        ("狐\u3000雪", 1),
    ],
)
def test_words_of_a_prompt_in_any_script(prompt: str, words: int) -> None:
    assert num_words(prompt) == words


@pytest.mark.parametrize("prompt", ["狐" * 80, "แ" * 160, "ခ" * 160, "ຂ" * 160, "a," * 40])
def test_a_long_prompt_without_spaces_gets_the_most_steps(prompt: str) -> None:
    selector = StepSelector(SelectorConfig("words", choices=menu_of((10, 20, 30))))
    out = selector({"prompt": [prompt, "fox"], "id": ["a", "b"]})
    assert num_words(prompt) >= MOST_WORDS
    assert list(out["num_steps"]) == [30, 10]


# what is told


SYNTAX = [
    "a (red:1.3) fox",
    "a fox <lora:style:0.8>",
    "a [cat:dog:0.5]",
    "a ((red)) fox",
    "a red++ fox",
    "a fox --ar 16:9",
    "a fox BREAK snow",
    "embedding:easynegative",
    "a fox::2 snow",
    "(a red fox)1.2",
    "<lyco:x:1>",
]
INVISIBLE = ["a\u200bfox", "\ufeffa fox", "a\xadfox", "a \u202efox", "a fox\x00", "a\u2060fox"]
PLAIN = [
    "a fox (red)",
    "ratio 16:9",
    "a C++ book cover",
    "the [old] town",
    "a fox -- running",
    "👨‍👩‍👧 family",
    "a fox: red",
    "نمی‌خواهم",
]


@pytest.mark.parametrize("column", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(("texts", "kind"), [(SYNTAX, "another tool's syntax"), (INVISIBLE, "cannot be seen")])
def test_what_is_told_of_prompts_is_told_of_negative_prompts(
    texts: list[str], kind: str, column: str, tmp_path: Path
) -> None:
    for text in texts:
        found = looked_at(tmp_path, [{"prompt": "a fox"}, {"prompt": "a fox", "negative_prompt": "x"} | {column: text}])
        assert [note for note in found.notes if kind in note and f"the {column} " in note], text
        assert f"{tmp_path}/p.jsonl row 2" in " ".join(found.notes)


@pytest.mark.parametrize("text", PLAIN)
def test_plain_prompts_are_passed_over(text: str, tmp_path: Path) -> None:
    assert looked_at(tmp_path, [{"prompt": text, "negative_prompt": text}]).notes == ()


def test_remarks_are_counted_over_batches_and_files(tmp_path: Path) -> None:
    rows = [{"prompt": f"a fox {n}" + " (red:1.2)" * (n % 1000 == 7)} for n in range(9000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "a (red:1.2) bird"}))
    found = inspected(PromptSource(str(tmp_path), defaults=DEFAULTS))
    (note,) = found.notes
    assert note.startswith("10 rows: the prompt holds another tool's syntax")
    assert note.endswith(f"(first {tmp_path}/a.jsonl row 8)")
    assert inspected(PromptSource(str(tmp_path), defaults=DEFAULTS, limit=5)).notes == ()


@pytest.mark.parametrize(
    ("row", "defaults", "said"),
    [
        ({"negative_prompt": "   "}, {}, "holds nothing but spaces"),
        ({"negative_prompt": "dull", "guidance_scale": 1}, {}, "has no effect"),
        ({"negative_prompt": "dull", "guidance_scale": 0.5}, {}, "has no effect"),
        ({"negative_prompt": "dull"}, {"guidance_scale": 1.0}, "has no effect"),
        ({"negative_prompt": "dull"}, {"guidance_interval": (0.2, 0.8)}, "guidance_interval does not hold"),
    ],
)
def test_limits_of_negative_prompts_are_told(
    row: dict[str, Any], defaults: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (note,) = looked_at(tmp_path, [{"prompt": "a fox"} | row], **defaults).notes
    assert said in note


@pytest.mark.parametrize("row", [{}, {"negative_prompt": None}, {"negative_prompt": ""}, {"negative_prompt": "dull"}])
def test_an_ordinary_negative_prompt_is_passed_over(row: dict[str, Any], tmp_path: Path) -> None:
    assert looked_at(tmp_path, [{"prompt": "a fox"} | row]).notes == ()


def test_a_negative_prompt_is_as_long_as_a_prompt_may_be(tmp_path: Path) -> None:
    found = looked_at(tmp_path, [{"prompt": "a fox", "negative_prompt": "w" * 100_001}])
    assert [row["error_type"] for row in rows_of(found)] == ["InvalidNegativePrompt"]


def test_a_negative_prompt_that_is_cut_is_marked_as_a_prompt_is(tmp_path: Path) -> None:
    sampler = DDIMSampler(SamplerConfig(str(make_checkpoint("sd1", tmp_path / "sd1")), lanes=4))
    texts = [("w " * 500, "dull"), ("a fox", "w " * 500), ("w " * 500, "w " * 500), ("a fox", ""), ("a fox", None)]
    rows = [Row(str(n), prompt, negative, 1, 5.0, 16, 16, 2) for n, (prompt, negative) in enumerate(texts)]
    pictures = [future.result() for future in [sampler.submit(row) for row in rows]]
    sampler.close()
    cut = [(picture.truncated, picture.negative_truncated) for picture in pictures]
    assert cut == [(True, False), (False, True), (True, True), (False, False), (False, False)]


@pytest.mark.parametrize(
    ("component", "has"),
    [(["stable_diffusion", "StableDiffusionSafetyChecker"], True), ([None, None], False), (None, False)],
)
def test_a_safety_checker_that_is_not_run_is_known(component: Any, has: bool, tmp_path: Path) -> None:
    folder = make_checkpoint("sd1", tmp_path / "sd1")
    index = json.loads((folder / "model_index.json").read_text()) | {"safety_checker": component}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert inspect_checkpoint(str(folder)).has_safety_checker is has


def test_what_was_cut_is_counted_apart() -> None:
    columns = {"id": ["a", "b", "c"], "status": ["ok"] * 3, "num_steps": [2, 2, 2], "prompt": ["x"] * 3}
    columns |= dict.fromkeys(("category", "error_type", "error_message", "uri", "offset", "bytes"), [None] * 3)
    found = Totals()
    found.add(pa.table(columns | {"truncated": [True, None, False], "negative_truncated": [True, True, None]}))
    assert (found.truncated, found.negative_truncated) == (1, 2)
    found.add(pa.table(columns | {"truncated": [True, True, False]}))  # of an earlier version
    assert (found.truncated, found.negative_truncated) == (3, 2)


def test_a_note_is_one_line_whatever_the_file_is_called(tmp_path: Path) -> None:
    (tmp_path / "a\nb.csv").write_text('prompt\na (fox:1.3)\n""\n')
    found = inspected(PromptSource(str(tmp_path), defaults=DEFAULTS))
    assert [note for note in found.notes if "another tool's syntax" in note]
    assert found.bad_samples
    assert not [text for text in (*found.notes, *found.bad_samples) if "\n" in text]
