"""Nothing of an input is left out without a word: links, folders, partitions, other kinds, dialects, servers."""

import gzip
import json
import os
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations

from jobs.job_file.positions import ConfigError
from jobs.job_file.read import read_job
from jobs.steps.checking import asked_for, certain_words
from pipelines.files.chosen import would_hold
from pipelines.files.csv_rows import Dialect
from pipelines.files.readers import InputError, TextRules
from pipelines.prompts.inspection import pinned_notes
from pipelines.run.layout import RunFolder
from pipelines.storage.folder import Folder, StorageError, StorageOptions
from tests.inputs import inspect_here, rows_of


def prompts(path: Path | str, **changes: Any) -> list[str]:
    return [row["prompt"] for row in rows_of(inspect_here(path, **changes))]


def notes(path: Path | str, **changes: Any) -> str:
    return "\n".join(inspect_here(path, **changes).notes)


def put(path: Path, content: str | bytes = "") -> Path:
    """A file with the folders around it; a CSV of one prompt, its own name, where nothing else is said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content or f"prompt\n{path.stem}\n"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def put_table(path: Path, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"prompt": [path.stem]} | columns), path)
    return path


# ---- what else lies there


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("b.json", "1 file of another kind (b.json)"),
        ("c.jsonl.zst", "1 file of another kind (c.jsonl.zst)"),
        ("deep/notes.xlsx", "1 file of another kind (deep/notes.xlsx)"),
        ("README", "1 file of another kind (README)"),
        ("d.parquet.gz", "1 file of another kind (d.parquet.gz)"),
        ("_SUCCESS", "1 hidden or underscored file (_SUCCESS)"),
        (".old.csv", "1 hidden or underscored file (.old.csv)"),
        ("_temporary/0/part-0.csv", "1 hidden or underscored file (_temporary/)"),
        (".git/deep/x.csv", "1 hidden or underscored file (.git/)"),
        ("day/.ipynb_checkpoints/a.csv", "1 hidden or underscored file (day/.ipynb_checkpoints/)"),
    ],
)
def test_what_a_folder_holds_beside_tables_is_named(tmp_path: Path, name: str, words: str) -> None:
    put(tmp_path / "a.csv")
    put(tmp_path / name)
    assert prompts(tmp_path) == ["a"]
    assert f"{tmp_path}: not read: {words}" in notes(tmp_path)


def test_many_files_are_counted_and_some_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.csv")
    for number in range(1200):
        put(tmp_path / f"{number:04d}.png", "x")
    assert notes(tmp_path).endswith(
        "1,200 files of other kinds (0000.png, 0001.png, 0002.png, 0003.png, 0004.png, ...)"
    )


def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path / "a.json")
    put(tmp_path / "_b.csv")
    with pytest.raises(InputError, match=r"the folder holds no .* Not read: 1 file of another kind \(a\.json\); 1 hid"):
        inspect_here(tmp_path)
    with pytest.raises(InputError, match=r"no .* file matches. Correct input.path. Not read: 1 file of another kind"):
        inspect_here(tmp_path / "*.json")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.json", "write one object a line and call it .jsonl"),
        ("a.xlsx", "save the sheet as CSV"),
        ("a.csv.zst", "unpack it, or pack it as .gz"),
        ("a.feather", "write it as Parquet"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_how_to_convert_it(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=f"{name}: unknown kind of file. .*{says}"):
        inspect_here(put(tmp_path / name))


def test_pipes_and_sockets_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.csv")
    os.mkfifo(tmp_path / "b.csv")
    assert "1 thing that is no file (b.csv)" in notes(tmp_path)


# ---- symbolic links


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.csv")
    put(tmp_path / "else" / "deep" / "b.csv")
    put(tmp_path / "c.csv")
    (tmp_path / "in" / "more").symlink_to("../else")
    (tmp_path / "in" / "c.csv").symlink_to(tmp_path / "c.csv")
    assert prompts(tmp_path / "in") == ["a", "c", "b"]
    assert prompts(f"{tmp_path}/in/**/b.csv") == prompts(f"{tmp_path}/in/m*/deep/*.csv") == ["b"]
    (tmp_path / "way").symlink_to("in")
    assert prompts(tmp_path / "way") == ["a", "c", "b"]


@pytest.mark.parametrize("name", ["part-1.csv", "day/part-1.parquet", "more"])
def test_a_link_to_nothing_is_refused_by_name(tmp_path: Path, name: str) -> None:
    put(tmp_path / "in" / "a.csv")
    (tmp_path / "in" / "day").mkdir()
    (tmp_path / "in" / name).symlink_to("/no/such/place")
    with pytest.raises(InputError, match=rf"in/{name}: a symbolic link to /no/such/place, which is not there. Fix or"):
        inspect_here(tmp_path / "in")


def test_a_link_to_nothing_that_is_not_read_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.csv")
    (tmp_path / "model.ckpt").symlink_to("/no/such/place")
    (tmp_path / "_cache").symlink_to("/no/such/place")
    assert "1 thing that is no file (model.ckpt)" in notes(tmp_path)
    assert "1 hidden or underscored file (_cache)" in notes(tmp_path)
    assert prompts(tmp_path / "*.csv") == ["a"]
    (tmp_path / "b.csv").symlink_to("/no/such/place")
    with pytest.raises(InputError, match=r"b\.csv: a symbolic link"):
        inspect_here(tmp_path / "*.csv")
    with pytest.raises(InputError, match=r"b\.csv: a symbolic link to /no/such/place, which is not there"):
        inspect_here(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("link", "target"), [("loop", "."), ("deep/back", ".."), ("deep/back", "../.."), ("deep/er/x", "../../deep")]
)
def test_loops_are_refused(tmp_path: Path, link: str, target: str) -> None:
    put(tmp_path / "in" / "a.csv")
    (tmp_path / "in" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "in" / link).symlink_to(target)
    with pytest.raises(InputError, match=r"in/.*: symbolic links lead back to this folder"):
        inspect_here(tmp_path / "in")
    assert prompts(tmp_path / "in" / "*.csv") == ["a"]


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.csv")
    (tmp_path / "b.csv").symlink_to("b.csv")
    with pytest.raises(InputError, match=r"b\.csv: a symbolic link to b\.csv, which cannot be followed"):
        inspect_here(tmp_path)


def test_a_file_under_two_names_is_told(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.csv")
    (tmp_path / "b").symlink_to("a")
    os.link(tmp_path / "a" / "x.csv", tmp_path / "c.csv")
    assert prompts(tmp_path) == ["x", "x", "x"]
    assert "read twice: b/x.csv is a/x.csv, c.csv is a/x.csv" in notes(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.csv")
    (tmp_path / "closed").mkdir(0)
    with pytest.raises(InputError, match="closed: the folder cannot be read"):
        inspect_here(tmp_path)


# ---- globs


def test_a_folder_that_a_glob_names_is_read_where_it_is_a_table(tmp_path: Path) -> None:
    put_table(tmp_path / "day1.parquet")
    put_table(tmp_path / "day2.parquet" / "part-0.parquet")
    put(tmp_path / "day2.parquet" / "_SUCCESS")
    assert prompts(tmp_path / "*.parquet") == ["day1", "part-0"]
    assert "1 hidden or underscored file (day2.parquet/_SUCCESS)" in notes(tmp_path / "*.parquet")


def test_folders_alone_that_a_glob_names_are_read(tmp_path: Path) -> None:
    for day in ("day1", "day2"):
        put(tmp_path / day / "deep" / f"{day}.csv")
    put(tmp_path / "other" / "x.csv")
    assert prompts(tmp_path / "day*") == ["day1", "day2"]


def test_folders_beside_files_that_a_glob_names_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.csv")
    put(tmp_path / "old" / "b.csv")
    assert prompts(tmp_path / "*") == ["a"]
    assert "1 folder that the glob matches beside files (old/)" in notes(tmp_path / "*")


@pytest.mark.parametrize("pattern", ["a**", "**x/*.csv", "in/***"])
def test_what_is_no_glob_is_refused(tmp_path: Path, pattern: str) -> None:
    put(tmp_path / "in" / "a.csv")
    with pytest.raises(InputError, match="no glob"):
        inspect_here(tmp_path / pattern)


# ---- partitions and other tables


def test_partitions_become_columns(tmp_path: Path) -> None:
    put_table(tmp_path / "category=shape" / "lang=en" / "p.parquet")
    put(tmp_path / "category=star" / "lang=de" / "q.csv")
    put(tmp_path / "category=a%20b%2Fc" / "lang=__HIVE_DEFAULT_PARTITION__" / "r.jsonl", '{"prompt": "r"}\n')
    for path in (tmp_path, tmp_path / "category=*" / "*" / "*", tmp_path / "**" / "*"):
        found = {row["prompt"]: (row["category"], row["lang"]) for row in rows_of(inspect_here(path))}
        assert found == {"p": ("shape", "en"), "q": ("star", "de"), "r": ("a b/c", None)}
    assert inspect_here(tmp_path).carried_schema == pa.schema([("lang", pa.string())])


def test_partitions_hold_numbers_and_even_the_prompt(tmp_path: Path) -> None:
    put(tmp_path / "seed=42" / "width=128" / "a.csv")
    put_table(tmp_path / "seed=x" / "width=128" / "b.parquet")
    one, two = rows_of(inspect_here(tmp_path))
    assert (one["seed"], one["width"]) == (42, 128)
    assert two["error_message"].endswith("not 'x'")
    put_table(tmp_path / "only" / "prompt=a cat" / "c.parquet", prompt=["a cat"])
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "only" / "prompt=a cat" / "d.parquet")
    assert prompts(tmp_path / "only") == ["a cat"] * 3


@pytest.mark.parametrize("name", ["p.parquet", "p.csv", "p.jsonl"])
def test_a_column_that_disagrees_with_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    content = {"p.csv": "prompt,lang\nx,en\ny,fr\n", "p.jsonl": '{"prompt": "x", "lang": "fr"}\n'}
    place = tmp_path / "lang=en" / name
    put_table(place, lang=["fr"]) if name == "p.parquet" else put(place, content[name])
    with pytest.raises(InputError, match=r"its folder says lang=en, a row of it lang 'fr'. Correct one"):
        inspect_here(tmp_path)
    put_table(tmp_path / "good" / "year=2024" / "p.parquet", year=[2024])
    assert [row["year"] for row in rows_of(inspect_here(tmp_path / "good"))] == [2024]


def test_partitions_in_the_path_itself_are_named(tmp_path: Path) -> None:
    file = put(tmp_path / "lang=en" / "a.csv")
    for path in (file, file.parent, f"{tmp_path}/lang=en/*.csv"):
        assert "lang=en in the path is no column: name the folder above it" in notes(path)
    with pytest.raises(InputError, match="two of its folders give a value to one column"):
        inspect_here(put(tmp_path / "x" / "a=1" / "a=2" / "b.csv").parents[2])


@pytest.mark.parametrize(
    ("marker", "table"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta Lake table"),
        (".hoodie/hoodie.properties", "an Apache Hudi table"),
        ("metadata/v1.metadata.json", "an Apache Iceberg table"),
        ("metadata/00001-abc.metadata.json", "an Apache Iceberg table"),
        ("_spark_metadata/0", "a table of Spark's structured streaming"),
    ],
)
def test_tables_with_a_log_are_refused(tmp_path: Path, marker: str, table: str) -> None:
    put(tmp_path / "t" / marker, "{}")
    file = put_table(tmp_path / "t" / "data" / "lang=en" / "part-0.parquet")
    put_table(tmp_path / "t" / "part-1.parquet")
    for path in (tmp_path, tmp_path / "t", tmp_path / "t" / "*.parquet", tmp_path / "*" / "*.parquet"):
        with pytest.raises(InputError, match=rf"/t: {table}: its log .* Export its rows to plain Parquet files"):
            inspect_here(path)
    if "Spark" not in table:
        for path in (tmp_path / "t" / "data", tmp_path / "t" / "data" / "lang=en"):
            with pytest.raises(InputError, match=table):
                inspect_here(path)
    assert prompts(file) == ["part-0"]


# ---- the product's own files


def a_run(path: Path, marker: str = "job.yaml") -> Path:
    put_table(path / "plan" / "0001" / "part-00000-0.parquet")
    put_table(path / "manifest" / "0001-000000.parquet")
    put_table(path / "data" / "0001-000000-1-abcdef01.parquet")
    put(path / "images" / "0001-000000" / "1-ab" / "x.png", "x")
    put(path / marker, "{}")
    return path


@pytest.mark.parametrize("marker", ["job.yaml", "epochs/000001.json"])
@pytest.mark.parametrize("place", ["renders", "deep/er/run", "a=1/run"])
def test_run_folders_are_skipped_and_named(tmp_path: Path, marker: str, place: str) -> None:
    put(tmp_path / "a.csv")
    a_run(tmp_path / place, marker)
    assert prompts(tmp_path) == prompts(f"{tmp_path}/**/*") == ["a"]
    assert notes(tmp_path) == f"{tmp_path}: not read: 1 run folder of earlier jobs ({place}/)"
    assert prompts(tmp_path / "*.csv") == ["a"]


def test_a_run_folder_alone_is_refused_and_its_manifests_can_be_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for path in (run, tmp_path, tmp_path / "*" / "manifest" / "*.parquet"):
        with pytest.raises(InputError, match="Not read: 1 run folder of earlier jobs"):
            inspect_here(path)
    assert prompts(run / "manifest" / "*.parquet") == ["0001-000000"]


def test_a_folder_called_plan_is_no_run(tmp_path: Path) -> None:
    put(tmp_path / "plan" / "a.csv")
    put(tmp_path / "job.yaml", "x")
    assert prompts(tmp_path) == ["a"]


def test_where_a_run_would_lie_among_its_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "way").symlink_to("in")
    assert would_hold("in", "in")
    assert would_hold("in/", f"{tmp_path}/in/runs/spring")
    assert would_hold("way", "in/x")
    assert would_hold("in", "way/deep/x")
    assert would_hold("./in/../in", f"file://{tmp_path}/in/x")
    assert would_hold("s3://b/in", "s3a://b//in/runs")
    assert would_hold(".", "runs/x")
    assert not would_hold("in", "in2/x")
    assert not would_hold("in/deep", "in")
    assert not would_hold("in/*.csv", "in/x")
    assert not would_hold("s3://b/in", "s3://c/in/x")


# ---- dialects


SPOKEN = [
    ("prompt;seed\na;1\n", "it looks like semicolons separate the columns. If so, set input.csv.delimiter: ';'"),
    ('"prompt";"seed"\n"a";"1"\n', "semicolons separate"),
    ("Caption|seed\na|1\n", "vertical bars separate"),
    ("prompt\tseed\na\t1\n", "tabs separate"),
    ("sep=;\nprompt;seed\na;1\n", "semicolons separate"),
    ('prompt, note\n"a, b", "c"\n', "spaces stand between a comma and a quote"),
    ('prompt,note\na, "b, c"\n', "spaces stand between a comma and a quote"),
    ('prompt, "note"\na,b\n', "spaces stand between a comma and a quote"),
    ('prompt,note\n"a \\"big\\" cat",1\n', "quotes inside a field are written with a backslash"),
    ('prompt,note\na \\"big\\" cat,1\n', "quotes inside a field are written with a backslash"),
    ('prompt,note\n"ends \\"",1\n"x",2\n', "quotes inside a field are written with a backslash"),
]


@pytest.mark.parametrize(("text", "says"), SPOKEN)
def test_the_suspicion_of_a_dialect_is_spoken(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        inspect_here(put(tmp_path / "a.csv", text))


@pytest.mark.parametrize(
    ("text", "dialect", "rows"),
    [
        ("prompt;note\na;1,5\n", Dialect(";"), [("a", "1,5")]),
        ('sep=;\nprompt;note\n"a;b";x\n', Dialect(";"), [("a;b", "x")]),
        ("prompt|note\na|\n", Dialect("|"), [("a", "")]),
        ("prompt\tnote\na b\tc\n", Dialect("\t"), [("a b", "c")]),
        ('prompt, note\n"a, b",   "c"\n', Dialect(skip_spaces=True), [("a, b", "c")]),
        ('prompt,note\na, "b"\n', Dialect(skip_spaces=False), [("a", ' "b"')]),
        ('prompt,note\n"a \\"big\\" cat",C:\\new\n', Dialect(quotes="backslash"), [('a "big" cat', "C:\\new")]),
        ('prompt,note\n"ends \\"","C:\\\\"\n', Dialect(quotes="backslash"), [('ends "', "C:\\")]),
        ('prompt,note\n6\\" vase,1\n', Dialect(quotes="doubled"), [('6\\" vase', "1")]),
        ('prompt,note\n"a ""b"" c","{""k"": ""x\\""y""}"\n', Dialect(), [('a "b" c', '{"k": "x\\"y"}')]),
        ('prompt,note\n"he said, ""hi""",C:\\dir\n', Dialect(), [('he said, "hi"', "C:\\dir")]),
    ],
)
def test_a_dialect_that_is_said_is_read(tmp_path: Path, text: str, dialect: Dialect, rows: list) -> None:
    found = inspect_here(put(tmp_path / "a.csv", text), text=TextRules(csv=dialect))
    assert [(row["prompt"], row["note"]) for row in rows_of(found)] == rows


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "shift_jis", "utf-32", "gb18030"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz"])
def test_encodings_are_refused_or_read_as_said(tmp_path: Path, encoding: str, ending: str) -> None:
    prompt = "ein Bär" if encoding in ("latin-1", "cp1252") else "日本の猫"
    text = json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" if ending == "jsonl" else f"prompt\n{prompt}\n"
    data = text.encode(encoding)
    file = put(tmp_path / f"a.{ending}", gzip.compress(data) if ending.endswith("gz") else data)
    with pytest.raises(InputError, match=r"a\..*(input\.encoding: (utf-16|latin-1)|not a JSON object)"):
        inspect_here(file)
    assert prompts(file, text=TextRules(encoding)) == [prompt]


