"""Asks every living node of a cluster, before anything starts, what it sees: the run folder, a local input, a GPU.

On nodes that join later each worker proves the run folder itself, by `pipelines.run.proof`. A local Ray that this
process started is not asked: it has this process's disk, environment and devices.
"""

import glob
import hashlib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.run.proof import NotSharedError, Proof, message, prove
from pipelines.storage.folder import Folder, StorageError

ANSWER_S = 60.0  # a new node unpacks the working directory first, and imports
LOOKED_INTO, EDGE_BYTES = 32, 1 << 16  # files whose first and last bytes are compared, and how many of those
OUTPUT, INPUT = "output.path", "input.path"


@dataclass(frozen=True)
class Listing:
    """The files behind a local path, as far as two machines must agree on them; no times: copies are welcome."""

    files: int
    num_bytes: int
    digest: str

    def __str__(self) -> str:
        return f"{self.files:,} files of {self.num_bytes:,} bytes" if self.files else "nothing"


@dataclass(frozen=True)
class NodeFault:
    """What one node, or several equal ones, lack. key: of the job file; message: names the nodes and the remedy."""

    key: str
    message: str


@dataclass(frozen=True)
class Preflight:
    """What the nodes answered. own: this process started its Ray, so no node was asked.

    workers: the number of living nodes with CPUs or GPUs. silent: one message for nodes that did not answer although
    others did. devices: the most CUDA devices that one node has, None if that was not asked. autoscaled: more nodes may
    come.
    """

    own: bool = False
    workers: int = 0
    faults: tuple[NodeFault, ...] = ()
    silent: tuple[str, ...] = ()
    devices: int | None = None
    autoscaled: bool = False


@dataclass(frozen=True)
class _Question:
    run: Folder
    proof: Proof
    input_path: str | None
    expected: Listing | None
    cuda: bool


@dataclass(frozen=True)
class _Answer:
    """wrong: by key of the job file, what the node does not have. launched: by an autoscaler, which names its types."""

    host: str
    wrong: dict[str, str]
    devices: int | None
    launched: bool


def ask_every_node(run: Folder, proof: Proof, input_path: str | None = None, cuda: bool = False) -> Preflight:
    """One task on each living node, the head among them. Needs a connected Ray; a node's fault is not raised.

    input_path: a local file, folder or glob, which each node must have as it is here. cuda: count the devices.
    """
    if is_own_ray():
        return Preflight(own=True, devices=cuda_devices() if cuda else None)
    path = os.path.abspath(os.path.expanduser(input_path)) if input_path else None
    question = _Question(run, proof, path, listing(path, run.url) if path else None, cuda)
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    asked = {_ask_node(question, node): node for node in nodes.values()}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
    answers, silent = [], [(asked[ref], f"no answer within {ANSWER_S:.0f} s") for ref in late]
    for ref in ready:
        try:
            answers.append(ray.get(ref))
        except TaskUnschedulableError:  # the node left
            continue
        except RayError as error:
            silent.append((asked[ref], _reason(error)))
    for ref in late:
        ray.cancel(ref, force=True)
    devices = [_gpus(node) for node in nodes.values()] + [answer.devices or 0 for answer in answers]
    said = _silence(silent)
    return Preflight(
        workers=sum(_is_worker(node) for node in nodes.values()),
        faults=(*_grouped(run, answers), *(() if answers else said)),
        silent=tuple(fault.message for fault in said) if answers else (),
        devices=max(devices, default=0) if cuda else None,
        autoscaled=any(answer.launched for answer in answers),
    )


def workers_are_up() -> bool:
    """Whether a Ray task finds a place without a machine being started for it."""
    return is_own_ray() or any(node["Alive"] and _is_worker(node) for node in ray.nodes())


def is_own_ray() -> bool:
    """Whether this process started the Ray that it is connected to; False behind ray://, and at an address."""
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


