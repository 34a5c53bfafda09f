"""Makes a row's manifest columns: those of its planned row, and the outcome.

Pure: dictionaries in, dictionaries or a table out. Which columns there are, and their types, is
`pipelines.run.layout`'s.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.prompts.canonical_rows import EXACT
from pipelines.render.quality import Scored
from pipelines.render.safety import Unsafe
from pipelines.render.sink import FORMATS, Sink, Stored, encoder_name
from pipelines.render.tries import RowTries
from pipelines.run.layout import Attempt
from pipelines.run.schema import PlannedRow

if TYPE_CHECKING:
    from pipelines.render.open_shard import ShardOrder

REASON_CHARS = 160


def ok_row(tries: RowTries, stored: Stored, keys: Mapping[str, str], sink: Sink) -> dict[str, Any]:
    """A row with its picture, and what all of its tries took. Its place is still open in packed layouts.

    keys: render_key and plan_key.
    """
    chosen, image_format = tries.chosen, sink.image_format
    picture = chosen.picture
    assert picture is not None
    return (
        _row(tries.row, sink.shard, sink.attempt)
        | {
            "status": "ok",
            "seed": chosen.seed,
            "uri": stored.uri,
            "offset": stored.offset,
            "bytes": stored.num_bytes,
            "sha256": stored.sha256,
            "signed_bytes": stored.signed_bytes,
            "signed_sha256": stored.signed_sha256,
            "media_type": FORMATS[image_format],
            "format": image_format,
            "lane_steps": picture.lane_steps * len(tries.done),  # of junk, too: each try has as many
            "seconds": sum(each.seconds for each in tries.pictures),
            "render_class": _with_encoder(picture.render_class, stored, sink),
            "truncated": picture.truncated,
            "negative_truncated": picture.negative_truncated,
            "tries": [each.record(tries.row.num_steps) for each in tries.done],
        }
        | dict(keys)
        | {"scores": chosen.scores}
        | _judged(chosen.scored)
    )


def _with_encoder(render_class: str, stored: Stored, sink: Sink) -> str:
    """Pixels are equal within the picture's class; bytes and sha256 where encoder and marks are the same, too."""
    end = f"/{encoder_name(sink.image_format)}{sink.provenance.byte_class}"
    return f"{render_class}{end}" if stored.sha256 else render_class


def failed_row(
    row: PlannedRow, shard: str, attempt: Attempt, error_type: str, message: str, tries: RowTries | None = None
) -> dict[str, Any]:
    """A row without a picture, and why."""
    tried = [each.record(row.num_steps) for each in tries.done] if tries and len(tries.done) > 1 else []
    failed = {"status": "failed", "error_type": error_type, "error_message": message, "tries": tried}
    return _row(row, shard, attempt) | failed


def filtered_row(tries: RowTries, reason: str, shard: str, attempt: Attempt) -> dict[str, Any]:
    """A row whose pictures must not be delivered: why, every try, and what they took. It names no object."""
    first = tries.pictures[0]
    return _row(tries.row, shard, attempt) | {
        "status": "filtered",
        "error_type": Unsafe.__name__,
        "error_message": reason
        if len(tries.done) == 1
        else f"{reason}; none of {len(tries.done)} tries may be delivered",
        "scores": tries.chosen.scores,
        "tries": [each.record(tries.row.num_steps) for each in tries.done],
        "lane_steps": first.lane_steps * len(tries.done),
        "seconds": sum(each.seconds for each in tries.pictures),
        "render_class": first.render_class,
    }


def _row(row: PlannedRow, shard: str, attempt: Attempt) -> dict[str, Any]:
    """The columns that every row has; Arrow makes absent ones null."""
    return row.columns() | {
        "shard": shard,
        "seed_planned": row.seed,
        "error_type": None,
        "error_message": None,
        "attempts": attempt.number,
        "tries": [],
        "scores": [],
        "plan_version": f"{shard.split('-')[0]}.0",
        "revision": 0,
        "created_at": datetime.now(UTC),
    }


def with_place(row: dict[str, Any], packed: Mapping[str, tuple[str, int | None]]) -> dict[str, Any]:
    """The row with uri and offset, where its picture went into a shard's one file."""
    if row["id"] not in packed:
        return row
    uri, offset = packed[row["id"]]
    return row | {"uri": uri, "offset": offset}


def with_scores(row: dict[str, Any], scored: Scored | None) -> dict[str, Any]:
    """The row with what its scorers said, where there are scorers and a picture."""
    if scored is None:
        return row
    found = [{"scorer": name, "score": score} for name, score in scored.scores.items()]
    tries = [each | {"scores": each["scores"] + found} for each in row["tries"]]
    return row | _judged(scored) | {"scores": row["scores"] + found, "tries": tries}


def _judged(scored: Scored | None) -> dict[str, Any]:
    return {} if scored is None else {"quality": scored.quality, "score_error": scored.error}


def manifest_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of a schema that may be wider than their own: its text columns hold values of any type."""
    rows = list(rows)
    columns = [pa.array([_as(row.get(field.name), field.type) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A manifest with the columns and types of a later generation."""
    same = {field.name for field in schema if field.name in table.column_names and table[field.name].type == field.type}
    rest = pa.schema([field for field in schema if field.name not in same])
    known = table.select(["id", *(name for name in rest.names if name in table.column_names)])  # id: however many rows
    other = manifest_table(known.to_pylist(), rest)
    columns = [table[field.name] if field.name in same else other[field.name] for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _as(value: Any, kind: pa.DataType) -> Any:
    """A value as a column of this type takes it."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else _text(value)
    if pa.types.is_list(kind):
        return [_as(each, kind.value_type) for each in value]
    if pa.types.is_struct(kind):
        named = value if isinstance(value, dict) else dict(zip(kind.names, value, strict=True))  # of a map: a pair
        return {field.name: _as(named.get(field.name), field.type) for field in kind}
    return value


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        value = int(value)  # an integer that shared its column with fractions
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value.hex() if isinstance(value, bytes) else str(value)


def outcome_counts(manifest: pa.Table, order: "ShardOrder | None" = None, bad: Collection[str] = ()) -> dict[str, Any]:
    """Counts the outcomes of a shard's rows (under an order: of those that it names), as `Ledger.finish` takes them.

    bad: ids of rows that were bad in the plan and never reached an engine. reasons: of the others that failed.
    """
    rows = manifest.select(["id", "status", "num_steps", "error_type", "error_message"]).to_pylist()
    if order:
        again = set(order.ids)
        rows = [row for row in rows if row["id"] in again]
    statuses = Counter(row["status"] for row in rows)
    failed = [row for row in rows if row["status"] == "failed" and row["id"] not in bad]
    return {name: statuses[name] for name in ("ok", "failed", "filtered")} | {
        "steps": sum(row["num_steps"] for row in rows if row["status"] == "ok"),
        "engine_failed": len(failed),
        "reasons": Counter(f"{row['error_type']}: {row['error_message']}"[:REASON_CHARS] for row in failed),
    }
