"""What a new driver does with shards that the old one still commits: none of them is rendered twice to the end."""

import threading

import pytest

import pipelines.render.driver
from actors.rows import SamplerConfig
from pipelines.integrity.verification import verify
from pipelines.render.driver import render
from pipelines.render.pool import RenderConfig
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.checkpoints import ModelSource
from tests.finished import render_shard
from tests.plans import planned_row, write_plan
from tests.waiting import until


@pytest.mark.ray
def test_shards_that_the_old_driver_commits_are_dropped(ray_cluster, sleeping, tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines.render.driver, "LOOK_S", 0.2)
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i, num_steps=30) for i in range(80)], 20)
    working, waiting = "0001-000000", "0001-000003"
    config = RenderConfig(ModelSource("", revision="0.05"), SamplerConfig("", device="cpu"))
    results = []
    new = threading.Thread(target=lambda: results.append(render(read_plan(run), config)))
    new.start()
    until(lambda: run.names(f"images/{working}"), seconds=200)
    for shard in (working, waiting):
        assert render_shard(run, shard)  # the old driver's worker, which knows nothing of the new one
    theirs = {shard: run.stat(f"manifest/{shard}.parquet") for shard in (working, waiting)}
    new.join(300)
    assert [result.interrupted for result in results] == [False]
    assert {shard: run.stat(f"manifest/{shard}.parquet") for shard in theirs} == theirs
    assert len(run.done_shards()) == 4
    begun = {shard: [name.endswith(".released") for name in run.names(f"attempts/{shard}")] for shard in theirs}
    assert sorted(begun[working]) == [False, False, True]  # ours was given up, not finished
    assert begun[waiting] == [False]  # ours was never begun
    assert [finding for checked in verify(run, 1) for finding in checked.findings] == []
    assert sum(table.num_rows for table in run.manifests()) == 80
