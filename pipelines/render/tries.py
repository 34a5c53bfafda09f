"""The tries of one row: each picture with its score, whether another seed is tried, and which picture is kept.

Seeds and the choice are `actors.tries`'; which rows may be tried again, and below which score, their plan says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from actors.rows import JUNK, Picture
from actors.tries import kept_try, tries_again, try_seed
from pipelines.render.quality import Scored
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
    """One picture of a row. picture: None where it was junk, its image NO_IMAGE once another is better; error: what its
    row failed with. uri: where it is stored though it was not chosen.
    """

    seed: int
    picture: Picture | None
    scored: Scored | None = None
    error: BaseException | None = None
    uri: str | None = None

    @property
    def quality(self) -> float:
        """NaN where it is junk, or has no score."""
        return math.nan if self.scored is None or self.scored.quality is None else self.scored.quality

    def record(self, num_steps: int | None) -> dict[str, Any]:
        """As the manifest has it."""
        scores = self.scored.scores.items() if self.scored else ()
        named = [{"scorer": name, "score": score} for name, score in scores]
        return {"seed": self.seed, "num_steps": num_steps, "scores": named, "uri": self.uri}


@dataclass(eq=False)
class RowTries:
    """What was tried for one row so far. One thread at a time."""

    row: PlannedRow
    rules: TryRules = field(default_factory=TryRules)
    done: list[Try] = field(default_factory=list)

    @property
    def are_judged(self) -> bool:
        """Whether its pictures are scored as they come, since a score below its bar brings another."""
        return self.row.bar is not None and self.rules.most > 1

    @property
    def next_row(self) -> PlannedRow:
        """The row with the seed of the try to come."""
        return replace(self.row, seed=try_seed(self.row.seed, len(self.done))) if self.done else self.row

    def wants_another(self) -> bool:
        """Whether the last picture is not good enough. Without a verdict, or after any other failure, none is tried."""
        last = self.done[-1]
        if not self.are_judged or (last.picture is None and not is_junk(last.error)):
            return False
        if last.picture is not None and math.isnan(last.quality):
            return False
        assert self.row.bar is not None
        return tries_again([each.quality for each in self.done], self.row.bar, self.rules.most)

    @property
    def chosen(self) -> Try:
        """The best; without scores the first that has a picture, and where none has, the last."""
        best = kept_try([each.quality for each in self.done])
        if best is not None:
            return self.done[best]
        return next((each for each in self.done if each.picture), self.done[-1])

    @property
    def pictures(self) -> Sequence[Picture]:
        """Of all tries that have one."""
        return [each.picture for each in self.done if each.picture]


def is_junk(error: BaseException | None) -> bool:
    """Whether a row failed with a picture that is none, here or in a child process."""
    name = error.args[0] if isinstance(error, RowFailed) else type(error).__name__
    return name in JUNK
