"""Fixtures shared by all tests: one Ray cluster and one S3 server a session, each started when first asked for."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads that spin on busy cores are many times slower
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("STEPTHRIFT_STORAGE_DEADLINE_S", "60")

from tests.fault_proxy import FaultProxy
from tests.s3_server import S3Server, only_these_keys, server_or_skip

KEYS = only_these_keys()  # no test may touch a developer's own account; before Ray starts: its workers have them too


@pytest.fixture(autouse=True)
def logging_left_as_it_was() -> Iterator[None]:
    """A verb called in this process sets up logging for its own console, which ends with the test."""
    loggers = [logging.getLogger(name) for name in (None, "actors", "pipelines", "training", "jobs")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns every 10 us."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running radosgw; its credentials are in the environment of this process and of its children.

    This process waits longer for its answers than a probe does: a busy machine is no fault.
    """
    with server_or_skip(*KEYS) as server, patch("pipelines.storage.folder.PROBE_DEADLINE_S", 60.0):
        yield server


@pytest.fixture(scope="module")
def fault_server(s3: S3Server) -> Iterator[tuple[FaultProxy, str]]:
    """A fault proxy before that server, and a bucket behind it."""
    with FaultProxy(s3.s3_port) as running:
        yield running, s3.bucket()


@pytest.fixture
def sleeping(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Real pools, of workers with an engine that sleeps; called with another class of worker, they make those.

    An engine of torch takes seven seconds of a CPU until it renders: the tests of dispatch, commits and command lines
    do without.
    """
    from pipelines.render import pool as pools
    from tests.sleeping_workers import Drawing

    def use(worker: type) -> None:
        monkeypatch.setattr(pools, "RenderWorker", worker)

    use(Drawing)
    return use


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One local Ray of four CPUs; the temporary folder is short, since Ray puts sockets there."""
    ray = pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        _temp_dir=folder,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent)}},
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