def listing(path: str, without: str) -> Listing:
    """Lists a local path: names, sizes, and a digest of the edges of the first files; nothing for an absent path.

    without: a folder inside that changes meanwhile and is left out. Hidden files are no input.
    """
    paths = sorted(each for each in _files(path) if not each.startswith(f"{without}/"))
    digest, num_bytes = hashlib.blake2b(digest_size=16), 0
    for index, each in enumerate(paths):
        size = os.path.getsize(each)
        num_bytes += size
        digest.update(f"{os.path.relpath(each, path)}\0{size}\0".encode("utf-8", "surrogatepass"))
        digest.update(_edges(each, size) if index < LOOKED_INTO else b"")
    return Listing(len(paths), num_bytes, digest.hexdigest())


def _files(path: str) -> Iterable[str]:
    if os.path.isfile(path):
        return [path]
    found = glob.iglob("**", root_dir=path, recursive=True) if os.path.isdir(path) else glob.iglob(path, recursive=True)
    return [each for name in found if os.path.isfile(each := os.path.join(path, name))]


def _edges(path: str, size: int) -> bytes:
    with open(path, "rb") as file:
        first = file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        return first + file.read(EDGE_BYTES)


def cuda_devices() -> int:
    """How many torch can use in this process."""
    import torch  # seconds, for the jobs that name a device

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _ask_node(question: _Question, node: dict[str, Any]) -> Any:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(_look).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(question)


def _look(question: _Question) -> _Answer:
    """Runs on the node that is asked."""
    wrong = {}
    try:
        prove(question.run, question.proof)
    except NotSharedError as error:
        wrong[OUTPUT] = error.finding
    except StorageError as error:
        wrong[OUTPUT] = str(error)
    if question.expected is not None and question.input_path is not None:
        try:
            found = listing(question.input_path, question.run.url)
        except OSError as error:
            wrong[INPUT] = f"it cannot be read there: {error.strerror}"
        else:
            if found != question.expected:
                wrong[INPUT] = f"there it holds {found}, here {question.expected}"
    devices = cuda_devices() if question.cuda else None
    return _Answer(socket.gethostname(), wrong, devices, launched="RAY_NODE_TYPE_NAME" in os.environ)


def _grouped(run: Folder, answers: list[_Answer]) -> list[NodeFault]:
    """One fault for all nodes that give the same answer; faults of the run folder come first."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for answer in answers:
        for key, finding in answer.wrong.items():
            hosts.setdefault((key, finding), []).append(answer.host)
    found = []
    for (key, finding), names in sorted(hosts.items(), reverse=True):
        if key == OUTPUT:
            text = message(run.url, _named(names), finding)
        else:
            remedy = "Put it on a disk that every machine mounts at the same path, copy it to each, or use s3://..."
            text = f"{key} is not the same on {_named(names)}: {finding}. {remedy}"
        found.append(NodeFault(key, text))
    return found


def _silence(silent: list[tuple[dict[str, Any], str]]) -> list[NodeFault]:
    """Nodes that did not answer and are still alive; a node that left is no fault."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} if silent else set()
    hosts: dict[str, list[str]] = {}
    for node, reason in silent:
        if node["NodeID"] in alive:
            hosts.setdefault(reason, []).append(node["NodeManagerHostname"])
    return [
        NodeFault(OUTPUT, f"{_named(names)} could not be asked what it sees: {reason}")
        for reason, names in hosts.items()
    ]


def _reason(error: RayError) -> str:
    """One line of an exception whose text holds a traceback."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no reason given':.300}"


def _named(hosts: list[str]) -> str:
    names = list(dict.fromkeys(hosts))
    return f"host {names[0]}" if len(names) == 1 else f"{len(names)} hosts ({', '.join(names)})"


def _is_worker(node: dict[str, Any]) -> bool:
    return node["Resources"].get("CPU", 0) > 0 or _gpus(node) > 0


def _gpus(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("GPU", 0))
