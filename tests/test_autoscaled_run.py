"""The whole job on a cluster whose GPU nodes do not exist yet: it asks for them, waits, says so and gives them back.

GPUs are a number here, not a device: the sleeping engine renders.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.layout import RunFolder
from pipelines.run.precision import DTYPE_KEY
from tests.fake_cluster import ROOT, FakeCluster
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RUN = """
import sys
from pipelines.render import pool as pools
from tests.sleeping_workers import Drawing
pools.RenderWorker = Drawing
from jobs.__main__ import main
sys.exit(main(["run", sys.argv[1], "--json", "--address", sys.argv[2]]))
"""
HOLD = """
import sys, time
import ray
ray.init(sys.argv[1], log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}})
from tests.sleeping_workers import Holder
holder = ray.remote(num_cpus=1, num_gpus=1)(Holder).remote()
ray.get(holder.hold.remote())
print("held", flush=True)
time.sleep(600)
"""


class Job:
    """A job file, and the driver that runs it."""

    def __init__(self, folder: Path, actors: int, steps: list[int], call_s: float) -> None:
        self.run = RunFolder(str(folder / "run"))
        self.path, self.err = folder / "job.yaml", folder / "err"
        rows = [{"prompt": f"a fox {i}", "num_inference_steps": count} for i, count in enumerate(steps)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.path.write_text(
            f"model: {{revision: '{call_s}'}}\n"
            f"input: {{path: {folder}/prompts.jsonl}}\n"
            "steps: {selector: fixed, fixed: 2}\n"
            f"pools: [{{name: gpus, actors: {actors}}}]\n"
            f"output: {{path: {self.run.url}, layout: none}}\n"
        )

    def start(self, cluster: FakeCluster) -> "subprocess.Popen[str]":
        code = {"runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}
        env = FakeCluster.env() | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(code), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", RUN, str(self.path), cluster.address]
        with self.err.open("w") as err:
            return subprocess.Popen(
                command, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, stderr=err, text=True
            )

    def said(self) -> str:
        return self.err.read_text()


def ended(driver: "subprocess.Popen[str]", job: Job, seconds: float = 300) -> dict[str, Any]:
    out, _ = driver.communicate(timeout=seconds)
    return {"code": driver.returncode, **json.loads(out.splitlines()[-1])} if out else {"code": driver.returncode}


def gpu_nodes(cluster: FakeCluster) -> int:
    return Counter(node.type for node in cluster.nodes())["gpu"]


def test_a_gpu_that_the_autoscaler_would_launch_counts(tmp_path: Path) -> None:
    job = Job(tmp_path, actors=2, steps=[2] * 200, call_s=0.05)
    with FakeCluster() as cluster:
        found = ended(job.start(cluster), job)
        assert found["code"] == 0, job.said()
        assert (found["rows"], found["ok"]) == (200, 200)
        assert 1 <= gpu_nodes(cluster) <= 2
    assert job.run.read(DTYPE_KEY) == b"float16"  # not what a CPU would have settled


def test_a_cluster_that_has_no_such_node_type_is_refused_with_the_remedy(tmp_path: Path) -> None:
    job = Job(tmp_path, actors=2, steps=[2] * 8, call_s=0.05)
    with FakeCluster(gpu_type=False) as cluster:
        found = ended(job.start(cluster), job)
    assert (found["code"], found["status"]) == (2, "refused")
    (fault,) = found["errors"]
    assert "no node type of this cluster can hold 1 CPU, 1 GPU" in fault["message"]
    assert "num_gpus: 0" in fault["message"]
    assert "Traceback" not in job.said()
    assert job.run.generations() == []


def test_at_the_limit_of_nodes_it_waits_and_says_so(tmp_path: Path) -> None:
    job = Job(tmp_path, actors=1, steps=[2] * 8, call_s=0.05)
    with FakeCluster(gpus=1) as cluster:
        command = [sys.executable, "-c", HOLD, cluster.address, str(ROOT)]
        holder = subprocess.Popen(command, cwd=ROOT, env=FakeCluster.env(), stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        driver = job.start(cluster)
        until(lambda: "the cluster is at its limit of nodes" in job.said() or driver.poll() is not None, seconds=200)
        assert driver.poll() is None, job.said()
        holder.kill()
        found = ended(driver, job)
        holder.wait()
    assert (found["code"], found["ok"]) == (0, 8)


def test_nodes_of_actors_for_which_nothing_is_left_are_given_back_before_the_tail(tmp_path: Path) -> None:
    job = Job(tmp_path, actors=3, steps=[900] * 8 + [3] * 100, call_s=0.1)
    with FakeCluster(gpus=3, idle_timeout_minutes=0.1) as cluster:
        driver = job.start(cluster)
        most = 0

        def given_back() -> bool:
            nonlocal most
            now = gpu_nodes(cluster)
            most = max(most, now)
            return most >= 2 and now == 1

        until(lambda: given_back() or driver.poll() is not None, seconds=200)
        assert driver.poll() is None, job.said()  # the long shard is still rendered
        found = ended(driver, job)
    assert most >= 2
    assert (found["code"], found["ok"]) == (0, 108)
