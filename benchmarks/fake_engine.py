"""An engine that sleeps: as many rows of a call, as many calls, and no network, so that only what is around it costs.

It takes the sampler's place in a real worker, in a real pool, before a real ledger and a real run folder.
"""

import os
import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np

from actors.rows import Picture, Row
from pipelines.render.worker import RenderWorker

CALL_ENV = "STEPTHRIFT_FAKE_CALL_S"  # seconds of a UNet call; Ray's workers inherit it
ROWS_A_CALL = 8


class FakeEngine:
    """submit(row) -> Future[Picture], as the sampler has it. Every row is guided: two lanes a step."""

    broken = None

    def __init__(self, call_s: float | None = None) -> None:
        self._call_s = float(os.environ.get(CALL_ENV, "0.01")) if call_s is None else call_s
        self._rows: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._image = np.zeros((8, 8, 3), np.uint8)
        self._counts = dict.fromkeys(("images", "unet_calls", "lanes_filled", "lanes_offered"), 0)
        self._unet_seconds = 0.0
        threading.Thread(target=self._live, daemon=True).start()

    def submit(self, row: Row) -> "Future[Picture]":
        """Done after as many calls as the row has steps."""
        future: Future[Picture] = Future()
        self._rows.put([row.num_steps, row, future])
        return future

    def stats(self) -> dict[str, float]:
        """As the sampler's."""
        return {**self._counts, "unet_seconds": self._unet_seconds, "vae_seconds": 0.0, "text_seconds": 0.0}

    def close(self) -> None:
        """Nothing to wait for."""

    def _draw(self, row: Row) -> np.ndarray:
        return self._image

    def _live(self) -> None:
        flights: list[list[Any]] = []  # [steps left, row, future]
        while True:
            while len(flights) < 3 * ROWS_A_CALL and (row := self._next(wait=not flights)):
                flights.append(row)
            flights.sort(key=lambda flight: -flight[0])
            chosen = flights[:ROWS_A_CALL]
            started = time.perf_counter()
            time.sleep(self._call_s)
            self._unet_seconds += time.perf_counter() - started
            self._counts["unet_calls"] += 1
            self._counts["lanes_filled"] += 2 * len(chosen)
            self._counts["lanes_offered"] += 2 * ROWS_A_CALL
            for flight in chosen:
                flight[0] -= 1
            for _, row, future in [flight for flight in flights if not flight[0]]:
                self._counts["images"] += 1
                future.set_result(Picture(self._draw(row), 2 * row.num_steps, 0.0, "fake/none/none", False))
            flights = [flight for flight in flights if flight[0]]

    def _next(self, wait: bool) -> list[Any] | None:
        try:
            item = self._rows.get(block=wait)
        except queue.Empty:
            return None
        return item if item[2].set_running_or_notify_cancel() else self._next(wait)


class FakeWorker(RenderWorker):
    """A worker whose model is the sleeping engine. The revision of the job's model, where it is set: seconds a call."""

    engine: type[FakeEngine] = FakeEngine

    def _loaded(self) -> Any:
        with self._lock:
            if self._sampler is None:
                call_s = self.job.model.revision
                self._sampler = self.engine(float(call_s) if call_s else None)  # type: ignore[assignment]
            return self._sampler
