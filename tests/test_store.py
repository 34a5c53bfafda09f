"""The folder's contract on disk and on a real S3 server; a store that is only read; the run folder; clear errors."""

import errno
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from pipelines.run.layout import RunFolder, parquet_bytes
from pipelines.run.schema import MANIFEST_FIELDS, manifest_schema, schema_from_json, schema_to_json
from pipelines.storage import disk as local
from pipelines.storage.folder import Folder, StorageError, StorageOptions

SHARD = "0001-000042"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunFolder]:
    """An empty run folder on each kind of storage."""
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        yield RunFolder(f"s3://{server.bucket()}/runs/spring", StorageOptions(server.endpoint_url))
    else:
        yield RunFolder(str(tmp_path / "runs" / "spring"))


def table(*ids: str) -> pa.Table:
    return pa.table({"id": list(ids), "n": list(range(len(ids)))})


# the contract of a folder


def test_what_is_written_is_read(run: RunFolder) -> None:
    run.write("a/b.bin", b"0123456789")
    assert run.read("a/b.bin") == b"0123456789"
    assert run.read_range("a/b.bin", 2, 5) == b"234"
    assert run.read_range("a/b.bin", 8, 99) == b"89"
    assert run.read_range("a/b.bin", 5, 5) == b""
    run.write("a/b.bin", b"")
    assert run.read("a/b.bin") == b""


def test_a_missing_object(run: RunFolder) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        run.read("none")
    with pytest.raises(FileNotFoundError):
        run.read_range("none", 0, 4)
    assert run.stat("none") is None
    assert run.names("none") == []
    assert list(run.walk("none")) == []
    run.delete(["none", "no/ne"])


def test_create_keeps_the_first(run: RunFolder) -> None:
    assert run.create("manifest/a", b"mine") is True
    assert run.create("manifest/a", b"other") is False
    assert run.read("manifest/a") == b"mine"
    assert run.create("manifest/a", b"mine") is True  # the echo of a write whose answer was lost
    assert run.create("manifest/empty", b"") is True
    assert run.create("manifest/empty", b"x") is False


def test_one_winner_of_eight(run: RunFolder) -> None:
    for round_ in range(5):
        bodies = [f"thread {number}".encode() * 1000 for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda body, key=f"race/{round_}": run.create(key, body), bodies))
        assert won.count(True) == 1
        assert run.read(f"race/{round_}") == bodies[won.index(True)]


def test_listings(run: RunFolder) -> None:
    for key in ("a/x", "a/y/z", "a/y/w", "ab/c", "top"):
        run.write(key, key.encode())
    assert run.names() == ["a", "ab", "top"]
    assert run.names("a") == ["x", "y"]
    assert run.names("a/y") == ["w", "z"]
    assert sorted(run.walk("a")) == [("a/x", 3), ("a/y/w", 5), ("a/y/z", 5)]
    assert len(list(run.walk())) == 5


def test_a_listing_of_more_than_one_page(run: RunFolder) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: run.write(f"many/{number:05d}", b"x"), range(1203)))
    assert run.names("many") == [f"{number:05d}" for number in range(1203)]
    assert sorted(run.walk("many")) == [(f"many/{number:05d}", 1) for number in range(1203)]
    run.delete(f"many/{number:05d}" for number in range(1203))
    assert run.names() == []


def test_stat_changes_with_the_bytes(run: RunFolder) -> None:
    run.write("a", b"12345")
    first = run.stat("a")
    run.write("a", b"54321")
    second = run.stat("a")
    assert first is not None
    assert second is not None
    assert first[0] == second[0] == 5
    assert first[1] != second[1]


def test_delete(run: RunFolder) -> None:
    run.write("a/b", b"1")
    run.write("c", b"2")
    run.delete(["a/b"])
    assert run.names() == ["c"]


@pytest.mark.parametrize("key", ["/etc/passwd", "../up", "a/../../b", "a//b", ".", "a/", "nul\0"])
def test_no_key_leaves_the_folder(run: RunFolder, key: str) -> None:
    for call in (run.read, run.names, run.stat, lambda k: run.write(k, b""), lambda k: run.create(k, b"")):
        with pytest.raises(ValueError, match="is no key"):
            call(key)


def test_odd_keys(run: RunFolder) -> None:
    for key in ("a b+c&d=e%20f", "ünï/cødé", "back\\slash", "-", "quo'\"te"):
        run.write(key, key.encode())
        assert run.read(key) == key.encode()
        assert key in {found for found, _ in run.walk()}


def test_probe_leaves_nothing(run: RunFolder) -> None:
    assert run.probe() is True
    assert run.names() == []
    run.check_reading()


def test_a_pickle_works_elsewhere(run: RunFolder) -> None:
    run.probe()
    again = pickle.loads(pickle.dumps(run))
    assert (again.url, again.options) == (run.url, run.options)
    again.write("a", b"1")
    assert run.read("a") == b"1"


