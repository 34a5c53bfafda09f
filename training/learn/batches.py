"""Picks each batch's rows and each row's random numbers: pure functions of a seed, a step and a row.

A batch has slots and every slot walks through its own rows, shuffled anew on each pass. Workers share out the slots, so
the batches, the draws and the result do not depend on how many workers there are, nor on where a training was resumed.
Shapes: P rows, N slots of a batch, C numbers a row.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.learning_error import Unlearnable

CHUNK_ROWS = 256


class Batch(NamedTuple):
    """rows (N,), quality (N, K, S) for the CPU; embeds (N, L, H), mask (N, L) float32 on the device."""

    rows: np.ndarray
    embeds: Tensor
    mask: Tensor
    quality: np.ndarray


def num_slots(batch_size: int, num_rows: int, num_workers: int) -> int:
    """Slots of a batch: at most one a row, the same number on every worker. ValueError where that leaves none."""
    slots = min(batch_size, num_rows) // num_workers * num_workers
    if not slots:
        raise Unlearnable(f"{num_rows} rows in batches of {batch_size} are too few for {num_workers} workers")
    return slots


def own_slots(slots: int, rank: int, num_workers: int) -> range:
    """The slots of one worker; those of row r are `r % slots`."""
    share = slots // num_workers
    return range(rank * share, (rank + 1) * share)


def rows_at(step: int, slots: range, of: int, num_rows: int, seed: int) -> np.ndarray:
    """The row in each of the slots at a step; `of` slots in all. Every row comes once in a pass of its slot."""
    return np.array([_row_at(step, slot, of, num_rows, seed) for slot in slots], np.int64)


def _row_at(step: int, slot: int, of: int, num_rows: int, seed: int) -> int:
    count = (num_rows - slot + of - 1) // of
    turn, place = divmod(step, count)
    order = np.random.default_rng([seed, slot, turn]).permutation(count)
    return slot + of * int(order[place])


def uniforms(seed: int, step: int, rows: np.ndarray, count: int) -> np.ndarray:
    """(N, C) in [0, 1), each row's own at this step, whichever worker asks: SplitMix64 over seed, step, row, number."""
    state = _mixed(_mixed(np.uint64(seed)) ^ np.uint64(step))
    by_row = _mixed(_mixed(rows.astype(np.uint64)) ^ state)  # (N,)
    bits = _mixed(by_row[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(given: np.ndarray | np.uint64) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    x: np.ndarray = np.atleast_1d(np.asarray(given, np.uint64)) + _GOLDEN  # at least 1-d: arrays wrap without a warning
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class TrainingRows:
    """Training rows in memory: token embeddings of each prompt without its padding, and its quality (K, S)."""

    def __init__(self, embeds: dict[int, np.ndarray], quality: dict[int, np.ndarray]) -> None:
        self.embeds, self.quality = embeds, quality

    def batch(self, rows: np.ndarray, device: str | torch.device = "cpu") -> Batch:
        """Some of them, padded to the longest."""
        embeds, mask = padded([self.embeds[int(row)] for row in rows])
        quality = np.stack([self.quality[int(row)] for row in rows])
        return Batch(rows, embeds.to(device), mask.to(device), quality)

    def chunks(self) -> list[Batch]:
        """All of them by number, on the CPU, a few at a time."""
        order = np.array(sorted(self.quality))
        return [self.batch(order[at : at + CHUNK_ROWS]) for at in range(0, len(order), CHUNK_ROWS)]


def padded(embeds: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Embeddings (L_i, H) of several prompts -> (N, L, H) float32 and a mask (N, L), 1 at tokens."""
    longest = max(len(tokens) for tokens in embeds)
    out = np.zeros((len(embeds), longest, embeds[0].shape[1]), np.float32)
    mask = np.zeros((len(embeds), longest), np.float32)
    for row, tokens in enumerate(embeds):
        out[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return torch.from_numpy(out), torch.from_numpy(mask)
