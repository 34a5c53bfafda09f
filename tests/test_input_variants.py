"""More of what an input may hold, by kinds that are known: odd names, links, packed files, partitions, objects."""

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.files.readers import InputError
from pipelines.pipeline_error import one_line
from pipelines.storage.folder import Folder, StorageError, StorageOptions, store_of
from tests.inputs import inspect_here, rows_of
from tests.s3_server import S3Server

TABLE = b"prompt\nx\n"
ODD = ["two\nlines", "\udcff", "\x1b[31mred", "\u202egpj", "a\rb", "\x7f", "\u2028"]


def put(path: Path, data: bytes = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ---- names that are no plain text


@pytest.mark.parametrize("name", ODD)
def test_what_is_left_out_under_an_odd_name_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a.csv")
    for path in (f"{name}.json", f"_{name}.csv", f"deep/{name}/b.txt"):
        put(tmp_path / path)
    (note, other) = inspect_here(tmp_path).notes
    assert all(said.isprintable() for said in (note, other))
    assert one_line(name) in note


@pytest.mark.parametrize("name", ODD)
def test_a_table_under_an_odd_name_is_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    assert inspect_here(put(tmp_path / f"{name}.csv")).rows == 1
    assert inspect_here(tmp_path).rows == 1
    for data in (b"", b'prompt\n"', b"caption_of\nx\n", b"prompt,prompt\na,b\n", b"\xff\xfe"):
        with pytest.raises(InputError) as raised:
            inspect_here(put(tmp_path / f"{name}.csv", data))
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("name", ODD)
def test_an_odd_place_that_is_not_there_is_one_line(tmp_path: Path, name: str) -> None:
    for path in (f"{name}.csv", f"{name}/*.csv", name):
        with pytest.raises(InputError) as raised:
            inspect_here(tmp_path / path)
        assert str(raised.value).isprintable()
    with pytest.raises(StorageError) as refused:
        Folder(str(put(tmp_path / name) / "run"), deadline_s=0).write("a", b"1")
    assert str(refused.value).isprintable()


# ---- links


@pytest.mark.parametrize("target", ["fifo", "/dev/null", "/dev/zero"])
def test_a_link_to_what_is_no_file_is_named(tmp_path: Path, target: str) -> None:
    put(tmp_path / "in" / "a.csv")
    if target == "fifo":
        os.mkfifo(tmp_path / target)
    (tmp_path / "in" / "b.csv").symlink_to(tmp_path / target)
    found = inspect_here(tmp_path / "in")
    assert found.rows == 1
    assert "1 thing that is no file (b.csv)" in found.notes[0]


def test_a_chain_of_links_is_one_file_and_told(tmp_path: Path) -> None:
    put(tmp_path / "a.csv")
    (tmp_path / "b.csv").symlink_to("a.csv")
    (tmp_path / "c.csv").symlink_to("b.csv")
    found = inspect_here(tmp_path)
    assert found.rows == 3
    assert "read twice: b.csv is a.csv, c.csv is a.csv" in found.notes[0]


def test_two_folders_that_lead_to_each_other_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.csv")
    put(tmp_path / "b" / "y.csv")
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    with pytest.raises(InputError, match="symbolic links lead back to this folder"):
        inspect_here(tmp_path)


def test_an_input_that_is_itself_a_link_to_a_run_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "run" / "plan" / "0001" / "part-0.parquet", b"x")
    put(tmp_path / "run" / "job.yaml", b"x")
    (tmp_path / "in").symlink_to("run")
    with pytest.raises(InputError, match="Not read: 1 run folder of earlier jobs"):
        inspect_here(tmp_path / "in")


# ---- packed files


def test_every_part_of_a_file_that_was_packed_in_parts_is_read(tmp_path: Path) -> None:
    put(tmp_path / "a.csv.gz", gzip.compress(b"prompt\na\n") + gzip.compress(b"b\n") + gzip.compress(b"c\n"))
    assert inspect_here(tmp_path).rows == 3


@pytest.mark.parametrize(
    "tail", [b"garbage", gzip.compress(b"b\n", mtime=0)[:-4], b"\x1f\x8b"], ids=["garbage", "cut", "head"]
)
def test_a_packed_file_with_a_torn_end_is_refused(tmp_path: Path, tail: bytes) -> None:
    put(tmp_path / "a.csv.gz", gzip.compress(b"prompt\na\n") + tail)
    with pytest.raises(InputError, match="torn or of another kind"):
        inspect_here(tmp_path)


# ---- partitions


def test_files_beside_partitions_have_no_value_there(tmp_path: Path) -> None:
    put(tmp_path / "lang=en" / "a.csv", b"prompt\na\n")
    put(tmp_path / "lang=__HIVE_DEFAULT_PARTITION__" / "b.csv", b"prompt\nb\n")
    put(tmp_path / "lang=a%2Fb%20c" / "c.csv", b"prompt\nc\n")
    put(tmp_path / "d.csv", b"prompt\nd\n")
    rows = {row["prompt"]: row["lang"] for row in rows_of(inspect_here(tmp_path))}
    assert rows == {"a": "en", "b": None, "c": "a/b c", "d": None}


def test_a_partition_of_one_name_in_two_folders_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "lang=en" / "lang=de" / "a.csv")
    with pytest.raises(InputError, match="two of its folders give a value to one column"):
        inspect_here(tmp_path)


def test_a_partition_says_the_same_as_a_number_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "day=7").mkdir()
    pq.write_table(pa.table({"prompt": ["a"], "day": [7]}), tmp_path / "day=7" / "a.parquet")
    assert [row["day"] for row in rows_of(inspect_here(tmp_path))] == [7]


# ---- objects


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("s3://bucket/a/b", "s3://bucket"),
        ("s3://bucket", "s3://bucket"),
        ("s3://arn:aws:s3:r:123456789012:accesspoint/p/x", "s3://arn:aws:s3:r:123456789012:accesspoint/p"),
        ("s3://arn:aws:s3:r:123456789012:accesspoint:p/x", "s3://arn:aws:s3:r:123456789012:accesspoint:p"),
        (
            "s3://arn:aws:s3-outposts:r:1:outpost/o/accesspoint/p/x",
            "s3://arn:aws:s3-outposts:r:1:outpost/o/accesspoint/p",
        ),
        ("abfs://c@a.net/x", "abfs://c@a.net"),
        ("https://host:1/x", "https://host:1"),
        ("/a/b", "/a/b"),
    ],
)
def test_the_outermost_place_of_a_url(url: str, store: str) -> None:
    assert store_of(url) == store


@pytest.mark.s3
def test_an_object_whose_name_ends_in_a_slash_is_named_where_it_holds_something(s3: S3Server) -> None:
    storage = StorageOptions(s3.endpoint_url)
    folder = Folder(f"s3://{s3.bucket()}/in", storage)
    folder.write("a.csv", TABLE)
    backend: Any = folder._backend()
    for key, body in (("marker/", b""), ("b.csv/", TABLE), ("deep//c/", TABLE)):
        backend.fs.call_s3("put_object", Bucket=backend.bucket, Key=f"in/{key}", Body=body)
    found = inspect_here(folder.url, storage=storage)
    assert found.rows == 1
    assert found.notes == (f"{folder.url}: not read: 2 objects whose keys no path can name (b.csv/, deep//c/)",)
