"""The tries of one row: each picture with its score, whether another seed is tried, and which picture is kept.

Seeds and the choice are `actors.tries`'; which rows may be tried again, and below which score, their plan says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from actors.rows import JUNK, Picture
from actors.tries import kept_try, tries_again, try_seed
from pipelines.render.quality import Scored
from pipelines.render.safety import Unsafe
from pipelines.run.schema import PlannedRow

NO_IMAGE = np.empty((0, 0, 3), np.uint8)  # of a picture that was let go


class RowFailed(Exception):
    """A row that failed in another process: error type, message."""


@dataclass(frozen=True)
class TryRules:
    """most: pictures of a row at most. keep: those that were not chosen are stored, too."""

    most: int = 1
    keep: bool = False


@dataclass(frozen=True)
class Try:
    """One picture of a row.

    picture: None where it was junk; its image is NO_IMAGE once another is better, or where it must not be delivered.
    error: what its row failed with. safety: the safety scorer's name and score. uri: where it is stored though it was
    not chosen.
    """

    seed: int
    picture: Picture | None
    scored: Scored | None = None
    error: BaseException | None = None
    uri: str | None = None
    safety: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether its picture may be delivered."""
        return self.picture is not None and self.error is None

    @property
    def scores(self) -> list[dict[str, Any]]:
        """As the manifest has them."""
        named = {**self.safety, **(self.scored.scores if self.scored else {})}
        return [{"scorer": name, "score": score} for name, score in named.items()]

    @property
    def quality(self) -> float:
        """NaN where it is junk, or has no score."""
        return math.nan if self.scored is None or self.scored.quality is None else self.scored.quality

    def record(self, num_steps: int | None) -> dict[str, Any]:
        """As the manifest has it."""
        return {"seed": self.seed, "num_steps": num_steps, "scores": self.scores, "uri": self.uri}


@dataclass(eq=False)
class RowTries:
    """What was tried for one row so far. One thread at a time."""

    row: PlannedRow
    rules: TryRules = field(default_factory=TryRules)
    done: list[Try] = field(default_factory=list)

    @property
    def are_judged(self) -> bool:
        """Whether its pictures are judged as they come, since there may be another."""
        return self.rules.most > 1 and not self.row.seed_pinned

    @property
    def next_row(self) -> PlannedRow:
        """The row with the seed of the try to come."""
        return replace(self.row, seed=try_seed(self.row.seed, len(self.done))) if self.done else self.row

    def wants_another(self) -> bool:
        """Whether the last picture is not good enough. Without a verdict, or after any other failure, none is tried."""
        last = self.done[-1]
        if not self.are_judged:
            return False
        if last.error is not None:
            return is_failed_try(last.error) and len(self.done) < self.rules.most
        if self.row.bar is None or math.isnan(last.quality):
            return False
        return tries_again([each.quality for each in self.done], self.row.bar, self.rules.most)

    @property
    def chosen(self) -> Try:
        """The best; without scores the first that is sound. Where none is, one that was filtered, or the last."""
        best = kept_try([each.quality for each in self.done])
        if best is not None:
            return self.done[best]
        return next((each for each in self.done if each.is_sound), self._failed)

    @property
    def _failed(self) -> Try:
        """What the row ends with where no try is sound: a failure that may be mended comes before a verdict."""
        last = self.done[-1]
        if not is_failed_try(last.error):
            return last
        return next((each for each in self.done if isinstance(each.error, Unsafe)), last)

    @property
    def pictures(self) -> Sequence[Picture]:
        """Of all tries that have one."""
        return [each.picture for each in self.done if each.picture]


def is_failed_try(error: BaseException | None) -> bool:
    """Whether another seed may mend it: a picture that is none, here or in a child process, or that is not safe."""
    name = error.args[0] if isinstance(error, RowFailed) else type(error).__name__
    return name in JUNK or isinstance(error, Unsafe)
