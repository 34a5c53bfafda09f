"""Checks what makes Ray fail before Ray is started: its temporary folder, its address, what it uploads.

Ray tells of these after half a minute and in forty lines; here each is one line with the remedy.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from ray._common.utils import get_default_system_temp_dir, get_ray_address_file
from ray._private.runtime_env import packaging

from jobs.job_file.positions import ConfigError, Fault

START_REMEDY = "is it up, and is its token at hand (RAY_AUTH_MODE=token and ~/.ray/auth_token)?"
TIMEOUT_S = 10.0
SOCKET_CHARS = 107  # that a Unix socket's path may have
BELOW = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")  # Ray's longest, below its folder
SHOWN = 3  # of the largest files


def check_temporary_folder() -> None:
    """Raises ConfigError where a local Ray cannot put its sockets into its folder, named by the environment or not."""
    names = ["RAY_TMPDIR", *(["TMPDIR"] if sys.platform.startswith("linux") else [])]
    name = next((name for name in names if name in os.environ), "")
    folder = get_default_system_temp_dir()
    where, remedy = name or "Ray's folder", "set RAY_TMPDIR to a short folder that can be written"
    remedy += ", for example RAY_TMPDIR=/tmp" if name else ""
    if not os.path.isabs(folder):
        raise _fault(where, f"{folder!r} is no absolute path: {remedy}")
    if len(os.fsencode(folder)) + BELOW > SOCKET_CHARS:
        raise _fault(
            where, f"{folder} is too long: a path of Ray's sockets may have {SOCKET_CHARS} characters; {remedy}"
        )
    ours = os.path.join(folder, "ray")
    try:
        os.makedirs(ours, exist_ok=True)
        tempfile.TemporaryFile(dir=ours).close()
    except OSError as error:
        raise _fault(where, f"{ours} cannot be written ({error.strerror or error}); {remedy}") from None


def check_address(address: str) -> None:
    """Raises ConfigError where no Ray answers at an address; Ray itself would go on trying for minutes."""
    known = _current_cluster() if address == "auto" else address
    if known in ("local", "auto"):
        return
    place = known.removeprefix("ray://")
    if "://" in place:
        host = urlsplit(known).hostname or "host"
        host = f"[{host}]" if ":" in host else host
        is_dashboard = known.startswith(("http://", "https://"))
        what = "that is the address of a dashboard, for `ray job submit`" if is_dashboard else "no address of Ray's"
        raise _unreachable(address, f"{what}; give {host}:6379, ray://{host}:10001 or auto")
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise _unreachable(address, "no address of Ray's; give host:port, ray://host:port or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the latter two: a port or a name that cannot be
        reason = getattr(error, "strerror", None) or error
        raise _unreachable(address, f"no Ray cluster answers: {known}: {reason}; {START_REMEDY}") from None
    if not _speaks_grpc(place):
        raise _unreachable(address, f"what listens at {known} is no Ray cluster, or hangs: give the address of its GCS")


def _current_cluster() -> str:
    """What "auto" means to Ray: the environment's address, else the one that `ray start` left here."""
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    try:
        return Path(get_ray_address_file(None)).read_text("utf-8").strip() or "auto"
    except (OSError, UnicodeError):
        return "auto"


def _speaks_grpc(place: str) -> bool:
    """As a GCS and a client server do; with TLS, which needs its certificates, nobody is asked."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return True
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def upload_fault(folder: Path, reason: str) -> ConfigError:
    """Where Ray could not bring the working directory to the cluster: its size, and the largest files in it."""
    files = uploaded_files(folder)
    largest = ", ".join(f"{path.relative_to(folder)} {size / 1e6:,.0f} MB" for size, path in files[:SHOWN])
    return _fault(
        str(folder),
        f"Ray could not bring the working directory to the cluster: {reason.rstrip('.')}. It holds "
        f"{sum(size for size, _ in files) / 1e6:,.0f} MB, and {packaging.GCS_STORAGE_MAX_SIZE / 1e6:,.0f} MB may be "
        f"uploaded, packed; the largest: {largest}. Move what the job does not need, or list it in .gitignore or "
        ".rayignore",
    )


def uploaded_files(folder: Path) -> list[tuple[int, Path]]:
    """(bytes, path) of all that Ray takes along, the largest first."""
    found: list[Path] = []
    packaging._dir_travel(folder, [], found.append, include_gitignore=True)  # what is ignored is Ray's own rule
    return sorted(((path.stat().st_size, path) for path in found if path.is_file()), reverse=True)


def _unreachable(address: str, reason: str) -> ConfigError:
    return _fault(f"--address {address}", reason)


def _fault(where: str, reason: str) -> ConfigError:
    return ConfigError([Fault(where, reason)])
