"""Writes each row's recipe into its columns: what the menu says, then what the job says, then what the row pins.

Pure over Arrow tables. Which recipe a row gets is the selector's, or all of them in a rollout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from actors.recipe import THROUGHOUT, Interval, Recipe
from actors.solver import lane_steps
from pipelines.run.schema import CANONICAL_FIELDS, SCORE_FIELDS

_TYPES = {column.name: column.type for column in (*CANONICAL_FIELDS, *SCORE_FIELDS)}
_COST = ("num_steps", "guidance_scale", "guidance_interval")


@dataclass(frozen=True)
class JobSampling:
    """What recipes leave open: the job's own."""

    solver: str = "ddim"
    guidance_interval: Interval | None = None


def recipe_columns(
    table: pa.Table, recipes: Sequence[Recipe | None], names: Sequence[str | None], sampling: JobSampling
) -> dict[str, pa.Array]:
    """recipe_name, num_steps, solver, guidance_scale and guidance_interval of canonical rows; None: a bad row.

    names: those in the menu. A row's own guidance_scale wins; a row with a negative prompt is guided throughout.
    """
    given = [table[name].to_pylist() for name in ("guidance_scale", "guidance_pinned", "negative_prompt")]
    resolved = [
        recipe and _resolved(recipe, scale, pinned, bool(negative), sampling)
        for recipe, scale, pinned, negative in zip(recipes, *given, strict=True)
    ]
    columns = {
        name: [recipe and getattr(recipe, name) for recipe in resolved]
        for name in ("num_steps", "solver", "guidance_interval")
    }
    columns["guidance_scale"] = [
        recipe.guidance_scale if recipe else scale for recipe, scale in zip(resolved, given[0], strict=True)
    ]
    columns["recipe_name"] = [name if recipe else None for name, recipe in zip(names, recipes, strict=True)]
    return {name: pa.array(values, _TYPES[name]) for name, values in columns.items()}


def _resolved(recipe: Recipe, scale: float, pinned: bool, negative: bool, sampling: JobSampling) -> Recipe:
    """The recipe with nothing left open. scale: the row's own where it is pinned, else the job's."""
    own = pinned or recipe.guidance_scale is None
    interval = None if negative else recipe.guidance_interval or sampling.guidance_interval
    return replace(
        recipe,
        solver=recipe.solver or sampling.solver,
        guidance_scale=scale if own else recipe.guidance_scale,
        guidance_interval=interval or THROUGHOUT,
    )


def lane_steps_of_rows(table: pa.Table) -> np.ndarray:
    """(N,) int64 lane-steps of planned rows; 0 for a bad one."""
    known: dict[tuple[object, ...], int] = {}
    costs = []
    for steps, scale, interval in zip(*(table[name].to_pylist() for name in _COST), strict=True):
        key = (steps, scale, *(interval or ()))
        if key not in known:
            known[key] = lane_steps(steps, scale, (interval[0], interval[1]) if interval else None) if steps else 0
        costs.append(known[key])
    return np.array(costs, np.int64)
