"""What the cluster has and what an actor waits for: from replies made by hand, and on a plain local Ray."""

import os
import signal
import time
from typing import Any

import pytest
from ray.core.generated.autoscaler_pb2 import DEAD, RUNNING, GetClusterStatusReply

from pipelines.cluster import capacity
from pipelines.cluster.capacity import AT_LIMIT, FREE_PLACE, CapacityError, Placement

GPU = {"CPU": 1.0, "GPU": 1.0}
GPU_NODE = {"CPU": 2.0, "GPU": 1.0}
HEAD = {capacity.HEAD: 1.0}
NO_TYPE = "no node type of this cluster holds 1 CPU, 1 GPU"


def reply(
    nodes: dict[str, dict[str, float]] | None = None,
    pending: int = 1,
    infeasible: int = 0,
    asked: dict[str, tuple[int, int]] | None = None,
    given: tuple[str, ...] = (),
    failed: dict[str, tuple[int, str]] | None = None,
) -> GetClusterStatusReply:
    """nodes: by their type. asked: count and time. failed: time and reason. All requests are of the shape GPU."""
    made = GetClusterStatusReply()
    for name, resources in (nodes or {"head": HEAD}).items():
        made.cluster_resource_state.node_states.add(ray_node_type_name=name, total_resources=resources, status=RUNNING)
    if pending:
        made.cluster_resource_state.pending_resource_requests.add(request={"resources_bundle": GPU}, count=pending)
    for _ in range(infeasible):
        made.autoscaling_state.infeasible_resource_requests.add(resources_bundle=GPU)
    for name, (count, when) in (asked or {}).items():
        made.autoscaling_state.pending_instance_requests.add(ray_node_type_name=name, count=count, request_ts=when)
    for name in given:
        made.autoscaling_state.pending_instances.add(ray_node_type_name=name)
    for name, (when, reason) in (failed or {}).items():
        made.autoscaling_state.failed_instance_requests.add(ray_node_type_name=name, failed_ts=when, reason=reason)
    return made


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (reply(), FREE_PLACE),
        (reply(asked={"gpu": (1, 50)}), "a node is being launched (gpu)"),
        (reply(given=("gpu",)), "a node is being launched (gpu)"),
        (reply(asked={"gpu": (2, 50)}, given=("gpu",)), "nodes are being launched (3 gpu)"),
        (reply(pending=8, infeasible=5, asked={"gpu": (3, 50)}), "nodes are being launched (3 gpu)"),
        (reply(infeasible=1), NO_TYPE),
        (reply({"head": HEAD, "gpu": GPU_NODE}, infeasible=1), AT_LIMIT),
        (reply({"head": HEAD, "cpu": {"CPU": 4.0}}, infeasible=1), f"{NO_TYPE}, or {AT_LIMIT}"),
        (reply(infeasible=1, asked={"other": (1, 50)}), f"{NO_TYPE}, or {AT_LIMIT}"),
        (reply(asked={"gpu": (1, 50)}, failed={"gpu": (49, "no stock")}), "the cloud refused (gpu): no stock"),
        (reply(asked={"gpu": (1, 500)}, failed={"gpu": (49, "no stock")}), "a node is being launched (gpu)"),
        (reply(given=("gpu",), failed={"gpu": (49, "no stock")}), "a node is being launched (gpu)"),
        (reply({"": HEAD}, infeasible=1), "a node that holds 1 CPU, 1 GPU, which nobody adds to this cluster"),
        (reply({"": HEAD | GPU_NODE}, infeasible=1), FREE_PLACE),
        (reply(pending=0), FREE_PLACE),
    ],
)
def test_words_for_what_an_actor_waits_for(status: GetClusterStatusReply, words: str) -> None:
    assert capacity._why(status, GPU, fitted=False) == words


def test_a_request_that_has_fitted_waits_for_the_limit() -> None:
    crowded = reply({"head": HEAD, "cpu": {"CPU": 4.0}}, infeasible=1)
    assert capacity._why(crowded, GPU, fitted=True) == AT_LIMIT
    assert capacity._why(reply(asked={"gpu": (1, 50)}), GPU, fitted=True) == "a node is being launched (gpu)"


def test_a_node_of_a_type_that_does_not_hold_the_request_is_launched_for_others() -> None:
    status = reply({"head": HEAD, "cpu": {"CPU": 4.0}}, asked={"cpu": (1, 50)}, given=("head",))
    assert capacity._why(status, GPU, fitted=False) == FREE_PLACE
    assert capacity._why(status, {"CPU": 1.0}, fitted=False) == "a node is being launched (cpu)"


