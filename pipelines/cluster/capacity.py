"""Asks Ray what the cluster has, what its autoscaler could add, and what a pending actor waits for.

It keeps no state; `pipelines.render` decides which actors are asked for. Where the driver sits behind ray:// and does
not reach the GCS, a task on the head node asks in its place.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, ParamSpec, TypeVar

import ray
from ray._private import state  # the only place that tells of actors' restarts and of drains
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DEAD, GetClusterStatusReply  # type: ignore[attr-defined]
from ray.exceptions import RayError, RpcError
from ray.util.client import ray as client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.pipeline_error import PipelineError

Request = Mapping[str, float]  # {"CPU": 1, "GPU": 1, "spot": 1}: what one actor asks for
P = ParamSpec("P")
R = TypeVar("R")
HEAD = "node:__internal_head__"  # a resource of the head node alone
POLL_S, RPC_S, ASK_S, INSIDE_S = 0.5, 5.0, 30.0, 120.0
REFUSED_S = 60  # a refusal is news until the cloud was asked again for so long
SAY_WHICH = "set num_gpus: 1 to wait for a GPU, or num_gpus: 0 to render on CPUs"
AT_LIMIT, FREE_PLACE = "the cluster is at its limit of nodes", "a free place on the nodes there are"


class CapacityError(PipelineError, RuntimeError):
    """The cluster cannot give what is asked for, or does not say whether it can; the message has the remedy."""


@dataclass(frozen=True)
class Node:
    """A living node. resources: its total, used or not."""

    id: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class ActorState:
    """state: DEPENDENCIES_UNREADY, PENDING_CREATION, ALIVE, RESTARTING or DEAD.

    restarts: how often its process was lost. node: where it is ALIVE, else None. death: why it is DEAD, in one line.
    """

    state: str
    restarts: int
    node: str | None
    death: str


class Placement(Enum):
    """Whether the autoscaler can place one more actor of some request."""

    FITS = "there is a node for it, or one is launched"
    NO_TYPE = "no node type holds it"
    AT_LIMIT = "a node type holds it, and no more nodes are allowed"
    UNCLEAR = "one of the last two: the autoscaler lists both as infeasible"
    NO_AUTOSCALER = "nobody adds nodes to this cluster"
    SILENT = "no answer in time"


def living_nodes() -> tuple[Node, ...]:
    """The nodes that Ray takes to be alive; a node that vanished is among them for some 16 s."""
    return tuple(Node(each["NodeID"], each["Resources"]) for each in ray.nodes() if each["Alive"])


def draining_nodes() -> frozenset[str]:
    """Ids of nodes that are about to go and take no new actors."""
    return _inside(_draining_nodes)


def _draining_nodes() -> frozenset[str]:
    return frozenset(state.state.get_draining_nodes())


def could_hold(request: Request) -> bool:
    """Whether a living node holds the request, at least when nothing else runs there."""
    return any(_holds(node.resources, request) for node in living_nodes())


def actor_states(ids: Iterable[str]) -> dict[str, ActorState]:
    """The state of each actor by its hex id; an actor that Ray does not know yet is left out."""
    return _inside(_actor_states, tuple(ids))


def _actor_states(ids: tuple[str, ...]) -> dict[str, ActorState]:
    found = {each: state.actors(each) for each in ids}
    return {each: _actor_state(info) for each, info in found.items() if info}


def _actor_state(info: Mapping[str, Any]) -> ActorState:
    """One actor's state. Only a living one has a node: else the address is the raylet's that looks for a place."""
    node = info["Address"]["NodeID"] if info["State"] == "ALIVE" else None
    return ActorState(info["State"], info["NumRestarts"], node, _death(info["DeathCause"]))


def _death(cause: Any) -> str:
    """One line: the kind of death, where Ray names one, and what it says of it."""
    context = cause.WhichOneof("context")
    if context is None:
        return ""
    said = getattr(cause, context)
    if context == "creation_task_failure_context":
        return str(said.formatted_exception_string).strip().splitlines()[-1]
    kind = said.DESCRIPTOR.fields_by_name.get("reason")
    name = f"{kind.enum_type.values_by_number[said.reason].name}: " if kind else ""
    return name + str(said.error_message).strip().partition("\n")[0]


def resolve_gpus(request: Request, local: bool) -> float:
    """What `num_gpus: auto` is for actors that also ask for `request`: 1.0, or 0.0 on a local Ray without GPUs.

    local: this process started its Ray. On a cluster it is 1.0 where there is a GPU or the autoscaler adds one, which
    is tried with one placeholder actor, gone on return. Raises CapacityError else: never silently a CPU.
    """
    if local:
        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    if could_hold({"GPU": 1.0}):
        return 1.0
    wanted = {**request, "GPU": 1.0}
    try:
        answer = _inside(_ask_for, wanted)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CapacityError(f"num_gpus: auto cannot ask this cluster for a GPU ({reason}); {SAY_WHICH}") from error
    if answer is Placement.FITS:
        return 1.0
    raise CapacityError(_refusal(answer, wanted))


def check_place(request: Request, local: bool) -> None:
    """Raises CapacityError where no living node holds the request even when nothing else runs, and nobody adds nodes.

    local: this process started its Ray.
    """
    if could_hold(request) or (not local and _inside(_adds_nodes)):
        return
    largest = max(living_nodes(), key=lambda node: node.resources.get("CPU", 0.0))
    shown = {name: largest.resources[name] for name in ("CPU", "GPU") if largest.resources.get(name)}
    raise CapacityError(
        f"no node of this Ray could hold {_words(request)}, even if nothing else ran there, and nobody adds nodes; "
        f"the largest has {_words(shown) or 'no CPU and no GPU'}"
    )


def _adds_nodes() -> bool:
    """True if the GCS does not answer: then the wait for a place says why."""
    with suppress(RpcError):
        return _autoscaled(_status())
    return True


def _refusal(answer: Placement, request: Request) -> str:
    if answer is Placement.NO_TYPE:
        return (
            f"no node type of this cluster can hold {_words(request)}; "
            "add one to the cluster's available_node_types, or set num_gpus: 0 to render on CPUs"
        )
    if answer is Placement.UNCLEAR:
        return (
            f"no node type of this cluster can hold {_words(request)}, or the cluster is at its limit of nodes; "
            f"add one to the cluster's available_node_types or raise its max_workers, or {SAY_WHICH}"
        )
    missing = "no autoscaler of Ray (v2) that could add one"
    if answer is Placement.SILENT:
        missing = f"its autoscaler did not say in {ASK_S:.0f} s whether it can add one"
    return f"num_gpus: auto finds no GPU in this cluster, and {missing}; {SAY_WHICH}"


class _Placeholder:
    """An actor that does nothing; its request makes the autoscaler answer."""


def _ask_for(request: Request) -> Placement:
    others = {name: amount for name, amount in request.items() if name not in ("CPU", "GPU")}
    options = {"num_cpus": request.get("CPU", 0), "num_gpus": request.get("GPU", 0), "resources": others}
    placeholder: Any = ray.remote(_Placeholder).options(**options).remote()
    try:
        return _until_answered(request)
    finally:
        ray.kill(placeholder)


def _until_answered(request: Request) -> Placement:
    """The autoscaler has answered once the last state of the cluster that it saw has the request in it."""
    deadline, asked = time.monotonic() + ASK_S, None
    while time.monotonic() < deadline:
        with suppress(RpcError):
            status = _status()
            if not _autoscaled(status):
                return Placement.NO_AUTOSCALER
            if any(_holds(node.total_resources, request) for node in _alive(status)):
                return Placement.FITS
            if asked is None and _pending(status, request):
                asked = status.cluster_resource_state.cluster_resource_state_version
            if asked is not None and status.autoscaling_state.last_seen_cluster_resource_state_version >= asked:
                return _judged(status, request)
        time.sleep(POLL_S)
    return Placement.SILENT


def waiting_for(request: Request, fitted: bool = False) -> str:
    """What a pending actor of this request waits for, in words that follow "waiting for an actor: ". Never raises.

    fitted: the autoscaler is known to have a node type for it (`resolve_gpus` returned 1.0, or an actor lived). Only
    then can a limit that is reached by other nodes be told from a type that is missing: Ray lists both as infeasible.
    """
    try:
        return _inside(_waiting_for, dict(request), fitted)
    except (RayError, OSError, RuntimeError):
        return FREE_PLACE


def _waiting_for(request: Request, fitted: bool) -> str:
    return _why(_status(), request, fitted)


def _why(status: GetClusterStatusReply, request: Request, fitted: bool) -> str:
    if not _autoscaled(status):
        held = any(_holds(node.total_resources, request) for node in _alive(status))
        return FREE_PLACE if held else f"a node that holds {_words(request)}, which nobody adds to this cluster"
    answer = _judged(status, request)
    missing = f"no node type of this cluster holds {_words(request)}"
    if answer is Placement.AT_LIMIT or (fitted and answer is not Placement.FITS):
        return AT_LIMIT
    if answer is not Placement.FITS:
        return missing if answer is Placement.NO_TYPE else f"{missing}, or {AT_LIMIT}"
    return _refused(status) or _launched(status, request) or FREE_PLACE


def _judged(status: GetClusterStatusReply, request: Request) -> Placement:
    """What a cluster with an autoscaler, which has seen the request, says of it."""
    infeasible = [each.resources_bundle for each in status.autoscaling_state.infeasible_resource_requests]
    refused = sum(_same(each, request) for each in infeasible)
    launching = _launching(status, request)
    if not refused or (launching and refused < _pending(status, request)):
        return Placement.FITS
    alive = _alive(status)
    if any(_holds(node.total_resources, request) for node in alive):
        return Placement.AT_LIMIT
    # with no node but the head no limit can be reached, other than a limit of 0
    return (
        Placement.UNCLEAR if launching or any(HEAD not in node.total_resources for node in alive) else Placement.NO_TYPE
    )


def _launching(status: GetClusterStatusReply, request: Request) -> Counter[str]:
    """How many nodes of each type are on their way, without types that are known not to hold the request."""
    unfit = {node.ray_node_type_name for node in _alive(status) if not _holds(node.total_resources, request)}
    found: Counter[str] = Counter()
    for asked in status.autoscaling_state.pending_instance_requests:
        found[asked.ray_node_type_name] += asked.count
    for instance in status.autoscaling_state.pending_instances:
        found[instance.ray_node_type_name] += 1
    return Counter({name: count for name, count in found.items() if name not in unfit})


def _launched(status: GetClusterStatusReply, request: Request) -> str:
    found = _launching(status, request)
    if found.total() < 2:
        return f"a node is being launched ({next(iter(found))})" if found else ""
    return f"nodes are being launched ({', '.join(f'{count} {name}' for name, count in sorted(found.items()))})"


def _refused(status: GetClusterStatusReply) -> str:
    """Refusals stay listed for ever: one counts while its node type is asked for anew, and none of it is on its way."""
    known = status.autoscaling_state
    given = {instance.ray_node_type_name for instance in known.pending_instances}
    asked = {each.ray_node_type_name: each.request_ts for each in known.pending_instance_requests}
    for failed in sorted(known.failed_instance_requests, key=lambda each: -each.failed_ts):
        name = failed.ray_node_type_name
        if name in asked and name not in given and asked[name] - failed.failed_ts < REFUSED_S:
            return f"the cloud refused ({name}): {failed.reason or 'monitor.log of the head node says why'}"
    return ""


def _status() -> GetClusterStatusReply:
    """Raises RpcError."""
    gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
    return GetClusterStatusReply.FromString(gcs.get_cluster_status(timeout_s=RPC_S))


def _alive(status: GetClusterStatusReply) -> list[Any]:
    return [node for node in status.cluster_resource_state.node_states if node.status != DEAD]


def _autoscaled(status: GetClusterStatusReply) -> bool:
    """Whether an autoscaler launches nodes: then they have types. Without types autoscaler v2 only watches."""
    return any(node.ray_node_type_name for node in _alive(status))


def _pending(status: GetClusterStatusReply, request: Request) -> int:
    listed = status.cluster_resource_state.pending_resource_requests
    return sum(each.count for each in listed if _same(each.request.resources_bundle, request))


def _same(bundle: Request, request: Request) -> bool:
    """Whether two requests are equal to Ray, which rounds to ten-thousandths and leaves out zeros."""
    return _rounded(bundle) == _rounded(request)


def _rounded(request: Request) -> dict[str, float]:
    return {name: round(amount, 4) for name, amount in request.items() if amount}


def _holds(resources: Request, request: Request) -> bool:
    return all(resources[name] >= amount if name in resources else not amount for name, amount in request.items())


def _words(request: Request) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in request.items() if amount)


def _inside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls the function in this process or, behind ray://, in a task on the proxy's node."""
    if not client.is_connected():
        return function(*args, **kwargs)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task: Any = ray.remote(function).options(num_cpus=0, scheduling_strategy=here)
    result: R = ray.get(task.remote(*args, **kwargs), timeout=INSIDE_S)
    return result
