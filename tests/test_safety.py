"""Pictures that must not be delivered: what becomes of their rows, their tries and their bytes."""

import io
import json
import math
import tarfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.rows import Picture, Row, SamplerConfig
from actors.tries import try_seed
from jobs.__main__ import main
from jobs.job_file.keys import JobConfig
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import read_job
from jobs.job_file.scorers import check_scorers, safety_rule
from jobs.job_file.settings import fingerprint, read_checkpoint
from pipelines.integrity.repair_orders import RepairPlanner
from pipelines.integrity.verification import verify
from pipelines.render.attempt import BusySpan, InlineExecutor, ShardAttempt, engine_row, settled
from pipelines.render.isolation import SILENCE_S, IsolatedRows
from pipelines.render.keys import tries_rules
from pipelines.render.ledger import FailureLimit, Ledger
from pipelines.render.manifest_rows import manifest_table, outcome_counts
from pipelines.render.quality import ScorerSource, ScoringTurns, ShardScores, load_scorer
from pipelines.render.repaired_shard import RepairOrder
from pipelines.render.safety import SafetyCheck, SafetyRule
from pipelines.render.sink import Sink
from pipelines.render.tries import TryRules
from pipelines.run.layout import RunFolder, named_objects
from pipelines.run.plan import read_plan
from pipelines.run.schema import PlannedRow, planned_rows
from tests.checkpoints import make_checkpoint
from tests.plans import planned_row, typed_row, write_plan
from tests.test_row_tries import brightness, painted

SHARD, MOST, BAR = "0001-000000", 150.0, 100.0
Score = Callable[[list[np.ndarray], list[str]], list[float]]
Submit = Callable[[Row], "Future[Picture]"]


def redness(images: list[np.ndarray], prompts: list[str]) -> list[float]:
    """A classifier of the tests' own: the mean of the red channel."""
    return [float(image[..., 0].mean()) for image in images]


def broken(images: list[np.ndarray], prompts: list[str]) -> list[float]:
    raise ValueError("no idea")


def undecided(images: list[np.ndarray], prompts: list[str]) -> list[float]:
    return [math.nan] * len(images)


def red(row: Row | PlannedRow) -> float:
    return redness([painted(row).image], [""])[0]


def worked(
    run: RunFolder,
    rows: list[PlannedRow],
    rules: TryRules,
    score: Score = redness,
    layout: str = "files",
    submit: Submit = lambda row: settled(painted(row)),
) -> dict[str, dict[str, Any]]:
    """Manifest rows by id, of brightness as quality and a safety scorer."""
    running = ScoringTurns()
    quality = load_scorer([ScorerSource("bright", "function", function=brightness)], "cpu")
    rule = SafetyRule(ScorerSource("safety", "function", function=score), MOST)
    check = SafetyCheck(load_scorer([rule.source], "cpu"), rule, running)
    sink = Sink(run, SHARD, run.begin_attempt(SHARD), layout, "png")
    scores = ShardScores(quality, rows, running)
    work = ShardAttempt(rows, sink, SamplerConfig(""), BusySpan(), scores, rules, "", check)
    return {row["id"]: row for row in work.render(submit, InlineExecutor())}


