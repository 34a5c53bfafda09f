"""What a fault campaign breaks: a Ray of several raylets on this machine, its processes, its driver, its S3 server.

Only processes of the campaign's own cluster and drivers are ever touched.
"""

import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.other_servers import Server

ROOT = Path(__file__).parent.parent
RENDERER, LEDGER, ANY = "RenderWorker", "LedgerActor", "ray::"
WORKER_NODES, CPUS_A_NODE = 2, 2
RAYLET_S = 60.0
STORE_BYTES = 90 << 20
SPOT = {"spot": 2.0}  # what the render actors ask for, so that they are on the raylets that may die


class Cluster:
    """`with Cluster() as cluster:` a head that stays and `WORKER_NODES` raylets that may be killed and replaced."""

    def __enter__(self) -> "Cluster":
        from ray.cluster_utils import Cluster as RayCluster

        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Ray puts sockets there
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": self.folder}
        self.ray = RayCluster(
            initialize_head=True, head_node_args=head | {"object_store_memory": STORE_BYTES}, shutdown_at_exit=True
        )
        for _ in range(WORKER_NODES):
            self.add()
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
        heads = self.ray.head_node.all_processes.get("raylet", ()) if self.ray.head_node else ()
        if heads and all(info.process.poll() is None for info in heads):
            return False
        self.__exit__()
        self.__enter__()
        return True

    def add(self) -> None:
        """One more raylet for render actors."""
        self.ray.add_node(num_cpus=CPUS_A_NODE, resources=SPOT, object_store_memory=STORE_BYTES)

    def replace(self, chance: random.Random) -> None:
        """kill -9 of a raylet with all that hangs on it; a new one comes."""
        node = chance.choice(sorted(self.ray.worker_nodes, key=lambda node: node.unique_id))
        self.ray.remove_node(node, allow_graceful=False)
        self.add()

    def processes(self, text: str) -> list[psutil.Process]:
        """The cluster's worker processes with this text in their title; no agent, with which its raylet would end."""
        nodes = [self.ray.head_node, *list(self.ray.worker_nodes)]
        raylets = {info.process.pid for node in nodes for info in node.all_processes.get("raylet", ())}
        found = []
        for process in psutil.process_iter(["ppid", "cmdline"]):
            title = " ".join(process.info["cmdline"] or ())
            if process.info["ppid"] in raylets and title.startswith("ray::") and text in title and "Agent" not in title:
                found.append(process)
        return sorted(found, key=lambda process: process.pid)


@dataclass
class Driver:
    """One `python -m jobs` verb, in a process of its own; stdout and stderr go to files beside the job's."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @classmethod
    def start(cls, job: Path, address: str, *options: str, verb: str = "run") -> "Driver":
        """The command as a user types it."""
        out, err = job.with_suffix(".out"), job.with_suffix(".err")
        command = [sys.executable, "-m", "jobs", verb, str(job), "--json", "--address", address, *options]
        # as a submitted job has it: the workers take the code from this folder, nothing is uploaded
        code = {"runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}
        env = os.environ | {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(code)}
        with out.open("wb") as said, err.open("wb") as complained:
            return cls(subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=complained, env=env), out, err)

    def send(self, number: int) -> None:
        """A signal, if it still lives."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def said(self) -> str:
        """All of stderr."""
        return self.err.read_text("utf-8", "replace")


@dataclass
class Chaos:
    """Acts against one campaign. done: what was done, in order; an act that found nobody says so."""

    cluster: Cluster
    server: Server
    chance: random.Random
    driver: Driver | None = None
    done: list[str] = field(default_factory=list)
    timers: list[threading.Thread] = field(default_factory=list)
    for_main: "queue.SimpleQueue[threading.Event]" = field(default_factory=queue.SimpleQueue)

    def act(self, name: str) -> None:
        """One of ACTS, or `raylet` or `power`. What goes wrong in it is noted, too."""
        try:
            self.done.append(getattr(self, f"_{name}")())
        except Exception as error:
            self.done.append(f"{name} (failed: {type(error).__name__})")
            raise

    def serve(self) -> None:
        """In the main thread, again and again: what only it can do, since Ray's nodes set signal handlers."""
        with suppress(queue.Empty):
            asked = self.for_main.get_nowait()
            self.cluster.replace(self.chance)
            asked.set()

    def settle(self) -> None:
        """Waits for what an act left under way."""
        for timer in self.timers:
            timer.join()
        self.timers.clear()

    def _strike(self, text: str, number: int, name: str) -> str:
        found = self.cluster.processes(text)
        if not found:
            return f"{name} (nobody)"
        with suppress(psutil.NoSuchProcess):
            self.chance.choice(found).send_signal(number)
        return name

    def _actor(self) -> str:
        return self._strike(RENDERER, signal.SIGKILL, "actor")

    def _actor_term(self) -> str:
        return self._strike(RENDERER, signal.SIGTERM, "actor_term")

    def _actor_stop(self) -> str:
        """A worker that falls silent for a while: a zombie that wakes."""
        found = self.cluster.processes(RENDERER)
        if not found:
            return "actor_stop (nobody)"
        zombie, pause_s = self.chance.choice(found), self.chance.uniform(0.5, 3.0)
        with suppress(psutil.NoSuchProcess):
            zombie.suspend()
            self._later(pause_s, lambda: _wake(zombie))
        return "actor_stop"

    def _process(self) -> str:
        return self._strike(ANY, signal.SIGKILL, "process")

    def _ledger(self) -> str:
        return self._strike(LEDGER, signal.SIGKILL, "ledger")

    def _raylet(self) -> str:
        asked = threading.Event()
        self.for_main.put(asked)
        if not asked.wait(RAYLET_S):
            raise TimeoutError("no new raylet")
        return "raylet"

    def _driver_kill(self) -> str:
        return self._signal(signal.SIGKILL, "driver_kill")

    def _driver_term(self) -> str:
        return self._signal(signal.SIGTERM, "driver_term")

    def _driver_int(self) -> str:
        return self._signal(signal.SIGINT, "driver_int")

    def _signal(self, number: int, name: str) -> str:
        if self.driver:
            self.driver.send(number)
        return name

    def _server_kill(self) -> str:
        self.server.kill()
        self._later(self.chance.uniform(0.2, 2.0), self.server.restart)
        return "server_kill"

    def _power(self) -> str:
        self.server.kill(everything=True)
        self._later(self.chance.uniform(0.2, 1.0), self.server.restart)
        return "power"

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, act)
        timer.start()
        self.timers.append(timer)


ACTS = (
    "actor",
    "actor_term",
    "actor_stop",
    "process",
    "ledger",
    "driver_kill",
    "driver_kill",  # what a user does most: twice as likely
    "driver_term",
    "driver_int",
    "server_kill",
)


def _wake(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.resume()


def wait(process: subprocess.Popen[bytes], seconds: float, meanwhile: Callable[[], None] = lambda: None) -> int | None:
    """The exit code, None where it is still there after so long."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        meanwhile()
        time.sleep(0.1)
    return process.poll()
