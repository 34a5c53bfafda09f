"""Judges by the job's safety scorer whether a picture may be delivered, before it is stored anywhere.

No verdict is not the verdict that a picture is safe: such a picture is not delivered either.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.render.quality import Scored, ScorerSource
from pipelines.run.schema import PlannedRow

if TYPE_CHECKING:
    from actors.scorer import QualityScorer


class Unsafe(RuntimeError):
    """The safety scorer gives the picture more than the job allows: its row is filtered where no try is left."""


class NoSafetyVerdict(RuntimeError):
    """The safety scorer gives the picture no number: its row has failed, and may be rendered again."""


@dataclass(frozen=True)
class SafetyRule:
    """source: the scorer. most: a picture that scores above it is not delivered."""

    source: ScorerSource
    most: float


class SafetyCheck:
    """Asks the scorer for one picture at a time, so that a verdict depends on no other. For any thread."""

    def __init__(self, scorer: "QualityScorer", rule: SafetyRule, running: AbstractContextManager) -> None:
        self._scorer, self._rule, self._running = scorer, rule, running

    def judge(self, row: PlannedRow, image: np.ndarray) -> tuple[dict[str, float], Unsafe | NoSafetyVerdict | None]:
        """The score by the scorer's name, {} where there is none, and why the picture is not delivered; (H, W, 3)."""
        with self._running:
            found = self._scorer({"image": [image], "prompt": [row.prompt]})
        scored = Scored(found["scores"][0], found["quality"][0], found["score_error"][0])
        return dict(scored.scores), self._reason(scored)

    def _reason(self, scored: Scored) -> Unsafe | NoSafetyVerdict | None:
        name, score = self._rule.source.name, scored.quality
        if score is None:
            return NoSafetyVerdict(f"{scored.error or f'{name} gave no number'}: no verdict, not delivered")
        return Unsafe(f"{name} {score:.4g} is above {self._rule.most:g}") if score > self._rule.most else None
