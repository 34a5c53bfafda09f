"""The manifests of a run that grew read as one table with whatever reads Parquet.

pyarrow and pandas are there; polars, DuckDB and Hugging Face's datasets are tried where they are installed:
`pip install polars duckdb datasets`, then this file again.
"""

import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from pipelines.files.readers import InputError
from pipelines.integrity.verification import verify
from pipelines.integrity.widen import widen_manifests
from pipelines.plan.carried_columns import ColumnFacts, one_schema
from pipelines.render.manifest_rows import failed_row, manifest_table, widened
from pipelines.run.drivers import driving
from pipelines.run.layout import Attempt, RunFolder, parquet_bytes
from pipelines.run.plan import EMPTY, WIDE, Generation, Plan, read_plan
from pipelines.run.schema import MANIFEST_FIELDS, manifest_schema, merged_type, planned_row, schema_to_json
from tests.inputs import inspect_here, rows_of

Rows = list[dict[str, Any]]


def by_pyarrow(folder: Path) -> Rows:
    return pyarrow.dataset.dataset(folder).to_table().to_pylist()


def by_pandas(folder: Path) -> Rows:
    table = pandas.read_parquet(folder, dtype_backend="pyarrow")
    return [{k: None if v is pandas.NA else v for k, v in row.items()} for row in table.to_dict("records")]


def by_polars(folder: Path) -> Rows:
    return pytest.importorskip("polars").read_parquet(folder).to_dicts()


def by_duckdb(folder: Path) -> Rows:
    duckdb = pytest.importorskip("duckdb")
    duckdb.sql("set TimeZone = 'UTC'")
    return duckdb.sql(f"select * from '{folder}/*.parquet'").to_arrow_table().to_pylist()


def by_datasets(folder: Path) -> Rows:
    datasets = pytest.importorskip("datasets")
    files = sorted(map(str, folder.glob("*.parquet")))
    cache = str(folder.parent / "cache")
    return list(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache))


READERS = [by_pyarrow, by_pandas, by_polars, by_duckdb, by_datasets]


def planned(source: Path, run: RunFolder) -> None:
    """One more generation, of rows that are not yet planned: what `plan` and a worker write, without pictures."""
    earlier = read_plan(run)
    known = {row["id"] for table in run.manifests() for row in table.to_pylist()}
    found = inspect_here(source)
    rows = [row for row in rows_of(found) if row["id"] not in known]
    carried, facts = found.carried_schema, ColumnFacts()
    columns = {field.name: pa.array([row[field.name] for row in rows], field.type) for field in carried}
    facts.add(pa.table(columns), carried.names)
    schema = one_schema(earlier, carried, facts)
    ours = {field.name for field in MANIFEST_FIELDS}
    plan = {"manifest_schema": schema_to_json(schema), **facts.document(set(schema.names) - ours)}
    number = earlier.next_number
    shard = f"{number:04d}-000000"
    index = [{"shard": shard, "part": "", "row_group": 0, "rows": len(rows)}]
    run.write(f"plan/{number:04d}/shards.parquet", parquet_bytes([pa.Table.from_pylist(index)]))
    run.commit_plan(number, plan)
    with driving(run) as epoch:
        widen_manifests(read_plan(run), epoch.id)
    attempt = Attempt(shard, 1, "0badcafe")
    done = [failed_row(planned_row(row), shard, attempt, "ValueError", "no") for row in rows]
    assert run.commit_manifest(shard, manifest_table(done, read_plan(run).manifest_schema))