def expected(row: PlannedRow, most: int) -> tuple[int | None, list[int]]:
    """By hand: the seed that is kept, None where the row is filtered; the seeds that were tried."""
    seeds, safe = [], dict[int, float]()
    for number in range(most):
        seeds.append(try_seed(row.seed, number))
        there = replace(row, seed=seeds[-1])
        if red(there) <= MOST:
            safe[seeds[-1]] = brightness([painted(there).image], [""])[0]
            if row.bar is None or safe[seeds[-1]] >= row.bar:
                break
    return (max(safe, key=lambda seed: safe[seed]) if safe else None), seeds


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("bar", [None, BAR])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_picture_above_max_is_a_failed_try_and_a_row_without_another_is_filtered(
    tmp_path: Path, most: int, bar: float | None, keep: bool
) -> None:
    run, rows = RunFolder(str(tmp_path / "run")), [typed_row(i, bar=bar) for i in range(60)]
    found = worked(run, rows, TryRules(most, keep))
    filtered = 0
    for row in rows:
        seed, seeds = expected(row, most)
        made = found[row.id]
        assert [each["seed"] for each in made["tries"]] == seeds
        assert [each["scores"][0] for each in made["tries"]] == [
            {"scorer": "safety", "score": red(replace(row, seed=each))} for each in seeds
        ]
        assert made["lane_steps"] == 2 * (row.num_steps or 0) * len(seeds)
        assert made["seconds"] == 0.5 * len(seeds)
        if seed is not None:
            assert (made["status"], made["seed"]) == ("ok", seed)
            continue
        filtered += 1
        assert (made["status"], made["error_type"], made.get("uri")) == ("filtered", "Unsafe", None)
        assert made["error_message"].startswith("safety ")
        assert made["scores"][0]["score"] > MOST
    assert 0 < filtered < 60
    stored = {key for key, _ in run.walk("images")}
    assert stored == {key for row in found.values() for key in named_objects(row | {"uri": row.get("uri")})}
    for key in stored:
        assert redness([np.asarray(Image.open(io.BytesIO(run.read(key))))], [""])[0] <= MOST


def test_a_row_that_gives_its_seed_is_filtered_at_once(tmp_path: Path) -> None:
    rows = [typed_row(i, seed_pinned=True) for i in range(30)]
    found = worked(RunFolder(str(tmp_path)), rows, TryRules(4))
    assert {row.id for row in rows if red(row) > MOST} == {
        id for id, row in found.items() if row["status"] == "filtered"
    }
    assert {len(row["tries"]) for row in found.values()} == {1}


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_packed_layouts_hold_no_filtered_picture(tmp_path: Path, layout: str) -> None:
    run, rows = RunFolder(str(tmp_path)), [typed_row(i) for i in range(30)]
    found = worked(run, rows, TryRules(), layout=layout)
    ok = {id for id, row in found.items() if row["status"] == "ok"}
    ((key, _),) = run.walk("data")
    if layout == "parquet":
        held = set(pq.read_table(io.BytesIO(run.read(key)))["id"].to_pylist())
    else:
        with tarfile.open(fileobj=io.BytesIO(run.read(key))) as tar:
            held = {name.partition(".")[0] for name in tar.getnames()}
    assert held == ok
    assert len(ok) < 30


@pytest.mark.parametrize("score", [broken, undecided])
def test_a_picture_without_a_verdict_is_not_delivered_and_its_row_has_failed(tmp_path: Path, score: Score) -> None:
    """Another seed would not mend the scorer."""
    run = RunFolder(str(tmp_path))
    found = worked(run, [typed_row(i, bar=BAR) for i in range(5)], TryRules(4, keep=True), score)
    assert {(row["status"], row["error_type"]) for row in found.values()} == {("failed", "NoSafetyVerdict")}
    assert all("no verdict, not delivered" in row["error_message"] for row in found.values())
    assert not list(run.walk("images"))


def test_a_safe_picture_stays_where_a_later_one_has_no_verdict(tmp_path: Path) -> None:
    rows = [typed_row(i, bar=255.0) for i in range(20)]
    first = {red(row) for row in rows}

    def once(images: list[np.ndarray], prompts: list[str]) -> list[float]:
        return [value if value in first else math.nan for value in redness(images, prompts)]

    found = worked(RunFolder(str(tmp_path)), rows, TryRules(2), once)
    kept = [row for row in rows if red(row) <= MOST and red(replace(row, seed=try_seed(row.seed, 1))) not in first]
    assert kept
    assert all((found[row.id]["status"], found[row.id]["seed"]) == ("ok", row.seed) for row in kept)


def committed(folder: Path, score: Score = redness) -> tuple[RunFolder, dict[str, dict[str, Any]], list[PlannedRow]]:
    run = RunFolder(str(folder / "run"))
    write_plan(run, [planned_row(i, bar=BAR, width=8, height=8) for i in range(20)], 20)
    (entry,) = run.shard_index(1).to_pylist()
    rows = planned_rows(run.read_shard(entry["part"], entry["row_group"]))
    found = worked(run, rows, TryRules(3, keep=True), score)
    table = manifest_table([found[row.id] for row in rows], read_plan(run).manifest_schema)
    assert run.commit_manifest(SHARD, table)
    counts = outcome_counts(table)
    assert counts["filtered"] == sum(row["status"] == "filtered" for row in found.values())
    assert counts["engine_failed"] == counts["failed"]
    return run, found, rows


