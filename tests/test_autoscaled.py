"""`num_gpus: auto` and what an actor waits for, on clusters whose autoscaler launches nodes, or does not."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.cluster.capacity import AT_LIMIT
from tests.fake_cluster import ROOT, FakeCluster
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NO_TYPE = "no node type of this cluster"
BEGIN = """
import json, sys, time
import ray
from ray._private import state
from pipelines.cluster import capacity
ray.init(sys.argv[1], log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}})
GPU = {"CPU": 1.0, "GPU": 1.0}

@ray.remote
class Actor:
    def ready(self): return True

def resolved():
    began = time.monotonic()
    try:
        answer = capacity.resolve_gpus({"CPU": 1.0}, local=False)
    except capacity.CapacityError as error:
        answer = str(error)
    return answer, time.monotonic() - began

def want(count, **options):
    return [Actor.options(num_cpus=1, num_gpus=1, **options).remote() for _ in range(count)]

def waiting(until, fitted=False, within_s=60):
    "The last words where none has `until` in it."
    deadline = time.monotonic() + within_s
    while until not in (words := capacity.waiting_for(GPU, fitted)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return words
"""


def ask(address: str, code: str) -> Any:
    """What the code, run by a driver of its own, puts into `said`."""
    script = f"{BEGIN}\n{code}\nprint(json.dumps(said))"
    command = [sys.executable, "-c", script, address, str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, env=FakeCluster.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without_gpus() -> Iterator[FakeCluster]:
    with FakeCluster(gpu_type=False) as cluster:
        yield cluster


@pytest.mark.parametrize("behind_client", [False, True])
def test_auto_is_a_gpu_before_one_is_alive_and_leaves_no_actor(behind_client: bool) -> None:
    with FakeCluster(gpus=2) as cluster:
        code = (
            "before = capacity.could_hold(GPU)\n"
            "answer, seconds = resolved()\n"
            "look = lambda: [info['State'] for info in state.actors().values()]\n"
            "said = before, answer, seconds, capacity._inside(look)"
        )
        before, answer, seconds, actors = ask(cluster.client_address if behind_client else cluster.address, code)
        print(f"answered in {seconds:.1f} s")
        assert not before
        assert answer == 1.0
        assert actors == ["DEAD"]
        assert pending(cluster) == 0


def test_an_actor_waits_for_a_launch_and_then_for_the_limit() -> None:
    """More GPU nodes than the type may have are asked for: two live, the third waits."""
    with FakeCluster(gpus=2) as cluster:
        code = (
            "actors = want(3)\n"
            "first = waiting('launched')\n"
            "ready, _ = ray.wait([actor.ready.remote() for actor in actors], num_returns=2, timeout=90)\n"
            "said = first, len(ready), waiting('limit'), resolved()[0]"
        )
        first, ready, then, answer = ask(cluster.address, code)
        assert "launched" in first
        assert "gpu" in first
        assert ready == 2
        assert then == AT_LIMIT
        assert answer == 1.0
        assert sorted(node.type for node in cluster.nodes()) == ["gpu", "gpu", "ray.head.default"]


@pytest.mark.parametrize("behind_client", [False, True])
def test_without_a_gpu_type_auto_is_refused_with_the_remedy(without_gpus: FakeCluster, behind_client: bool) -> None:
    answer, seconds = ask(without_gpus.client_address if behind_client else without_gpus.address, "said = resolved()")
    print(f"answered in {seconds:.1f} s")
    assert answer == (
        "no node type of this cluster can hold 1 CPU, 1 GPU; "
        "add one to the cluster's available_node_types, or set num_gpus: 0 to render on CPUs"
    )
    assert pending(without_gpus) == 0


def test_an_actor_that_no_type_holds_says_so(without_gpus: FakeCluster) -> None:
    assert ask(without_gpus.address, "actors = want(1); said = waiting('type')") == f"{NO_TYPE} holds 1 CPU, 1 GPU"


def test_where_other_nodes_fill_the_limit_ray_does_not_tell_it_from_a_missing_type() -> None:
    with FakeCluster(max_workers=1, min_cpus=1) as cluster:
        code = (
            "answer, _ = resolved(); actors = want(1); said = answer, waiting('limit'), waiting('limit', fitted=True)"
        )
        answer, words, fitted = ask(cluster.address, code)
        assert answer.startswith(f"{NO_TYPE} can hold 1 CPU, 1 GPU, or the cluster is at its limit of nodes; ")
        assert "num_gpus: 1" in answer
        assert words == f"{NO_TYPE} holds 1 CPU, 1 GPU, or {AT_LIMIT}"
        assert fitted == AT_LIMIT


def test_a_refusal_of_the_cloud_is_something_to_wait_for() -> None:
    with FakeCluster(refuses="no stock") as cluster:
        answer, words = ask(
            cluster.address, "answer, _ = resolved(); actors = want(1); said = answer, waiting('refused')"
        )
        assert answer == 1.0
        assert words.startswith("the cloud refused (gpu): ")


@pytest.mark.parametrize("v2", [False, True])
def test_without_an_autoscaler_auto_asks_for_a_number(v2: bool) -> None:
    """Ray runs one all the same, which adds no nodes; its second version lists the request as infeasible."""
    with FakeCluster(autoscaler=False, head_cpus=1, v2=v2) as cluster:
        answer, seconds = ask(cluster.address, "said = resolved()")
        print(f"answered in {seconds:.1f} s")
        assert "no autoscaler" in answer
        assert "num_gpus: 1" in answer
        assert "num_gpus: 0" in answer


def test_an_idle_node_goes_and_auto_brings_another() -> None:
    with FakeCluster(idle_timeout_minutes=0.05) as cluster:
        assert ask(cluster.address, "said = resolved()[0]") == 1.0
        until(lambda: [node.type for node in cluster.nodes()].count("gpu") == 1, seconds=60)
        until(lambda: len(cluster.nodes()) == 1, seconds=60)
        assert ask(cluster.address, "actor, = want(1); said = ray.get(actor.ready.remote()), resolved()[0]") == [
            True,
            1.0,
        ]


def pending(cluster: FakeCluster) -> int:
    """Requests that wait, once the raylets have reported."""
    until(lambda: not cluster.status().cluster_resource_state.pending_resource_requests, seconds=60)
    return len(cluster.status().cluster_resource_state.pending_resource_requests)