def grown(folder: Path, *generations: dict[str, list[Any]] | list[dict[str, Any]]) -> RunFolder:
    """A run of a folder of lists that gets one more file for each generation: columns as Parquet, rows as JSONL."""
    run, source = RunFolder(str(folder / "run")), folder / "in"
    source.mkdir()
    for number, content in enumerate(generations):
        if isinstance(content, dict):
            pq.write_table(pa.table(content), source / f"{number}.parquet")
        else:
            (source / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        planned(source, run)
    return run


def row(name: str, **values: Any) -> dict[str, Any]:
    return {"id": name, "prompt": f"a fox {name}", **values}


GROWTH: dict[str, tuple[list[Any], str, list[Any]]] = {
    "whole numbers, then fractions": ([[row("a", x=1), row("b", x=2)], [row("c", x=1.5)]], "x", [1.0, 2.0, 1.5]),
    "numbers, fractions, text": (
        [[row("a", x=1)], [row("b", x=1.5)], [row("c", x="much"), row("d", x=None)]],
        "x",
        ["1", "1.5", "much", None],
    ),
    "text, then numbers": ([[row("a", x="one")], [row("b", x=2)]], "x", ["one", "2"]),
    "a column appears": ([[row("a")], [row("b", x="new")]], "x", [None, "new"]),
    "a column vanishes": ([[row("a", x=7)], [row("b")], [row("c", x=8)]], "x", [7, None, 8]),
    "nothing, then numbers": ([[row("a", x=None)], [row("b", x=3)]], "x", [None, 3]),
    "numbers, then nothing": ([[row("a", x=3)], [row("b", x=None)]], "x", [3, None]),
    "truth, then numbers": ([[row("a", x=True)], [row("b", x=2)]], "x", ["true", "2"]),
    "a list, then text": ([[row("a", x=[1, 2])], [row("b", x="none")]], "x", ["[1, 2]", "none"]),
    "lists of whole numbers, then of fractions": ([[row("a", x=[1])], [row("b", x=[0.5])]], "x", [[1.0], [0.5]]),
    "objects, then other objects": (
        [[row("a", x={"w": 1})], [row("b", x={"h": "é"})]],
        "x",
        ['{"w": 1}', '{"h": "é"}'],
    ),
    "narrow integers, then wide ones": (
        [
            {"id": ["a"], "prompt": ["p"], "x": pa.array([1], pa.int8())},
            {"id": ["b"], "prompt": ["p"], "x": pa.array([2**40], pa.int64())},
        ],
        "x",
        [1, 2**40],
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", GROWTH)
def test_a_run_that_grew_is_one_table(name: str, reader: Callable[[Path], Rows], tmp_path: Path) -> None:
    generations, column, expected = GROWTH[name]
    run = grown(tmp_path, *generations)
    rows = sorted(reader(tmp_path / "run" / "manifest"), key=lambda each: each["id"])
    values = [row[column] for row in rows]
    assert [list(v) if hasattr(v, "__len__") and not isinstance(v, str) else v for v in values] == expected
    assert [row["prompt"] is None for row in rows] == [False] * len(rows)
    assert len({str(table.schema) for table in run.manifests()}) == 1


@pytest.mark.parametrize("name", GROWTH)
def test_verify_knows_the_manifests_of_a_run_that_grew(name: str, tmp_path: Path) -> None:
    run = grown(tmp_path, *GROWTH[name][0])
    kinds = {finding.kind for checked in verify(run) for finding in checked.findings}
    assert "manifest_damaged" not in kinds


def test_an_empty_manifest_and_a_damaged_one_stand_in_nobodys_way(tmp_path: Path) -> None:
    run = grown(tmp_path, [row("a", x=1)])
    run.commit_manifest("0001-000001", manifest_table([], read_plan(run).manifest_schema))
    run.write("manifest/0001-000002.parquet", b"torn")
    (tmp_path / "in" / "1.jsonl").write_text(json.dumps(row("b", x="much")))
    run.delete(["manifest/0001-000002.parquet"])
    planned(tmp_path / "in", run)
    run.write("manifest/0001-000002.parquet", b"torn")
    with driving(run) as epoch:
        assert widen_manifests(read_plan(run), epoch.id) == 0
    assert run.read("manifest/0001-000002.parquet") == b"torn"
    run.delete(["manifest/0001-000002.parquet"])
    assert [each["x"] for each in by_pyarrow(tmp_path / "run" / "manifest")] == ["1", "much"]


def test_nothing_is_read_or_written_where_all_generations_are_alike(tmp_path: Path) -> None:
    run = grown(tmp_path, [row("a", x=1)], [row("b", x=2)])
    before = {key: run.read(key) for key, _ in run.walk("manifest")}
    with driving(run) as epoch:
        assert widen_manifests(read_plan(run), epoch.id) == 0
    assert {key: run.read(key) for key, _ in run.walk("manifest")} == before


def test_a_run_of_an_earlier_version_gets_the_columns_of_this_one(tmp_path: Path) -> None:
    """Its scores were maps, and it did not know some columns."""
    run = RunFolder(str(tmp_path / "run"))
    scores = pa.map_(pa.string(), pa.float64())
    old = pa.schema([("id", pa.string()), ("scores", scores), ("x", pa.int64())])
    run.commit_plan(1, {"manifest_schema": schema_to_json(old)})
    table = pa.table({"id": ["a"], "scores": pa.array([[("clip", 0.5)]], scores), "x": [7]}, old)
    run.commit_manifest("0001-000000", table)
    with driving(run) as epoch:
        assert widen_manifests(read_plan(run), epoch.id) == 1
    (found,) = by_pyarrow(tmp_path / "run" / "manifest")
    assert (found["scores"], found["x"], found["prompt"]) == ([{"scorer": "clip", "score": 0.5}], 7, None)


@pytest.mark.parametrize(
    ("known", "new"),
    [("Cost", "cost"), ("size", "SIZE"), ("straße", "STRASSE"), ("input_Status", "input_status"), ("Σ", "σ")],
)
def test_a_second_spelling_of_a_column_is_refused(known: str, new: str, tmp_path: Path) -> None:
    facts = ColumnFacts()
    plan = {"manifest_schema": schema_to_json(pa.schema([(known, pa.string())])), EMPTY: []}
    with pytest.raises(InputError, match=f"column '{new}' differs from '{known}'"):
        one_schema(plan_of(plan), pa.schema([(new, pa.string())]), facts)


EXOTIC = {
    "a map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    "a map of lists": pa.array([[("a", [1])]], pa.map_(pa.string(), pa.list_(pa.int64()))),
    "maps in a list": pa.array([[[("a", 1)]]], pa.list_(pa.map_(pa.string(), pa.int64()))),
    "a map in a struct": pa.array([{"m": [("a", 1)]}], pa.struct([("m", pa.map_(pa.string(), pa.int64()))])),
    "an id": pa.array([uuid.UUID(int=7).bytes], pa.uuid()),
    "a wide decimal": pa.array([decimal.Decimal("1.5")], pa.decimal256(50, 2)),
    "half floats": pa.array([1.5], pa.float16()),
    "a category": pa.array(["a"]).dictionary_encode(),
    "a list of nothing": pa.array([[None]], pa.list_(pa.null())),
    "bytes": pa.array([b"\xff"]),
    "a time": pa.array([datetime.time(1, 2)], pa.time64("us")),
    "a moment": pa.array([1], pa.timestamp("ns", "UTC")),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", EXOTIC)
def test_every_reader_has_the_types_that_are_carried(name: str, reader: Callable[[Path], Rows], tmp_path: Path) -> None:
    grown(tmp_path, {"id": ["a"], "prompt": ["a fox"], "x": EXOTIC[name]})
    (found,) = reader(tmp_path / "run" / "manifest")
    assert found["x"] is not None


@pytest.mark.parametrize("names", [["Status"], ["SHARD", "Format"], ["Score_Error"], ["x", "X"], ["straße", "STRASSE"]])
def test_no_two_columns_of_a_manifest_differ_by_case_alone(names: list[str], tmp_path: Path) -> None:
    run = grown(tmp_path, [row("a", **dict.fromkeys(names, "mine"))])
    (table,) = run.manifests()
    assert len({name.casefold() for name in table.column_names}) == len(table.column_names)
    assert [*table.to_pylist()[0].values()].count("mine") == len(names)


def test_a_key_that_the_first_rows_lack_is_a_column(tmp_path: Path) -> None:
    run = grown(tmp_path, [*(row(f"a{n:04d}") for n in range(1100)), row("z", late="here")])
    (table,) = run.manifests()
    assert table["late"].to_pylist()[-1] == "here"
    assert table["late"].null_count == 1100


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.string(), pa.binary(), pa.binary()),
        (pa.int64(), pa.string(), None),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.int8(), pa.uint32(), pa.int64()),
    ],
)
def test_the_type_that_holds_both(one: pa.DataType, other: pa.DataType, expected: pa.DataType | None) -> None:
    assert merged_type(one, other) == merged_type(other, one) == expected


