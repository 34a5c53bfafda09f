"""Scorers that users bring: whatever they do to the pictures, and whatever they give back or raise, costs no more than
the scores of the rows it is about. The stored bytes are those that were rendered.
"""

import hashlib
import io
import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from actors.rows import SamplerConfig
from actors.scorer import QualityScorer, ScorerConfig, ScorerError, ScorerSpec
from jobs.pages.totals import Totals
from jobs.steps.rendering import summary_text
from pipelines.render.attempt import BusySpan, InlineExecutor, ShardAttempt, settled
from pipelines.render.manifest_rows import manifest_table
from pipelines.render.quality import ShardScores
from pipelines.render.sink import Sink
from pipelines.run.layout import RunFolder
from pipelines.run.schema import manifest_schema, planned_row
from tests.finished import picture
from tests.plans import brightness, typed_row

Images = list[np.ndarray]
KEPT: list[np.ndarray] = []


def zero(images: Images, prompts: list[str]) -> list[float]:
    for image in images:
        image[:] = 0
    return [1.0] * len(images)


def rotate_channels(images: Images, prompts: list[str]) -> list[float]:
    for image in images:
        image[..., [0, 2]] = image[..., [2, 0]]
    return [1.0] * len(images)


def draw_over_a_view(images: Images, prompts: list[str]) -> list[float]:
    for image in images:
        image.transpose(1, 0, 2)[2:9, 2:9] = (255, 0, 0)
    return [1.0] * len(images)


def zero_as_tensors(images: Images, prompts: list[str]) -> torch.Tensor:
    for image in images:
        torch.from_numpy(image).zero_()
    return torch.ones(len(images))


def equalise_then_raise(images: Images, prompts: list[str]) -> list[float]:
    for image in images:
        np.copyto(image, 255 - image)
    raise ValueError("no model")


def empty_the_lists(images: Images, prompts: list[str]) -> list[float]:
    count = len(images)
    while images:
        images.pop().fill(7)
    prompts.clear()
    return [1.0] * count


def keep_for_later(images: Images, prompts: list[str]) -> list[float]:
    KEPT.extend(images)
    return [1.0] * len(images)


def change_what_was_kept(images: Images, prompts: list[str]) -> list[float]:
    for image in KEPT:
        image[:] = 0
    return keep_for_later(images, prompts)


def make_them_unwritable(images: Images, prompts: list[str]) -> list[float]:
    for image in images:
        image.setflags(write=False)
    return [1.0] * len(images)


VANDALS = [
    zero,
    rotate_channels,
    draw_over_a_view,
    zero_as_tensors,
    equalise_then_raise,
    empty_the_lists,
    change_what_was_kept,
    make_them_unwritable,
]


def quality_of(*functions: Callable[..., Any]) -> QualityScorer:
    specs = tuple(ScorerSpec(f"s{n}", "function", function=function) for n, function in enumerate(functions))
    return QualityScorer(ScorerConfig(specs))


def worked(
    folder: Path, writers: Executor, scorer: QualityScorer, layout: str
) -> tuple[RunFolder, list[dict[str, Any]]]:
    """One shard of a rollout through a worker's own steps: two budgets a prompt, the picture a function of the seed."""
    run, shard = RunFolder(str(folder)), "0001-000000"
    rows = [typed_row(i, id=f"p{i}-{n}", prompt_id=f"p{i}", num_steps=n) for i in range(3) for n in (2, 5)]
    sink = Sink(run, shard, run.begin_attempt(shard), layout, "png")
    work = ShardAttempt(rows, sink, SamplerConfig(""), BusySpan(), ShardScores(scorer, rows, threading.Lock()))
    made = {row.id: picture(row) for row in rows}
    return run, work.render(lambda row: settled(made[row.id]), writers, in_work=len(rows))


@pytest.mark.parametrize("layout", ["files", "webdataset"])
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("vandal", VANDALS)
def test_what_a_scorer_does_to_pictures_changes_no_stored_byte(
    vandal: Callable[..., Any], isolated: bool, layout: str, tmp_path: Path
) -> None:
    with InlineExecutor() if isolated else ThreadPoolExecutor(4) as writers:
        run, rows = worked(tmp_path / "run", writers, quality_of(vandal), layout)
    assert len(rows) == 6
    for row in rows:
        key, data = row["uri"].partition("#")[0], b""
        if row["offset"] is None:
            data = run.read(key)
        else:
            data = run.read_range(key, row["offset"], row["offset"] + row["bytes"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), picture(planned_row(row)).image)


@pytest.mark.parametrize("vandal", VANDALS)
def test_the_next_scorer_sees_the_picture_that_was_rendered(vandal: Callable[..., Any]) -> None:
    images = [np.full((16, 16, 3), value, np.uint8) for value in (10, 200)]
    scores, _ = quality_of(vandal, brightness).score(images, ["a", "bcd"])
    assert scores["s1"].tolist() == [11.0, 203.0]
    assert [int(image.max()) for image in images] == [10, 200]


def test_the_reference_of_likeness_is_what_was_rendered() -> None:
    specs = (ScorerSpec("bad", "function", function=zero), ScorerSpec("same", "fidelity"))
    image = picture(typed_row(1)).image
    scores, _ = QualityScorer(ScorerConfig(specs)).score([image.copy()], ["a"], [image])
    assert scores["same"][0] == pytest.approx(1.0, abs=1e-6)


