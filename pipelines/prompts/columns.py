"""Finds the canonical name of each of the user's columns; carries the others along with a name and a type.

Pure: names and Arrow types only. `pipelines.prompts.canonical_rows` reads the rows.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.files.csv_rows import SEPARATORS, separated_by
from pipelines.files.readers import InputError, TableFile
from pipelines.prompts.canonical_rows import EXACT, NUMBERS, values_of
from pipelines.run.schema import RESERVED_NAMES, merged_type

GIVEN = (
    "prompt",
    "id",
    "negative_prompt",
    "seed",
    "guidance_scale",
    "width",
    "height",
    "num_inference_steps",
    "category",
)
LEFT_OUT = ""  # in place of the user's column: no column of the input is this one of ours
PROMPT_NAMES = ("prompt", "prompts", "caption", "text")
_TEXT_COLUMNS = frozenset({"prompt", "negative_prompt"})
_SHORT = {
    "negative": "negative_prompt",
    "neg_prompt": "negative_prompt",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
}


def check_explicit(explicit: Mapping[str, str]) -> None:
    """`input.columns` maps a canonical name to the user's, or to LEFT_OUT; InputError names a key that is none."""
    unknown = sorted(set(explicit) - set(GIVEN))
    if unknown:
        raise InputError(f"input.columns: {', '.join(unknown)} is no canonical column. Those are {', '.join(GIVEN)}")
    theirs = [name for name in explicit.values() if name != LEFT_OUT]
    twice = sorted({name for name in theirs if theirs.count(name) > 1})
    if twice:
        raise InputError(f"input.columns: {', '.join(twice)} is given two meanings. Give it one")


def resolve_columns(
    names: Iterable[str], explicit: Mapping[str, str], place: str, needs_prompt: bool = True
) -> dict[str, str]:
    """The user's column -> canonical name. InputError: no prompt column, or two candidates for one name."""
    names = list(names)
    meaning = {theirs: ours for ours, theirs in explicit.items() if theirs in names}
    for ours in GIVEN:
        if ours not in explicit:
            found = _candidates(ours, [name for name in names if name not in meaning])
            if len(found) > 1:
                raise InputError(
                    f"{place}: {len(found)} columns may be the {ours}: {', '.join(found)}. "
                    f"Name one in the job file, e.g. input.columns: {{{ours}: {found[0]}}}"
                )
            meaning |= dict.fromkeys(found, ours)
    if needs_prompt and "prompt" not in meaning.values():
        wanted = explicit.get("prompt")
        what = f"no column {wanted!r}, which input.columns names" if wanted else "no prompt column"
        raise InputError(
            f"{place}: {what}; its columns are {', '.join(names) or 'none'}. {_separated_otherwise(names)}"
            "Name the one with the prompts in the job file, e.g. input.columns: {prompt: description}"
        )
    return meaning


def _separated_otherwise(names: list[str]) -> str:
    """A hint that another delimiter separates the columns; "" if the names do not look like it."""
    for mark, name in SEPARATORS.items():
        parts = [part.strip(" \"'").lower() for whole in names for part in whole.split(mark) if mark in whole]
        if set(parts) & {*PROMPT_NAMES, *GIVEN} or names[:1] == [f"sep={mark}"]:
            return f"But {separated_by(mark, name)}. Else: "
    return ""


def misspelt(carried: Iterable[str], meant: Iterable[str]) -> dict[str, str]:
    """Carried columns whose name is nearly one of ours that the input does not have -> that one of ours."""
    open_names = sorted(set(GIVEN) - set(meant))
    found: dict[str, str] = {}
    for name in carried:
        plain = name.lower().replace(" ", "_").replace("-", "_")
        close = difflib.get_close_matches(plain, open_names, 1, 0.8)
        close = close or [ours for short, ours in _SHORT.items() if plain == short and ours in open_names]
        found |= {name: close[0]} if close else {}
    return found


def _candidates(ours: str, names: list[str]) -> list[str]:
    if ours == "prompt":
        return [name for name in names if name.lower() in PROMPT_NAMES]
    return [ours] if ours in names else [name for name in names if name.lower() == ours]


def check_types(file: TableFile, meaning: Mapping[str, str]) -> None:
    """InputError where a typed (Parquet) column cannot hold what its name says."""
    for theirs, ours in meaning.items():
        kind = file.schema.field(theirs).type if file.schema is not None else pa.string()
        if not _fits(kind, ours):
            wanted = "text" if ours in _TEXT_COLUMNS else "numbers" if ours in NUMBERS else "text or whole numbers"
            raise InputError(
                f"{file.place}: column {theirs!r} holds {kind}, but {ours} must be {wanted}. "
                "Convert it, or name another column in input.columns"
            )


