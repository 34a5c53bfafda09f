"""Verification: what is whole is clean, and every kind of damage done by hand is found and named."""

import inspect
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.integrity.images as images_module
import pipelines.integrity.verification as verify_module
from pipelines.cluster.pools import PoolSpec
from pipelines.integrity.findings import KINDS, ORPHANS, Finding
from pipelines.integrity.repair_orders import delete_orphans
from pipelines.integrity.verification import verify
from pipelines.render.pool import planned_shards
from pipelines.render.sink import LAYOUTS, encode_image
from pipelines.run.drivers import claim
from pipelines.run.layout import RunFolder, manifest_key, parquet_bytes
from pipelines.run.plan import read_plan
from pipelines.run.schema import schema_to_json
from pipelines.storage.folder import StorageOptions
from tests.finished import finished_run, picture, render_shard, store
from tests.plans import planned_row, typed_row, write_plan

SHARD, OTHER = "0001-000001", "0001-000002"
Damage = Callable[[RunFolder], None]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(RunFolder(str(tmp_path / "run")))


def findings(run: RunFolder, sample: float = 1) -> list[Finding]:
    return [finding for checked in verify(run, sample) for finding in checked.findings]


def found(run: RunFolder, sample: float = 1) -> set[tuple[str, str | None, str | None]]:
    return {(finding.kind, finding.shard, finding.id) for finding in findings(run, sample)}


def replace(run: RunFolder, shard: str, change: Callable[[list[dict]], list[dict]]) -> None:
    """The manifest of a shard, with other rows."""
    table = run.read_manifest(shard)
    rows = change(table.to_pylist())
    run.write(manifest_key(shard), parquet_bytes([pa.Table.from_pylist(rows, schema=table.schema)]))


def first(run: RunFolder, shard: str = SHARD) -> dict:
    return run.read_manifest(shard).to_pylist()[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", [0.01, 1])
def test_a_whole_run_is_clean(tmp_path: Path, layout: str, sample: float) -> None:
    run = finished_run(RunFolder(str(tmp_path / "run")), layout)
    checked = list(verify(run, sample))
    assert [c.findings for c in checked if c.findings] == []
    assert [c.shard for c in checked if c.shard] == [f"0001-{n:06d}" for n in range(4)]
    assert sum(c.rows for c in checked) == sum(c.planned for c in checked) == 20
    few = {"files": 4, "webdataset": 4, "parquet": 5, "none": 0}[layout]
    assert sum(c.images for c in checked) == (few if sample < 1 else 0 if layout == "none" else 19)


@pytest.mark.s3
def test_a_run_on_s3(s3) -> None:
    run = finished_run(RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(s3.endpoint_url)), "webdataset")
    assert found(run) == set()
    (key,) = [key for key, _ in run.walk("data") if SHARD in key]
    run.write(key, run.read(key)[:-2048])
    assert ("data_damaged", SHARD, None) in found(run, 0.01)


# negative controls: protocols that look right and are not


def test_a_manifest_before_its_images(tmp_path: Path) -> None:
    """The worker commits, then dies in the middle of its images."""
    run = finished_run(RunFolder(str(tmp_path / "run")))
    uris = [row["uri"] for row in run.read_manifest(SHARD).to_pylist() if row["uri"]]
    run.delete(uris[2:])
    lost = {row["id"] for row in run.read_manifest(SHARD).to_pylist() if row["uri"] in uris[2:]}
    assert found(run) == {("image_missing", SHARD, id) for id in lost}


def test_a_manifest_named_by_its_attempt(tmp_path: Path) -> None:
    """Two workers on one shard: both commit."""
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i) for i in range(10)], 5)
    assert render_shard(run, "0001-000000")
    for _ in range(2):
        attempt, table, _ = store(run, SHARD)
        assert run.create(f"manifest/{SHARD}-{attempt.name}.parquet", parquet_bytes([table]))
    seen = findings(run)
    assert [f.kind for f in seen].count("manifest_unknown") == 2
    assert all(f"5 rows say they are of {SHARD}" in f.message for f in seen if f.kind == "manifest_unknown")
    assert ("manifest_missing", SHARD, None) in {(f.kind, f.shard, f.id) for f in seen}


