"""A worker that is told to leave, on a real Ray: SIGTERM to its process, and the drain of its node."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from actors.rows import SamplerConfig
from pipelines.integrity.findings import ORPHANS
from pipelines.integrity.verification import verify
from pipelines.render.driver import render
from pipelines.render.pool import RenderConfig
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.checkpoints import ModelSource
from tests.checkpoints import make_checkpoint
from tests.plans import planned_row, write_plan
from tests.waiting import until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent
RENDERER = "Drawing"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1"))


def renderers() -> set[psutil.Process]:
    """The render actors of this process's Ray."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if RENDERER in "".join(process.cmdline()):
                found.add(process)
        except psutil.Error:
            continue
    return found


def check_every_row_once(run: RunFolder, rows: int) -> None:
    assert {finding.kind for checked in verify(run, 1) for finding in checked.findings} <= ORPHANS
    ids = sorted(row["id"] for table in run.manifests() for row in table.to_pylist())
    assert ids == [f"r{i:04d}" for i in range(rows)]


def released(run: RunFolder) -> set[str]:
    return {key.split("/")[1] for key, _ in run.walk("attempts") if key.endswith(".released")}


def test_sigterm_in_the_middle_of_two_shards(ray_cluster, sleeping, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i, num_steps=60) for i in range(60)], 15)
    config = RenderConfig(ModelSource("", revision="0.06"), SamplerConfig("", device="cpu"))
    before, results = renderers(), []
    rendering = threading.Thread(target=lambda: results.append(render(read_plan(run), config)))
    rendering.start()
    until(lambda: len(list(run.walk("images"))) > 2, seconds=200)
    (worker,) = renderers() - before
    worker.send_signal(signal.SIGTERM)
    worker.wait(200)
    assert released(run)  # it did not finish its rows, and was not killed
    rendering.join(300)
    assert [result.interrupted for result in results] == [False]
    check_every_row_once(run, 60)
    assert set(run.attempts().values()) == {1}  # nothing that was dropped counts
    assert {row["attempts"] for table in run.manifests() for row in table.to_pylist()} == {1}


DRAIN = """
import json, os, subprocess, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from actors.rows import SamplerConfig
from pipelines.storage.checkpoints import ModelSource
from pipelines.render.pool import RenderConfig
from pipelines.render.driver import render
from pipelines.run.layout import RunFolder

url, model = sys.argv[1:]
env = {"env_vars": {"PYTHONPATH": os.getcwd()}}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1, resources={"spot": 1})]
ray.init(cluster.address, log_to_driver=False, runtime_env=env)
run = RunFolder(url)
seen = []

def drain():
    while len(list(run.walk("images"))) < 3:
        time.sleep(0.05)
    cluster.add_node(num_cpus=1, resources={"spot": 1})
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address, "--node-id",
        nodes[0].node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
        "--deadline-remaining-seconds", "120"]
    done = subprocess.run(command, capture_output=True, text=True)
    seen.append({"rc": done.returncode, "err": done.stderr[-500:]})
    left = time.monotonic() + 60
    while time.monotonic() < left:
        seen.append(sorted({k.split("/")[1] for k, _ in run.walk("attempts") if k.endswith(".released")}))
        if seen[-1]:
            break
        time.sleep(0.2)

pools = (PoolSpec(lanes=2, resources={"spot": 1}),)
config = RenderConfig(ModelSource(model), SamplerConfig("", device="cpu"), pools)
results = []
thread = threading.Thread(target=lambda: results.append(render(read_plan(run), config)))
thread.start()
drain()  # in the main thread: a node installs signal handlers
thread.join()
print(json.dumps({"drain": seen[0], "released": seen[-1], "interrupted": results[0].interrupted}), flush=True)
"""  # its nodes end with it


@pytest.mark.slow
def test_the_workers_of_a_drained_node_leave_it(model, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i, num_steps=60) for i in range(60)], 15)
    done = subprocess.run(
        [sys.executable, "-c", DRAIN, run.url, model], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"drain"')]
    assert told, done.stderr[-3000:]
    (told,) = told
    assert told["drain"]["rc"] == 0, told
    assert told["released"]
    assert not told["interrupted"]
    check_every_row_once(run, 60)
    assert set(run.attempts().values()) == {1}