def test_a_dead_node_holds_nothing() -> None:
    status = reply({"head": HEAD, "gpu": GPU_NODE}, infeasible=1)
    status.cluster_resource_state.node_states[1].status = DEAD
    assert capacity._why(status, GPU, fitted=False) == NO_TYPE


def test_requests_are_compared_as_ray_stores_them() -> None:
    status = reply(infeasible=1)
    assert capacity._judged(status, {"GPU": 1, "CPU": 1.00001, "spot": 0}) is Placement.NO_TYPE
    assert capacity._judged(status, {"GPU": 1, "CPU": 2}) is Placement.FITS


@pytest.mark.parametrize("answer", [each for each in Placement if each is not Placement.FITS])
def test_each_refusal_has_a_remedy(answer: Placement) -> None:
    said = capacity._refusal(answer, GPU)
    assert "num_gpus: 0" in said
    assert ("num_gpus: 1" in said) == (answer is not Placement.NO_TYPE)


def test_without_ray_nothing_is_known_and_nothing_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise ConnectionError("no GCS")

    monkeypatch.setattr(capacity, "_waiting_for", lost)
    assert capacity.waiting_for(GPU) == FREE_PLACE


@pytest.mark.ray
def test_a_local_ray_is_what_it_is(ray_cluster: Any) -> None:
    assert capacity.resolve_gpus({"CPU": 1}, local=True) == 0.0
    assert capacity.could_hold({"CPU": 4, "GPU": 0})
    assert not capacity.could_hold({"CPU": 5})
    assert not capacity.could_hold(GPU)
    (node,) = capacity.living_nodes()
    assert node.resources["CPU"] == 4
    assert capacity.draining_nodes() == frozenset()


@pytest.mark.ray
def test_a_cluster_that_nobody_adds_nodes_to_is_not_silently_a_cpu(ray_cluster: Any) -> None:
    with pytest.raises(CapacityError, match=r"no autoscaler.*num_gpus: 1 .*num_gpus: 0 "):
        capacity.resolve_gpus({"CPU": 1}, local=False)
    assert capacity.waiting_for(GPU) == "a node that holds 1 CPU, 1 GPU, which nobody adds to this cluster"
    assert capacity.waiting_for({"CPU": 4}) == FREE_PLACE


@pytest.mark.ray
def test_the_states_of_an_actor(ray_cluster: Any) -> None:
    class Actor:
        def pid(self) -> int:
            return os.getpid()

    kind = ray_cluster.remote(Actor)
    actor = kind.options(num_cpus=0, max_restarts=-1).remote()
    unplaced = kind.options(num_cpus=100).remote()
    ids = {"alive": actor._actor_id.hex(), "unplaced": unplaced._actor_id.hex(), "unknown": "ab" * 16}
    pid = ray_cluster.get(actor.pid.remote())
    assert states(ids)["alive"] == capacity.ActorState("ALIVE", 0, ray_cluster.get_runtime_context().get_node_id(), "")
    assert until(ids, "unplaced", "PENDING_CREATION").node is None
    assert "unknown" not in states(ids)
    os.kill(pid, signal.SIGKILL)
    assert until(ids, "alive", "ALIVE", restarts=1).death == ""
    ray_cluster.kill(actor)
    ray_cluster.kill(unplaced)
    assert until(ids, "alive", "DEAD").death == "RAY_KILL: The actor is dead because it was killed by `ray.kill`."


@pytest.mark.ray
def test_the_error_of_a_constructor_is_the_cause_of_death(ray_cluster: Any) -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no weights")

    actor = ray_cluster.remote(Broken).options(num_cpus=0).remote()
    assert "no weights" in until({"broken": actor._actor_id.hex()}, "broken", "DEAD").death


def states(ids: dict[str, str]) -> dict[str, capacity.ActorState]:
    found = capacity.actor_states(ids.values())
    return {name: found[each] for name, each in ids.items() if each in found}


def until(ids: dict[str, str], name: str, state: str, restarts: int = 0, within_s: float = 60.0) -> capacity.ActorState:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = states(ids).get(name)
        if found and found.state == state and found.restarts >= restarts:
            return found
        time.sleep(0.1)
    raise AssertionError(states(ids))
