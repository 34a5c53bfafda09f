"""Rows in flight and the one UNet call that moves them, always of one shape.

A call has N lanes. A row takes two at a guided step (with and without the prompt) and one at an unguided step. Which
rows a call takes is decided on the host from their step tables, so that nothing here waits for the device.
Not the loop (denoise.py): it neither takes rows nor knows what becomes of their latents.
Legend: N lanes, S slots (rows in flight), R rows of one call, L D tokens and their embedding, C h w of a latent.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

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
    slot: int = -1
    step: int = 0
    order: int = 0
    call_lanes: int = 0  # lanes of the calls it went through
    left: np.ndarray = field(init=False)  # (K + 1,) lane-steps left before each step

    def __post_init__(self) -> None:
        widths = 1 + self.table.guided.astype(int)
        self.left = np.append(widths[::-1].cumsum()[::-1], 0)

    @property
    def lanes_now(self) -> int:
        """Lanes at the next step."""
        return 2 if self.table.guided[self.step] else 1


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


class Lanes:
    """The rows in flight of one latent shape, as tensors on the device, and the one UNet call that moves them."""

    def __init__(self, schedule: NoiseSchedule, num_lanes: int, like: Flight, device: torch.device):
        if num_lanes < 2:
            raise ValueError("a guided row needs 2 lanes")
        self.schedule, self.num_lanes, self.device = schedule, num_lanes, device
        self.flights: dict[int, Flight] = {}
        self.calls = self.filled = 0
        self._free: list[int] = []
        self._admitted = 0
        self._x = torch.empty(0, *like.shape, device=device)  # (S, C, h, w), as x0 of the step before
        self._x0 = torch.empty_like(self._x)
        self._embeds = torch.empty(0, *like.embeds.shape, dtype=like.embeds.dtype, device=device)  # (S, 2, L, D)
        self._added = {k: torch.empty(0, *v.shape, dtype=v.dtype, device=device) for k, v in like.added.items()}

    @property
    def lane_steps_left(self) -> int:
        """Of all rows in flight."""
        return sum(int(f.left[f.step]) for f in self.flights.values())

    def admit(self, flight: Flight) -> None:
        """The row starts from its noise."""
        if not self._free:
            self._grow()
        flight.slot, flight.step, flight.order = self._free.pop(), 0, self._admitted
        flight.call_lanes = self.num_lanes
        self._admitted += 1
        self.flights[flight.slot] = flight
        self._x[flight.slot].copy_(flight.noise, non_blocking=True)
        self._x0[flight.slot].zero_()  # 0 * nan: what the slot held before must not reach this row
        self._embeds[flight.slot].copy_(flight.embeds, non_blocking=True)
        for name, value in flight.added.items():
            self._added[name][flight.slot].copy_(value, non_blocking=True)

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

        Where `predict` raises, no row has moved.
        """
        n, r = self.num_lanes, len(chosen)
        lanes, rows = self._layout(chosen)
        where = self._to_device(np.concatenate([lanes.ravel(), rows.ravel()]))  # one copy for all indices
        slot, side, t = where[: 3 * n].view(3, n)
        row_slot, lane_with, lane_without = where[3 * n :].view(3, r)
        added = {name: value[slot, side] for name, value in self._added.items()} or None
        output = predict(self._x[slot], t, self._embeds[slot, side], added)
        self._step(row_slot, output[lane_with], output[lane_without], self._to_device(_coefficients(chosen)))
        self.calls += 1
        self.filled += sum(f.lanes_now for f in chosen)
        return self._finished(chosen)

    def _layout(self, chosen: list[Flight]) -> tuple[np.ndarray, np.ndarray]:
        """-> (3, N) slot, side, timestep of each lane; (3, R) slot and two lanes of a row. Spare lanes: lane 0."""
        lanes: list[tuple[int, int, int]] = []
        rows = []
        for flight in chosen:
            with_prompt = without = len(lanes)
            t = int(flight.table.t[flight.step])
            lanes.append((flight.slot, 1, t))
            if flight.lanes_now == 2:
                without = len(lanes)
                lanes.append((flight.slot, 0, t))
            rows.append((flight.slot, with_prompt, without))
        lanes += lanes[:1] * (self.num_lanes - len(lanes))
        return np.array(lanes, np.int64).T, np.array(rows, np.int64).T

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _step(self, slot: torch.Tensor, with_prompt: torch.Tensor, without: torch.Tensor, table: torch.Tensor) -> None:
        """x <- a x + b ((1 + c) x0 - c x0_prev). slot (R,); outputs (R, C, h, w); table (6, R, 1, 1, 1)."""
        alpha, sigma, a, b, c, scale = table
        output = without + scale * (with_prompt - without)
        x = self._x[slot]
        x0 = (x - sigma * output) / alpha if self.schedule.prediction_type == "epsilon" else alpha * x - sigma * output
        if self.schedule.clip is not None:  # diffusers clamps x0 and leaves the noise as predicted
            clamped = x0.clamp(-self.schedule.clip, self.schedule.clip)
            x, x0 = x + alpha * (clamped - x0), clamped
        self._x[slot] = a * x + b * ((1 + c) * x0 - c * self._x0[slot])
        self._x0[slot] = x0

    def _finished(self, chosen: list[Flight]) -> list[tuple[Flight, torch.Tensor]]:
        ended = []
        for flight in chosen:
            flight.step += 1
            if flight.step == len(flight.table):
                ended.append((flight, self._x[flight.slot].clone()))
                self.remove(flight)
        return ended


def _longer(tensor: torch.Tensor, more: int) -> torch.Tensor:
    return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])


def _coefficients(chosen: list[Flight]) -> np.ndarray:
    """(6, R, 1, 1, 1) float32: alpha, sigma, a, b, c, guidance scale."""
    tables = [(f.table, f.step) for f in chosen]
    rows = [(t.alpha[k], t.sigma[k], t.a[k], t.b[k], t.c[k]) for t, k in tables]
    scales = [f.guidance_scale for f in chosen]
    return np.column_stack([np.array(rows), scales]).T.astype(np.float32)[:, :, None, None, None]
