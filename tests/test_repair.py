"""Repair: what is damaged is rendered again and nothing else, one whole PUT a shard, by the latest driver alone."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.integrity.repair_orders import RepairPlanner, delete_orphans
from pipelines.integrity.verification import verify
from pipelines.render.manifest_rows import failed_row, ok_row, with_place
from pipelines.render.repaired_shard import RepairedShard, replace_manifest
from pipelines.render.sink import LAYOUTS, Sink
from pipelines.render.tries import RowTries, Try
from pipelines.run.drivers import Epoch, SupersededError, claim
from pipelines.run.layout import RunFolder, manifest_key, parquet_bytes
from pipelines.run.plan import read_plan
from tests.finished import finished_run, keys, picture, store

SHARD = "0001-000001"
BAD = "r0007"  # in that shard, bad at plan time


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(RunFolder(str(tmp_path / "run")))


@pytest.fixture
def epoch(run: RunFolder) -> Epoch:
    return claim(run)


def found(run: RunFolder) -> dict[str | None, list]:
    return {checked.shard: list(checked.findings) for checked in verify(run, 1) if checked.findings}


def rendered(run: RunFolder, mending: RepairedShard, layout: str = "files") -> list[dict]:
    """What a worker gives: a new attempt, its images, its manifest rows."""
    attempt = run.begin_attempt(mending.shard)
    sink = Sink(run, mending.shard, attempt, layout, "png")
    rows = []
    for row in mending.again:
        if row.error_type:
            rows.append(failed_row(row, mending.shard, attempt, row.error_type, row.error_message))
            continue
        made = picture(row)
        rows.append(ok_row(RowTries(row, done=[Try(row.seed, made)]), sink.put(row, made.image), keys(row), sink))
    packed = sink.close()
    return [with_place(row, packed) for row in rows]


def repaired(run: RunFolder, repairs: RepairPlanner, shard: str, *given: Any, **more: Any) -> RepairedShard | None:
    """What is ordered for a shard, as its worker reads it."""
    if (order := repairs.order(shard, *given, **more)) is None:
        return None
    place = next(row for row in run.shard_index(1).to_pylist() if row["shard"] == shard)
    return order.repaired_shard(run, place["part"], place["row_group"], read_plan(run).manifest_schema)


def repair(run: RunFolder, epoch: Epoch, layout: str = "files") -> dict[str, RepairedShard]:
    """As a driver does it: verify, mend, replace, delete what is left over."""
    repairs, done = RepairPlanner(read_plan(run)), {}
    for checked in verify(run, 1):
        if checked.shard and (mending := repaired(run, repairs, checked.shard, checked.findings)):
            replace_manifest(run, epoch.id, checked.shard, mending.manifest(rendered(run, mending, layout)))
            done[checked.shard] = mending
    delete_orphans(run, epoch.id, [finding for checked in verify(run, 1) for finding in checked.findings])
    return done


def rows(run: RunFolder, shard: str = SHARD) -> dict[str, dict]:
    return {row["id"]: row for row in run.read_manifest(shard).to_pylist()}


def change(run: RunFolder, edit) -> None:
    table = run.read_manifest(SHARD)
    new = edit(table.to_pylist())
    run.write(manifest_key(SHARD), parquet_bytes([pa.Table.from_pylist(new, schema=table.schema)]))


def test_a_clean_run_needs_nothing(run: RunFolder) -> None:
    repairs = RepairPlanner(read_plan(run))
    assert all(repairs.order(c.shard, c.findings) is None for c in verify(run, 1) if c.shard)
    assert repairs.order(SHARD, retry_failed=True) is None  # a row bad at plan time stays bad


@pytest.mark.parametrize("damage", ["delete", "flip", "cut"])
def test_one_image_is_rendered_again_and_its_bytes_are_the_same(run: RunFolder, epoch: Epoch, damage: str) -> None:
    before = rows(run)
    ill = next(row for row in before.values() if row["uri"])
    data = run.read(ill["uri"])
    if damage == "delete":
        run.delete([ill["uri"]])
    else:
        run.write(ill["uri"], data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    mending = repair(run, epoch)[SHARD]
    assert [row.id for row in mending.again] == [ill["id"]]
    after = rows(run)
    assert found(run) == {}
    assert after[ill["id"]]["sha256"] == ill["sha256"]
    assert after[ill["id"]]["uri"] != ill["uri"]
    assert run.read(after[ill["id"]]["uri"]) == data
    assert {row["revision"] for row in after.values()} == {1}
    assert all(after[id]["uri"] == row["uri"] for id, row in before.items() if id != ill["id"])
    assert repair(run, epoch) == {}


def test_the_manifests_final_seed_and_steps_are_rendered_again(run: RunFolder, epoch: Epoch) -> None:
    """The guard took another seed than the plan's."""
    ill = next(row for row in rows(run).values() if row["uri"])
    change(run, lambda old: [row | {"seed": 77, "num_steps": 9} if row["id"] == ill["id"] else row for row in old])
    run.delete([ill["uri"]])
    (again,) = repair(run, epoch)[SHARD].again
    assert (again.seed, again.num_steps) == (77, 9)
    row = rows(run)[ill["id"]]
    assert (row["seed"], row["seed_planned"], row["num_steps"]) == (77, ill["seed_planned"], 9)


def test_a_row_that_says_something_else_is_rendered_as_planned(run: RunFolder, epoch: Epoch) -> None:
    ill = next(row for row in rows(run).values() if row["uri"])
    wrong = {"prompt": "a cat", "seed": 5}
    change(run, lambda old: [row | wrong if row["id"] == ill["id"] else row for row in old])
    repair(run, epoch)
    assert found(run) == {}
    assert rows(run)[ill["id"]]["sha256"] == ill["sha256"]


