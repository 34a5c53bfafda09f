"""Scores a shard's pictures as they are made, all budgets of one (prompt, sample) together.

`actors.scorer` computes the scores; this module gives it whole groups on a worker. It imports torch only there.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.run.schema import PlannedRow
from pipelines.storage.checkpoints import ModelSource, is_one_file

if TYPE_CHECKING:
    from actors.scorer import QualityScorer


@dataclass(frozen=True)
class ScorerSource:
    """One view of quality and where its model lies; the fields of `actors.scorer.ScorerSpec`, not yet on this node."""

    name: str
    kind: str  # clip, aesthetic, fidelity or function
    weight: float = 1.0
    model: ModelSource | None = None
    head: str | None = None
    function: Callable[[list[np.ndarray], list[str]], Sequence[float]] | None = None


def load_scorer(sources: Sequence[ScorerSource], device: str) -> "QualityScorer":
    """The scorers of a job, on this machine. Raises ScorerError, StorageError."""
    from actors.scorer import QualityScorer, ScorerConfig, ScorerSpec

    specs = [
        ScorerSpec(s.name, s.kind, s.weight, s.model.local() if s.model else None, s.head, s.function) for s in sources
    ]
    return QualityScorer(ScorerConfig(tuple(specs), device))


def check_source(source: ScorerSource) -> None:
    """Checks by headers that its model is a whole CLIP and its head fits. Raises CheckpointError, StorageError."""
    from actors.scorer_check import check_clip, check_head
    from actors.weights import CheckpointError

    if source.model is not None and source.kind in ("clip", "aesthetic"):
        if is_one_file(source.model.path):
            raise CheckpointError(f"{source.model.path}: one file; a scorer's path takes a CLIPModel's whole folder")
        width = check_clip(source.model.local(metadata_only=True))
        if source.kind == "aesthetic" and source.head is not None:
            check_head(source.head, width)


@dataclass(frozen=True)
class Scored:
    """scores: of those scorers that could judge; quality: their weighted sum, None where it is unknown, and why."""

    scores: Mapping[str, float]
    quality: float | None
    error: str | None = None


class ScoringTurns:
    """Lets one thread score at a time, since a scorer's threads are the actor's, and adds up what that takes."""

    def __init__(self) -> None:
        self._lock, self._began = threading.Lock(), 0.0
        self.calls, self.seconds = 0, 0.0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._began = time.monotonic()

    def __exit__(self, *raised: object) -> None:
        self.calls, self.seconds = self.calls + 1, self.seconds + time.monotonic() - self._began
        self._lock.release()


class ShardScores:
    """Takes a shard's pictures in any order, from any thread; a group is scored by the thread that completes it."""

    def __init__(self, scorer: "QualityScorer", rows: Iterable[PlannedRow], running: AbstractContextManager):
        self._scorer, self._running = scorer, running
        self._lock = threading.Lock()
        self._expected = Counter(_group(row) for row in rows if not row.error_type)
        self._held: dict[tuple, list[tuple[PlannedRow, np.ndarray | None]]] = defaultdict(list)
        self.found: dict[str, Scored] = {}

    def add(self, row: PlannedRow, image: np.ndarray | None) -> None:
        """image: (H, W, 3) uint8; None where the row failed."""
        group = _group(row)
        with self._lock:
            held = self._held[group]
            held.append((row, image))
            if len(held) < self._expected[group]:
                return
            del self._held[group]
        self._score(held)

    def judge(self, row: PlannedRow, image: np.ndarray) -> Scored:
        """The scores of one picture, in a call of its own: they depend on no other. image: (H, W, 3) uint8."""
        return self._called([row], [image], [None])[0]

    def _score(self, held: list[tuple[PlannedRow, np.ndarray | None]]) -> None:
        pictures = [(row, image) for row, image in held if image is not None]
        if not pictures:
            return
        _, reference = max(held, key=lambda each: each[0].num_steps or 0)
        rows, images = zip(*pictures, strict=True)
        references = [reference if len(held) > 1 else None] * len(pictures)
        for row, scored in zip(rows, self._called(rows, images, references), strict=True):
            self.found[row.id] = scored

    def _called(
        self, rows: Sequence[PlannedRow], images: Sequence[np.ndarray], references: Sequence[np.ndarray | None]
    ) -> list[Scored]:
        batch = {"image": list(images), "prompt": [row.prompt for row in rows], "reference": list(references)}
        with self._running:
            scored = self._scorer(batch)
        return [Scored(*each) for each in zip(scored["scores"], scored["quality"], scored["score_error"], strict=True)]


def _group(row: PlannedRow) -> tuple[str, int]:
    return row.prompt_id, row.sample