# a store that is only read


def test_another_store_is_read(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for key in ("a/x", "a/y/z", "ab/c"):
        store.pipe_file(f"/{tmp_path.name}/{key}", b"0123456789")
    folder = Folder(f"memory://{tmp_path.name}")
    folder.check_reading()
    assert folder.read("a/x") == b"0123456789"
    assert folder.read_range("a/x", 8, 99) == b"89"
    assert folder.names("a") == ["x", "y"]
    assert sorted(folder.walk("a")) == [("a/x", 10), ("a/y/z", 10)]
    assert folder.stat("none") is None
    assert folder.names("none") == []
    with pytest.raises(FileNotFoundError, match="none"):
        folder.read("none")
    first = folder.stat("a/x")
    store.pipe_file(f"/{tmp_path.name}/a/x", b"9876543210")
    assert first != folder.stat("a/x")


@pytest.mark.parametrize("url", ["memory://run", "gs://bucket/run", "AZ://container/run", "https://host/run"])
def test_nothing_is_written_to_a_store_that_is_only_read(url: str) -> None:
    folder = Folder(url)
    writes = (lambda: folder.write("a", b""), lambda: folder.create("a", b""), lambda: folder.delete(["a"]))
    for call in (folder.probe, *writes):
        with pytest.raises(StorageError, match=r"is only read here. Choose a folder on disk or on s3://"):
            call()


# the layout of a run


def test_a_plan_exists_once_committed(run: RunFolder) -> None:
    key = run.write_part(1, 0, [table("a", "b"), table("c")])
    assert re.fullmatch(r"plan/0001/part-00000-[0-9a-f]{16}\.parquet", key)
    index = pa.table({"shard": [SHARD], "part": [key], "row_group": [1]})
    run.write("plan/0001/shards.parquet", parquet_bytes([index]))
    assert run.generations() == []
    assert run.commit_plan(1, {"rows": 3}) is True
    assert run.commit_plan(1, {"rows": 4}) is False
    assert run.generations() == [1]
    assert run.read_plan(1) == {"rows": 3}
    assert run.shard_index(1).to_pylist() == [{"shard": SHARD, "part": key, "row_group": 1}]
    assert run.read_shard(key, 1).to_pylist() == [{"id": "c", "n": 0}]
    assert run.read_shard(key, 0, ["id"]).to_pylist() == [{"id": "a"}, {"id": "b"}]


def test_a_plan_part_is_called_by_its_content(run: RunFolder) -> None:
    whole = table("a", "b")
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert (whole["id"].num_chunks, chunked["id"].num_chunks) == (1, 2)
    key = run.write_part(1, 0, whole)
    assert run.write_part(1, 0, [chunked]) == key
    assert run.write_part(1, 0, [whole.slice(0, 1), whole.slice(1)]) != key  # other row groups
    assert run.write_part(1, 0, table("a", "c")) != key
    assert run.read_shard(key, 0, ["id"]).to_pylist() == [{"id": "a"}, {"id": "b"}]


def test_a_shard_is_committed_once(run: RunFolder) -> None:
    assert run.done_shards() == set()
    assert run.commit_manifest(SHARD, table("a")) is True
    assert run.commit_manifest(SHARD, table("b")) is False
    assert run.commit_manifest("0001-000007", table("c")) is True
    assert run.done_shards() == {SHARD, "0001-000007"}
    assert run.read_manifest(SHARD)["id"].to_pylist() == ["a"]
    assert [part["id"].to_pylist() for part in run.manifests()] == [["c"], ["a"]]


def test_attempts_count_but_for_the_released(run: RunFolder) -> None:
    assert run.attempts() == {}
    first, second = run.begin_attempt(SHARD), run.begin_attempt(SHARD)
    assert (first.number, second.number) == (1, 2)
    assert first.token != second.token
    assert re.fullmatch(r"2-[0-9a-f]{8}", second.name)
    assert run.attempts() == {SHARD: 2}
    run.release_attempt(second)
    assert run.attempts() == {SHARD: 1}
    assert run.begin_attempt(SHARD).number == 2
    run.release_attempt(run.begin_attempt("0001-000001"))
    assert run.attempts() == {SHARD: 2}


def test_job(run: RunFolder) -> None:
    assert run.job_yaml() is None
    run.write_job("version: 1\n# é\n")
    assert run.job_yaml() == "version: 1\n# é\n"


def test_keys_belong_to_an_attempt(run: RunFolder) -> None:
    one, other = run.begin_attempt(SHARD), run.begin_attempt(SHARD)
    assert run.image_key(SHARD, one, "cat", "png") == f"images/{SHARD}/{one.name}/cat.png"
    assert run.data_key(SHARD, one, "tar") == f"data/{SHARD}-{one.name}.tar"
    assert run.image_key(SHARD, one, "cat", "png") != run.image_key(SHARD, other, "cat", "png")
    assert run.data_key(SHARD, one, "tar") != run.data_key(SHARD, other, "tar")


def test_names_of_images() -> None:
    assert RunFolder.image_name("cat_1-a") == "cat_1-a"
    assert RunFolder.image_name("a" * 80) == "a" * 80
    hostile = ["../../x", "/abs", "a.b", "A", "a", "a\n", "é", "", "x" * 10_000, "\ud800", "CON", "a/b", "a" * 81]
    names = [RunFolder.image_name(row_id) for row_id in hostile]
    assert len(set(names)) == len(hostile)
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in names)
    hashed = RunFolder.image_name("A")
    assert RunFolder.image_name(hashed) != hashed  # an id that looks like another's hash is hashed itself


