"""Workers with the sleeping engine, which fail in ways of their own: what the dispatch tests put into a pool."""

import os
from concurrent.futures import Future
from typing import Any

import numpy as np

from actors.rows import EngineBroken, Picture, Row
from benchmarks.fake_engine import FakeEngine, FakeWorker
from pipelines.render.worker import WorkerConfig
from pipelines.run.precision import keep_dtype, settled_dtype


class DrawingEngine(FakeEngine):
    """Its picture is a function of the row's seed, steps and size."""

    def _draw(self, row: Row) -> np.ndarray:
        return np.random.default_rng([row.seed, row.num_steps]).integers(
            0, 256, (row.height, row.width, 3), dtype=np.uint8
        )


class Drawing(FakeWorker):
    """Every row gets a picture of its own, and the run keeps its precision."""

    engine = DrawingEngine

    def _loaded(self) -> Any:
        if self._sampler is None:
            keep_dtype(self.job.run, settled_dtype(self.job.run, self.job.sampler.dtype, self.job.auto_dtype))
        return super()._loaded()


class StuckEngine(FakeEngine):
    """Takes rows and does nothing with them."""

    def submit(self, row: Row) -> "Future[Picture]":
        return Future()


class Stuck(FakeWorker):
    """Lives, and ends no row."""

    engine = StuckEngine


class RaisingInit(FakeWorker):
    """Ray ends its actors before they begin."""

    def __init__(self, job: WorkerConfig) -> None:
        raise OSError("no such environment here")


class NeverFit(FakeWorker):
    """Its engine fails its probe, in every process."""

    def _loaded(self) -> Any:
        raise EngineBroken("a known-good row failed: CUDA error: uncorrectable ECC error")


class FailingEngine(FakeEngine):
    """Fails every second row, by the row's own fault as far as anybody can tell."""

    def submit(self, row: Row) -> "Future[Picture]":
        if row.seed % 2:
            future: Future[Picture] = Future()
            future.set_exception(ValueError("the picture holds inf or nan"))
            return future
        return super().submit(row)


class FailingRows(FakeWorker):
    """Lives, and fails half of the rows."""

    engine = FailingEngine


class CountingServes(FakeWorker):
    """Writes down each call of serve and each life of a process."""

    def serve(self, ledger: Any, job: Any = None) -> Any:
        self._note("serve")
        return super().serve(ledger, job)

    def _serve_all(self) -> Any:
        self._note("all")
        return super()._serve_all()

    def _note(self, what: str) -> None:
        with open(os.path.join(os.environ["SLEEPING_NOTES"], what), "a") as file:
            file.write(f"{os.getpid()}\n")


class Holder:
    """Takes up CPUs."""

    def hold(self) -> None:
        """Has its place."""