def test_a_filtered_row_is_final_for_verify_repair_and_retries(tmp_path: Path) -> None:
    run, found, _ = committed(tmp_path)
    assert {row["status"] for row in found.values()} == {"ok", "filtered"}
    assert [each for checked in verify(run, 1) for each in checked.findings if each.kind != "plan_damaged"] == []
    assert RepairPlanner(read_plan(run)).order(SHARD, retry_failed=True) is None


def test_rows_without_a_verdict_are_tried_again_by_hand(tmp_path: Path) -> None:
    run, found, _ = committed(tmp_path, undecided)
    order = RepairPlanner(read_plan(run)).order(SHARD, retry_failed=True)
    assert order is not None
    assert set(order.ids) == set(found)


def test_a_repair_renders_the_safe_seed_alone(tmp_path: Path) -> None:
    run, found, _ = committed(tmp_path)
    again = tuple(id for id, row in found.items() if row["status"] == "ok" and row["tries"][0]["seed"] != row["seed"])
    (entry,) = run.shard_index(1).to_pylist()
    order = RepairOrder(SHARD, 1, again, frozenset(), 1)
    mending = order.repaired_shard(run, entry["part"], entry["row_group"], read_plan(run).manifest_schema)
    fresh = worked(run, list(mending.again), TryRules(3))
    table = {row["id"]: row for row in mending.manifest(fresh.values()).to_pylist()}
    for id, row in found.items():
        same = ("status", "seed", "seed_planned", "seed_pinned", "bar", "sha256")
        assert [table[id][name] for name in same] == [row.get(name) for name in same]
        assert [each["seed"] for each in table[id]["tries"]] == [each["seed"] for each in row["tries"]]


def test_kept_tries_that_are_gone_are_found_and_not_rendered_again(tmp_path: Path) -> None:
    run, found, _ = committed(tmp_path)
    uris = [each["uri"] for row in found.values() for each in row["tries"] if each["uri"]]
    run.delete(uris[:2])
    findings = [each for checked in verify(run, 1) for each in checked.findings if each.shard == SHARD]
    assert sorted((each.kind, each.key) for each in findings) == sorted(("try_missing", uri) for uri in uris[:2])
    assert RepairPlanner(read_plan(run)).order(SHARD, findings) is None


def test_filtered_rows_are_no_failures_that_stop_a_run() -> None:
    counts = {"ok": 0, "filtered": 500, "failed": 0, "steps": 0, "engine_failed": 0, "reasons": {}}
    ledger = Ledger([], limit=FailureLimit(0.01))
    for _ in range(3):
        ledger._counts.add(counts)
    assert (ledger._counts.reached, ledger._counts.engine_failed) == (1500, 0)


@pytest.mark.slow
def test_it_works_in_child_processes(tmp_path: Path) -> None:
    """A row that comes back with another seed waits for the others."""
    model = make_checkpoint("sd1", tmp_path / "model")
    config = SamplerConfig(str(model), device="cpu", lanes=4, num_threads=1)
    rows, moved = [typed_row(i, num_steps=1) for i in range(4)], []
    children = IsolatedRows(config, [engine_row(row) for row in rows], SILENCE_S, lambda: moved.append(1))

    def even(images: list[np.ndarray], prompts: list[str]) -> list[float]:
        return [MOST + 1 if int(image.sum()) % 2 else 0.0 for image in images]

    found = worked(RunFolder(str(tmp_path / "run")), rows, TryRules(3), even, submit=children.submit)
    tried = [[each["scores"][0]["score"] for each in row["tries"]] for row in found.values()]
    assert all(score == MOST + 1 for scores in tried for score in scores[:-1])
    assert {(row["status"], row["tries"][-1]["scores"][0]["score"] == 0.0) for row in found.values()} <= {
        ("ok", True),
        ("filtered", False),
    }
    assert max(map(len, tried)) > 1


TEXT = """\
input: {{path: p.csv}}
steps: {{selector: fixed, fixed: 2}}
quality: [{{scorer: "tests.plans:brightness", name: bright}}]
safety: {safety}
"""


