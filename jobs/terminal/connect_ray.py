"""Connects a verb to Ray: a local one of its own, or the cluster at an address."""

import atexit
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from jobs.job_file.places import ROOT
from jobs.job_file.positions import ConfigError, Fault
from jobs.terminal.interrupts import leave_on_signals
from jobs.terminal.surroundings import START_REMEDY, check_address, check_temporary_folder, upload_fault


def start_ray(address: str | None, debug: bool = False) -> None:
    """Connect to `address`, else to the cluster this process was submitted to, else start a local Ray.

    Raises ConfigError where the address does not answer, or Ray cannot be started here.
    """
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
    check_temporary_folder() if address == "local" else check_address(address)
    try:
        with _held_back_stderr(), _deaf_children():
            ray.init(address=address, **options)
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise upload_fault(ROOT, first_line(error)) from None
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError([Fault(f"--address {address}", f"no Ray: {first_line(error)}; {START_REMEDY}")]) from None
    atexit.register(ray.shutdown)  # before Ray's own, which sleeps half a second
    leave_on_signals()


def first_line(error: BaseException) -> str:
    """The first line of an exception's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Hides a closing terminal's SIGHUP from processes that start inside; the driver ends them when it is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Holds back what Ray's processes print while they start; it is shown if starting fails."""
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
