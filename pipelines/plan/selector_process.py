"""Keeps the selector where it belongs: a policy in a process of its own, since it brings torch, any other one here.

It says what the menu is, and scores the rows of a small list. A long list is scored by a pool of actors
(`pipelines.plan.make`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import ray

from actors.recipe import Recipe
from pipelines.cluster.nodes import is_own_ray
from pipelines.files.readers import InputError
from pipelines.plan.budgets import SelectorSource, score, selector_of

T = TypeVar("T")
LIVES = 3  # of the process: one that is killed starts again


class SelectorProcess:
    """Needs a Ray for a policy alone. num_gpus: of its process, once rows are scored there. `end` it."""

    def __init__(self, scoring: SelectorSource, num_gpus: float = 0) -> None:
        self.scoring = scoring
        self._actor: Any = None
        if scoring.selector.selector == "policy":
            cpus = 0 if is_own_ray() else 1  # here a render actor may hold the only one
            options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": num_gpus}
            options |= {"max_restarts": LIVES, "max_task_retries": LIVES}
            self._actor = ray.remote(_SelectorActor).options(**options).remote(scoring)

    def describe(self) -> tuple[tuple[Recipe, ...], str | None]:
        """The menu and the policy's version. InputError where the selector cannot be used."""
        if self._actor:
            return _asked(lambda: ray.get(self._actor.describe.remote()))
        return _asked(lambda: _described(self.scoring))

    def score(self, table: pa.Table) -> pa.Table:
        """See `pipelines.plan.budgets.score`."""
        return ray.get(self._actor.score.remote(table)) if self._actor else score(table, self.scoring)

    def end(self) -> None:
        """Ends the process."""
        if self._actor:
            ray.kill(self._actor)
            self._actor = None


class _SelectorActor:
    def __init__(self, scoring: SelectorSource) -> None:
        self.scoring = scoring

    def describe(self) -> tuple[tuple[Recipe, ...], str | None]:
        return _described(self.scoring)

    def score(self, table: pa.Table) -> pa.Table:
        return score(table, self.scoring)


def _described(scoring: SelectorSource) -> tuple[tuple[Recipe, ...], str | None]:
    """The selector's menu and the policy's version."""
    selector = selector_of(scoring)
    return selector.choices, selector.policy_version


def _asked(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise InputError(f"steps.selector: {error.cause}") from error
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"steps.selector: {error}") from error