@pytest.mark.parametrize(
    ("safety", "message"),
    [
        ('{scorer: "tests.plans:nobody", max: 1}', r"job\.yaml:4:.*safety: there is no tests\.plans:nobody"),
        ("{scorer: clip, path: training/scenes/scorer, max: 1}", r"job\.yaml:4:.*module:function, or aesthetic"),
        ('{scorer: "tests.plans:brightness", name: bright, max: 1}', "a scorer of quality is named bright, too"),
        ('{scorer: "tests.plans:brightness"}', r"job\.yaml:4:.*safety\.max"),
        ('{scorer: "tests.plans:brightness", max: .nan}', r"job\.yaml:4:.*safety\.max"),
        ("{scorer: aesthetic, path: training/scenes/scorer, max: 1}", "aesthetic needs head"),
        ("{scorer: aesthetic, path: training/scenes/scorer, head: none.safetensors, max: 1}", "safety: .*no such file"),
    ],
)
def test_a_wrong_safety_scorer_is_refused_before_anything_starts(safety: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_scorers(read_job(TEXT.format(safety=safety), "job.yaml"))


def test_it_is_a_picture_key_and_part_of_the_plan_key() -> None:
    jobs = [read_job(TEXT.format(safety=f'{{scorer: "tests.plans:brightness", max: {most}}}'), "j") for most in (1, 2)]
    info = read_checkpoint(jobs[0])
    assert len({json.dumps(fingerprint(job, info)["safety"]) for job in jobs}) == 2
    rules = [None, *(safety_rule(job) for job in jobs)]
    assert len({tries_rules("png", 2, (), rule) for rule in rules}) == 3
    assert tries_rules("png", 2, ()) == json.dumps(["png", 2, []])  # keys of runs without one stay


def test_tries_without_quality_are_for_what_is_not_safe() -> None:
    text = TEXT.replace("quality: ", "#") + "tries: {{max: 3}}\n"
    safety = '{scorer: "tests.plans:brightness", max: 1}'
    config: JobConfig = read_job(text.format(safety=safety), "j").config
    assert config.tries.max == 3
    assert not config.counts_quality
    with pytest.raises(ConfigError, match="needs a scorer that counts"):
        read_job(text.format(safety="null"), "j")


JOB = """\
model: {{path: {model}, device: cpu}}
input: {{path: {folder}/prompts.jsonl}}
steps: {{selector: fixed, fixed: 2}}
quality: [{{scorer: "tests.plans:brightness"}}]
safety: {{scorer: "tests.test_safety:redness", max: {most}}}
tries: {{max: {tries}, bar: 0}}
pools: [{{name: default, actors: 1, lanes: 8, num_cpus: 0.5}}]
output: {{path: {folder}/run}}
failures: {{max_fraction: 0}}
"""


@pytest.mark.ray
def test_a_job_with_filtered_rows_is_done(ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, nothing left to render, verified; with tries fewer rows are filtered."""
    model, filtered = make_checkpoint("sd1", tmp_path / "model"), []
    prompts = "".join(json.dumps({"id": f"r{i:02}", "prompt": f"a fox number {i}"}) + "\n" for i in range(30))
    for tries in (1, 3):
        folder = tmp_path / str(tries)
        folder.mkdir()
        (folder / "prompts.jsonl").write_text(prompts)
        job = folder / "job.yaml"
        job.write_text(JOB.format(model=model, folder=folder, most=127.0, tries=tries))
        assert main(["run", str(job), "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        found = [row for table in RunFolder(str(folder / "run")).manifests() for row in table.to_pylist()]
        statuses = [row["status"] for row in found]
        filtered.append(statuses.count("filtered"))
        assert (summary["status"], summary["failed"]) == ("done", 0)
        assert (summary["ok"], summary["filtered"]) == (statuses.count("ok"), filtered[-1])
        stored = {key for key, _ in RunFolder(str(folder / "run")).walk("images")}
        assert len(stored) == summary["ok"]
        assert main(["run", str(job), "--retry-failed", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rendered_now"] == 0
        assert main(["verify", str(folder / "run"), "--full"]) == 0
        capsys.readouterr()
    assert 30 > filtered[0] > filtered[1]
