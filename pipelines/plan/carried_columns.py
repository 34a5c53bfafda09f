"""Makes one manifest schema for all generations of a run, so that any reader takes them as one table.

Where files differ in columns or types, most readers use the first one's for all: they lose columns, or stop. So each
generation has the columns of those before it, in types that hold every value; `pipelines.integrity.widen` gives earlier
manifests the new columns.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.files.readers import InputError
from pipelines.prompts.canonical_rows import EXACT
from pipelines.run.plan import EMPTY, WIDE, Plan
from pipelines.run.schema import carried_types, manifest_schema, merged_type


class ColumnFacts:
    """Facts about the carried columns of one generation that types do not show."""

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
        """The facts as plan.json holds them."""
        return {EMPTY: sorted(set(carried) - self._seen), WIDE: sorted(self._wide)}


def _is_wide(column: pa.ChunkedArray) -> bool:
    return any(value is not None and abs(value) > EXACT for value in pc.min_max(column).as_py().values())


def one_schema(earlier: Plan, carried: pa.Schema, facts: ColumnFacts) -> pa.Schema:
    """The manifest schema of a new generation over those before it.

    A column that changed its type gets one that holds both, at last text. InputError where two spellings of one name
    would stand side by side.
    """
    new, types = facts.document(carried.names), earlier.carried
    valued, wide = set[str](), set(new[WIDE])
    for generation in earlier.generations:
        valued |= carried_types(generation.manifest_schema).keys() - set(generation.document.get(EMPTY, ()))
        wide |= set(generation.document.get(WIDE, ()))
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