def test_text_of_another_encoding_than_said_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "a.csv", "prompt\nein Bär\n".encode("latin-1"))
    for encoding in ("ascii", "utf-16", "utf-32"):
        with pytest.raises(InputError, match=f"not {encoding} .* Correct input.encoding"):
            inspect_here(file, text=TextRules(encoding))


@pytest.mark.parametrize("name", ["utf8", "UTF-8", "latin1", "ISO-8859-15", "Shift_JIS", "big5", "cp1252"])
def test_encodings_by_their_usual_names(name: str) -> None:
    assert read_job(f"input: {{path: x, encoding: {name}}}", "job.yaml").config.input.encoding


@pytest.mark.parametrize("name", ["utf9", "base64", "rot13", "unicode_escape", "punycode", "hex", "''", "zlib", "idna"])
def test_what_is_no_encoding_of_text_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no encoding of text"):
        read_job(f"input: {{path: x, encoding: {name}}}", "job.yaml")


# ---- numbers that lose meaning


@pytest.mark.parametrize(
    ("column", "seeds"),
    [
        (pa.array([42.0, None, float("nan")]), [42, None, None]),
        (pa.array([2.0**53, 2.0**53 - 1, 1e18]), ["lost", 2**53 - 1, "lost"]),
        (pa.array([16777216.0, 16777215.0], pa.float32()), ["lost", 16777215]),
        (pa.array([2048.0, 2047.0], pa.float16()), ["lost", 2047]),
        (pa.array([2**64 - 1, 2**63], pa.uint64()), [2**64 - 1, 2**63]),
        (pa.array(["NaN", "nan", "9007199254740993.0", "1e3"]), [None, None, "lost", "Write plain digits"]),
        (pa.array(["1.2345678901234567e+18", "1234567890123456789"]), ["lost", 1234567890123456789]),
    ],
)
def test_seeds_that_lost_their_meaning_are_failed_rows(tmp_path: Path, column: pa.Array, seeds: list) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * len(column), "seed": column}), tmp_path / "a.parquet")
    for row, seed in zip(rows_of(inspect_here(tmp_path)), seeds, strict=True):
        if isinstance(seed, str):
            says = "as a float it is no longer the number that was drawn" if seed == "lost" else seed
            assert (row["error_type"], says in row["error_message"]) == ("InvalidSeed", True)
        else:
            assert (row["error_type"], row["seed_pinned"]) == ("", seed is not None)
            assert seed is None or row["seed"] == seed


