"""Defines a recipe: how one picture is denoised, and what it is called in tables, ids and messages.

A menu is a tuple of recipes by rising cost. What a recipe leaves open is the job's own. Pure Python, no torch.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.schedulers import SOLVERS
from actors.solver import lane_steps

MAX_STEPS = 1000
THROUGHOUT = (0.0, 1.0)  # guidance at every step
_NUMBER = r"\d+(?:\.\d+)?(?:e[-+]\d+)?"
_NAME = re.compile(rf"(\d+)(?:-({'|'.join(SOLVERS)}))?(?:-g({_NUMBER}))?(?:-({_NUMBER})to({_NUMBER}))?")

Interval = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """num_steps, and where they are not the job's own: solver, guidance_scale, guidance_interval.

    guidance_interval: [start, end] as fractions of the schedule, 0: pure noise, 1: done.
    """

    num_steps: int
    solver: str | None = None
    guidance_scale: float | None = None
    guidance_interval: Interval | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it says the number of steps alone: a step budget."""
        return (self.solver, self.guidance_scale, self.guidance_interval) == (None, None, None)

    @property
    def name(self) -> str:
        """Short, for columns and ids: `8`, `4-g3-0.2to0.8`; `named` reads it."""
        parts = [str(self.num_steps)]
        parts += [self.solver] if self.solver else []
        parts += [f"g{_short(self.guidance_scale)}"] if self.guidance_scale is not None else []
        parts += ["to".join(map(_short, self.guidance_interval))] if self.guidance_interval else []
        return "-".join(parts)

    @property
    def words(self) -> str:
        """For people: `8 steps`, `4 steps, guidance 3 from 0.2 to 0.8`."""
        parts = [f"{self.num_steps} step{'s' * (self.num_steps != 1)}"]
        parts += [self.solver] if self.solver else []
        scale, interval = self.guidance_scale, self.guidance_interval
        if scale is not None or interval:
            parts.append(
                " ".join(
                    [
                        "guidance",
                        *([_short(scale)] if scale is not None else []),
                        *([f"from {_short(interval[0])} to {_short(interval[1])}"] if interval else []),
                    ]
                )
            )
        return ", ".join(parts)

    def plain(self) -> int | dict[str, Any]:
        """As JSON and the job file have it: a number of steps, or its keys."""
        if self.is_plain:
            return self.num_steps
        said: dict[str, Any] = {
            "num_steps": self.num_steps,
            "solver": self.solver,
            "guidance_scale": self.guidance_scale,
        }
        said |= {"guidance_interval": list(self.guidance_interval) if self.guidance_interval else None}
        return {name: value for name, value in said.items() if value is not None}


def _short(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def recipe_of(value: "int | Mapping[str, Any] | Recipe") -> Recipe:
    """A number of steps, or a mapping with a recipe's keys. ValueError, TypeError: neither."""
    if isinstance(value, Recipe):
        return value
    if not isinstance(value, Mapping):
        return Recipe(int(value))
    interval = value.get("guidance_interval")
    start_end = (float(interval[0]), float(interval[1])) if interval else None
    scale = value.get("guidance_scale")
    return Recipe(int(value["num_steps"]), value.get("solver"), None if scale is None else float(scale), start_end)


def menu_of(values: "Iterable[int | Mapping[str, Any] | Recipe]") -> tuple[Recipe, ...]:
    """Each as a recipe, in the order given."""
    return tuple(recipe_of(value) for value in values)


def named(name: str) -> Recipe:
    """The recipe of a name. ValueError where it is none."""
    found = _NAME.fullmatch(name)
    if not found:
        raise ValueError(f"{name!r} is no recipe's name")
    steps, solver, scale, start, end = found.groups()
    interval = (float(start), float(end)) if start else None
    return Recipe(int(steps), solver, float(scale) if scale else None, interval)


def by_cost(menu: Iterable[Recipe], guidance_scale: float, interval: Interval | None) -> tuple[Recipe, ...]:
    """By rising lane-steps, where the job's own guidance is this; of equals the one with fewer steps is first."""

    def cost(recipe: Recipe) -> tuple[int, int, str]:
        return lane_steps_of(recipe, guidance_scale, interval), recipe.num_steps, recipe.name

    return tuple(sorted(set(menu), key=cost))


def lane_steps_of(recipe: Recipe, guidance_scale: float, interval: Interval | None) -> int:
    """Lane-steps of a picture, where the job's own guidance is this."""
    scale = guidance_scale if recipe.guidance_scale is None else recipe.guidance_scale
    return lane_steps(recipe.num_steps, scale, recipe.guidance_interval or interval)


def step_counts(menu: Iterable[Recipe]) -> tuple[int, ...]:
    """The numbers of steps in a menu, rising, each once: what pools serve."""
    return tuple(sorted({recipe.num_steps for recipe in menu}))