TORN = {
    "numbers that no float holds, then fractions": ([row("a", x=2**53 + 1)], [row("b", x=0.5)]),
    "dates, then text": (
        {"id": ["a"], "prompt": ["p"], "x": pa.array([datetime.date(2026, 11, 26)])},
        {"id": ["b"], "prompt": ["p"], "x": ["soon"]},
    ),
    "typed numbers, then text": (
        {"id": ["a"], "prompt": ["p"], "x": [1]},
        {"id": ["b"], "prompt": ["p"], "x": ["much"]},
    ),
}


@pytest.mark.parametrize("name", TORN)
def test_what_one_input_cannot_hold_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'x' holds"):
        grown(tmp_path, *TORN[name])


@pytest.mark.parametrize(
    ("old", "new", "wide", "expected"),
    [
        (pa.int64(), pa.float64(), [], pa.float64()),
        (pa.int64(), pa.float64(), ["x"], pa.string()),
        (pa.date32(), pa.string(), [], pa.string()),
        (pa.binary(), pa.int64(), [], pa.string()),
        (pa.list_(pa.int64()), pa.int64(), [], pa.string()),
    ],
)
def test_a_list_that_was_replaced_by_one_of_other_types(
    old: pa.DataType, new: pa.DataType, wide: list[str], expected: pa.DataType
) -> None:
    plan = {"manifest_schema": schema_to_json(pa.schema([("x", old)])), EMPTY: [], WIDE: wide}
    facts = ColumnFacts()
    values = {pa.float64(): [0.5], pa.string(): ["soon"], pa.int64(): [7]}[new]
    facts.add(pa.table({"x": pa.array(values, new)}), ["x"])
    assert one_schema(plan_of(plan), pa.schema([("x", new)]), facts).field("x").type == expected


