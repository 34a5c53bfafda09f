"""One schema for the manifests of all generations of a run, so that they read as one table with any reader.

Of files that differ in columns or types most readers take the first one's for all: they lose columns, or stop. So each
generation's schema has the columns of those before it, in types that hold every value. Earlier manifests are given them
by `pipelines.integrity.widen`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.files.readers import InputError
from pipelines.prompts.columns import merged_type
from pipelines.prompts.rows import EXACT
from pipelines.run.layout import MANIFEST_NAMES, manifest_schema, schema_from_json

EMPTY, WIDE = "empty_columns", "wide_columns"  # in plan.json: carried ones without a value, with integers past 2^53


class ColumnFacts:
    """What the rows of one generation say of their carried columns, beside the types."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._wide: set[str] = set()

    def add(self, rows: pa.Table, names: Iterable[str]) -> None:
        """Some more rows."""
        for name in names:
            column = rows[name]
            if column.null_count < len(column):
                self._seen.add(name)
            if pa.types.is_integer(column.type) and name not in self._wide and _is_wide(column):
                self._wide.add(name)

    def document(self, carried: Iterable[str]) -> dict[str, list[str]]:
        """For plan.json, of the columns that the generation's manifests carry."""
        return {EMPTY: sorted(set(carried) - self._seen), WIDE: sorted(self._wide)}


def _is_wide(column: pa.ChunkedArray) -> bool:
    return any(value is not None and abs(value) > EXACT for value in pc.min_max(column).as_py().values())


def schema_of(plan: Mapping[str, Any]) -> pa.Schema:
    """Of a generation's manifests when it was planned, by its plan.json."""
    return schema_from_json(plan["manifest_schema"])


def carried_of(plan: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """The carried columns among them."""
    return {column.name: column.type for column in schema_of(plan) if column.name not in MANIFEST_NAMES}


def one_schema(earlier: Sequence[Mapping[str, Any]], carried: pa.Schema, facts: ColumnFacts) -> pa.Schema:
    """The manifest schema of a new generation over those before it (plan.json of each, rising).

    A column that changed its type gets one that holds both, at last text. InputError where two spellings of one name
    would stand side by side.
    """
    new = facts.document(carried.names)
    types = _carried_so_far(earlier)
    valued = {name for plan in earlier for name in carried_of(plan).keys() - set(plan.get(EMPTY, ()))}
    wide = {name for plan in earlier for name in plan.get(WIDE, ())} | set(new[WIDE])
    _refuse_other_spelling(types, carried.names)
    for column in carried:
        if column.name not in valued:
            types[column.name] = column.type
        elif column.name not in new[EMPTY]:
            types[column.name] = merged_type(types[column.name], column.type, column.name not in wide) or pa.string()
    return manifest_schema(pa.schema(list(types.items())))


def _refuse_other_spelling(known: Iterable[str], names: Iterable[str]) -> None:
    spelt = {name.casefold(): name for name in known}
    for name in names:
        if (other := spelt.get(name.casefold(), name)) != name:
            raise InputError(
                f"column {name!r} differs from {other!r}, a column of this run's earlier plans, by case alone: many "
                "readers take them for one. Rename it, or set input.drop"
            )


def newest_schema(plans: Iterable[Mapping[str, Any]]) -> pa.Schema:
    """Of all manifests of a run, by its plans, rising. The contract's columns are those of now, whatever a plan had."""
    return manifest_schema(pa.schema(list(_carried_so_far(plans).items())))


def _carried_so_far(plans: Iterable[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The carried columns of all plans. A plan names those of the plans before it, if no earlier version made it."""
    types: dict[str, pa.DataType] = {}
    for plan in plans:
        for name, kind in carried_of(plan).items():
            whole = EMPTY in plan or name not in types
            types[name] = kind if whole else merged_type(types[name], kind) or pa.string()
    return types