def test_nan_is_no_value_in_any_column(tmp_path: Path) -> None:
    row = '{"prompt": "a", "negative_prompt": NaN, "category": NaN, "seed": NaN, "width": NaN, "guidance_scale": NaN}\n'
    (found,) = rows_of(inspect_here(put(tmp_path / "a.jsonl", row)))
    assert (found["error_type"], found["negative_prompt"], found["category"]) == ("", None, None)
    assert (found["width"], found["guidance_scale"], found["seed_pinned"]) == (64, 7.5, False)
    (found,) = rows_of(inspect_here(put(tmp_path / "b.jsonl", '{"prompt": NaN}\n')))
    assert found["error_message"] == "the prompt is null"


def test_ids_keep_their_leading_zeros(tmp_path: Path) -> None:
    file = put(tmp_path / "a.csv", "id,prompt,seed\n007,a,0042\n7,b,\n")
    assert [row["id"] for row in rows_of(inspect_here(file))] == ["007", "7"]


def test_whole_numbers_that_no_float_holds_are_not_rounded(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", f'{{"prompt": "a", "sku": {2**60 + 1}}}\n')
    put(tmp_path / "b.jsonl", '{"prompt": "b", "sku": 1.5}\n')
    with pytest.raises(InputError, match=f"column 'sku' holds fractions and {2**60 + 1}"):
        rows_of(inspect_here(tmp_path))


# ---- columns


def test_columns_alike_but_for_case_are_told_apart(tmp_path: Path) -> None:
    file = put(tmp_path / "a.csv", "prompt,Status,SHARD,Note,note,Input_status\na,poster,x,1,2,3\n")
    found = inspect_here(file)
    names = found.carried_schema.names
    assert len({name.lower() for name in names}) == len(names)
    assert names[:3] == ["input_input_Status", "input_SHARD", "Note"] or names[:2] == ["input_Status", "input_SHARD"]
    assert "poster" in rows_of(found)[0].values()
    assert "the manifest has a 'status' of its own" in "\n".join(found.notes)
    assert "another column differs from it by case alone" in "\n".join(found.notes)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("negativ_prompt", "negative_prompt"),
        ("Negative Prompt", "negative_prompt"),
        ("guidence_scale", "guidance_scale"),
        ("steps", "num_inference_steps"),
        ("seeds", "seed"),
        ("cfg", "guidance_scale"),
        ("heigth", "height"),
    ],
)
def test_a_column_that_is_nearly_ours_is_asked_about(tmp_path: Path, name: str, meant: str) -> None:
    file = put(tmp_path / "a.csv", f"prompt,{name},sku\na,1,2\n")
    assert f"column {name!r} is only carried along: if it is the {meant}" in notes(file)
    assert "sku" not in notes(file)
    assert inspect_here(file, columns={meant: name}).notes == ()