class Strange:
    """No number."""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "gave nan"),
        (math.inf, "gave inf"),
        (-np.inf, "gave -inf"),
        (None, "gave None"),
        ("0.5", "gave 0.5 (str)"),
        (True, "gave True (bool)"),
        (np.array([1.0, 2.0]), "(ndarray)"),
        (torch.tensor([0.1, 0.2]), "(Tensor)"),
        ({"score": 1.0}, "(dict)"),
        (Strange(), "(Strange)"),
        (10**400, "(int)"),
        (1 + 2j, "(complex)"),
    ],
)
def test_a_value_that_is_no_number_costs_its_row_and_is_told(value: Any, said: str) -> None:
    scorer = quality_of(lambda images, prompts: [1.0, value, 3.0], lambda images, prompts: [1.0, 1.0, 1.0])
    out = scorer({"image": [np.zeros((4, 4, 3), np.uint8)] * 3, "prompt": ["a", "b", "c"]})
    assert list(out["quality"]) == [2.0, None, 4.0]
    assert out["scores"][1] == {"s1": 1.0}
    assert [error is None for error in out["score_error"]] == [True, False, True]
    assert out["score_error"][1].startswith("s0: gave ")
    assert said in out["score_error"][1]


@pytest.mark.parametrize(
    "given",
    [
        [1, 2],
        (np.float16(1), np.int8(2)),
        np.array([1, 2], np.float32),
        np.array([[1.0], [2.0]]),
        torch.tensor([1.0, 2.0], requires_grad=True),
        torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16),
        range(1, 3),
    ],
)
def test_numbers_in_any_container_are_scores(given: Any) -> None:
    scores, quality = quality_of(lambda images, prompts: given).score([np.zeros((4, 4, 3), np.uint8)] * 2, ["a", "b"])
    assert scores["s0"].tolist() == quality.tolist() == [1.0, 2.0]


def test_a_generator_gives_scores_too() -> None:
    scorer = quality_of(lambda images, prompts: (float(len(prompt)) for prompt in prompts))
    assert scorer.score([np.zeros((4, 4, 3), np.uint8)] * 2, ["a", "bc"])[1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("given", [[1.0], [1.0, 2.0, 3.0], 1.0, None, "ab", {"a": 1, "b": 2}, np.zeros(()), []])
def test_not_one_value_a_picture_is_refused(given: Any) -> None:
    with pytest.raises(ScorerError, match=r"scorer 's0' gave .* for 2 pictures: it must give one number each"):
        quality_of(lambda images, prompts: given).score([np.zeros((4, 4, 3), np.uint8)] * 2, ["a", "b"])


def raising(error: BaseException) -> Callable[..., list[float]]:
    def score(images: Images, prompts: list[str]) -> list[float]:
        if any("bad" in prompt for prompt in prompts):
            raise error
        return [float(len(prompt)) for prompt in prompts]

    return score


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no face found"), "s0: ValueError: no face found"),
        (KeyError("word"), "s0: KeyError: 'word'"),
        (AssertionError(), "s0: AssertionError"),
        (StopIteration(), "s0: StopIteration"),
        (RecursionError("deep"), "s0: RecursionError: deep"),
        (SystemExit(3), "s0: RuntimeError: it called exit(3)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "s0: UnicodeDecodeError"),
    ],
)
def test_a_scorer_that_raises_for_one_prompt_costs_that_row(error: BaseException, said: str) -> None:
    out = quality_of(raising(error))({"image": [np.zeros((4, 4, 3), np.uint8)] * 3, "prompt": ["a", "bad", "ccc"]})
    assert list(out["quality"]) == [1.0, None, 3.0]
    assert out["score_error"][1].startswith(said)


def test_memory_is_no_rows_fault() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        quality_of(raising(torch.OutOfMemoryError("full"))).score([np.zeros((4, 4, 3), np.uint8)] * 2, ["a", "bad"])


def test_two_scorers_that_fail_are_both_named() -> None:
    scorer = quality_of(raising(ValueError("one")), raising(KeyError("two")))
    out = scorer({"image": [np.zeros((4, 4, 3), np.uint8)], "prompt": ["bad"]})
    assert out["score_error"][0] == "s0: ValueError: one; s1: KeyError: 'two'"


def test_rows_without_a_score_reach_the_manifest_and_the_summary(tmp_path: Path) -> None:
    def picky(images: Images, prompts: list[str]) -> list[float]:
        return [math.nan if prompt.endswith("1") else 2.0 for prompt in prompts]

    with ThreadPoolExecutor(4) as writers:
        _, rows = worked(tmp_path / "run", writers, quality_of(picky), "files")
    table = manifest_table(rows, manifest_schema(pa.schema([])))
    assert [row["quality"] for row in table.to_pylist()] == [2.0, 2.0, None, None, 2.0, 2.0]
    found = Totals()
    found.add(table)
    assert (found.rows, found.status["ok"], found.unscored) == (6, 6, 2)
    said = summary_text(
        dict.fromkeys(("mean_steps", "rendered_now", "truncated", "negative_truncated"))
        | {"status": "done", "rows": 6, "planned": 6, "ok": 6, "failed": 0, "filtered": 0, "failures": [], "run": "r"}
        | {"unscored": found.unscored, "score_errors": found.score_errors}
    )
    assert "2 rows were not scored by every scorer" in said
    assert "p1-2: s0: gave nan" in said


def test_a_scorer_leaves_streams_and_folder_as_they_are_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative run folder is a place, whatever working directory user code leaves behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()

    def wander(images: Images, prompts: list[str]) -> list[float]:
        monkeypatch.chdir(tmp_path / "other")
        monkeypatch.setattr(sys, "stdout", None)
        return [1.0] * len(images)

    _, rows = worked(Path("run"), InlineExecutor(), quality_of(wander), "files")  # type: ignore[arg-type]
    assert all((tmp_path / "run" / row["uri"]).is_file() for row in rows)
