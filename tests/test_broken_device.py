"""A device that is lost in mid-run and stays lost on its node: three nodes, real engines, a real Ray."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.layout import RunFolder
from tests.checkpoints import make_checkpoint
from tests.plans import planned_row, write_plan

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parent.parent
ROWS = 160
RUN = """
import json, os, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from actors.rows import SamplerConfig
from pipelines.render import pool as pools
from pipelines.storage.checkpoints import ModelSource
from pipelines.render.pool import RenderConfig, RenderError
from pipelines.render.driver import render
from pipelines.run.layout import RunFolder
from tests.breaking_workers import BreakingDevice

model, *runs = sys.argv[1:]
pools.RenderWorker = BreakingDevice
store = 80 << 20
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": store})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=store) for _ in range(3)]
ray.init(cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}})
for url, doomed in zip(runs, (1, 3)):
    folder = Path(url + "-devices")
    folder.mkdir()
    for node in nodes[:doomed]:
        (folder / f"{node.node_id}.doomed").write_text("100")
    config = RenderConfig(
        ModelSource(model, revision=str(folder)),
        SamplerConfig("", device="cpu"),
        (PoolSpec(actors=3, num_cpus=1, lanes=4),),
        max_failed=0.01,
    )
    try:
        render(RunFolder(url), config)
        said = ""
    except RenderError as error:
        said = str(error)
    lives = {node.node_id: (folder / f"{node.node_id}.lives").read_text().count("\\n") for node in nodes}
    print(json.dumps({"said": said, "lives": [lives[node.node_id] for node in nodes]}), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[RunFolder, dict[str, Any]]]:
    """One of three devices lost; all three lost. With what the driver said and how many processes each node saw."""
    folder = tmp_path_factory.mktemp("devices")
    model = make_checkpoint("sd1", folder / "sd1")
    runs = [RunFolder(str(folder / name)) for name in ("one", "all")]
    for run in runs:
        write_plan(run, [planned_row(i, num_steps=12) for i in range(ROWS)], 8)
    command = [sys.executable, "-c", RUN, str(model), *[run.url for run in runs]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"said"')]
    assert len(told) == 2, done.stderr[-3000:]
    return list(zip(runs, told, strict=True))


def statuses(run: RunFolder) -> list[str]:
    return [status for table in run.manifests() for status in table["status"].to_pylist()]


def test_where_others_are_whole_every_row_is_rendered(outcomes: list[tuple[RunFolder, dict[str, Any]]]) -> None:
    run, told = outcomes[0]
    assert told["said"] == ""
    assert statuses(run) == ["ok"] * ROWS
    assert 1 <= sum(map(len, run.deaths().values())) <= 2  # what the lost device had in hand
    lost, *whole = told["lives"]
    assert 1 <= lost <= 4  # the one that rendered, and at most three that do not pass their probe
    assert whole == [1, 1]


def test_where_none_is_whole_the_run_ends_and_nothing_is_committed_falsely(
    outcomes: list[tuple[RunFolder, dict[str, Any]]],
) -> None:
    run, told = outcomes[1]
    assert "no actor is left that can render" in told["said"]
    assert "an illegal memory access was encountered" in told["said"]
    assert set(statuses(run)) == {"ok"}
    assert 0 < len(run.done_shards()) < ROWS // 8
    assert told["lives"] == [4, 4, 4]
