"""RenderWorker without Ray: what it does with one lease."""

import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray

import pipelines.render.watchdog
import pipelines.render.worker
from actors.rows import SamplerConfig
from pipelines.integrity.repair_orders import RepairPlanner
from pipelines.integrity.verification import verify
from pipelines.render.attempt import Dropped
from pipelines.render.messages import HeartbeatReply, Lease, LeasedShard, Slot, Worker
from pipelines.render.watchdog import Watchdog
from pipelines.render.worker import RenderWorker, WorkerConfig
from pipelines.run.drivers import SupersededError, claim
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.checkpoints import ModelSource
from pipelines.storage.folder import StorageError
from tests.checkpoints import make_checkpoint
from tests.finished import render_shard
from tests.plans import planned_row, write_plan
from tests.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # ends a heartbeat
ROOT = Path(__file__).parent.parent
SHARD = "0001-000000"
COUNTS = {"ok": 6, "failed": 0, "filtered": 0, "steps": 13, "engine_failed": 0, "reasons": {}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1"))


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    write_plan(folder, [planned_row(i) for i in range(6)], 6)
    return folder


def worker(run, model, epoch=None):
    settings = SamplerConfig("", device="cpu", lanes=4, num_threads=1)
    schema = read_plan(run).manifest_schema
    return RenderWorker(
        WorkerConfig(run, ModelSource(model), settings, "default", "files", "png", schema, epoch=epoch), None
    )


def lease(run, failures=0, order=None):
    row = run.shard_index(1).to_pylist()[0]
    shard = LeasedShard(
        row["shard"], row["part"], row["row_group"], row["rows"], row["good_rows"], row["lane_steps"], ("p",)
    )
    return Lease(shard, failures, order)


def findings(run):
    return [finding for checked in verify(run, 1) for finding in checked.findings]


def in_work(run, model):
    """A worker in the middle of a shard of 200 long rows, and what comes of it."""
    write_plan(run, [planned_row(i, num_steps=40) for i in range(200)], 200)
    busy, came = worker(run, model), []

    def serve():
        try:
            came.append(busy._render(lease(run)))
        except Dropped as dropped:
            came.append(dropped)

    thread = threading.Thread(target=serve)
    thread.start()
    until(lambda: SHARD in busy._works and busy._works[SHARD].images)
    return busy, busy._works[SHARD], thread, came


def test_a_shard_that_another_committed_meanwhile_is_not_rendered_to_the_end(tmp_path, model):
    run = RunFolder(str(tmp_path / "run"))
    busy, _, thread, came = in_work(run, model)
    assert render_shard(run, SHARD)
    busy._heed(HeartbeatReply(drop=(SHARD,)))
    thread.join(60)
    assert came == [COUNTS | {"ok": 200, "steps": 8000}]  # the other's
    busy._sampler.close()  # what is left in the engine is rendered
    assert busy._sampler.images < 150
    assert run.attempts() == {SHARD: 1}
    assert findings(run) == []


def test_a_shard_that_is_dropped_and_that_nobody_committed_goes_back(tmp_path, model):
    run = RunFolder(str(tmp_path / "run"))
    _, work, thread, came = in_work(run, model)
    assert work.drop()
    thread.join(60)
    assert [type(outcome) for outcome in came] == [Dropped]
    assert run.attempts() == {}
    assert run.done_shards() == set()


def test_what_is_committed_cannot_be_dropped(run, model):
    busy = worker(run, model)
    busy._render(lease(run))
    assert not busy._works[SHARD].drop()
    assert findings(run) == []


def test_a_repair_renders_the_ordered_rows_and_replaces_the_manifest_once(run, model):
    worker(run, model)._render(lease(run))
    before = run.read_manifest(SHARD).to_pylist()
    run.delete([before[2]["uri"], before[4]["uri"]])
    order = RepairPlanner(read_plan(run)).order(SHARD, findings(run))
    mender = worker(run, model, claim(run).id)
    assert mender._render(lease(run, order=order))["ok"] == 2
    assert mender._sampler.images == 2
    after = run.read_manifest(SHARD).to_pylist()
    assert [row["sha256"] for row in after] == [row["sha256"] for row in before]
    assert [row["uri"] == old["uri"] for row, old in zip(after, before, strict=True)] == [
        index not in (2, 4) for index in range(6)
    ]
    assert [row["attempts"] for row in after] == [2 if index in (2, 4) else 1 for index in range(6)]
    assert {row["revision"] for row in after} == {1}
    assert findings(run) == []

    whole = sorted(run.walk("images")), run.stat(f"manifest/{SHARD}.parquet")
    late = worker(run, model, claim(run, take_over=True).id)
    assert late._render(lease(run, order=order))["ok"] == 2  # a zombie of the same repair: the first one's stands
    assert (sorted(run.walk("images")), run.stat(f"manifest/{SHARD}.parquet")) == whole


def test_a_repair_needs_the_last_epoch(run, model):
    worker(run, model)._render(lease(run))
    run.delete([run.read_manifest(SHARD)["uri"][0].as_py()])
    order = RepairPlanner(read_plan(run)).order(SHARD, findings(run))
    epoch = claim(run).id
    claim(run, take_over=True)
    with pytest.raises(SupersededError):
        worker(run, model, epoch)._render(lease(run, order=order))
    assert set(run.read_manifest(SHARD)["revision"].to_pylist()) == {0}


class Ledger:
    """A ledger's handle; each heartbeat raises what is next, or is answered."""

    def __init__(self, raises):
        self.raises, self.beats, self.is_over = list(raises), [], False
        self.heartbeat = self

    def options(self, **options):
        return self

    def remote(self, news):
        self.beats.append(news)
        if self.is_over:
            raise SystemExit
        if self.raises:
            raise self.raises.pop(0)
        return HeartbeatReply()


@pytest.fixture
def quick_heartbeats(monkeypatch):
    monkeypatch.setattr(pipelines.render.worker, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(pipelines.render.worker.ray, "get", lambda answer, timeout=None: answer)


def beating(run, ledger, beats):
    """A worker whose heart beats until the ledger has heard it so often; its thread."""
    each = worker(run, "nowhere")
    each.ledger, each._worker = ledger, Worker("a", "1", "default")
    thread = threading.Thread(target=each._beat, name="heartbeat", daemon=True)
    thread.start()
    until(lambda: len(ledger.beats) >= beats or not thread.is_alive(), seconds=60)
    return each, thread


def test_a_heart_goes_on_beating_whatever_is_raised(run, quick_heartbeats):
    ledger = Ledger([RuntimeError("CUDA error"), ValueError("x"), ray.exceptions.RayError("gone"), KeyError(1)])
    _, thread = beating(run, ledger, 12)
    assert thread.is_alive()
    assert len(ledger.beats) >= 12
    ledger.is_over = True


def test_a_heart_goes_on_beating_where_the_engine_cannot_be_asked(run, quick_heartbeats):
    ledger, asked = Ledger([]), []
    each, thread = beating(run, ledger, 1)

    class Lost:
        def stats(self):
            asked.append(1)
            raise RuntimeError("CUDA error: unspecified launch failure")

    each._sampler = Lost()
    until(lambda: len(asked) >= 5, seconds=60)
    each._sampler = None
    before = len(ledger.beats)
    until(lambda: len(ledger.beats) >= before + 3, seconds=60)
    assert thread.is_alive()
    assert len(ledger.beats) >= before + 3
    ledger.is_over = True


def test_a_worker_that_nobody_answers_drops_its_work(run, model, quick_heartbeats, monkeypatch):
    """Its leases have run out by then: others work on its shards."""
    monkeypatch.setattr(pipelines.render.worker, "LEASE_TIMEOUT_S", 0.2)
    busy, work, thread, came = in_work(run, model)
    busy.ledger, busy._worker = Ledger([ray.exceptions.RayError("cut off")] * 10**6), Worker("a", "1", "default")
    busy._answered_at = time.monotonic()
    threading.Thread(target=busy._beat, daemon=True).start()
    thread.join(60)
    assert [type(outcome) for outcome in came] == [Dropped]
    assert work.dropped
    busy.ledger.is_over = True


def test_a_lease_is_renewed_while_its_rows_are_read_and_dropped_where_it_is_anothers(run, model, monkeypatch):
    """Reading a shard, or loading the first scorer, may take longer than a lease."""
    each, news = worker(run, model), []
    each._worker = Worker("a", "1", "default")
    honest = RunFolder.read_shard

    def slow(self, *args, **options):
        news.append(each._news().images)
        each._heed(HeartbeatReply(drop=(SHARD,)))
        return honest(self, *args, **options)

    monkeypatch.setattr(RunFolder, "read_shard", slow)
    said = []
    each._ask = lambda *told: said.append(told[0])
    each._serve_shard(Slot(each._worker, 0), lease(run))
    assert news == [{SHARD: 0}]
    assert said == ["release"]
    assert each._news().images == {}
    assert (run.attempts(), run.done_shards()) == ({}, set())


def test_who_leaves_gives_back_what_it_has_not_begun(run, monkeypatch):
    """Else the end of its process would count as a death over a shard that nobody has touched."""

    def ended(code):
        raise SystemExit

    each, released = worker(run, "nowhere"), []
    each._worker, each.ledger = Worker("a", "1", "default"), each
    each.release, each.remote = each, lambda slot, shard: released.append(shard)
    monkeypatch.setattr(pipelines.render.worker.os, "_exit", ended)
    monkeypatch.setattr(pipelines.render.worker.ray, "get", lambda answer, timeout=None: answer)
    each._works[SHARD] = None
    with pytest.raises(SystemExit):
        each._leave("SIGTERM")
    assert released == [SHARD]


def test_a_watchdog_goes_on_where_the_figures_cannot_be_read():
    looks = HUNG.replace("dict)", "figures)").replace(
        "Watchdog(", "def figures(): raise RuntimeError('CUDA error')\nWatchdog("
    )
    ended = subprocess.run([sys.executable, "-c", looks], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert "watchdog.py" in ended.stderr


HUNG = """
import threading
from pipelines.render.watchdog import Watchdog
Watchdog(2.0, dict).watched(lambda row: threading.Event().wait())(None)
"""


def test_an_engine_that_hangs_ends_its_process_and_says_where():
    ended = subprocess.run([sys.executable, "-c", HUNG], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert "watchdog.py" in ended.stderr


def test_an_engine_that_moves_or_has_nothing_to_do_is_left_alone(monkeypatch):
    """Each move puts the end off, and the last row's end calls it off."""
    said, calls, future = [], [0], Future()
    alarm = SimpleNamespace(
        dump_traceback_later=lambda *_, **__: said.append("later"),
        cancel_dump_traceback_later=lambda: said.append("never"),
    )
    monkeypatch.setattr(pipelines.render.watchdog, "faulthandler", alarm)
    dog = Watchdog(900.0, lambda: {"calls": calls[0]})
    dog._thread = threading.current_thread()  # it looks when it is told to
    dog.watched(lambda row: future)(None)
    dog._look()
    dog._look()
    assert said == ["later"]
    calls[0] += 1
    dog._look()
    assert said == ["later", "later"]
    future.set_result(None)
    dog._look()
    assert said == ["later", "later", "never"]


def test_a_lease_becomes_pictures_and_one_manifest(run, model):
    assert worker(run, model)._render(lease(run)) == COUNTS
    rows = run.read_manifest("0001-000000").to_pylist()
    assert sorted(key for key, _ in run.walk("images")) == sorted(row["uri"] for row in rows)


def test_a_shard_that_was_committed_unsaid_is_not_rendered_again(run, model):
    first = worker(run, model)
    first._render(lease(run))
    before = sorted(run.walk())
    assert worker(run, model)._render(lease(run, failures=1)) == COUNTS
    assert sorted(run.walk()) == before


def test_a_loser_drops_its_pictures_and_counts_the_winners_rows(run, model):
    winner = worker(run, model)
    winner._render(lease(run))
    table = run.read_manifest("0001-000000")
    column = pa.array(["failed"] * 6)
    run.delete(["manifest/0001-000000.parquet"])
    run.commit_manifest("0001-000000", table.set_column(table.column_names.index("status"), "status", column))
    images = sorted(run.walk("images"))
    counts = worker(run, model)._render(lease(run))
    assert (counts["ok"], counts["failed"], counts["engine_failed"], counts["steps"]) == (0, 6, 6, 0)
    assert sorted(run.walk("images")) == images


def test_an_attempt_that_cannot_store_leaves_nothing_behind(run, model, monkeypatch):
    honest, written = RunFolder.write, []

    def failing(self, key, data):
        if key.startswith("images/"):
            written.append(key)
            if len(written) == 4:
                raise StorageError("the disk is full", False)
        honest(self, key, data)

    monkeypatch.setattr(RunFolder, "write", failing)
    broken = worker(run, model)
    with pytest.raises(StorageError, match="disk is full"):
        broken._render(lease(run))
    broken._writers.shutdown()
    assert run.done_shards() == set()
    assert len(list(run.walk("images"))) <= len(written) - 4  # only what other threads wrote after the failure


def test_a_process_that_started_early_takes_the_job_with_its_call(run, model, monkeypatch):
    early = worker(run, model)
    whole, early.job = early.job, replace(early.job, schema=pa.schema([]))
    early.warm()
    loaded = early._sampler
    assert loaded is not None
    assert early.call(sum, [1, 2]) == 3
    monkeypatch.setattr(early, "_serve_all", lambda: None)
    assert early.serve("ledger", whole) is None
    assert (early.job, early.ledger, early._sampler) == (whole, "ledger", loaded)
    early.serve("another")
    assert early.job == whole


def test_a_model_that_cannot_be_loaded_ahead_is_told_by_serve(run, tmp_path):
    early = worker(run, str(tmp_path / "nowhere"))
    early.warm()
    assert early._sampler is None
