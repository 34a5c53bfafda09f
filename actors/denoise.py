"""The lane loop: rows in, finished latents out.

Not a queue: rows come from a Source. Not a decoder: finished latents go to `deliver`. Not a clock: it never waits for
the device, and for its source only where no row is in flight.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch

from actors.lanes import Flight, Lanes, Predict, pick
from actors.solver import NoiseSchedule

log = logging.getLogger(__name__)


class EndOfRows(Exception):
    """A source has no more rows, and never will."""


class Source(Protocol):
    """Where rows come from: a list, leased shards, second tries, requests. One loop serves them all."""

    def take(self, wait: bool) -> Any | None:
        """The next row. None: none now (with `wait` it blocks until there is one). Raises EndOfRows."""


class ListSource:
    """Rows that are all there from the start."""

    def __init__(self, rows: Iterable[Any]):
        self._rows = iter(rows)

    def take(self, wait: bool) -> Any | None:
        """The next row; raises EndOfRows after the last."""
        for row in self._rows:
            return row
        raise EndOfRows


def each_alone(call: Callable[[list], None], items: list, fail: Callable[[Any, Exception], None]) -> None:
    """call(items); where it raises, each item alone, so that only the one at fault fails. Passes on out of memory."""
    try:
        call(items)
        return
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the boundary around one row: whatever it raises is that row's result
        if len(items) == 1:
            fail(items[0], error)
            return
    for item in items:
        each_alone(call, [item], fail)


class Denoiser:
    """The loop. prepare: at most `batch` rows -> flights; deliver and fail get what becomes of each row.

    Rows of several sizes share the loop, not a call. Out of memory halves the lanes; the rows in flight start again.
    """

    def __init__(
        self,
        predict: Predict,
        prepare: Callable[[list[Any]], list[Flight]],
        schedule: NoiseSchedule,
        device: torch.device,
        num_lanes: Callable[[tuple[int, int, int]], int],
        batch: int,
    ):
        self.predict, self.prepare, self.schedule, self.device = predict, prepare, schedule, device
        self._num_lanes, self._batch, self._halvings = num_lanes, batch, 0
        self._lanes: dict[tuple[int, int, int], Lanes] = {}
        self._retired = np.zeros(3, np.int64)
        self._backlog: list[Any] = []  # taken, and neither in flight nor failed
        self._called: list[Flight] = []  # in the UNet call that is under way

    def num_lanes(self, shape: tuple[int, int, int]) -> int:
        """Lanes of a call for latents of this shape, after what memory taught."""
        return max(2, self._num_lanes(shape) >> self._halvings)

    @property
    def counts(self) -> dict[str, int]:
        """unet_calls, lanes_filled, lanes_offered so far."""
        live = [(lanes.calls, lanes.filled, lanes.calls * lanes.num_lanes) for lanes in self._lanes.values()]
        totals = self._retired + np.array(live, np.int64).reshape(-1, 3).sum(0)
        return dict(zip(("unet_calls", "lanes_filled", "lanes_offered"), totals.tolist(), strict=True))

    def run(
        self,
        source: Source,
        deliver: Callable[[Flight, torch.Tensor], None],
        fail: Callable[[Any, Exception], None],
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        """Until the source has ended and no row is in flight. Calls `idle` before it waits, and at the end."""
        ended = False
        while True:
            out_of_memory = None
            try:
                if not ended:
                    ended = self._refill(source, fail, idle)
                busiest = max(self._lanes.values(), key=lambda lanes: lanes.lane_steps_left, default=None)
                if busiest is not None and busiest.flights:
                    self._advance(busiest, deliver, fail)
                elif ended:
                    idle()
                    return
            except torch.OutOfMemoryError as error:
                out_of_memory = str(error)
            if out_of_memory:  # outside the except block: its traceback holds tensors
                self._shrink(out_of_memory, fail)
                ended = False

    def _refill(self, source: Source, fail: Callable[[Any, Exception], None], idle: Callable[[], None]) -> bool:
        """Takes rows while there is room; waits only where nothing is in flight. -> whether the source has ended."""
        while self._wants_rows():
            ended = self._take(source, idle)
            rows = self._backlog[: self._batch]
            if rows:
                each_alone(self._admit, rows, lambda row, error: fail(self._settled(row), error))
                for row in rows:  # `prepare` may have dropped one that nobody waits for
                    self._settled(row)
            if not self._backlog and (ended or len(rows) < self._batch):
                return ended
        return False

    def _settled(self, row: Any) -> Any:
        """The row, no longer in the backlog."""
        self._backlog = [other for other in self._backlog if other is not row]
        return row

    def _wants_rows(self) -> bool:
        """A whole batch fits, or the lanes are not full: rows in flight are twice what a call holds, and a batch."""
        flights = [f for lanes in self._lanes.values() for f in lanes.flights.values()]
        if not flights:
            return True
        num_lanes = max(lanes.num_lanes for lanes in self._lanes.values())
        return len(flights) <= 2 * num_lanes or sum(f.lanes_now for f in flights) < num_lanes

    def _take(self, source: Source, idle: Callable[[], None]) -> bool:
        """Fills the backlog to a batch. -> whether the source has ended."""
        in_flight = any(lanes.flights for lanes in self._lanes.values())
        while len(self._backlog) < self._batch:
            try:
                row = source.take(wait=False)
                if row is None and not self._backlog and not in_flight:
                    idle()
                    row = source.take(wait=True)
            except EndOfRows:
                return True
            if row is None:
                break
            self._backlog.append(row)
        return False

    def _admit(self, rows: list[Any]) -> None:
        for flight in self.prepare(rows):
            self._lanes_of(flight).admit(flight)
            self._settled(flight.row)

    def _lanes_of(self, flight: Flight) -> Lanes:
        if flight.shape not in self._lanes:
            for shape in [shape for shape, lanes in self._lanes.items() if not lanes.flights]:
                self._retire(shape)
            self._lanes[flight.shape] = Lanes(self.schedule, self.num_lanes(flight.shape), flight, self.device)
        return self._lanes[flight.shape]

    def _retire(self, shape: tuple[int, int, int]) -> None:
        lanes = self._lanes.pop(shape)
        self._retired += (lanes.calls, lanes.filled, lanes.calls * lanes.num_lanes)

    def _advance(self, lanes: Lanes, deliver: Callable, fail: Callable[[Any, Exception], None]) -> None:
        def failed(flight: Flight, error: Exception) -> None:
            lanes.remove(flight)
            fail(flight.row, error)

        ended: list[tuple[Flight, torch.Tensor]] = []
        self._called = pick(lanes.flights.values(), lanes.num_lanes)
        each_alone(lambda rows: ended.extend(lanes.advance(rows, self.predict)), self._called, failed)
        self._called = []
        for flight, latent in ended:
            deliver(flight, latent)

    def _shrink(self, reason: str, fail: Callable[[Any, Exception], None]) -> None:
        """Fewer lanes, a new render class: the rows in flight start again, so that each is of one class throughout.

        With 2 lanes the rows of the call fail; where prompts are read, they are read one by one, and one alone fails.
        """
        called, self._called = [flight.row for flight in self._called], []
        flights = [f for lanes in self._lanes.values() for f in sorted(lanes.flights.values(), key=lambda f: f.order)]
        smallest = min((lanes.num_lanes for lanes in self._lanes.values()), default=2)
        for shape in list(self._lanes):
            self._retire(shape)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        failed: list[Any] = []
        if smallest > 2:
            self._halvings += 1
            log.warning("out of memory with %d lanes: half of them from now on, the rows in flight again", smallest)
        elif not called and self._batch > 1:
            self._batch = 1
        else:
            failed = called or self._backlog[:1]
        for row in failed:
            fail(self._settled(row), MemoryError(f"out of memory with 2 lanes: {reason}"))
        for flight in flights:
            if not any(flight.row is row for row in failed):
                self._lanes_of(flight).admit(flight)
