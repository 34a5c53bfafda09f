"""`--limit` means at most so many, also where more is planned; what it rendered is not rendered again."""

import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipelines.integrity.verification import verify
from pipelines.render.driver import RenderOrders, render
from pipelines.render.open_shard import FirstRows, rendered_rows
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from tests.checkpoints import make_checkpoint
from tests.plans import planned_row, write_plan
from tests.test_render import config

ROWS = 100  # three shards of two budgets: the first prompts lie in two of them
JOB = """\
model: {path: MODEL, device: cpu}
input: {path: prompts.csv}
steps: {selector: words, choices: [2, 3]}
pools: [{name: default, lanes: 4}]
output: {path: run, layout: LAYOUT}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1"))


@pytest.fixture
def job(ray_cluster, tmp_path: Path, model: str, sleeping, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"r{i},a fox{' and a very long story of what it saw in the snow' * (i % 2)}" for i in range(ROWS)]
    Path("prompts.csv").write_text("\n".join(["id,prompt", *lines]))

    def write(layout: str = "files") -> RunFolder:
        Path("job.yaml").write_text(JOB.replace("MODEL", model).replace("LAYOUT", layout))
        return RunFolder("run")

    return write


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def hashes(run: RunFolder) -> dict[str, str]:
    found = [(row["id"], row["sha256"]) for table in run.manifests() for row in table.to_pylist()]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.ray
@pytest.mark.parametrize(("verb", "layout"), [("run", "files"), ("render", "webdataset")])
def test_no_more_is_rendered_after_a_whole_plan(job, verb: str, layout: str, capsys) -> None:
    run = job(layout)
    assert typed(capsys, "plan", "job.yaml")[1]["rows"] == ROWS
    code, summary = typed(capsys, verb, "job.yaml", "--limit", "3")
    assert (code, summary["status"]) == (0, "done")
    assert [summary[name] for name in ("rendered_now", "rows", "ok", "planned", "limit")] == [3, 3, 3, ROWS, 3]
    assert run.done_shards() == set()
    parts = {id for shard in run.partly_done() for id in rendered_rows(run, shard)}
    assert parts == {"r0", "r1", "r2"}
    assert typed(capsys, verb, "job.yaml", "--limit", "3")[1]["rendered_now"] == 0  # the same three

    pictures = {key for folder in ("images", "data") for key, _ in run.walk(folder)}
    status = typed(capsys, "status", "run")[1]
    assert (status["rows_done"], status["shards_done"]) == (3, 0)
    assert typed(capsys, verb, "job.yaml", "--limit", "20")[1]["rendered_now"] == 17
    code, summary = typed(capsys, "run", "job.yaml")
    assert (code, summary["rendered_now"], summary["rows"], summary["limit"]) == (0, ROWS - 20, ROWS, None)
    assert pictures <= {key for folder in ("images", "data") for key, _ in run.walk(folder)}
    assert [finding for checked in verify(run, 1) for finding in checked.findings] == []

    whole, limited = RunFolder("whole"), hashes(run)
    assert typed(capsys, "run", "job.yaml", "-s", "output.path=whole")[0] == 0
    assert limited == hashes(whole)


@pytest.mark.ray
def test_failed_rows_are_tried_again_within_the_limit_alone(job, capsys, monkeypatch) -> None:
    from tests.sleeping_workers import Drawing, FailingRows

    run = job()
    monkeypatch.setattr("pipelines.render.pool.RenderWorker", FailingRows)
    assert typed(capsys, "run", "job.yaml", "-s", "failures.max_fraction=1", "-s", "failures.stop_early=false")[0] == 0
    failed = {row["id"] for table in run.manifests() for row in table.to_pylist() if row["status"] == "failed"}
    few = {id for id in failed if int(id[1:]) < 10}
    monkeypatch.setattr("pipelines.render.pool.RenderWorker", Drawing)
    summary = typed(capsys, "run", "job.yaml", "--retry-failed", "--limit", "10", "-s", "failures.max_fraction=1")[1]
    assert 0 < len(few) < len(failed)
    assert (summary["rendered_now"], summary["failed"]) == (len(few), len(failed) - len(few))


@pytest.mark.ray
def test_what_a_limit_wrote_and_cannot_be_read_is_rendered_again(ray_cluster, sleeping, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i) for i in range(6)], 6)
    shard = "0001-000000"
    plan, orders = read_plan(run), {shard: FirstRows(shard, ("r0001", "r0004"))}
    assert render(plan, config(), only=RenderOrders(orders)).rows == 2
    ((key, _),) = run.walk("partial")
    run.write(key, b"torn")
    assert render(plan, config(), only=RenderOrders(orders)).rows == 2
    assert sorted(rendered_rows(run, shard)) == ["r0001", "r0004"]
    rest = FirstRows(shard, ("r0000", "r0002", "r0003", "r0005"))
    assert render(plan, config(), only=RenderOrders({shard: rest}, alone=False)).rows == 4
    assert sorted(hashes(run)) == [f"r{i:04d}" for i in range(6)]


def test_rows_that_are_written_down_are_done_and_none_at_all_are_not(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i) for i in range(2)], 2)
    assert not FirstRows("0001-000000", ("r0001",)).is_done(run)
    assert not FirstRows("0001-000000", ()).is_done(run)