def test_a_shard_split_in_two(run: RunFolder) -> None:
    """A worker gives half of its rows away: whoever renders the whole shard again doubles them."""
    table = run.read_manifest(SHARD)
    run.write(manifest_key(SHARD), parquet_bytes([table.slice(0, 2)]))
    run.write(f"manifest/{SHARD}b.parquet", parquet_bytes([table.slice(2)]))
    seen = findings(run)
    missing = {("row_missing", SHARD, id) for id in table["id"].to_pylist()[2:]}
    assert missing <= {(f.kind, f.shard, f.id) for f in seen}
    (split,) = [f for f in seen if f.kind == "manifest_unknown"]
    assert (split.key, split.rows) == (f"manifest/{SHARD}b.parquet", 3)
    assert "which has a manifest of its own" in split.message


# damage to what was whole


def test_a_deleted_manifest_is_a_shard_that_is_not_done(run: RunFolder) -> None:
    run.delete([manifest_key(SHARD)])
    assert ("manifest_missing", SHARD, None) in found(run)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_torn_manifest(run: RunFolder, keep: int) -> None:
    run.write(manifest_key(SHARD), run.read(manifest_key(SHARD))[:keep])
    assert ("manifest_damaged", SHARD, None) in found(run)


def test_a_flipped_bit_in_a_manifest_is_damage_or_changes_nothing(run: RunFolder) -> None:
    """Pages carry checksums: without them 20 of 600 such flips passed as other rows."""
    data, rows = run.read(manifest_key(SHARD)), run.read_manifest(SHARD).to_pylist()
    rng = random.Random(1)
    caught = 0
    for _ in range(30):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        run.write(manifest_key(SHARD), bytes(flipped))
        damaged = found(run, 0.01) != set()
        assert damaged or run.read_manifest(SHARD).to_pylist() == rows
        caught += damaged
    assert caught > 10


def test_a_manifest_with_other_columns(run: RunFolder) -> None:
    run.write(manifest_key(SHARD), parquet_bytes([run.read_manifest(SHARD).drop_columns("note")]))
    assert ("manifest_damaged", SHARD, None) in found(run)


def test_a_row_twice(run: RunFolder) -> None:
    replace(run, SHARD, lambda rows: [*rows, rows[0]])
    assert found(run) == {("row_doubled", SHARD, first(run)["id"])}


def test_a_row_of_another_shard(run: RunFolder) -> None:
    stranger = first(run, OTHER)
    replace(run, SHARD, lambda rows: [*rows, stranger])
    assert found(run) == {(kind, SHARD, stranger["id"]) for kind in ("row_unknown", "image_misplaced")}


def test_a_row_less(run: RunFolder) -> None:
    lost = first(run)
    replace(run, SHARD, lambda rows: rows[1:])
    run.delete([lost["uri"]])
    assert found(run) == {("row_missing", SHARD, lost["id"])}


@pytest.mark.parametrize("change", [{"prompt": "a cat"}, {"seed_planned": 1}, {"width": 8}, {"status": "fine"}])
def test_a_row_that_is_not_as_planned(run: RunFolder, change: dict) -> None:
    replace(run, SHARD, lambda rows: [rows[0] | change, *rows[1:]])
    (message,) = [f.message for f in findings(run) if f.kind == "row_changed"]
    assert message == f"not as planned: {next(iter(change))}"


def test_a_deleted_image(run: RunFolder) -> None:
    run.delete([first(run)["uri"]])
    assert found(run) == {("image_missing", SHARD, first(run)["id"])}


