"""RenderWorker without Ray: what it does with one lease."""

import pyarrow as pa
import pytest

from actors.rows import SamplerConfig
from pipelines.folder import StorageError
from pipelines.ledger import Lease, Shard
from pipelines.models import ModelSource
from pipelines.store import RunFolder
from pipelines.worker import RenderWorker, WorkerJob
from tests.checkpoints import make_checkpoint
from tests.plans import planned_row, write_plan


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1"))


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    write_plan(folder, [planned_row(i) for i in range(6)], 6)
    return folder


def worker(run, model):
    settings = SamplerConfig("", device="cpu", lanes=4, num_threads=1)
    schemas = {1: run.read_plan(1)["manifest_schema"]}
    return RenderWorker(WorkerJob(run, ModelSource(model), settings, "default", "files", "png", schemas), None)


def lease(run, failures=0):
    row = run.shard_index(1).to_pylist()[0]
    shard = Shard(row["shard"], row["part"], row["row_group"], row["rows"], row["good_rows"], row["lane_steps"], ("p",))
    return Lease(shard, failures)


COUNTS = {"ok": 6, "failed": 0, "filtered": 0, "steps": 13}


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
    assert worker(run, model)._render(lease(run)) == {"ok": 0, "failed": 6, "filtered": 0, "steps": 0}
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
