"""A real S3 server for tests: Ceph's radosgw over one monitor and one OSD, on free ports, in a temporary folder.

It checks signatures, honours `If-None-Match: *` on PUT, can be killed with -9 and started again on the same data.
By hand: `python tests/s3_server.py` serves until Ctrl-C and prints the variables to export.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
PACKAGES = Path(__file__).parent.parent / ".ci" / "packages"
START_TIMEOUT_S, CRASHES = 90.0, 4

# Reads process ids until its input ends, as it does however the tests end; then ends what is still ours and cleans up.
GUARD = """
while read -r pid; do pids="$pids $pid"; done
for pid in $pids; do grep -qsF "$0" "/proc/$pid/cmdline" && kill -9 "$pid"; done
sleep 0.2; rm -rf "$0"
"""

CONFIG = """
[global]
fsid = {fsid}
mon_host = [v1:127.0.0.1:{mon_port}/0]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr2 = false
run_dir = {folder}
admin_socket =
pid_file =
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
log_to_stderr = false
mon_data = {folder}/mon
osd_data = {folder}/osd
keyring = {folder}/keyring
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
mon_tick_interval = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_osd_nearfull_ratio = 0.97
mon_osd_backfillfull_ratio = 0.98
mon_osd_full_ratio = 0.99
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = bluestore
osd_memory_target = 939524096
osd_heartbeat_grace = 3600
osd_client_watch_timeout = 1
bluestore_block_size = {size_bytes}
bluestore_block_create = true
bluestore_fsck_on_mount = false
rgw_frontends = beast endpoint=127.0.0.1:{s3_port}
rgw_rados_pool_pg_num_min = 1
rgw_thread_pool_size = 64
rgw_enable_usage_log = false
rgw_enable_gc_threads = false
rgw_enable_lc_threads = false
rgw_dynamic_resharding = false
rgw_run_sync_thread = false
rgw_enable_apis = s3
debug_ms = 0/0
"""


class ServerError(RuntimeError):
    """The server is not installed, or did not start in time."""


def server_or_skip(access_key: str, secret_key: str) -> "S3Server":
    """A server, not yet running. Where it is not installed the test is skipped, in CI (`CI` is set) it fails."""
    try:
        return S3Server(access_key, secret_key)
    except ServerError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


class S3Server:
    """`with S3Server(access_key, secret_key) as s3:` a running server that knows a user by these keys.

    stranger: the two keys of another user, who owns nothing.
    """

    def __init__(self, access_key: str, secret_key: str, size_gib: int = 8) -> None:
        missing = [program for program in PROGRAMS if not shutil.which(program)]
        if missing:
            raise ServerError(f"no {', '.join(missing)} here: {install_line()}")
        self.folder = Path(tempfile.mkdtemp(prefix="s3-"))
        self.access_key, self.secret_key = access_key, secret_key
        self.stranger = "stranger" + secrets.token_hex(8), secrets.token_hex(20)
        self.mon_port, self.s3_port = _free_ports(2)
        self.config = self.folder / "ceph.conf"
        self.fsid = str(uuid.uuid4())
        self.config.write_text(
            CONFIG.format(
                fsid=self.fsid,
                folder=self.folder,
                mon_port=self.mon_port,
                s3_port=self.s3_port,
                size_bytes=size_gib << 30,  # sparse: only what is written takes space
            )
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.guard = subprocess.Popen(
            ["sh", "-c", GUARD, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        self.seconds_to_start = 0.0

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.s3_port}"

    @staticmethod
    def env(access_key: str, secret_key: str) -> dict[str, str]:
        """The variables by which the usual chain finds the credentials."""
        return {
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> "S3Server":
        started = time.monotonic()
        try:
            self._make()
            self.restart()
        except BaseException:
            self.close()
            raise
        self.seconds_to_start = time.monotonic() - started
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def bucket(self) -> str:
        """Make a bucket with a name of its own and return the name."""
        name = "bucket-" + secrets.token_hex(4)
        self._client().create_bucket(Bucket=name)
        return name

    def kill(self, everything: bool = False) -> None:
        """`kill -9` the gateway, or with `everything` the monitor and the disk's daemon too, as a power cut would."""
        for name in list(self.processes) if everything else ["radosgw"]:
            if process := self.processes.pop(name, None):
                process.send_signal(signal.SIGKILL)
                process.wait()

    def restart(self) -> None:
        """Start what is not running and wait until it serves; ServerError after `START_TIMEOUT_S`."""
        self._start("mon", "ceph-mon", "-i", "a")
        self._start("osd", "ceph-osd", "-i", "0")
        self._start("radosgw", "radosgw", "-n", "client.rgw")
        self._wait("the gateway answers", self._answers)

    def close(self) -> None:
        """Stop all and delete the folder."""
        self.kill(everything=True)
        try:
            self.guard.communicate(timeout=10)
        except subprocess.TimeoutExpired:  # another child of the tests holds the other end of its pipe
            self.guard.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        """A new monitor, a new disk, two users."""
        (self.folder / "keyring").touch()
        (self.folder / "mon").mkdir()
        (self.folder / "osd").mkdir()
        monmap, osd_id = str(self.folder / "monmap"), str(uuid.uuid4())
        address = f"[v1:127.0.0.1:{self.mon_port}/0]"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", self.fsid, monmap, config=False)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._start("mon", "ceph-mon", "-i", "a")
        self._run("ceph", "osd", "new", osd_id)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        self._start("osd", "ceph-osd", "-i", "0")
        self._add_user("test", self.access_key, self.secret_key)
        self._add_user("stranger", *self.stranger)  # before the gateway runs: a busy one may not hear of it for minutes

    def _add_user(self, name: str, access_key: str, secret_key: str) -> None:
        keys = (f"--access-key={access_key}", f"--secret={secret_key}")
        self._run("radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}", *keys)

    def _run(self, *command: str, config: bool = True) -> None:
        """A command to its end. One that crashes, as `radosgw-admin` may on a very busy machine, is run again."""
        for crashes_left in reversed(range(CRASHES)):
            code, said = self._try(*command, config=config)
            if code < 0 and crashes_left:
                continue
            if code and "exists" not in said:  # what the crashed one had done already
                raise ServerError(f"{command[0]} failed: {said[-500:]}\n{self._logs()}")
            return

    def _try(self, *command: str, config: bool) -> tuple[int, str]:
        """(exit code, what it said)."""
        options = ("-c", str(self.config)) if config else ()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen([command[0], *options, *command[1:]], stdout=said, stderr=said, text=True)
            deadline = time.monotonic() + START_TIMEOUT_S
            while process.poll() is None and time.monotonic() < deadline:
                self._revive()
                time.sleep(0.05)
            if process.poll() is None:
                process.kill()
                raise ServerError(f"{command[0]} did not end within {START_TIMEOUT_S:.0f} s\n{self._logs()}")
            said.seek(0)
            return process.returncode, said.read().strip()

    def _revive(self) -> None:
        """A disk daemon that asks the monitor before it has heard the cluster's id gives up: it is started again."""
        disk = self.processes.get("osd")
        if disk and disk.poll() is not None:
            self._start("osd", "ceph-osd", "-i", "0")

    def _start(self, name: str, *command: str) -> None:
        running = self.processes.get(name)
        if running and running.poll() is None:
            return
        options = ("-c", str(self.config), "-f")
        quiet = subprocess.DEVNULL
        process = subprocess.Popen([*command, *options], stdout=quiet, stderr=quiet, stdin=quiet)
        assert self.guard.stdin
        self.guard.stdin.write(f"{process.pid}\n".encode())
        self.guard.stdin.flush()
        self.processes[name] = process

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint_url, timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            self._revive()
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise ServerError(f"{what}: not within {START_TIMEOUT_S:.0f} s; ended: {dead}\n{self._logs()}")
            time.sleep(0.05)

    def _logs(self) -> str:
        tails = [f"{path.name}: {path.read_text(errors='replace')[-800:]}" for path in self.folder.glob("*.log")]
        return "\n".join(tails)

    def _client(self) -> Any:
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )


def only_these_keys() -> tuple[str, str]:
    """New keys for a server; they, and no other AWS_*, are in the environment."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[variable]
    keys = new_keys()
    os.environ.update(S3Server.env(*keys))
    return keys


def new_keys() -> tuple[str, str]:
    return "test" + secrets.token_hex(8), secrets.token_hex(20)


def install_line() -> str:
    """The command that installs the server."""
    return f"apt-get install -y --no-install-recommends {' '.join(PACKAGES.read_text().split())}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    with S3Server(*new_keys()) as server:
        for variable, value in (
            server.env(server.access_key, server.secret_key) | {"AWS_ENDPOINT_URL": server.endpoint_url}
        ).items():
            print(f"export {variable}={value}")
        print(f"# bucket {server.bucket()}, up after {server.seconds_to_start:.1f} s; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
