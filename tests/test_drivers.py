"""Two drivers on one run folder: the second is refused, the first gives way, and without a fence each row ends once."""

import json
import random
import threading
import time
from pathlib import Path

import pytest

from actors.rows import SamplerConfig
from jobs.__main__ import main
from jobs.job_file import settings
from jobs.job_file.read import load_job
from pipelines.cluster.pools import PoolSpec
from pipelines.integrity.findings import ORPHANS
from pipelines.integrity.verification import verify
from pipelines.plan.make import make_plan
from pipelines.render.driver import render
from pipelines.render.ledger import Ledger
from pipelines.render.messages import DONE, WAIT, LeasedShard, Slot, Worker
from pipelines.render.pool import RenderConfig, planned_shards
from pipelines.render.sink import LAYOUTS
from pipelines.render.worker import ModelSource
from pipelines.run.drivers import claim, driving
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from tests.checkpoints import make_checkpoint
from tests.finished import store
from tests.plans import planned_row, write_plan

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "training/scenes/model"
COUNTS = {"ok": 5, "failed": 0, "filtered": 0, "steps": 0}


def found(run: RunFolder) -> set[str]:
    return {finding.kind for checked in verify(run, 1) for finding in checked.findings}


def work(run: RunFolder, ledger: Ledger, slot: Slot, layout: str, chance: random.Random) -> None:
    """A worker's life without a network; some of its shards take long, and some it loses to a death."""
    while (lease := ledger.lease(slot)) != DONE:
        if lease == WAIT:
            time.sleep(0.001)
            continue
        shard: LeasedShard = lease.shard
        _, table, sink = store(run, shard.id, layout)
        time.sleep(chance.random() * 0.02)
        if chance.random() < 0.2:
            ledger.fail(slot, shard.id, "died")
            continue
        if not run.commit_manifest(shard.id, table):
            sink.discard()
        ledger.finish(slot, shard.id, COUNTS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_without_a_fence_two_drivers_end_with_every_row_once(tmp_path: Path, layout: str, seed: int) -> None:
    """Each driver has a ledger of its own that knows nothing of the other: every shard is worked twice."""
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i) for i in range(60)], 5)
    pools = (PoolSpec(),)
    ledgers = [Ledger(planned_shards(read_plan(run), pools)) for _ in range(2)]
    threads = [
        threading.Thread(
            target=work,
            args=(run, ledgers[n % 2], Slot(Worker(f"a{n}", "1", "default"), 0), layout, random.Random(seed + n)),
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if any(ledger.snapshot().fatal for ledger in ledgers):  # three deaths on one shard: it is resumed
        work(
            run,
            Ledger(planned_shards(read_plan(run), pools), run.done_shards()),
            Slot(Worker("b", "1", "default"), 0),
            layout,
            random.Random(),
        )
    assert found(run) <= ORPHANS
    assert sorted(row["id"] for table in run.manifests() for row in table.to_pylist()) == [
        f"r{i:04d}" for i in range(60)
    ]


def test_a_zombie_commits_after_its_shard_was_leased_to_another(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i) for i in range(5)], 5)
    (shard,) = [entry["shard"] for entry in run.shard_index(1).to_pylist()]
    _, zombies, sink = store(run, shard)
    _, others, _ = store(run, shard)
    assert run.commit_manifest(shard, others)
    assert not run.commit_manifest(shard, zombies)
    sink.discard()
    assert found(run) == set()
    assert run.read_manifest(shard) == others


@pytest.mark.skipif(not MODEL.is_dir(), reason="the embedded model is not there")
@pytest.mark.parametrize("verb", ["plan", "run", "render"])
def test_the_second_driver_is_refused_before_anything_starts(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("prompt\na red circle\n")
    Path("job.yaml").write_text("input: {path: prompts.csv}\nsteps: {selector: words}\noutput: {path: out}\n")
    monkeypatch.setattr("jobs.steps.sole_driver.start_ray", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr("jobs.steps.planning.start_ray", lambda *_: pytest.fail("Ray was started"))
    run = RunFolder("out")
    if verb == "render":
        job = load_job("job.yaml")
        run.commit_plan(1, {"fingerprint": settings.fingerprint(job, settings.read_checkpoint(job)), "price": None})
    with driving(run) as first:
        assert main([verb, "job.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\nerror: job.yaml:3:" in captured.err
    assert f"another run is active in {tmp_path}/out: host {first.record['host']}, process {first.record['pid']}" in (
        captured.err
    )
    assert run.names("epochs") == ["000001.json"]


@pytest.mark.ray
@pytest.mark.skipif(not MODEL.is_dir(), reason="the embedded model is not there")
def test_a_planner_that_was_taken_over_says_so(
    ray_cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.csv").write_text("prompt\na red circle\n")
    Path("job.yaml").write_text("input: {path: prompts.csv}\nsteps: {selector: words}\noutput: {path: out}\n")
    run = RunFolder("out")

    def taken_over(*arguments):
        claim(run, take_over=True)
        return make_plan(*arguments)

    monkeypatch.setattr("jobs.steps.planning.make_plan", taken_over)
    assert main(["plan", "job.yaml"]) == 1
    assert f"error: another run has taken over {tmp_path}/out; nothing more is changed" in capsys.readouterr().err
    assert run.generations() == []
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "job.yaml", "--take-over"]) == 0
    assert run.generations() == [1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1"))


@pytest.mark.ray
def test_two_renders_at_once_on_a_real_ray(ray_cluster, sleeping, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i, num_steps=8) for i in range(60)], 6)
    config = RenderConfig(ModelSource("", revision="0.1"), SamplerConfig("", device="cpu"))
    results = []
    drivers = [threading.Thread(target=lambda: results.append(render(read_plan(run), config))) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(300)
    assert [result.interrupted for result in results] == [False, False]
    assert found(run) <= ORPHANS
    assert len(run.done_shards()) == 10
    attempts = sum(run.attempts().values())
    assert attempts > 10  # they did meet


@pytest.mark.ray
def test_the_first_driver_finishes_what_is_in_work_and_gives_way(
    ray_cluster, sleeping, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\n" + "".join(f"a fox number {i}\n" for i in range(224)))
    job = tmp_path / "job.yaml"
    job.write_text(
        f"model: {{path: {model}, device: cpu}}\ninput: {{path: {tmp_path}/prompts.csv}}\n"
        "steps: {selector: fixed, fixed: 60}\npools: [{name: default, lanes: 2}]\n"
        f"output: {{path: {tmp_path}/run}}\n"
    )
    run, claimed = RunFolder(str(tmp_path / "run")), []

    over = threading.Event()

    def take_over() -> None:
        while not run.attempts() and not over.wait(0.05):
            pass
        claimed.append(claim(run, take_over=True))

    taker = threading.Thread(target=take_over)
    taker.start()
    code = main(["run", str(job), "--json"])
    over.set()
    taker.join()
    (second,), said = claimed, capsys.readouterr()
    assert code == 1, said.err[-3000:]
    assert f"another run took over: host {second.record['host']}, process {second.record['pid']}" in said.err
    assert json.loads(said.out)["status"] == "superseded"
    assert 0 < len(run.done_shards()) < len(run.shard_index(1))
    assert found(run) == {"manifest_missing"}
    assert run.attempts().keys() == run.done_shards()  # nothing was begun and dropped
    assert run.stat("summary.json") is None  # that is the other driver's to write
    assert second.heartbeat()
