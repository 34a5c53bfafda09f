"""Seeds are whole numbers up to 2^64 - 1, as torch's generators take them; run folders with signed seeds go on."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.integrity.verification import verify
from pipelines.integrity.widen import widen_manifests
from pipelines.run.drivers import claim
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.schema import MANIFEST_FIELDS, manifest_schema, schema_to_json
from tests.checkpoints import make_checkpoint
from tests.engine import latents, loaded, row
from tests.finished import render_shard
from tests.inputs import inspect_here, rows_of
from tests.plans import CARRIED, planned_row, write_plan

LARGEST = 2**64 - 1
SEEDS = [0, 2**53 + 1, 2**63, LARGEST]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_seed_is_planned_as_it_was_given(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"prompt": ["a"] * len(SEEDS), "seed": pa.array(SEEDS, pa.uint64())}), file)
    else:
        lines = {"csv": "a,{}", "jsonl": '{{"prompt": "a", "seed": {}}}'}[ending]
        text = [lines.format(seed) for seed in SEEDS]
        file.write_text("\n".join((["prompt,seed"] if ending == "csv" else []) + text) + "\n")
    assert [each["seed"] for each in rows_of(inspect_here(file))] == SEEDS


def test_the_noise_is_torchs_own(tmp_path: Path) -> None:
    sampler = loaded(make_checkpoint("sd1", tmp_path / "sd1"), lanes=2)
    noise = sampler.model.noise(LARGEST, 16, 16)
    own = torch.randn((1, *noise.shape[-3:]), generator=torch.Generator().manual_seed(LARGEST))
    assert torch.equal(noise.reshape(own.shape), own)
    assert latents(sampler, [row("a", "a fox", seed=LARGEST, num_steps=2)])["a"].isfinite().all()


def signed(schema: pa.Schema) -> pa.Schema:
    """As earlier versions had it."""

    def kind(field: pa.Field) -> pa.DataType:
        if field.name in ("seed", "seed_planned"):
            return pa.int64()
        if field.name != "tries":
            return field.type
        parts = [pa.field("seed", pa.int64()) if part.name == "seed" else part for part in field.type.value_type]
        return pa.list_(pa.struct(parts))

    return pa.schema([pa.field(field.name, kind(field)) for field in schema])


@pytest.fixture
def grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that an earlier version began, with signed seeds, and a later generation with a large one."""
    run, schema = RunFolder(str(tmp_path / "run")), manifest_schema(CARRIED)
    with monkeypatch.context() as earlier:
        earlier.setattr("tests.plans.schema_to_json", lambda _: schema_to_json(signed(schema)))
        write_plan(run, [planned_row(i) for i in range(4)], 2)
    for shard in ("0001-000000", "0001-000001"):
        assert render_shard(run, shard)
    assert run.read_manifest("0001-000000").schema.field("seed").type == pa.int64()
    monkeypatch.setattr("tests.plans.PLAN_SCHEMA", _unsigned_plan())
    write_plan(run, [planned_row(9, seed=LARGEST)], 1, generation=2)
    return run


def _unsigned_plan() -> pa.Schema:
    from tests.plans import PLAN_SCHEMA

    at = PLAN_SCHEMA.get_field_index("seed")
    return PLAN_SCHEMA.set(at, pa.field("seed", pa.uint64()))


def test_a_run_with_signed_seeds_goes_on_and_stays_one_table(grown: RunFolder) -> None:
    plan = read_plan(grown)
    assert [
        finding for each in verify(grown, 1) for finding in each.findings if finding.kind != "manifest_missing"
    ] == []
    assert widen_manifests(plan, claim(grown).id) == 2
    assert render_shard(grown, "0002-000000")
    assert [finding for each in verify(grown, 1) for finding in each.findings] == []
    wanted = [1000, 1001, 1002, 1003, LARGEST]
    folder = f"{grown.url}/manifest"
    table = ds.dataset(folder).to_table()
    assert table["seed"].type == table["seed_planned"].type == pa.uint64()
    assert sorted(table["seed"].to_pylist()) == wanted
    assert sorted(each[0]["seed"] for each in table["tries"].to_pylist()) == wanted
    pandas = pytest.importorskip("pandas")
    assert sorted(pandas.read_parquet(folder)["seed"].tolist()) == wanted


def test_other_readers_take_the_folder_as_one_table(grown: RunFolder) -> None:
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    widen_manifests(read_plan(grown), claim(grown).id)
    assert render_shard(grown, "0002-000000")
    files = f"{grown.url}/manifest/*.parquet"
    assert polars.scan_parquet(files).select("seed").collect()["seed"].max() == LARGEST
    assert duckdb.sql(f"select max(seed) from read_parquet('{files}')").fetchone() == (LARGEST,)


def test_seeds_have_one_type_everywhere() -> None:
    types = {field.name: field.type for field in MANIFEST_FIELDS}
    assert types["seed"] == types["seed_planned"] == types["tries"].value_type.field("seed").type == pa.uint64()