def test_heavy_columns_are_told_and_can_be_dropped(tmp_path: Path) -> None:
    image = pa.array([{"bytes": os.urandom(1 << 20), "path": None} for _ in range(20)])
    pq.write_table(pa.table({"prompt": ["a"] * 20, "image": image, "n": [1] * 20}), tmp_path / "a.parquet")
    assert "the Parquet files hold 21 MB, 1,049 kB a row: column image is copied into plan and" in notes(tmp_path)
    assert "set input.drop: [image]" in notes(tmp_path)
    found = inspect_here(tmp_path, drop=("image",))
    assert (found.carried_schema.names, found.notes) == (["n"], ())
    assert "image" not in rows_of(found)[0]
    for name in ("picture", "prompt"):
        with pytest.raises(
            InputError, match=f"input.drop names '{name}', which is no column that is only carried along"
        ):
            inspect_here(tmp_path, drop=(name,))


def test_budgets_beside_the_menu_are_told() -> None:
    assert pinned_notes({5, 10}, (5, 10, 20)) == ()
    assert "some rows ask for 17, 18 steps, which are not in the menu" in pinned_notes({18, 17, 5}, (5, 10))[0]


def test_seeds_that_count_up_are_told(tmp_path: Path) -> None:
    file = put(tmp_path / "a.csv", "prompt,seed\na,1\na,2\n")
    assert "closer than 3 get the same picture twice" in notes(file, images_per_prompt=3)
    assert notes(file) == notes(put(tmp_path / "b.csv"), images_per_prompt=3) == ""