def test_a_flipped_byte(run: RunFolder) -> None:
    data = bytearray(run.read(first(run)["uri"]))
    data[len(data) // 2] ^= 1
    run.write(first(run)["uri"], bytes(data))
    assert found(run) == {("image_wrong_hash", SHARD, first(run)["id"])}


def test_a_short_image(run: RunFolder) -> None:
    run.write(first(run)["uri"], run.read(first(run)["uri"])[:-9])
    assert found(run) == {("image_wrong_length", SHARD, first(run)["id"])}


@pytest.mark.parametrize("what", ["noise", "torn", "jpeg", "size"])
def test_bytes_that_are_not_the_rows_picture(run: RunFolder, what: str) -> None:
    """The hash is right: the worker itself wrote something wrong."""
    import hashlib

    image = picture(typed_row(1)).image
    data = {
        "noise": b"no picture at all",
        "torn": encode_image(image, "png")[:-60],
        "jpeg": encode_image(image, "jpeg"),
        "size": encode_image(image[:8], "png"),
    }[what]
    change = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    run.write(first(run)["uri"], data)
    replace(run, SHARD, lambda rows: [rows[0] | change, *rows[1:]])
    assert found(run) == {("image_undecodable", SHARD, first(run)["id"])}


@pytest.mark.parametrize(
    "uri", [None, "images/../job.yaml", "/etc/passwd", f"images/{OTHER}/1-aa/x.png", "report.html"]
)
def test_a_uri_that_leads_elsewhere(run: RunFolder, uri: str | None) -> None:
    replace(run, SHARD, lambda rows: [rows[0] | {"uri": uri}, *rows[1:]])
    assert ("image_misplaced", SHARD, first(run)["id"]) in found(run)


def test_two_rows_of_one_image(run: RunFolder) -> None:
    replace(run, SHARD, lambda rows: [rows[0] | {"uri": rows[1]["uri"]}, *rows[1:]])
    assert [kind for kind, _, _ in found(run)].count("image_misplaced") == 2


def test_an_orphan_attempt_is_named_by_one_listing_a_shard(run: RunFolder) -> None:
    attempt, _, _ = store(run, SHARD)
    (orphan,) = findings(run, 0.01)
    assert (orphan.kind, orphan.key, orphan.rows) == ("attempt_orphan", f"images/{SHARD}/{attempt.name}", 0)


def test_attempts_of_a_shard_in_work_are_no_orphans(run: RunFolder) -> None:
    run.delete([manifest_key(SHARD)])
    assert {kind for kind, _, _ in found(run)} == {"manifest_missing"}


def test_an_object_among_the_images_shows_in_the_listing(run: RunFolder) -> None:
    run.write(first(run)["uri"] + ".bak", b"x")
    assert found(run, 0.01) == {("object_orphan", SHARD, None)}


def test_existence_and_size_of_every_image_are_seen_without_reading_them(run: RunFolder) -> None:
    rows = [row for row in run.read_manifest(SHARD).to_pylist() if row["uri"]]
    run.delete([rows[0]["uri"], rows[2]["uri"]])
    run.write(rows[3]["uri"], run.read(rows[3]["uri"])[:-7])
    checked = [each for each in verify(run, 0.01) if each.shard == SHARD]
    assert {(f.kind, f.id) for each in checked for f in each.findings} == {
        ("image_missing", rows[0]["id"]),
        ("image_missing", rows[2]["id"]),
        ("image_wrong_length", rows[3]["id"]),
    }
    assert (checked[0].found, checked[0].images) == (len(rows) - 3, 1)


@pytest.mark.parametrize(
    "stray",
    [
        "images/.DS_Store",
        "images/notes.txt",
        f"images/{SHARD}/.DS_Store",
        f"images/{SHARD}/Thumbs.db",
        f"images/{SHARD}/1-aaaaaaaa/.DS_Store",
        "manifest/.DS_Store",
        "manifest/._0001-000001.parquet",
        "data/.DS_Store",
        "attempts/.DS_Store",
        f"attempts/{SHARD}/.DS_Store",
        "epochs/.DS_Store",
        "plan/.DS_Store",
        ".DS_Store",
    ],
)
def test_a_stray_file_is_at_most_an_orphan_and_can_be_deleted(run: RunFolder, stray: str) -> None:
    run.write(stray, b"\0\0\0\1Bud1")
    seen = findings(run, 0.01)
    assert {finding.kind for finding in seen} <= {"attempt_orphan", "object_orphan"}
    assert run.done_shards() == {f"0001-{i:06d}" for i in range(4)}
    assert run.attempts().keys() <= run.done_shards()
    assert run.deaths() == {}
    epoch = claim(run).id
    assert delete_orphans(run, epoch, seen) == len(seen)
    assert (run.stat(stray) is None) == bool(seen)
    assert findings(run, 0.01) == []


def test_folders_of_no_shard(run: RunFolder) -> None:
    run.write("images/0009-000000/1-aa/x.png", b"x")
    run.write("data/0009-000000-1-aa.tar", b"x")
    run.write("plan/0002/part-00000-aa.parquet", b"x")
    run.write("plan/0001/part-00000-aa.parquet", b"x")
    run.write("manifest/notes.txt", b"x")
    keys = {f.key for f in findings(run, 0.01)}
    assert keys == {
        "images/0009-000000",
        "data/0009-000000-1-aa.tar",
        "plan/0002",
        "plan/0001/part-00000-aa.parquet",
        "manifest/notes.txt",
    }


def test_an_index_of_an_earlier_version_is_read(run: RunFolder) -> None:
    """It has a hash of each shard's rows, which parts have in their names now."""
    index, before = run.shard_index(1), list(planned_shards(read_plan(run), (PoolSpec(),)))
    old = index.append_column("content", pa.array([f"{i:020x}" for i in range(len(index))]))
    run.write("plan/0001/shards.parquet", parquet_bytes([old]))
    assert list(planned_shards(read_plan(run), (PoolSpec(),))) == before
    assert findings(run, 1) == []


def test_a_plan_that_is_gone(run: RunFolder) -> None:
    (part,) = [key for key, _ in run.walk("plan") if "part-" in key]
    data = run.read(part)
    run.delete([part])
    assert found(run) == {("plan_damaged", f"0001-{n:06d}", None) for n in range(4)}
    run.write(part, data[:-20])
    assert {kind for kind, _, _ in found(run)} == {"plan_damaged"}


@pytest.mark.parametrize("name", ["plan.json", "shards.parquet"])
def test_a_plan_that_cannot_be_read_makes_no_orphans_of_its_shards(run: RunFolder, name: str) -> None:
    run.write(f"plan/0001/{name}", run.read(f"plan/0001/{name}")[:40])
    assert found(run) == {("plan_damaged", None, None)}


def test_a_row_planned_in_two_generations(run: RunFolder) -> None:
    write_plan(run, [planned_row(3), planned_row(90)], 5, generation=2)
    render_shard(run, "0002-000000")
    assert found(run) == {("row_doubled", "0001-000000", "r0003"), ("row_doubled", "0002-000000", "r0003")}


# packed layouts


@pytest.fixture
def packed(tmp_path: Path) -> Callable[[str], tuple[RunFolder, str]]:
    def make(layout: str) -> tuple[RunFolder, str]:
        run = finished_run(RunFolder(str(tmp_path / "run")), layout)
        (key,) = [key for key, _ in run.walk("data") if SHARD in key]
        return run, key

    return make


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
@pytest.mark.parametrize("sample", [0.01, 1])
def test_a_data_file_that_is_gone_or_cut_short(packed, layout: str, sample: float) -> None:
    run, key = packed(layout)
    data = run.read(key)
    for keep in (0, 100, len(data) // 2, len(data) - 1, len(data) - 1500):
        run.write(key, data[:keep])
        assert ("data_damaged", SHARD, None) in found(run, sample), keep
    run.delete([key])
    assert found(run, sample) == {("image_missing", SHARD, None)}


def test_an_offset_that_is_wrong(packed) -> None:
    run, _ = packed("webdataset")
    replace(run, SHARD, lambda rows: [rows[0] | {"offset": rows[0]["offset"] + 1}, *rows[1:]])
    assert {kind for kind, _, _ in found(run)} == {"data_damaged", "image_wrong_hash"}
    replace(run, SHARD, lambda rows: [rows[0] | {"offset": None}, *rows[1:]])
    assert found(run) == {("image_missing", SHARD, first(run)["id"])}


def test_a_flipped_byte_in_a_tar(packed) -> None:
    run, key = packed("webdataset")
    data = bytearray(run.read(key))
    data[first(run)["offset"] + 40] ^= 4
    run.write(key, bytes(data))
    assert found(run) == {("image_wrong_hash", SHARD, first(run)["id"])}


def test_rows_of_a_parquet_data_file(packed) -> None:
    run, key = packed("parquet")
    table = pq.read_table(io.BytesIO(run.read(key)))
    ids = table["id"].to_pylist()
    images = table["image"].to_pylist()
    images[1] = images[0]
    run.write(key, parquet_bytes([table.set_column(1, "image", pa.array(images, pa.binary())).slice(1)]))
    kinds = {(kind, id) for kind, _, id in found(run)}
    assert kinds & {("image_missing", ids[0])}
    assert ("image_wrong_length", ids[1]) in kinds or ("image_wrong_hash", ids[1]) in kinds


def test_an_orphan_data_file(packed) -> None:
    run, _ = packed("webdataset")
    attempt, _, _ = store(run, SHARD, "webdataset")
    (orphan,) = findings(run, 0.01)
    assert (orphan.kind, orphan.key) == ("attempt_orphan", f"data/{SHARD}-{attempt.name}.tar")


def test_requests_of_a_sample_do_not_grow_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(RunFolder(str(tmp_path / "run")), rows=100)
    calls: list[str] = []
    real = RunFolder._call
    monkeypatch.setattr(
        RunFolder,
        "_call",
        lambda self, verb, key, *rest, **options: (calls.append(verb), real(self, verb, key, *rest, **options))[1],
    )
    assert findings(run, 0.001) == []
    shards = 20
    assert len(calls) < 7 * shards + 20  # a manifest, one image, and on a disk a listing of each folder
    assert calls.count("read") < 3 * shards + 10  # a stat is a read, too


@pytest.mark.s3
def test_a_store_lists_a_thousand_objects_at_a_time_whatever_the_shards(
    s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lists(rows: int) -> int:
        run = finished_run(RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(s3.endpoint_url)), rows=rows)
        calls: list[str] = []
        real = RunFolder._call
        with monkeypatch.context() as patch:
            patch.setattr(
                RunFolder, "_call", lambda self, verb, *rest, **o: (calls.append(verb), real(self, verb, *rest, **o))[1]
            )
            assert findings(run, 0.001) == []
        return calls.count("list")

    assert lists(20) == lists(60) <= 10


def test_a_store_that_lists_in_any_order_makes_no_image_missing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunFolder.walk
    monkeypatch.setattr(
        RunFolder, "walk", lambda self, prefix="": iter(random.Random(3).sample(f := list(real(self, prefix)), len(f)))
    )
    assert findings(run) == []
    run.delete([first(run)["uri"]])
    assert found(run) == {("image_missing", SHARD, first(run)["id"])}


def only(run: RunFolder) -> Finding:
    (finding,) = findings(run, 0.01)
    return finding


@pytest.mark.parametrize(
    "stray",
    [
        *(".DS_Store", "._job.yaml", "Thumbs.db", "desktop.ini", "plan/.DS_Store", "plan/0001/thumbs.db"),
        *("attempts/.DS_Store", f"attempts/{SHARD}/desktop.ini", "epochs/._000001.json", "data/notes.txt"),
        *("manifest/.DS_Store", "manifest/old/0001-000001.parquet", "images/notes.txt", "images/__MACOSX/._a.png"),
        *(f"images/{SHARD}/Thumbs.db", f"images/{SHARD}/x/y/z.png", f"images/{SHARD}.png", "attempts/note"),
    ],
)
def test_a_stray_is_an_orphan_wherever_it_lies_and_goes(run: RunFolder, stray: str) -> None:
    run.write(stray, b"x")
    finding = only(run)
    assert finding.kind in ORPHANS
    assert stray.startswith(finding.key)
    assert delete_orphans(run, claim(run).id, [finding]) == 1
    assert findings(run, 0.01) == []


def test_what_a_user_puts_beside_the_run_is_left_alone(run: RunFolder) -> None:
    for key in ("notes.md", "prompts.parquet", ".gitignore", "policy/card.json", "evaluation/report.html"):
        run.write(key, b"x")
    assert findings(run, 0.01) == []


def test_a_folder_where_an_image_should_be(run: RunFolder) -> None:
    row = first(run)
    run.delete([row["uri"]])
    run.write(f"{row['uri']}/copy.png", b"x")
    seen = findings(run, 0.01)
    assert {(f.kind, f.id) for f in seen} == {("image_missing", row["id"]), ("object_orphan", None)}
    assert delete_orphans(run, claim(run).id, seen) == 1
    run.write(row["uri"], b"free again")


def test_a_folder_where_a_manifest_should_be_is_a_shard_that_is_not_done(run: RunFolder) -> None:
    data = run.read(manifest_key(SHARD))
    run.delete([manifest_key(SHARD)])
    run.write(f"{manifest_key(SHARD)}/part-0.parquet", data)
    assert SHARD not in run.done_shards()
    seen = findings(run, 0.01)
    assert {f.kind for f in seen} == {"manifest_missing", "object_orphan"}
    assert delete_orphans(run, claim(run).id, seen) == 1
    assert run.create(manifest_key(SHARD), data)
    assert findings(run, 0.01) == []


def test_a_file_where_a_shards_images_should_be(run: RunFolder) -> None:
    run.delete(key for key, _ in run.walk(f"images/{SHARD}"))
    run.write(f"images/{SHARD}", b"x")
    seen = findings(run, 0.01)
    assert {f.kind for f in seen} == {"image_missing", "object_orphan"}
    assert delete_orphans(run, claim(run).id, seen) == 1
    run.write(first(run)["uri"], b"free again")


@pytest.mark.parametrize("name", ["data", "images"])
def test_a_file_where_a_folder_of_the_run_should_be(tmp_path: Path, name: str) -> None:
    run = finished_run(RunFolder(str(tmp_path / "run")), "none")
    run.write(name, b"x")
    assert (only(run).kind, only(run).key) == ("object_orphan", name)
    assert delete_orphans(run, claim(run).id, findings(run)) == 1
    assert findings(run) == []


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_folder_where_a_data_file_should_be(tmp_path: Path, layout: str) -> None:
    run = finished_run(RunFolder(str(tmp_path / "run")), layout)
    (key,) = [key for key, _ in run.walk("data") if SHARD in key]
    run.delete([key])
    run.write(f"{key}/.DS_Store", b"x")
    seen = findings(run, 0.01)
    assert {(f.kind, f.key) for f in seen} == {("image_missing", key), ("attempt_orphan", f"{key}/.DS_Store")}
    assert delete_orphans(run, claim(run).id, seen) == 1


@pytest.mark.parametrize("name", ["plan/0001/plan.json", "plan/0001/shards.parquet"])
def test_a_folder_where_a_file_of_the_plan_should_be(run: RunFolder, name: str) -> None:
    run.delete([name])
    run.write(f"{name}/x", b"x")
    kinds = {finding.kind for finding in findings(run, 0.01)}
    assert kinds & {"plan_orphan", "plan_damaged"}


@pytest.mark.s3
def test_keys_with_empty_parts_and_markers_of_folders_in_a_store(s3) -> None:
    run = finished_run(RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(s3.endpoint_url)))
    client, bucket = s3._client(), run.url.split("/")[2]
    for key in ("images/", f"images/{SHARD}/", "manifest/", "data/"):
        client.put_object(Bucket=bucket, Key=f"run/{key}", Body=b"")
    assert findings(run, 0.01) == []
    odd = [f"images/{SHARD}//x.png", "images//y.png", "manifest//0001-000001.parquet", "data//z.tar"]
    for key in odd:
        client.put_object(Bucket=bucket, Key=f"run/{key}", Body=b"x")
    seen = findings(run, 0.01)
    assert {f.key for f in seen} == set(odd)
    assert {f.kind for f in seen} <= ORPHANS
    assert delete_orphans(run, claim(run).id, seen) == len(odd)
    assert findings(run, 0.01) == []


@pytest.mark.s3
def test_what_is_left_of_an_attempt_goes_with_keys_that_are_no_paths(s3) -> None:
    run = finished_run(RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(s3.endpoint_url)))
    client, bucket = s3._client(), run.url.split("/")[2]
    left = [
        f"images/{SHARD}/9-abcdef01/a.png",
        f"images/{SHARD}/9-abcdef01//b.png",
        "images/9999-000000/1-abcdef01/c.png",
    ]
    left += ["images/9999-000000//d.png", "images/9999-000000/./e.png"]
    for key in left:
        client.put_object(Bucket=bucket, Key=f"run/{key}", Body=b"x")
    seen = findings(run, 0.01)
    assert {finding.kind for finding in seen} <= ORPHANS
    delete_orphans(run, claim(run).id, seen)
    assert findings(run, 0.01) == []
    assert not set(left) & {key for key, _ in run.walk("images")}


def test_manifests_of_a_run_that_an_earlier_version_planned_are_as_they_should_be(tmp_path: Path) -> None:
    """Its plan lacks a column that manifests have now; and a later plan of this version has one more."""
    run = finished_run(RunFolder(str(tmp_path / "run")))
    plan = run.read_plan(1)
    schema = read_plan(run).manifest_schema
    older = schema.remove(schema.get_field_index("score_error"))
    run.write("plan/0001/plan.json", json.dumps(plan | {"manifest_schema": schema_to_json(older)}).encode())
    later = plan | {"manifest_schema": schema_to_json(schema.append(pa.field("shelf", pa.string())))}
    run.write("plan/0002/shards.parquet", parquet_bytes([run.shard_index(1).slice(0, 0)]))
    run.write("plan/0002/plan.json", json.dumps(later).encode())
    assert findings(run, 0.01) == []


def test_every_kind_is_explained() -> None:
    text = inspect.getsource(verify_module) + inspect.getsource(images_module)
    assert all(f'"{kind}"' in text for kind in KINDS)
    assert set(KINDS) >= ORPHANS
