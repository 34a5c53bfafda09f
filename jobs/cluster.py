"""How a verb gets its Ray: a local one of its own, or the cluster at an address."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.interrupts import leave_on_sigterm
from jobs.source import ConfigError, Fault

ROOT = Path(__file__).resolve().parent.parent
START_REMEDY = "is it up, and is its token at hand (RAY_AUTH_MODE=token and ~/.ray/auth_token)?"
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # where `ray start` leaves its address for "auto"
TIMEOUT_S = 10.0


def start_ray(address: str | None, debug: bool = False) -> None:
    """Connect to `address`, else to the cluster this process was submitted to, else start a local Ray.

    Raises ConfigError where the address does not answer.
    """
    import ray
    from ray.data import DataContext

    if not debug:  # what ends a dataset comes as an exception, too
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        return
    if not debug:  # it warns of every actor pool's arguments, which Ray Data holds on to
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        options |= {"include_dashboard": False}
    elif "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job has its working directory already
        options |= {"runtime_env": {"working_dir": str(ROOT)}}
    check_reachable(address)
    try:
        with _held_back_stderr():
            ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _unreachable(address, str(error).splitlines()[0]) from None
    leave_on_sigterm()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """What Ray's processes say while they start is shown only where starting fails."""
    sys.stderr.flush()
    kept, started = os.dup(2), False
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
            started = True
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if not started:
                said.seek(0)
                os.write(2, said.read())


def check_reachable(address: str) -> None:
    """Raises ConfigError where nobody listens; Ray itself would go on trying for minutes."""
    known = CURRENT_CLUSTER.read_text() if address == "auto" and CURRENT_CLUSTER.exists() else address
    host, _, port = known.strip().removeprefix("ray://").rpartition(":")
    if known in ("local", "auto") or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S).close()
    except OSError as error:
        raise _unreachable(address, f"{known.strip()}: {error.strerror or error}") from None


def _unreachable(address: str, reason: str) -> ConfigError:
    return ConfigError([Fault(f"--address {address}", f"no Ray cluster answers: {reason}; {START_REMEDY}")])