def test_the_certain_exit_is_said() -> None:
    job = read_job("input: {path: x}", "job.yaml")
    said = certain_words(job, {"bad_rows": 2, "prompts": 7, "exit_code": 3})
    assert said.startswith("2 of 7 rows are bad: the run will end with exit 3")


# ---- schemes


WORKING = {"memory", "webhdfs", "file", "http", "https", "s3", "s3a"}
SCHEMES = [*sorted(set(known_implementations) - WORKING), "nope", "GS", "Abfs", "s3x", "simplecache::s3", "we+ird"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_that_cannot_be_used_is_one_line(scheme: str) -> None:
    url = f"{scheme}://some/where/prompts.csv"
    for call in (lambda: inspect_here(url), lambda: RunFolder(url, deadline_s=0).probe()):
        with pytest.raises((InputError, StorageError)) as caught:
            call()
        message = str(caught.value)
        assert scheme.lower() in message
        assert "\n" not in message
        assert len(message) < 500


@pytest.mark.parametrize(
    ("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs"), ("SFTP", "paramiko"), ("oss", "ossfs")]
)
def test_a_missing_package_is_named(scheme: str, package: str) -> None:
    with pytest.raises(
        StorageError, match=rf"needs the package {package}, which is not installed. .*pip install {package}"
    ):
        Folder(f"{scheme}://bucket/x").read("y")