def _fits(kind: pa.DataType, ours: str) -> bool:
    if pa.types.is_dictionary(kind):
        return _fits(kind.value_type, ours)
    if _is_text(kind) or pa.types.is_null(kind):
        return True
    if pa.types.is_integer(kind):
        return ours not in _TEXT_COLUMNS
    return ours in NUMBERS and pa.types.is_floating(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


@dataclass(frozen=True)
class CarriedColumn:
    """A carried column: the user's name, our name, its type; `as_json`: values of several types, as text or JSON."""

    theirs: str
    ours: str
    type: pa.DataType
    as_json: bool = False


@dataclass(frozen=True)
class _SeenType:
    type: pa.DataType | None  # None: JSON values of several types
    place: str
    jsonl: bool

    def __str__(self) -> str:
        return f"{self.type or 'JSON of several types'} in {self.place}"


@dataclass
class CarriedTypes:
    """Collects the types of carried columns over all files, in order of appearance."""

    _seen: dict[str, _SeenType] = field(default_factory=dict)

    def add(self, name: str, kind: pa.DataType | None, place: str, jsonl: bool) -> None:
        """Note a column's type in one file; None: JSON values of several types. InputError if two files disagree."""
        new = _SeenType(kind, place, jsonl)
        known = self._seen.setdefault(name, new)
        merged = merged_type(known.type, new.type)
        if merged is None and not (known.jsonl and jsonl):
            raise InputError(f"column {name!r} holds {known} but {new}. Convert one of them, or plan two runs")
        self._seen[name] = _SeenType(merged, known.place, known.jsonl and jsonl)

    def finish(self) -> tuple[tuple[CarriedColumn, ...], tuple[str, ...]]:
        """The carried columns, and notes on columns that had to be renamed."""
        taken = {name.casefold() for name in RESERVED_NAMES}  # many readers of tables do not tell A from a
        given = {name.casefold() for name in self._seen}
        carried, notes = [], []
        for theirs, sight in self._seen.items():
            ours = theirs
            while ours.casefold() in taken or (ours != theirs and ours.casefold() in given):
                ours = f"input_{ours}"
            if ours != theirs:
                own = f"the manifest has a {theirs.casefold()!r} of its own"
                reason = own if theirs.casefold() in RESERVED_NAMES else "another column differs from it by case alone"
                notes.append(f"column {theirs!r} is carried as {ours!r}: {reason}")
            taken.add(ours.casefold())
            carried.append(CarriedColumn(theirs, ours, _storable(sight.type), as_json=sight.type is None))
        return tuple(carried), tuple(notes)


def _storable(kind: pa.DataType | None) -> pa.DataType:
    """The type under which a column is carried: one that other readers of Parquet have, too."""
    if kind is None or pa.types.is_null(kind) or pa.types.is_decimal256(kind):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType):
        return _storable(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _storable(kind.value_type)
    if pa.types.is_map(kind):
        return pa.list_(pa.struct([("key", _storable(kind.key_type)), ("value", _storable(kind.item_type))]))
    if pa.types.is_list(kind):
        return pa.list_(_storable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _storable(field.type)) for field in kind])
    return kind


def json_type(values: list[Any]) -> pa.DataType | None:
    """The Arrow type of JSON values: a scalar, a list of scalars, or None where they are kept as JSON text."""
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return None
    inner = kind.value_type if pa.types.is_list(kind) else kind
    return None if pa.types.is_nested(inner) else kind


def carried_array(column: Any, carried: CarriedColumn, rows: int) -> pa.Array:
    """A carried column of one batch in its final type; None (the file has no such column) gives nulls.

    InputError where it holds what a worker, which takes rows as Python values, could not give back.
    """
    if column is None:
        return pa.nulls(rows, carried.type)
    if isinstance(column, pa.Array):
        try:
            return _sound(column if column.type == carried.type else column.cast(carried.type))
        except (pa.ArrowException, ValueError, OverflowError, LookupError, TypeError) as error:
            raise InputError(
                f"column {carried.theirs!r} ({column.type}) holds a value that cannot be carried: {error}. "
                "Convert the column to text, or leave it out"
            ) from error
    if carried.as_json:
        texts = [value if isinstance(value, str | type(None)) else _json_text(value) for value in column]
        return pa.array(texts, pa.string())
    if pa.types.is_floating(carried.type):
        if large := next((value for value in column if type(value) is int and abs(value) > EXACT), None):
            raise InputError(
                f"column {carried.theirs!r} holds fractions and {large}, which no float holds exactly. Write it as text"
            )
        column = [None if value is None else float(value) for value in column]
    return pa.array(column, carried.type)


def _sound(column: pa.Array) -> pa.Array:
    """The column with text as UTF-8; Arrow's error if its values change on their way through Python."""
    kind = column.type
    if _is_text(kind):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column = pa.array(values_of(column), kind)
    elif not pa.types.is_integer(kind) and not pa.types.is_floating(kind) and not pa.types.is_boolean(kind):
        column.validate(full=True)
        pa.array(column.to_pylist(), kind)
    return column


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
