"""The Ray that a campaign breaks, on this machine: of several raylets, or with an autoscaler; and a run's driver.

Only processes of the campaign's own cluster and drivers are ever touched.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from tests.breaking_engine import FOLDER_ENV, HOOK, Tokens
from tests.fake_cluster import FakeCluster

ROOT = Path(__file__).parent.parent
WORKER_NODES, CPUS_A_NODE = 2, 2
STORE_BYTES = 90 << 20
SPOT = {"spot": 2.0}  # what the render actors ask for, so that they are on the raylets that may die
LATE = {"late": 2.0}  # of one node more, where a campaign has a pool that comes late


class Cluster:
    """`with Cluster() as cluster:` a head that stays and `WORKER_NODES` raylets that may be killed and replaced."""

    def __init__(self, *more: dict[str, float]) -> None:
        self.resources = [*[SPOT] * WORKER_NODES, *more]  # a node each

    def __enter__(self) -> "Cluster":
        from ray.cluster_utils import Cluster as RayCluster

        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Ray puts sockets there
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": self.folder}
        self.ray = RayCluster(
            initialize_head=True, head_node_args=head | {"object_store_memory": STORE_BYTES}, shutdown_at_exit=True
        )
        self.nodes = [self._added(resources) for resources in self.resources]
        return self

    def __exit__(self, *exc: object) -> None:
        self.ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """For `--address`."""
        return self.ray.address

    def mend(self) -> bool:
        """A new cluster where the head is gone, as who runs one would start it again; -> whether that was so."""
        if self.head_lives():
            return False
        self.__exit__()
        self.__enter__()
        return True

    def head_lives(self) -> bool:
        """Its raylet has not ended."""
        heads = self.ray.head_node.all_processes.get("raylet", ()) if self.ray.head_node else ()
        return bool(heads) and all(info.process.poll() is None for info in heads)

    def _added(self, resources: dict[str, float]) -> Any:
        return self.ray.add_node(num_cpus=CPUS_A_NODE, resources=resources, object_store_memory=STORE_BYTES)

    def choose(self, chance: random.Random) -> int:
        """One of the raylets for render actors, by its place in `nodes`."""
        return chance.randrange(WORKER_NODES)

    def node_id(self, place: int) -> str:
        """Ray's, of the node that is there now."""
        return self.nodes[place].node_id

    def raylet(self, place: int) -> psutil.Process:
        """Raises psutil.NoSuchProcess where it is gone."""
        return psutil.Process(self.nodes[place].all_processes["raylet"][0].process.pid)

    def lose(self, place: int) -> None:
        """kill -9 of a raylet with all that hangs on it. In the main thread, as `replace`."""
        if self.nodes[place] is not None:
            self.ray.remove_node(self.nodes[place], allow_graceful=False)
            self.nodes[place] = None

    def replace(self, place: int) -> None:
        """The node goes, if it is still there, and a new one comes."""
        self.lose(place)
        self.nodes[place] = self._added(self.resources[place])

    def replace_dead(self) -> None:
        """Nodes whose raylet has ended, as one does that was taken for dead and wakes."""
        for place, node in enumerate(self.nodes):
            if node is not None and any(info.process.poll() is not None for info in node.all_processes["raylet"]):
                self.replace(place)

    def raylets(self) -> list[int]:
        """The processes of all nodes, the head's first."""
        nodes = [self.ray.head_node, *self.nodes]
        return [info.process.pid for node in nodes if node for info in node.all_processes.get("raylet", ())]

    def processes(self, text: str) -> list[psutil.Process]:
        """The cluster's worker processes with this text in their title; no agent, with which its raylet would end."""
        raylets, found = set(self.raylets()), []
        for process in psutil.process_iter(["ppid", "cmdline"]):
            title = " ".join(process.info["cmdline"] or ())
            if process.info["ppid"] in raylets and title.startswith("ray::") and text in title and "Agent" not in title:
                found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def drain(self, place: int, deadline_s: float) -> None:
        """Tells Ray that the node goes, as a cloud does before it takes a machine back."""
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int(1000 * (time.time() + deadline_s))
        GcsClient(address=self.address).drain_node(self.node_id(place), reason, "spot", deadline_ms)


class Autoscaled(Cluster):
    """One whose nodes come when actors wait for them and go when idle: three node types, see FakeCluster."""

    def __init__(self) -> None:
        self.fake = FakeCluster(max_workers=4, cpus=1, min_cpus=1, gpus=2, idle_timeout_minutes=0.1)

    def __enter__(self) -> "Autoscaled":
        os.environ["RAY_AUTH_MODE"] = "disabled"  # as its own processes have it
        self.fake.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.fake.__exit__(*exc)

    @property
    def address(self) -> str:
        return self.fake.address

    def head_lives(self) -> bool:
        return self.fake.head.poll() is None

    def raylets(self) -> list[int]:
        found = [process for process in self.fake.processes() if _name(process) == "raylet"]
        return [each.pid for each in sorted(found, key=lambda each: (each.ppid() != self.fake.head.pid, each.pid))]

    def choose(self, chance: random.Random) -> int:
        """Of the nodes that are there now; one of CPUs alone may be among them."""
        there = self.raylets()[1:]
        return chance.choice(there) if there else 0

    def replace(self, place: int) -> None:
        """The autoscaler starts a new one, where it is needed."""
        with suppress(psutil.NoSuchProcess):
            if place:
                psutil.Process(place).kill()


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


@dataclass
class Driver:
    """One `python -m jobs` verb, in a process of its own; stdout and stderr go to files beside the job's."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @classmethod
    def start(cls, job: Path, address: str, *options: str, verb: str = "run", breaks: Tokens | None = None) -> "Driver":
        """The command as a user types it. breaks: what its workers' engines do beside their work."""
        out, err = job.with_suffix(".out"), job.with_suffix(".err")
        command = [sys.executable, "-m", "jobs", verb, str(job), "--json", "--address", address, *options]
        # as a submitted job has it: the workers take the code from this folder, nothing is uploaded
        variables = {"PYTHONPATH": str(ROOT)}
        if breaks:
            variables = {"PYTHONPATH": os.pathsep.join(map(str, (HOOK, ROOT))), FOLDER_ENV: str(breaks.folder)}
        env = (
            os.environ
            | variables
            | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": variables}})}
        )
        with out.open("wb") as said, err.open("wb") as complained:
            return cls(subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=complained, env=env), out, err)

    def send(self, number: int) -> None:
        """A signal, if it still lives."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def said(self) -> str:
        """All of stderr."""
        return self.err.read_text("utf-8", "replace")


def wait(process: subprocess.Popen[bytes], seconds: float, meanwhile: Callable[[], None] = lambda: None) -> int | None:
    """The exit code, None where it is still there after so long."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        meanwhile()
        time.sleep(0.1)
    return process.poll()


def wake(*processes: psutil.Process) -> None:
    """Those that were stopped go on."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
