"""A Ray cluster with an autoscaler on this machine: its "cloud" starts one more raylet here for each node.

Ray's fake node provider does the work. Only processes of this cluster are ended: they inherit a mark of their own.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray._raylet import GcsClient
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.core.generated.autoscaler_pb2 import DEAD, IDLE, GetClusterStatusReply
from ray.exceptions import RpcError

ROOT = Path(__file__).parent.parent
RAY = Path(sys.executable).parent / "ray"
HEAD_TYPE = "ray.head.default"
HEAD_INSTANCE = "f" * 51 + "00000"  # what the fake node provider takes its head to be
MARK = "STEPTHRIFT_FAKE_CLUSTER"
STORE_BYTES = 80_000_000
START_S, END_S = 120.0, 10.0
LISTS = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
COMMANDS = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@dataclass(frozen=True)
class FakeNode:
    """One living node. type: of available_node_types; "" where the cluster has no autoscaler."""

    id: str
    type: str
    idle: bool
    resources: dict[str, float]


class Provider(FakeMultiNodeProvider):
    """Starts a raylet for each node; where its config has `refuses`, it does so for none, as a cloud without stock."""

    def create_node_with_resources_and_labels(self, *args: Any) -> None:
        if self.provider_config["refuses"]:
            raise RuntimeError(self.provider_config["refuses"])
        super().create_node_with_resources_and_labels(*args)


class FakeCluster:
    """`with FakeCluster() as cluster:` a head without CPUs, and node types "cpu" (1 CPU) and "gpu" (2 CPUs, 1 GPU).

    max_workers: of the whole cluster, and cpus and gpus of each type. min_cpus: CPU nodes that are there from the
    start. refuses: the cloud creates no node and gives this reason. autoscaler False: a plain `ray start --head`.
    v2: which version of the autoscaler.
    """

    def __init__(
        self,
        gpu_type: bool = True,
        max_workers: int = 4,
        cpus: int = 1,
        gpus: int = 3,
        min_cpus: int = 0,
        idle_timeout_minutes: float = 0.5,
        autoscaler: bool = True,
        head_cpus: int = 0,
        refuses: str = "",
        v2: bool = True,
    ):
        self.types: dict[str, Any] = {
            HEAD_TYPE: {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
            "cpu": _node_type({"CPU": 1}, cpus, min_cpus),
        }
        if gpu_type:
            self.types["gpu"] = _node_type({"CPU": 2, "GPU": 1}, gpus)
        self.max_workers, self.idle_timeout_minutes = max_workers, idle_timeout_minutes
        self.autoscaler, self.head_cpus, self.refuses, self.min_cpus = autoscaler, head_cpus, refuses, min_cpus
        self.v2 = v2

    def __enter__(self) -> "FakeCluster":
        self.folder = Path(tempfile.mkdtemp(prefix="fake-", dir="/tmp"))  # short: Ray puts sockets there
        self.mark = secrets.token_hex(8)
        self.port, self.client_port = _free_ports(2)
        self.address, self.client_address = f"127.0.0.1:{self.port}", f"ray://127.0.0.1:{self.client_port}"
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        while mine := self.processes():  # again and again: the autoscaler may be starting one more
            for process in mine:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(mine, END_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def nodes(self) -> list[FakeNode]:
        """Those alive, the head among them."""
        state = self.status().cluster_resource_state
        return [
            FakeNode(node.node_id.hex(), node.ray_node_type_name, node.status == IDLE, dict(node.total_resources))
            for node in state.node_states
            if node.status != DEAD
        ]

    def status(self) -> GetClusterStatusReply:
        """What the GCS says of the nodes and of the autoscaler. Raises RpcError."""
        return GetClusterStatusReply.FromString(GcsClient(address=self.address).get_cluster_status(timeout_s=10))

    def processes(self) -> list[psutil.Process]:
        """All of this cluster: those that inherited its mark, and their children, which overwrite what they inherit."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark:
                    found |= {each.pid: each for each in (process, *process.children(recursive=True))}
        return list(found.values())

    @staticmethod
    def env() -> dict[str, str]:
        """For its processes and for a driver in a process of its own.

        Without a token: whether Ray asks for one depends on whether another Ray of this user made one before.
        """
        ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return ours | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}

    def _start(self) -> None:
        command = [str(RAY), "start", "--head", "--block", f"--port={self.port}", f"--temp-dir={self.folder}"]
        command += [f"--ray-client-server-port={self.client_port}", "--include-dashboard=false"]
        command += [f"--object-store-memory={STORE_BYTES}", f"--num-cpus={self.head_cpus}", "--num-gpus=0"]
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--dashboard-agent-listen-port=0"]
        env = self.env() | {MARK: self.mark} | ({"RAY_enable_autoscaler_v2": "1"} if self.v2 else {})
        env |= {"GRPC_ENABLE_FORK_SUPPORT": "0"}  # else every second ray:// client met a proxy whose child hung
        if self.autoscaler:
            config = self.folder / "cluster.yaml"
            config.write_text(yaml.safe_dump(self._config()), "utf-8")
            command += [f"--autoscaling-config={config}"]
            env |= {"RAY_FAKE_CLUSTER": "1", "RAY_NODE_TYPE_NAME": HEAD_TYPE}
            env |= {"RAY_CLOUD_INSTANCE_ID": HEAD_INSTANCE}
        self.log = self.folder / "start.log"
        with self.log.open("wb") as said:
            self.head = subprocess.Popen(command, env=env, stdout=said, stderr=said, cwd=ROOT)
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._is_up():
            if self.head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the fake cluster does not start:\n{self.log.read_text('utf-8', 'replace')}")
            time.sleep(0.5)

    def _is_up(self) -> bool:
        """Whether its nodes are there and, where it has an autoscaler, that has reported."""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            status = self.status()
        except (OSError, RpcError):
            return False
        reported = not self.autoscaler or status.autoscaling_state.autoscaler_state_version > 0
        return reported and len(self.nodes()) > self.min_cpus

    def _config(self) -> dict[str, Any]:
        provider = {
            "type": "external",
            "module": f"{__name__}.{Provider.__name__}",
            "refuses": self.refuses,
            "worker_liveness_check": False,
            "gcs_address": self.address,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
        }
        return {
            "cluster_name": "fake",
            "max_workers": self.max_workers,
            "provider": provider,
            "available_node_types": self.types,
            "head_node_type": HEAD_TYPE,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": self.idle_timeout_minutes,
            "file_mounts_sync_continuously": False,
            **{name: {} for name in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")},
            **{name: [] for name in (*LISTS, *COMMANDS)},
        }


def _node_type(resources: dict[str, float], most: int, least: int = 0) -> dict[str, Any]:
    resources = resources | {"object_store_memory": STORE_BYTES}
    return {"resources": resources, "node_config": {}, "min_workers": least, "max_workers": most}


def _free_ports(count: int) -> list[int]:
    """Held together while they are chosen, so that no two are one."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