def test_azure_containers_are_no_passwords() -> None:
    for url in ("abfs://prompts@account.dfs.core.windows.net/p.csv", "abfss://c@a.net/x", "wasbs://c@a.net/x"):
        assert read_job(f"input: {{path: '{url}'}}", "job.yaml").config.input.path == url
        assert Folder(url).url == url
    for url in ("abfs://user:word@account/p.csv", "s3://key@bucket/x", "https://user:word@host/p.csv"):
        with pytest.raises(ConfigError, match="holds a user name or password"):
            read_job(f"input: {{path: '{url}'}}", "job.yaml")


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("hf://datasets/o/n/p.csv", "/datasets/o/n/resolve/main/p.csv"),
        ("HF://datasets/o/n@v2/deep/p.csv", "/datasets/o/n/resolve/v2/deep/p.csv"),
        ("hf://datasets/o/n@refs/convert/parquet/x/p.csv", "/datasets/o/n/resolve/refs%2Fconvert%2Fparquet/x/p.csv"),
        ("hf://datasets/o/n@refs%2Fpr%2F3/p.csv", "/datasets/o/n/resolve/refs%2Fpr%2F3/p.csv"),
        ("hf://datasets/o/n/two words.csv", "/datasets/o/n/resolve/main/two%20words.csv"),
    ],
)
def test_a_file_of_the_hub_is_read(monkeypatch: pytest.MonkeyPatch, path: str, address: str) -> None:
    """The hub sends its files' readers on to another server."""
    asked = []

    def hub(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked.append(handler.path)
        if "/resolve/" in handler.path:
            send(handler, 302, Location="/elsewhere?signed=1")
        else:
            by_ranges(handler, body)

    with server(hub, b"prompt\na\n") as place:
        monkeypatch.setenv("HF_ENDPOINT", place)
        assert prompts(path) == ["a"]
        where, name = asked_for(path)
        assert Folder(where).stat(name) is not None
    assert {each for each in asked if "/resolve/" in each} == {address}


@pytest.mark.parametrize(
    "path",
    [
        *("hf://datasets/o/n/*.parquet", "hf://datasets/o/n", "hf://datasets/o/n/", "hf://datasets/o/n/deep/"),
        *("hf://o/model/p.csv", "hf://datasets/o/n/a.json", "hf://", "hf://buckets/o/n/p.csv", "hf://spaces/o/n/p.csv"),
    ],
)
def test_what_is_no_file_of_the_hub_is_one_line(path: str) -> None:
    for call in (lambda: inspect_here(path), lambda: asked_for(path)):
        with pytest.raises(InputError, match=r"of the hub one .* file is read, no folder and no glob") as raised:
            call()
        assert "\n" not in str(raised.value)


def test_an_upper_case_scheme_is_the_same_store(tmp_path: Path) -> None:
    assert Folder("S3://bucket/x").url == "s3://bucket/x"
    assert prompts(f"FILE://{put(tmp_path / 'a.csv')}") == ["a"]


# ---- web servers

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextmanager
def server(answer: Answer, body: bytes) -> Iterator[str]:
    """A local server that answers every GET by `answer`; -> its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if "Transfer_Encoding" not in headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def plainly(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, 200, body)


def by_ranges(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    asked = handler.headers.get("Range", "")
    if not asked:
        send(handler, 200, body, ETag='"v1"')
        return
    start, end = (int(number) for number in asked.removeprefix("bytes=").split("-"))
    part = body[start : end + 1]
    send(handler, 206, part, ETag='"v1"', Content_Range=f"bytes {start}-{start + len(part) - 1}/{len(body)}")


def in_chunks(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 99]), body[i : i + 99]) for i in range(0, len(body), 99))
    send(handler, 200, chunks + b"0\r\n\r\n", Transfer_Encoding="chunked")


def without_length(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n" + body)
    handler.close_connection = True


def compressed(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, 200, gzip.compress(body), Content_Encoding="gzip", ETag='"z"')


def deflated(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, 200, zlib.compress(body), Content_Encoding="deflate")


def total_unknown(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    if "Range" in handler.headers:
        send(handler, 206, body[:1], Content_Range="bytes 0-0/*", ETag='"t"')
    else:
        send(handler, 200, body)


def moved(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    if handler.path.startswith("/deep"):
        send(handler, 302, Location="/there.csv")
    else:
        by_ranges(handler, body)


@pytest.mark.parametrize(
    "answer", [plainly, by_ranges, in_chunks, without_length, compressed, deflated, total_unknown, moved]
)
def test_a_file_of_a_web_server_is_read_however_it_answers(answer: Answer) -> None:
    body = b"prompt,note\n" + b"".join(b"cat %d,x\n" % number for number in range(3000))
    with server(answer, body) as address:
        found = prompts(f"{address}/deep/prompts.csv?sig=a%2Fb&x=1//y")
    assert found == [f"cat {number}" for number in range(3000)]


@pytest.mark.parametrize("answer", [plainly, by_ranges, in_chunks])
def test_parquet_and_gzip_of_a_web_server(answer: Answer) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": [f"p{number}" for number in range(5000)]}), sink, row_group_size=1000)
    with server(answer, sink.getvalue().to_pybytes()) as address:
        assert len(prompts(f"{address}/p.parquet")) == 5000
    with server(answer, gzip.compress(b"prompt\na\n")) as address:
        assert prompts(f"{address}/p.csv.gz?x=y") == ["a"]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (403, r"answered 403 \(Forbidden\). Use an address that needs no login"),
        (401, r"answered 401 \(Unauthorized\)"),
        (404, r"the server has no such file \(404\)"),
        (410, r"the server has no such file"),
        (500, r"answered 500 \(Internal Server Error\). Try again later"),
        (503, r"answered 503"),
        (429, r"answered 429 \(Too Many Requests\)"),
        (418, r"answered 418"),
    ],
)
def test_what_a_web_server_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, status: int, says: str) -> None:
    monkeypatch.setenv("STEPTHRIFT_STORAGE_DEADLINE_S", "0")
    with server(lambda handler, body: send(handler, status), b"") as address:
        with pytest.raises((InputError, StorageError), match=says) as caught:
            inspect_here(f"{address}/prompts.csv")
        assert "\n" not in str(caught.value)


def test_servers_that_do_not_answer_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPTHRIFT_STORAGE_DEADLINE_S", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        addresses = [f"http://127.0.0.1:{closed.getsockname()[1]}", "http://no-such-host.invalid"]
        for address in addresses:
            with pytest.raises(StorageError, match=f"{address} cannot be reached .*Check that it runs"):
                inspect_here(f"{address}/prompts.csv")

    def garbage(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.wfile.write(b"what?\r\n\r\n")
        handler.close_connection = True

    def torn(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\nprompt\n")
        handler.close_connection = True

    for answer in (garbage, torn):
        with server(answer, b"") as address:
            with pytest.raises(StorageError, match=f"{address} cannot be reached"):
                inspect_here(f"{address}/prompts.csv")


def test_a_web_server_is_no_folder_and_takes_no_output() -> None:
    for url in ("http://127.0.0.1:1/", "http://127.0.0.1:1/x/*.csv", "https://host/folder", "http://host"):
        with pytest.raises(InputError, match=r"over http\(s\) one .* file is read, no folder and no glob"):
            inspect_here(url)
    with pytest.raises(StorageError, match=r"http:// is only read here. Choose a folder on disk or on s3://"):
        Folder("http://127.0.0.1:1/x").probe()


def test_what_is_asked_for_to_see_whether_a_store_answers() -> None:
    assert asked_for("s3://bucket/deep/p.csv") == ("s3://bucket", "-")
    point = "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/point"
    assert asked_for(f"{point}/deep/p.csv") == (point, "-")
    assert asked_for("s3://arn:aws:s3-outposts:r:1:outpost/op/accesspoint/p/x.csv")[0].endswith("/accesspoint/p")
    assert asked_for("http://host:1/deep/p.csv?x=a/b") == ("http://host:1/deep", "p.csv?x=a%2Fb")
    assert asked_for("https://host/..") == ("https://host", "-")


@pytest.mark.parametrize("path", ["a\0b", "s3://b/..", "s3://b/x/../a.csv", "http://h/..", "gs://b/./x", "in/\0.csv"])
def test_paths_that_name_nothing_are_one_line(path: str) -> None:
    with pytest.raises(InputError, match="no path holds a NUL, and no URL a part"):
        inspect_here(path)


# ---- object stores


@pytest.mark.s3
def test_keys_with_empty_parts_are_read(s3: Any) -> None:
    storage = StorageOptions(endpoint_url=s3.endpoint_url)
    folder = Folder(f"s3://{s3.bucket()}/pre", storage)
    folder.write("a.csv", b"prompt\na\n")
    for prefix, name in (("", "b"), ("/x", "c"), ("/x/", "d"), ("/lang=en/", "e")):
        folder.below(prefix).write(f"{name}.csv", f"prompt\n{name}\n".encode())
    assert sorted(prompts(folder.url, storage=storage)) == ["a", "b", "c", "d", "e"]
    for place, prompt in (("/b.csv", "b"), ("x//c.csv", "c"), ("x///d.csv", "d")):
        assert prompts(f"{folder.url}/{place}", storage=storage) == [prompt]
    root = Folder(f"s3://{s3.bucket()}", storage)
    root.write("a.csv", b"prompt\na\n")
    root._backend().fs.call_s3("put_object", Bucket=root.url[5:], Key="/odd.csv", Body=b"prompt\nx\n")
    root._backend().fs.call_s3("put_object", Bucket=root.url[5:], Key="x/../y.csv", Body=b"prompt\nx\n")
    assert prompts(root.url, storage=storage) == ["a"]
    assert "2 objects whose keys no path can name" in notes(root.url, storage=storage)


@pytest.mark.s3
def test_a_store_is_sorted_as_a_disk_is(s3: Any) -> None:
    storage = StorageOptions(endpoint_url=s3.endpoint_url)
    folder = Folder(f"s3://{s3.bucket()}/in", storage)
    folder.write("a.csv", b"prompt\na\n")
    for key in ("b.json", "_SUCCESS", "run/plan/0001/part-0.parquet", "run/job.yaml", "run/images/x/y.png"):
        folder.write(key, b"x")
    folder.write("lang=en/c.csv", b"prompt\nc\n")
    assert prompts(folder.url, storage=storage) == ["a", "c"]
    said = notes(folder.url, storage=storage)
    for words in ("another kind (b.json)", "underscored file (_SUCCESS)", "run folder of earlier jobs (run/)"):
        assert words in said
    assert "png" not in said
    folder.write("_delta_log/0.json", b"{}")
    for path in (folder.url, f"{folder.url}/*.csv", f"{folder.url}/lang=en"):
        with pytest.raises(InputError, match=r"/in: a Delta Lake table"):
            inspect_here(path, storage=storage)


@pytest.mark.parametrize("where", ["a.txt", "*.txt"])
def test_a_text_file_that_is_named_has_a_prompt_a_line(tmp_path: Path, where: str) -> None:
    (tmp_path / "a.txt").write_bytes(b'a red fox\n\na "blue, small" dog\r\n  two spaces\n')
    found = inspect_here(tmp_path / where)
    assert [row["prompt"] for row in rows_of(found)] == ["a red fox", 'a "blue, small" dog', "  two spaces"]


def test_text_files_of_a_folder_are_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("read me\n")
    (tmp_path / "a.csv").write_text("prompt\ncat\n")
    found = inspect_here(tmp_path)
    assert [row["prompt"] for row in rows_of(found)] == ["cat"]
    assert [note for note in found.notes if "README.txt" in note]


def test_a_list_in_another_encoding_or_with_old_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\ntwo\n".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"a\.txt:1: .*holds NUL characters\. If it is UTF-16, set"):
        inspect_here(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"one\rtwo\r\rthree\r")
    assert [row["prompt"] for row in rows_of(inspect_here(tmp_path / "b.txt"))] == ["one", "two", "three"]
