"""Asks the selector for each row's recipe, and marks rows whose steps no pool serves as bad.

Runs in Ray tasks or actors; a table keeps its columns and types, whatever the selector makes of its batch.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.recipe import Recipe, named
from pipelines.plan.recipes import JobSampling, recipe_columns
from pipelines.run.schema import CANONICAL_FIELDS, SCORE_FIELDS
from pipelines.storage.checkpoints import ModelSource

if TYPE_CHECKING:
    from actors.selector import SelectorConfig


@dataclass(frozen=True)
class SelectorSource:
    """How rows get recipes. `selector_class` None: actors.selector.StepSelector; `served` None: pools serve any.

    `model`: where each node gets the checkpoint whose text encoder a policy reads; it says nothing about the recipes.
    """

    selector: "SelectorConfig"
    served: frozenset[int] | None = None
    selector_class: type | None = None
    model: ModelSource | None = field(default=None, compare=False)
    bar: float | None = None  # below this quality a row without a pinned seed is tried again
    expected_tries: float | None = None
    tries_variance: float | None = None
    sampling: JobSampling = field(default_factory=JobSampling)  # what recipes leave open


@functools.lru_cache(maxsize=1)
def selector_of(scoring: SelectorSource) -> Any:
    """The process's one selector; it imports torch, so it is never made on the driver."""
    if scoring.selector_class:
        return scoring.selector_class(scoring.selector)
    from actors.selector import StepSelector

    return StepSelector(_on_this_node(scoring))


def _on_this_node(scoring: SelectorSource) -> "SelectorConfig":
    """The settings with the folders of this machine; only a policy has any."""
    config, model = scoring.selector, scoring.model
    if config.selector != "policy" or model is None or config.policy_path is None:
        return config
    policy = ModelSource(config.policy_path, storage=model.storage)
    return replace(config, policy_path=policy.local(), text_encoder_path=model.local())


def score(table: pa.Table, scoring: SelectorSource) -> pa.Table:
    """Canonical rows -> the same with SCORE_FIELDS; a row whose steps no pool serves becomes a bad one."""
    batch = {
        "id": table["id"].to_numpy(),
        "prompt": table["prompt"].fill_null("").to_numpy(),
        "num_inference_steps": table["num_inference_steps"].cast(pa.float64()).to_numpy(),  # NaN: not pinned
        "seed_pinned": table["seed_pinned"].to_numpy(),
        "error_type": table["error_type"].to_numpy(),
    }
    chosen = selector_of(scoring)(batch) if table.num_rows else {column.name: [] for column in SCORE_FIELDS}
    names = _nullable(chosen["recipe_name"])
    recipes = [None if name is None else named(name) for name in names]
    table = _with_faults(table, recipes, scoring.served)
    good = [not error for error in table["error_type"].to_pylist()]
    recipes = [recipe if fine else None for recipe, fine in zip(recipes, good, strict=True)]
    columns: dict[str, Any] = {
        "budget_scores": [None if scores is None else list(scores) for scores in chosen["budget_scores"]],
        **recipe_columns(table, recipes, names, scoring.sampling),
        **{name: _nullable(chosen[name]) for name in ("action_probability", "policy_version", "price")},
    }
    free = [fine and not pinned for fine, pinned in zip(good, table["seed_pinned"].to_pylist(), strict=True)]
    for name in ("bar", "expected_tries", "tries_variance"):
        value = getattr(scoring, name)
        own = _nullable(chosen.get(name, [None] * len(free)))
        columns[name] = [value if each and mine is None else mine for each, mine in zip(free, own, strict=True)]
    return with_score_fields(table, columns)


def with_score_fields(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """Canonical rows, then SCORE_FIELDS, null where `columns` has none, then the carried columns."""
    known = {column.name: table[column.name] for column in table.schema} | dict(columns)
    canonical = {column.name for column in CANONICAL_FIELDS}
    wanted = [*CANONICAL_FIELDS, *SCORE_FIELDS, *(column for column in table.schema if column.name not in canonical)]
    arrays = [_column(known.get(column.name), column.type, table.num_rows) for column in wanted]
    return pa.Table.from_arrays(arrays, schema=pa.schema(wanted))


def _column(values: Any, kind: pa.DataType, rows: int) -> pa.Array | pa.ChunkedArray:
    if values is None:
        return pa.nulls(rows, kind)
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)


class ScoreActor:
    """Canonical rows -> the same with SCORE_FIELDS, by a selector that is built at the first batch and kept."""

    def __init__(self, scoring: SelectorSource) -> None:
        self.scoring = scoring

    def __call__(self, table: pa.Table) -> pa.Table:
        """One batch."""
        return score(table, self.scoring)


def _with_faults(table: pa.Table, recipes: Sequence[Recipe | None], served: frozenset[int] | None) -> pa.Table:
    """error_type and error_message of rows that got no recipe, or one that nobody serves."""
    kinds, messages = table["error_type"].to_pylist(), table["error_message"].to_pylist()
    changed = False
    for row, recipe in enumerate(recipes):
        count = recipe and recipe.num_steps
        if kinds[row] or (count is not None and (served is None or count in served)):
            continue
        changed = True
        if count is None:
            kinds[row], messages[row] = "NotSelected", "the selector gave this row no steps"
        else:
            kinds[row] = "NoPool"
            messages[row] = (
                f"no pool serves {count} steps. Add {count} to a pool's budgets, or give one pool budgets: all"
            )
    if not changed:
        return table
    for name, values in (("error_type", kinds), ("error_message", messages)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table


def _nullable(values: Iterable[Any]) -> list[Any]:
    return [None if _missing(value) else value for value in values]


def _missing(value: Any) -> bool:
    return value is None or value != value
