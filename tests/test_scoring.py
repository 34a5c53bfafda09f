"""Scores of a shard's pictures: whole groups, whatever the order and the thread."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from actors.rows import SamplerConfig
from pipelines.render.driver import render
from pipelines.render.manifest_rows import with_scores
from pipelines.render.pool import RenderConfig
from pipelines.render.quality import Scored, ScorerSource, ShardScores, load_scorer
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.checkpoints import ModelSource
from tests.plans import brightness, planned_row, typed_row, write_plan
from training.reward_table import scores_of


class Recorder:
    """Stands for a QualityScorer: notes what it was given."""

    def __init__(self) -> None:
        self.batches: list[dict] = []

    def __call__(self, batch):
        self.batches.append(batch)
        values = [float(image[0, 0, 0]) for image in batch["image"]]
        return {
            "scores": [{"a": v} for v in values],
            "quality": [2 * v for v in values],
            "score_error": [None] * len(values),
        }


def image(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


def rollout_rows(prompts: int = 3, budgets=(2, 5, 9), make=typed_row):
    return [
        make(i, id=f"p{p}-{steps}", prompt_id=f"p{p}", num_steps=steps)
        for i, (p, steps) in enumerate((p, steps) for p in range(prompts) for steps in budgets)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_scored_once_whole_with_its_largest_budget_as_reference(seed):
    rows, recorder = rollout_rows(), Recorder()
    scores = ShardScores(recorder, rows, threading.Lock())
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: scores.add(row, image(row.num_steps)), shuffled))
    assert {id: s.quality for id, s in scores.found.items()} == {r.id: 2.0 * r.num_steps for r in rows}
    assert sorted(len(batch["image"]) for batch in recorder.batches) == [3, 3, 3]
    assert all(reference[0, 0, 0] == 9 for batch in recorder.batches for reference in batch["reference"])


def test_a_row_that_failed_has_no_scores_and_holds_nobody_up():
    rows, recorder = rollout_rows(1), Recorder()
    scores = ShardScores(recorder, rows, threading.Lock())
    for row in rows:
        scores.add(row, None if row.num_steps == 9 else image(row.num_steps))
    assert sorted(scores.found) == ["p0-2", "p0-5"]
    assert recorder.batches[0]["reference"] == [None, None]


def test_bad_rows_are_not_waited_for():
    rows, recorder = rollout_rows(1), Recorder()
    rows[1] = replace(rows[1], error_type="InvalidPrompt", num_steps=None)
    scores = ShardScores(recorder, rows, threading.Lock())
    scores.add(rows[0], image(2))
    scores.add(rows[2], image(9))
    assert sorted(scores.found) == ["p0-2", "p0-9"]


def test_a_row_of_its_own_has_no_reference():
    row, recorder = typed_row(1), Recorder()
    ShardScores(recorder, [row], threading.Lock()).add(row, image(3))
    assert recorder.batches[0]["reference"] == [None]


def test_scores_reach_the_manifest_row():
    row = {"id": "a", "tries": [{"seed": 1, "num_steps": 2, "scores": []}], "scores": [], "quality": None}
    scored = with_scores(row, Scored({"clip": 0.5}, 0.25))
    assert (scored["scores"], scored["quality"]) == ([{"scorer": "clip", "score": 0.5}], 0.25)
    assert scored["tries"][0]["scores"] == scored["scores"]
    assert with_scores(row, None) == row


def test_scorers_are_loaded_from_where_they_lie():
    scorer = load_scorer([ScorerSource("bright", "function", 2.0, function=brightness)], "cpu")
    scores, quality = scorer.score([image(10)], ["fox"])
    assert (scores["bright"][0], quality[0]) == (13.0, 26.0)


@pytest.mark.ray
def test_a_job_with_scorers_writes_them_down(ray_cluster, sleeping, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, rollout_rows(4, make=planned_row), 6)
    scorers = (
        ScorerSource("bright", "function", 2.0, function=brightness),
        ScorerSource("same", "fidelity", 0.0),
    )
    settings = RenderConfig(ModelSource(""), SamplerConfig("", device="cpu"), layout="none", scorers=scorers)
    render(read_plan(run), settings)
    rows = [row for table in run.manifests() for row in table.to_pylist()]
    assert len(rows) == 12
    for row in rows:
        scores = scores_of(row["scores"])
        assert row["quality"] == pytest.approx(2 * scores["bright"])
        assert row["uri"] is None
        if row["num_steps"] == 9:
            assert scores["same"] == pytest.approx(1.0, abs=1e-6)
        else:
            assert scores["same"] < 1