@pytest.mark.parametrize("keep", [0, 40])
def test_a_torn_manifest_is_rendered_anew(run: RunFolder, epoch: Epoch, keep: int) -> None:
    before = rows(run)
    run.write(manifest_key(SHARD), run.read(manifest_key(SHARD))[:keep])
    mending = repair(run, epoch)[SHARD]
    assert len(mending.again) == 5
    assert found(run) == {}
    assert {id: row["sha256"] for id, row in rows(run).items()} == {id: row["sha256"] for id, row in before.items()}
    assert rows(run)[BAD]["status"] == "failed"


def test_rows_twice_strange_and_missing(run: RunFolder, epoch: Epoch) -> None:
    stranger = next(iter(rows(run, "0001-000002").values()))
    order = list(rows(run))
    change(run, lambda old: [*old[1:], old[2], stranger])
    mending = repair(run, epoch)[SHARD]
    assert [row.id for row in mending.again] == [order[0]]
    assert list(rows(run)) == order
    assert found(run) == {}


def test_a_row_twice_needs_no_picture(run: RunFolder) -> None:
    change(run, lambda old: [*old, old[0]])
    mending = repaired(run, RepairPlanner(read_plan(run)), SHARD, found(run)[SHARD])
    assert mending is not None
    assert mending.again == ()
    assert mending.manifest([]).num_rows == 5


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in ("files", "none")])
@pytest.mark.parametrize("keep", [None, 700, -1])
def test_a_data_file_that_is_gone_or_cut_short(tmp_path: Path, layout: str, keep: int | None) -> None:
    run = finished_run(RunFolder(str(tmp_path / "run")), layout)
    (key,) = [key for key, _ in run.walk("data") if SHARD in key]
    before = rows(run)
    if keep is None:
        run.delete([key])
    else:
        run.write(key, run.read(key)[:keep])
    assert len(repair(run, claim(run), layout)[SHARD].again) == 4
    assert found(run) == {}
    assert [row["sha256"] for row in rows(run).values()] == [row["sha256"] for row in before.values()]
    assert run.stat(key) is None


def test_failed_rows_are_tried_again(run: RunFolder, epoch: Epoch) -> None:
    ill = next(row for row in rows(run).values() if row["uri"])
    failed = {"status": "failed", "error_type": "OutOfMemory", "error_message": "no", "uri": None, "sha256": None}
    change(run, lambda old: [row | failed if row["id"] == ill["id"] else row for row in old])
    run.delete([ill["uri"]])
    mending = repaired(run, RepairPlanner(read_plan(run)), SHARD, retry_failed=True)
    assert mending is not None
    assert [row.id for row in mending.again] == [ill["id"]]
    replace_manifest(run, epoch.id, SHARD, mending.manifest(rendered(run, mending)))
    assert found(run) == {}
    assert rows(run)[ill["id"]]["status"] == "ok"


def test_a_shard_that_is_not_done_is_not_repaired(run: RunFolder) -> None:
    run.delete([manifest_key(SHARD)])
    assert RepairPlanner(read_plan(run)).order(SHARD, found(run)[SHARD]) is None


def test_a_manifest_is_never_replaced_by_less_than_the_shard(run: RunFolder) -> None:
    run.delete([next(row["uri"] for row in rows(run).values() if row["uri"])])
    mending = repaired(run, RepairPlanner(read_plan(run)), SHARD, found(run)[SHARD])
    assert mending is not None
    with pytest.raises(ValueError, match="0 of 1 rows"):
        mending.manifest([])


def test_who_was_taken_over_changes_nothing(run: RunFolder, epoch: Epoch) -> None:
    store(run, SHARD)  # an orphan
    before = sorted(run.walk("manifest")), sorted(run.walk("images"))
    table = run.read_manifest(SHARD)
    claim(run, take_over=True)
    with pytest.raises(SupersededError):
        replace_manifest(run, epoch.id, SHARD, table)
    with pytest.raises(SupersededError):
        delete_orphans(run, epoch.id, found(run)[SHARD])
    assert (sorted(run.walk("manifest")), sorted(run.walk("images"))) == before


def test_orphans_are_deleted_and_nothing_that_a_manifest_names(run: RunFolder, epoch: Epoch) -> None:
    whole = sorted(run.walk("images"))
    attempt, _, _ = store(run, SHARD)
    store(run, SHARD, "webdataset")
    run.write(rows(run)["r0005"]["uri"] + ".bak", b"x")
    run.write("images/0009-000000/1-aa/x.png", b"x")
    everything = [finding for findings in found(run).values() for finding in findings]
    assert delete_orphans(run, epoch.id, everything) == 4 + 1 + 1 + 1
    assert sorted(run.walk("images")) == whole
    assert list(run.walk("data")) == []
    assert f"images/{SHARD}/{attempt.name}" not in {key.rpartition("/")[0] for key, _ in run.walk("images")}


def test_what_became_named_since_it_was_found_stays(run: RunFolder, epoch: Epoch) -> None:
    _, table, _ = store(run, SHARD)
    stale = found(run)[SHARD]
    replace_manifest(run, epoch.id, SHARD, table)
    assert delete_orphans(run, epoch.id, stale) == 0
    assert {finding.kind for finding in found(run)[SHARD]} == {"attempt_orphan"}  # now the other one


def test_the_images_of_a_lost_plan_stay(run: RunFolder, epoch: Epoch) -> None:
    """Without plan.json every shard looks like nobody's."""
    whole = sorted(run.walk("images"))
    run.delete(["plan/0001/plan.json"])
    everything = [finding for findings in found(run).values() for finding in findings]
    assert "attempt_orphan" in {finding.kind for finding in everything}
    assert delete_orphans(run, epoch.id, everything) == 0
    assert sorted(run.walk("images")) == whole
