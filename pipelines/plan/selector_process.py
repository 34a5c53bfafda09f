"""Keeps the selector where it belongs: a policy in a process of its own, since it brings torch, any other one here.

It says what the menu is, and scores the rows of a small list. A long list is scored by a pool of actors
(`pipelines.plan.make`).
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray

from actors.recipe import Recipe
from pipelines.files.readers import InputError
from pipelines.plan.budgets import SelectorSource, score, selector_of

LIVES = 3  # of the process: one that is killed starts again
Call = Callable[..., Any]  # (function, *arguments) -> its result, from wherever it is run


class SelectorProcess:
    """Needs a Ray for a policy alone. call: runs a function in a process that is there already. `end` it."""

    def __init__(self, scoring: SelectorSource, num_gpus: float = 0, call: Call | None = None) -> None:
        self.scoring = scoring
        self._actor: Any = None
        self._call = call or self._called
        if scoring.selector.selector != "policy":
            self._call = _called_here
        elif call is None:
            options = {"num_cpus": 1, "num_gpus": num_gpus, "max_restarts": LIVES, "max_task_retries": LIVES}
            self._actor = ray.remote(_Host).options(**options).remote()

    def describe(self) -> tuple[tuple[Recipe, ...], str | None, int | None]:
        """The menu, the policy's version, and the prompts that its bars were learned from.

        InputError where the selector cannot be used.
        """
        try:
            return self._call(_described, self.scoring)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError):
                raise InputError(f"steps.selector: {error.cause}") from error
            raise
        except (ValueError, OSError) as error:
            raise InputError(f"steps.selector: {error}") from error

    def score(self, table: pa.Table) -> pa.Table:
        """See `pipelines.plan.budgets.score`."""
        return self._call(score, table, self.scoring)

    def end(self) -> None:
        """Frees its memory."""
        if self._actor is None:
            self._call(selector_of.cache_clear)
        else:
            ray.kill(self._actor)

    def _called(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return ray.get(self._actor.call.remote(function, *arguments))


class _Host:
    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def _called_here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _described(scoring: SelectorSource) -> tuple[tuple[Recipe, ...], str | None, int | None]:
    selector = selector_of(scoring)
    return selector.choices, selector.policy_version, getattr(selector, "bank_prompts", None)