def test_a_float_is_no_place_for_integers_past_it() -> None:
    assert merged_type(pa.int64(), pa.float64(), exact=False) is None


def test_no_column_of_ours_is_a_map() -> None:
    def maps(kind: pa.DataType) -> bool:
        return pa.types.is_map(kind) or any(maps(kind.field(at).type) for at in range(kind.num_fields))

    assert [field.name for field in MANIFEST_FIELDS if maps(field.type)] == []


def test_widening_keeps_every_value() -> None:
    narrow = pa.table({"id": ["a", "b"], "x": [1, None]})
    wide = pa.schema([("id", pa.string()), ("x", pa.string()), ("y", pa.float64())])
    assert widened(narrow, wide).to_pylist() == [{"id": "a", "x": "1", "y": None}, {"id": "b", "x": None, "y": None}]


def plan_of(*documents: dict[str, Any]) -> Plan:
    return Plan(RunFolder(""), tuple(Generation(number, each) for number, each in enumerate(documents, 1)))


def by_an_earlier_version(**carried: pa.DataType) -> dict[str, Any]:
    """A plan that names its own columns alone, and not which of them are empty."""
    return {"manifest_schema": schema_to_json(manifest_schema(pa.schema(list(carried.items()))))}


def test_plans_of_an_earlier_version_lose_no_column() -> None:
    plan = plan_of(
        by_an_earlier_version(a=pa.string(), x=pa.string()), by_an_earlier_version(b=pa.int64(), x=pa.int64())
    )
    schema = plan.manifest_schema
    assert {name: schema.field(name).type for name in "abx"} == {"a": pa.string(), "b": pa.int64(), "x": pa.string()}
    facts = ColumnFacts()
    facts.add(pa.table({"a": ["again"]}), ["a"])
    assert one_schema(plan, pa.schema([("a", pa.string())]), facts).equals(schema)
