"""Runs the lane loop: rows in, finished latents out.

Not a queue: rows come from a Source. Not a decoder: finished latents go to `deliver`. Not a clock: it never waits for
the device, and for its source only where no row is in flight; where a row has failed, it waits for a probe.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from actors.clock import Block, DeviceClock
from actors.fault import check_engine, each_alone
from actors.lanes import Flight, Lanes, Predict, pick
from actors.solver import NoiseSchedule

log = logging.getLogger(__name__)


class EndOfRows(Exception):
    """A source has no more rows, and never will."""


class Source(Protocol):
    """Where rows come from: a list, leased shards, second tries, requests. One loop serves them all."""

    def take(self, wait: bool) -> Any | None:
        """The next row. None: none now (with `wait` it blocks until there is one).

        Raises EndOfRows where there are no more; a source that has ended goes on raising it.
        """


class ListSource:
    """Rows that are all there from the start."""

    def __init__(self, rows: Iterable[Any]):
        self._rows = iter(rows)

    def take(self, wait: bool) -> Any | None:
        """The next row; raises EndOfRows after the last."""
        for row in self._rows:
            return row
        raise EndOfRows


class Denoiser:
    """The loop. prepare: at most `batch` rows -> flights; deliver and fail get what becomes of each row.

    Rows of several sizes share the loop, not a call. Out of memory halves the lanes; the rows in flight start again.
    fail_asks_the_model: `fail` itself finds out whether the engine works, so that a shape which never passed a call is
    not taken for a broken engine.
    """

    def __init__(
        self,
        predict: Predict,
        prepare: Callable[[list[Any]], list[Flight]],
        schedule: NoiseSchedule,
        device: torch.device,
        num_lanes: Callable[[tuple[int, int, int]], int],
        batch: int,
        fail_asks_the_model: bool = False,
    ):
        self.fail_asks_the_model = fail_asks_the_model
        self.predict, self.prepare, self.schedule, self.device = predict, prepare, schedule, device
        self._num_lanes, self._batch, self._halvings = num_lanes, batch, 0
        self._lanes: dict[tuple[int, int, int], Lanes] = {}
        self._backlog: list[Any] = []  # taken, and neither in flight nor failed
        self._again: list[Flight] = []  # out of memory: to start again from their noise
        self._called: list[Flight] = []  # in the UNet call that is under way
        self._ended: deque[tuple[Flight, torch.Tensor]] = deque()  # not yet delivered
        self.clock = DeviceClock(device)  # of the UNet calls
        self.figures = threading.RLock()  # held while what other threads read is changed or read
        self._counts = dict.fromkeys(("unet_calls", "lanes_filled", "lanes_offered"), 0)

    def num_lanes(self, shape: tuple[int, int, int]) -> int:
        """Lanes of a call for latents of this shape, after what memory taught."""
        return max(2, self._num_lanes(shape) >> self._halvings)

    @property
    def counts(self) -> dict[str, int]:
        """unet_calls, lanes_filled, lanes_offered so far, all of one moment. For any thread."""
        with self.figures:
            return dict(self._counts)

    def run(
        self,
        source: Source,
        deliver: Callable[[Flight, torch.Tensor], None],
        fail: Callable[[Any, Exception], None],
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        """Until the source has ended and no row is in flight. Calls `idle` before it waits, and at the end.

        Raises EngineBroken where a row failed alone in a UNet call and a known-good input fails there, too. `fail` may
        raise it for a row that failed elsewhere.
        """
        ended = False
        while True:
            out_of_memory = None
            try:
                while self._ended:
                    deliver(*self._ended.popleft())
                self._start_again()
                if not ended:
                    ended = self._refill(source, fail, idle)
                busiest = max(self._lanes.values(), key=lambda lanes: lanes.lane_steps_left, default=None)
                if busiest is not None and busiest.flights:
                    self._advance(busiest, fail)
                elif ended:
                    idle()
                    return
            except torch.OutOfMemoryError as error:
                out_of_memory = str(error)
            if out_of_memory is not None:  # outside the except block: its traceback holds tensors
                self._shrink(out_of_memory, fail)
                ended = False

    def _refill(self, source: Source, fail: Callable[[Any, Exception], None], idle: Callable[[], None]) -> bool:
        """Takes rows while there is room; waits only where nothing is in flight. -> whether the source has ended."""
        while self._wants_rows():
            ended = self._take(source, idle)
            rows = self._backlog[: self._batch]
            if rows:
                self._admit(rows, fail)
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

    def _admit(self, rows: list[Any], fail: Callable[[Any, Exception], None]) -> None:
        def admit(one: list[Flight]) -> None:
            self._lanes_of(one[0]).admit(one[0])
            self._settled(one[0].row)

        flights: list[Flight] = []
        each_alone(
            lambda some: flights.extend(self.prepare(some)), rows, lambda row, error: fail(self._settled(row), error)
        )
        for flight in flights:
            each_alone(admit, [flight], lambda flight, error: fail(self._settled(flight.row), error))

    def _start_again(self) -> None:
        while self._again:
            self._lanes_of(self._again[0]).admit(self._again[0])
            self._again.pop(0)

    def _lanes_of(self, flight: Flight) -> Lanes:
        if flight.shape not in self._lanes:
            self._lanes = {shape: lanes for shape, lanes in self._lanes.items() if lanes.flights}
            self._lanes[flight.shape] = Lanes(self.schedule, self.num_lanes(flight.shape), flight, self.device)
        return self._lanes[flight.shape]

    def _advance(self, lanes: Lanes, fail: Callable[[Any, Exception], None]) -> None:
        def failed(flight: Flight, error: Exception) -> None:
            if lanes.has_passed or not self.fail_asks_the_model:  # else this shape may be what cannot work
                check_engine(lambda: lanes.probe(self.predict), error)
            lanes.remove(flight)
            fail(flight.row, error)

        self._called = pick(lanes.flights.values(), lanes.num_lanes)
        each_alone(lambda flights: self._call(lanes, flights), self._called, failed)
        self._called = []

    def _call(self, lanes: Lanes, flights: list[Flight]) -> None:
        """One UNet call, counted, its time shared among the rows by their lanes."""
        widths, blocks = [flight.lanes_now for flight in flights], list[Block]()

        def predict(*inputs: Any) -> torch.Tensor:
            with self.clock as block:
                blocks.append(block)
                return self.predict(*inputs)

        self._ended.extend(lanes.advance(flights, predict))
        lanes.has_passed = True
        for flight, width in zip(flights, widths, strict=True):
            flight.shares.append((blocks[0], width / sum(widths)))
        with self.figures:
            for name, number in zip(self._counts, (1, sum(widths), lanes.num_lanes), strict=True):
                self._counts[name] += number

    def _shrink(self, reason: str, fail: Callable[[Any, Exception], None]) -> None:
        """Fewer lanes, a new render class: the rows in flight start again, so that each is of one class throughout.

        With 2 lanes the rows of the call fail; where prompts are read, they are read one by one, and one alone fails.
        Raises MemoryError where no row is left to give up.
        """
        flights = self._in_flight()
        called = [flight.row for flight in self._called if any(flight is other for other in flights)]
        smallest = min(map(self.num_lanes, {*self._lanes, *(f.shape for f in flights)}), default=2)
        starting = [flight.row for flight in self._again[:1]]
        self._called, self._lanes, self._again = [], {}, flights
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        failed: list[Any] = []
        if smallest > 2:
            self._halvings += 1
            log.warning("out of memory with %d lanes: half of them from now on, the rows in flight again", smallest)
        elif not called and not starting and self._batch > 1:
            self._batch = 1
        else:
            failed = called or starting or self._backlog[:1]
            if not failed:
                raise MemoryError(f"out of memory, and no row is left to give up: {reason}")
        self._again = [flight for flight in flights if not any(flight.row is row for row in failed)]
        for row in failed:
            fail(self._settled(row), MemoryError(f"out of memory with 2 lanes: {reason}"))

    def _in_flight(self) -> list[Flight]:
        """Size by size, in the order in which they were admitted."""
        admitted = [f for lanes in self._lanes.values() for f in sorted(lanes.flights.values(), key=lambda f: f.order)]
        return [*admitted, *self._again]