# schemas


def test_manifest_schema() -> None:
    schema = manifest_schema(pa.schema([pa.field("campaign", pa.string())]))
    assert schema.names == [column.name for column in MANIFEST_FIELDS] + ["campaign"]
    assert schema.names[:4] == ["id", "prompt_id", "sample", "shard"]
    assert schema_from_json(schema_to_json(schema)).equals(schema, check_metadata=True)
    with pytest.raises(ValueError, match="seconds, uri"):
        manifest_schema(pa.schema([("uri", pa.string()), ("x", pa.int8()), ("seconds", pa.int8())]))


def test_nulls_keep_their_type(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    schema = manifest_schema(pa.schema([("score", pa.float32())]))
    run.commit_manifest(SHARD, schema.empty_table())
    run.commit_manifest("0001-000043", pa.Table.from_pylist([{"id": "a"}], schema=schema))
    assert all(part.schema.equals(schema) for part in run.manifests())


# the local disk


def test_no_listing_shows_a_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path), deadline_s=0)
    seen: list[list[str]] = []

    def full(_: int) -> None:
        seen.append(folder.names())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"the disk is full\. Free some space") as raised:
        folder.write("a", b"1")
    assert raised.value.retryable is False
    assert seen == [[]]
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_no_part(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pipelines.storage.folder import Folder\n"
        "os.replace = os.link = lambda *a: os._exit(9)\n"
        "getattr(Folder(sys.argv[1]), sys.argv[2])('a/b', b'x' * 100000)"
    )
    root = Path(__file__).parent.parent
    for verb in ("write", "create"):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path), verb], cwd=root).returncode == 9
    folder = Folder(str(tmp_path))
    assert (folder.names("a"), list(folder.walk())) == ([], [])
    assert folder.create("a/b", b"whole") is True


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = Folder(str(tmp_path))
    assert folder.create("a", b"1") is True
    assert folder.create("a", b"2") is False
    assert folder.read("a") == b"1"
    assert folder.probe() is False


def test_a_store_that_ignores_the_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.LocalBackend, "create", local.LocalBackend.write)
    assert Folder(str(tmp_path)).probe() is False
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")]
)
def test_refusals_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "x")

    monkeypatch.setattr(local, "_write_synced", refuse)
    monkeypatch.setattr("pipelines.storage.folder.time.sleep", lambda _: pytest.fail("it was tried again"))
    with pytest.raises(StorageError, match=words) as raised:
        Folder(str(tmp_path / "run")).probe()
    assert str(tmp_path / "run") in str(raised.value)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        Folder(str(tmp_path / "run")).probe()


def test_what_passes_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = local._write_synced, [errno.ESTALE, errno.EIO]

    def flaky(path: str, data: bytes) -> None:
        if failures:
            raise OSError(failures.pop(), "x")
        real(path, data)

    monkeypatch.setattr(local, "_write_synced", flaky)
    folder = Folder(str(tmp_path), deadline_s=5)
    folder.write("a", b"1")
    assert folder.read("a") == b"1"
    failures += [errno.EIO] * 100
    hasty = Folder(str(tmp_path), deadline_s=0.3)
    with pytest.raises(StorageError) as raised:
        hasty.write("a", b"2")
    assert raised.value.retryable is True
    assert folder.read("a") == b"1"


def test_local_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder("runs/a").url == Folder(f"file://{tmp_path}/runs/a/").url == str(tmp_path / "runs" / "a")
    assert Folder("runs/a").url_of("b/c") == str(tmp_path / "runs" / "a" / "b" / "c")


def test_a_url_with_a_password_is_refused() -> None:
    with pytest.raises(StorageError) as raised:
        Folder("s3://AKIA:hunter2@bucket/x")
    assert "hunter2" not in str(raised.value)


def test_a_storage_error_keeps_its_kind_in_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(StorageError("message", retryable=True)))
    assert (str(error), error.retryable) == ("message", True)
