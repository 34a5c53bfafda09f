"""Holds the rows in flight, and moves them by one UNet call of one shape.

A call has N lanes. A row takes two at a guided step (with and without the prompt) and one at an unguided step. Which
rows a call takes is decided on the host from their step tables, so that nothing here waits for the device. Not the loop
(denoise.py): it neither takes rows nor knows what becomes of their latents. Legend: N lanes, S slots (rows in flight),
R rows of one call, L D tokens and their embedding, C h w of a latent.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from actors.clock import Block
from actors.fault import check_finite
from actors.solver import NoiseSchedule, StepTable


@dataclass(eq=False)
class Flight:
    """A row between its first and its last step. embeds: [unconditional, conditional]."""

    row: Any
    table: StepTable
    guidance_scale: float
    shape: tuple[int, int, int]  # (C, h, w)
    noise: torch.Tensor  # (C, h, w) float32
    embeds: torch.Tensor  # (2, L, D)
    added: dict[str, torch.Tensor]  # {} for SD; text_embeds (2, P), time_ids (2, 6) for SDXL
    truncated: bool = False
    negative_truncated: bool = False
    slot: int = -1
    step: int = 0
    order: int = 0
    call_lanes: int = 0  # lanes of the calls it went through
    shares: list[tuple[Block, float]] = field(default_factory=list)  # what it was part of, and its share of each
    widths: list[int] = field(init=False)  # K lanes of each step
    left: list[int] = field(init=False)  # K + 1 lane-steps left before each step
    times: list[int] = field(init=False)  # K
    coefficients: np.ndarray = field(init=False)  # (K, 6) float32: alpha, sigma, a, b, c, guidance scale

    def __post_init__(self) -> None:
        table, scales = self.table, np.full(len(self.table), self.guidance_scale)
        self.coefficients = np.stack([table.alpha, table.sigma, table.a, table.b, table.c, scales], 1, dtype=np.float32)
        self.widths, self.times = (1 + table.guided.astype(int)).tolist(), table.t.tolist()
        self.left = [*np.cumsum(self.widths[::-1])[::-1].tolist(), 0]

    @property
    def lanes_now(self) -> int:
        """Lanes at the next step."""
        return self.widths[self.step]

    @property
    def seconds(self) -> float:
        """Device time of its shares. Waits until the device has passed them."""
        return sum(block.seconds * share for block, share in self.shares)


def pick(flights: Iterable[Flight], lanes: int) -> list[Flight]:
    """The rows of the next call: most lane-steps left first, oldest first among equals, until the lanes are full."""
    chosen, free = [], lanes
    for flight in sorted(flights, key=lambda f: (-f.left[f.step], f.order)):
        if flight.lanes_now <= free:
            chosen.append(flight)
            free -= flight.lanes_now
            if not free:
                break
    return chosen


Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor] | None], torch.Tensor]


@dataclass
class _Seats:
    """Which row sits in which lane, as tensors: kept while it does not change, so that embeddings are copied once."""

    key: list[tuple[int, int]]  # order and lanes of each row
    slot: torch.Tensor  # (N,) of each lane
    embeds: torch.Tensor  # (N, L, D)
    added: dict[str, torch.Tensor]  # (N, ...)
    row_slot: torch.Tensor  # (R,), as the two below
    with_prompt: torch.Tensor
    without: torch.Tensor


class Lanes:
    """The rows in flight of one latent shape, as tensors on the device, and the one UNet call that moves them."""

    def __init__(self, schedule: NoiseSchedule, num_lanes: int, like: Flight, device: torch.device):
        if num_lanes < 2:
            raise ValueError("a guided row needs 2 lanes")
        self.schedule, self.num_lanes, self.device = schedule, num_lanes, device
        self.flights: dict[int, Flight] = {}
        self.has_passed = False  # whether a call of this shape was ever good
        self._free: list[int] = []
        self._admitted = 0
        self._second_order = False
        self._seats: _Seats | None = None
        self._x = torch.empty(0, *like.shape, device=device)  # (S, C, h, w), as x0 of the step before
        self._x0 = torch.empty_like(self._x)
        self._embeds = torch.empty(0, *like.embeds.shape, dtype=like.embeds.dtype, device=device)  # (S, 2, L, D)
        self._added = {k: torch.empty(0, *v.shape, dtype=v.dtype, device=device) for k, v in like.added.items()}

    @property
    def lane_steps_left(self) -> int:
        """Of all rows in flight."""
        return sum([f.left[f.step] for f in self.flights.values()])

    def admit(self, flight: Flight) -> None:
        """The row starts from its noise. Where this raises, the row is not in flight."""
        if not self._free:
            self._grow()
        slot = self._free[-1]
        self._x[slot].copy_(flight.noise, non_blocking=True)
        self._x0[slot].zero_()  # 0 * nan: what the slot held before must not reach this row
        self._embeds[slot].copy_(flight.embeds, non_blocking=True)
        for name, value in flight.added.items():
            self._added[name][slot].copy_(value, non_blocking=True)
        flight.slot, flight.step, flight.order = self._free.pop(), 0, self._admitted
        flight.call_lanes = self.num_lanes
        self._admitted += 1
        self._second_order = self._second_order or bool(flight.table.c.any())
        self.flights[slot] = flight

    def _grow(self) -> None:
        slots, more = len(self._x), max(2 * self.num_lanes, len(self._x))
        self._x, self._x0, self._embeds = (_longer(v, more) for v in (self._x, self._x0, self._embeds))
        self._added = {name: _longer(value, more) for name, value in self._added.items()}
        self._free = list(range(slots, slots + more))[::-1]

    def remove(self, flight: Flight) -> None:
        """Frees the row's slot."""
        del self.flights[flight.slot]
        self._free.append(flight.slot)

    @torch.inference_mode()
    def advance(self, chosen: list[Flight], predict: Predict) -> list[tuple[Flight, torch.Tensor]]:
        """One UNet call and one step of each row chosen. -> the rows that ended, with their latents (C, h, w).

        Where this raises, no row has moved.
        """
        seats = self._seated(chosen)
        numbers = self._to_device(_numbers(chosen, self.num_lanes))
        t = numbers[: self.num_lanes].view(torch.int32).long()
        output = predict(self._x[seats.slot], t, seats.embeds, seats.added or None)
        table = numbers[self.num_lanes :].view(len(chosen), 6).T[:, :, None, None, None]
        x, x0 = self._step(seats.row_slot, output[seats.with_prompt], output[seats.without], table)
        ended = [(f, x[row].clone()) for row, f in enumerate(chosen) if f.step + 1 == len(f.table)]
        self._x[seats.row_slot] = x
        if self._second_order:
            self._x0[seats.row_slot] = x0
        for flight in chosen:
            flight.step += 1
        for flight, _ in ended:
            self.remove(flight)
        return ended

    @torch.inference_mode()
    def probe(self, predict: Predict) -> None:
        """A UNet call of this shape with plain noise and embeddings of zeros; no row has a part in it.

        Raises what `predict` raises, and FloatingPointError for inf or nan. Waits for the device.
        """
        lanes, shape = self.num_lanes, self._x.shape[1:]
        x = torch.randn(lanes, *shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        t = torch.full((lanes,), self.schedule.num_train_timesteps // 2, device=self.device)
        added = {name: value.new_zeros(lanes, *value.shape[2:]) for name, value in self._added.items()}
        output = predict(x, t, self._embeds.new_zeros(lanes, *self._embeds.shape[2:]), added or None)
        check_finite(output, "the UNet's output")

    def _seated(self, chosen: list[Flight]) -> "_Seats":
        """The seats of a call; those of the last one where the same rows sit in the same lanes."""
        key = [(flight.order, flight.lanes_now) for flight in chosen]
        if self._seats is None or self._seats.key != key:
            self._seats = self._seat(chosen, key)
        return self._seats

    def _seat(self, chosen: list[Flight], key: list[tuple[int, int]]) -> "_Seats":
        """Spare lanes repeat lane 0."""
        lanes: list[tuple[int, int]] = []
        rows = []
        for flight in chosen:
            with_prompt = without = len(lanes)
            lanes.append((flight.slot, 1))
            if flight.lanes_now == 2:
                without = len(lanes)
                lanes.append((flight.slot, 0))
            rows.append((flight.slot, with_prompt, without))
        lanes += lanes[:1] * (self.num_lanes - len(lanes))
        indices = [np.array(lanes, np.int64).T.ravel(), np.array(rows, np.int64).T.ravel()]
        where = self._to_device(np.concatenate(indices))  # one copy for all indices
        slot, side = where[: 2 * self.num_lanes].view(2, -1)
        added = {name: value[slot, side] for name, value in self._added.items()}
        return _Seats(key, slot, self._embeds[slot, side], added, *where[2 * self.num_lanes :].view(3, -1))

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _step(
        self, slot: torch.Tensor, with_prompt: torch.Tensor, without: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """a x + b ((1 + c) x0 - c x0_prev), and x0. slot (R,); outputs (R, C, h, w); table (6, R, 1, 1, 1)."""
        alpha, sigma, a, b, c, scale = table
        output = without + scale * (with_prompt - without)
        x = self._x[slot]
        x0 = (x - sigma * output) / alpha if self.schedule.prediction_type == "epsilon" else alpha * x - sigma * output
        if self.schedule.clip is not None:  # diffusers clamps x0 and leaves the noise as predicted
            clamped = x0.clamp(-self.schedule.clip, self.schedule.clip)
            x, x0 = x + alpha * (clamped - x0), clamped
        if self._second_order:
            return a * x + b * ((1 + c) * x0 - c * self._x0[slot]), x0
        return a * x + b * x0, x0


def _longer(tensor: torch.Tensor, more: int) -> torch.Tensor:
    return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])


def _numbers(chosen: list[Flight], num_lanes: int) -> np.ndarray:
    """(N + 6 R,) float32, one copy to the device: the bits of each lane's int32 timestep, the coefficients by row."""
    times: list[int] = []
    for flight in chosen:
        times += [flight.times[flight.step]] * flight.lanes_now
    times += times[:1] * (num_lanes - len(times))
    table = [flight.coefficients[flight.step] for flight in chosen]
    return np.concatenate([np.array(times, np.int32).view(np.float32), *table])
