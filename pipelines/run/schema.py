"""Defines every column that a run folder stores: of planned rows, of the shard index and of manifests.

What a prompt table may be called is `pipelines.prompts.columns`'; where the tables lie is `pipelines.run.layout`'s.
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_origin, get_type_hints

import pyarrow as pa

_SCORES = pa.list_(pa.struct([("scorer", pa.string()), ("score", pa.float64())]))  # no map: not all readers have one
_TRY = pa.struct([("seed", pa.uint64()), ("num_steps", pa.int32()), ("scores", _SCORES), ("uri", pa.string())])


@dataclass(frozen=True)
class PromptRow:
    """One wanted picture, as the prompt table says it, with an id and a seed. error_type: "" for a good row."""

    id: Annotated[str, pa.string()]
    prompt_id: Annotated[str, pa.string()]
    sample: Annotated[int, pa.int32()]
    prompt: Annotated[str, pa.string()]
    negative_prompt: Annotated[str | None, pa.string()]
    category: Annotated[str | None, pa.string()]
    seed: Annotated[int, pa.uint64()]  # int64 in plans of earlier versions
    seed_pinned: Annotated[bool, pa.bool_()]
    width: Annotated[int, pa.int32()]
    height: Annotated[int, pa.int32()]
    guidance_scale: Annotated[float, pa.float64()]
    num_inference_steps: Annotated[int | None, pa.int32()]
    guidance_pinned: Annotated[bool, pa.bool_()]  # the row gives its guidance_scale itself
    content_hash: Annotated[int | None, pa.uint64()]  # of what was given: the next plan sees by it what changed
    error_type: Annotated[str, pa.string()]
    error_message: Annotated[str, pa.string()]


@dataclass(frozen=True)
class PlannedRow(PromptRow):
    """One picture to make, as a plan holds it. num_steps: None for a bad row. carried: the user's own columns.

    Plans of earlier versions have no solver and guidance_interval (None: the job's), and no recipe.
    """

    budget_scores: Annotated[list[float] | None, pa.list_(pa.float32())]  # one a recipe of the menu
    recipe_name: Annotated[str | None, pa.string()]  # in the menu; None: the row pins steps that are not in it
    num_steps: Annotated[int | None, pa.int32()]
    solver: Annotated[str | None, pa.string()]
    guidance_interval: Annotated[list[float] | None, pa.list_(pa.float64())]  # start and end, of the schedule
    action_probability: Annotated[float | None, pa.float32()]
    policy_version: Annotated[str | None, pa.string()]
    price: Annotated[float | None, pa.float64()]
    bar: Annotated[float | None, pa.float64()]  # below this quality another seed is tried; null: never
    expected_tries: Annotated[float | None, pa.float32()]  # null: one, or not known
    tries_variance: Annotated[float | None, pa.float32()]  # of this row's tries; null: 0, or not known
    carried: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """Its own and those it carries, by name."""
        return {name: getattr(self, name) for name in _PLANNED_NAMES} | dict(self.carried)


def _arrow(record: type) -> tuple[pa.Field, ...]:
    hints = get_type_hints(record, include_extras=True)
    return tuple(pa.field(name, *hint.__metadata__) for name, hint in hints.items() if get_origin(hint) is Annotated)


CANONICAL_FIELDS = _arrow(PromptRow)
SCORE_FIELDS = _arrow(PlannedRow)[len(CANONICAL_FIELDS) :]  # what the selector adds
PLACE_FIELDS = (pa.field("shard", pa.string()), pa.field("replaces", pa.bool_()))  # replaces: a row that was bad
_PLANNED_NAMES = tuple(each.name for each in (*CANONICAL_FIELDS, *SCORE_FIELDS))
_NOT_CARRIED = frozenset(_PLANNED_NAMES) | {each.name for each in PLACE_FIELDS}


def planned_rows(table: pa.Table) -> list[PlannedRow]:
    """The rows of a shard; a column that its plan does not have yet is None."""
    return [planned_row(row) for row in table.to_pylist()]


def planned_row(columns: Mapping[str, Any]) -> PlannedRow:
    """The record of one row."""
    own: dict[str, Any] = {name: columns.get(name) for name in _PLANNED_NAMES}
    return PlannedRow(**own, carried={name: value for name, value in columns.items() if name not in _NOT_CARRIED})


INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("part", pa.string()),
        ("row_group", pa.int32()),
        ("rows", pa.int32()),
        ("good_rows", pa.int32()),
        ("lane_steps", pa.int64()),
        ("width", pa.int32()),  # null where all rows are bad, as height
        ("height", pa.int32()),
        ("pools", pa.list_(pa.string())),  # that served its budgets when it was planned
        ("longest", pa.int32()),  # lane-steps of its longest row
        ("budgets", pa.list_(pa.int32())),
    ]
)


def _planned(*names: str) -> list[pa.Field]:
    known = {each.name: each for each in (*CANONICAL_FIELDS, *SCORE_FIELDS, *PLACE_FIELDS)}
    return [known[name] for name in names]


MANIFEST_FIELDS: tuple[pa.Field, ...] = (
    *_planned("id", "prompt_id", "sample", "shard", "prompt", "negative_prompt", "category", "seed"),
    pa.field("seed_planned", pa.uint64()),
    *_planned("seed_pinned", "width", "height", "guidance_scale"),
    *_planned("num_steps", "action_probability", "policy_version", "price"),
    pa.field("status", pa.string()),  # ok, failed or filtered
    *_planned("error_type", "error_message"),
    pa.field("attempts", pa.int32()),
    pa.field("tries", pa.list_(_TRY)),
    pa.field("uri", pa.string()),  # relative to the run folder
    pa.field("offset", pa.int64()),  # bytes into a tar
    pa.field("media_type", pa.string()),
    pa.field("format", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("sha256", pa.string()),
    pa.field("scores", _SCORES),  # of those scorers that could judge
    pa.field("quality", pa.float64()),
    pa.field("lane_steps", pa.int64()),
    pa.field("seconds", pa.float64()),
    pa.field("render_class", pa.string()),
    pa.field("render_key", pa.string()),
    pa.field("plan_version", pa.string()),
    pa.field("revision", pa.int32()),
    pa.field("created_at", pa.timestamp("us", tz="UTC")),
    pa.field("truncated", pa.bool_()),  # the prompt is longer than the text encoder reads
    pa.field("negative_truncated", pa.bool_()),  # the negative prompt is
    pa.field("score_error", pa.string()),  # which scorer gave this row no number, and why
    *_planned("bar", "recipe_name", "solver", "guidance_interval"),
    pa.field("plan_key", pa.string()),
    pa.field("signed_bytes", pa.int64()),  # of what is stored, where it is signed: bytes and sha256 are of the unsigned
    pa.field("signed_sha256", pa.string()),
)
MANIFEST_NAMES = frozenset(column.name for column in MANIFEST_FIELDS)
RESERVED_NAMES = MANIFEST_NAMES | _NOT_CARRIED  # no column of a user is carried under one of these


def manifest_schema(carried: pa.Schema) -> pa.Schema:
    """The one schema of all manifests of a generation: the contract's columns, then the user's own.

    ValueError names the carried columns that collide with the contract's.
    """
    taken = sorted(MANIFEST_NAMES & set(carried.names))
    if taken:
        raise ValueError(f"carried columns collide with the manifest's own: {', '.join(taken)}")
    return pa.schema([*MANIFEST_FIELDS, *carried])


def carried_types(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The user's own columns of a manifest schema."""
    return {column.name: column.type for column in schema if column.name not in MANIFEST_NAMES}


def schema_to_json(schema: pa.Schema) -> str:
    """An Arrow schema as base64 of its IPC message, for a place in plan.json."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def schema_from_json(text: str) -> pa.Schema:
    """What `schema_to_json` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def merged_type(one: pa.DataType | None, other: pa.DataType | None, exact: bool = True) -> pa.DataType | None:
    """The type that holds the values of both; None: there is none. exact: floats hold all of their integers."""
    if one is None or other is None or one == other:
        return one if one == other else None
    try:
        schemas = [pa.schema([("x", one)]), pa.schema([("x", other)])]
        merged = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None
    if pa.types.is_binary(merged) and merged not in (one, other):
        return None
    if pa.types.is_floating(merged) and not exact:
        return None
    return merged


def merged_carried(schemas: Iterable[tuple[pa.Schema, bool]]) -> dict[str, pa.DataType]:
    """The carried columns of some manifest schemas, rising. (schema, whole): whether it names those before it, too."""
    types: dict[str, pa.DataType] = {}
    for schema, whole in schemas:
        for name, kind in carried_types(schema).items():
            known = types.get(name)
            types[name] = kind if whole or known is None else merged_type(known, kind) or pa.string()
    return types
