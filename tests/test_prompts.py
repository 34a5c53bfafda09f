"""Prompt tables: formats, columns, bad input and its messages, ids and seeds."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.files.readers import InputError, read_batches
from pipelines.files.tables import find_files
from pipelines.prompts import duplicates as equal_rows
from pipelines.prompts.canonical_rows import MAX_SEED, derived_seed, id_key
from pipelines.prompts.columns import json_type, resolve_columns
from pipelines.prompts.duplicates import find_equal_rows
from pipelines.prompts.slices import cut_slices, task_lists
from pipelines.prompts.two_passes import inspect, raise_aborted, rows
from pipelines.storage.folder import Folder, StorageOptions
from tests.inputs import inspect_here, rows_of, source


def planned(path: Path | str, **changes: Any) -> list[dict[str, Any]]:
    return rows_of(inspect_here(path, **changes))


def write(path: Path, content: str | bytes | dict[str, Any] | pa.Table | list) -> Path:
    """Bytes as they are, text as UTF-8, columns as Parquet, a list as JSONL."""
    if isinstance(content, dict | pa.Table):
        pq.write_table(pa.table(content), path)
    elif isinstance(content, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- formats


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    content = {"prompt": ["a cat", "a dog"], "seed": [1, 2], "guidance_scale": [7.0, 2.5], "tag": ["x", "y"]}
    lines = [",".join(content)] + [",".join(map(str, row)) for row in zip(*content.values(), strict=True)]
    text = "\n".join(lines) + "\n"
    files = [
        write(tmp_path / "a.parquet", content),
        write(tmp_path / "a.csv", text),
        write(tmp_path / "bom.csv", b"\xef\xbb\xbf" + text.encode()),
        write(tmp_path / "crlf.csv", text.replace("\n", "\r\n")),
        write(tmp_path / "a.tsv", text.replace(",", "\t")),
        write(
            tmp_path / "a.jsonl", [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
        ),
        write(tmp_path / "a.csv.gz", gzip.compress(text.encode())),
    ]
    expected = planned(files[0])
    assert [row["seed"] for row in expected] == [1, 2]
    assert [row["tag"] for row in expected] == ["x", "y"]
    for file in files[1:]:
        assert planned(file) == expected, file.name


def test_csv_quotes_commas_newlines_and_blank_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", 'prompt,note\n"a ""big"" cat,\nsitting",1\n\nplain,"2"\n')
    assert [(row["prompt"], row["note"]) for row in planned(file)] == [('a "big" cat,\nsitting', "1"), ("plain", "2")]


def test_tsv_keeps_quotes_that_are_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", 'Prompt\tCategory\n"G I G" painted\tArt\n"the word ""Fly"""\tArt\n')
    assert [(row["prompt"], row["category"]) for row in planned(file)] == [
        ('"G I G" painted', "Art"),
        ('the word "Fly"', "Art"),
    ]


def test_folder_and_glob_take_known_files_sorted_by_path(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "z.csv", "prompt\nlast\n")
    write(tmp_path / "b" / "x.jsonl", [{"prompt": "middle"}])
    write(tmp_path / "a.parquet", {"prompt": ["first"]})
    write(tmp_path / "README.md", "no")
    write(tmp_path / "_SUCCESS.csv", "")
    write(tmp_path / ".hidden.csv", "")
    assert [row["prompt"] for row in planned(tmp_path)] == ["first", "middle", "last"]
    assert [row["prompt"] for row in planned(f"{tmp_path}/*.csv")] == ["last"]
    assert [row["prompt"] for row in planned(f"{tmp_path}/**/*.jsonl")] == ["middle"]
    assert [row["prompt"] for row in planned(f"file://{tmp_path}/a.parquet")] == ["first"]


def test_half_characters_and_nuls_keep_the_prompt(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        b'{"prompt": "a \\ud800 cat"}\n{"prompt": "nul \\u0000 dog"}\n{"prompt": "\\ud83d\\ude00"}\n',
    )
    assert [row["prompt"] for row in planned(file)] == ["a \ufffd cat", "nul \0 dog", "\U0001f600"]
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], "i4")), pa.py_buffer(b"a\xffb")]
    )
    assert [row["prompt"] for row in planned(write(tmp_path / "a.parquet", {"prompt": broken}))] == ["a\ufffdb"]


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"p{i}" for i in range(10_000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3000)
    (file,) = find_files(str(tmp_path), StorageOptions())
    assert file.row_groups == (3000, 3000, 3000, 1000)
    batches = list(read_batches(file, (1, 3)))
    assert [name for batch in batches for name in batch["prompt"].to_pylist()] == [
        f"p{i}" for i in [*range(3000, 6000), *range(9000, 10_000)]
    ]
    assert [row["prompt"] for row in planned(tmp_path, limit=3001)] == [f"p{i}" for i in range(3001)]


def test_small_files_share_a_task_and_large_ones_do_not(tmp_path: Path) -> None:
    for index in range(60):
        write(tmp_path / f"{index:02d}.csv", "prompt\na\n")
    pieces = cut_slices(find_files(str(tmp_path), StorageOptions()), None)
    lists = task_lists(pieces)
    assert [index for indices in lists for index in indices] == list(range(60))
    assert len(lists) == 2


# ---- columns


@pytest.mark.parametrize("name", ["prompt", "Prompt", "PROMPTS", "caption", "Text"])
def test_prompt_column_by_its_usual_names(tmp_path: Path, name: str) -> None:
    assert planned(write(tmp_path / "a.csv", f"{name},Category\na cat,animals\n"))[0]["category"] == "animals"


def test_explicit_columns_win_and_the_others_are_carried(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "prompt,text,my_seed,seed,status\nA,B,5,6,new\n")
    found = inspect_here(file, columns={"prompt": "text", "seed": "my_seed"})
    (row,) = rows_of(found)
    assert (row["prompt"], row["seed"], row["input_prompt"], row["input_seed"]) == ("B", 5, "A", "6")
    assert row["input_status"] == "new"
    assert len(found.notes) == 3
    assert "column 'status' is carried as 'input_status'" in " ".join(found.notes)


def test_carried_columns_keep_their_types(tmp_path: Path) -> None:
    table = pa.table(
        {"prompt": ["a"], "n": pa.array([1], pa.int16()), "tags": [["x", "y"]], "when": pa.array([0], pa.date32())}
    )
    found = inspect_here(write(tmp_path / "a.parquet", table))
    assert found.carried_schema == table.schema.remove(0)
    assert rows_of(found)[0]["tags"] == ["x", "y"]


def test_csv_carries_strings_untouched(tmp_path: Path) -> None:
    row = planned(write(tmp_path / "a.csv", "prompt,code,negative_prompt,note\na,007,,\n"))[0]
    assert (row["code"], row["negative_prompt"], row["note"]) == ("007", None, "")


def test_jsonl_columns_are_unified_or_kept_as_json(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": "a", "n": 1, "mix": 1, "deep": {"k": [1]}}, {"prompt": "b", "tags": ["x"]}])
    write(tmp_path / "b.jsonl", [{"prompt": "c", "n": 2.5, "mix": "s", "none": None, "negative_prompt": ""}])
    found = inspect_here(tmp_path)
    types = {column.name: str(column.type) for column in found.carried_schema}
    assert types == {"n": "double", "mix": "string", "deep": "string", "tags": "list<item: string>", "none": "string"}
    one, two, three = rows_of(found)
    assert (one["n"], one["mix"], one["deep"], one["tags"]) == (1.0, "1", '{"k": [1]}', None)
    assert (two["n"], two["tags"], two["negative_prompt"]) == (None, ["x"], None)
    assert (three["mix"], three["negative_prompt"]) == ("s", "")


def test_json_types() -> None:
    assert json_type([1, None]) == pa.int64()
    assert json_type([2**70]) is None
    assert json_type([1, "a"]) is None
    assert json_type([{"a": 1}]) is None


def test_two_files_with_another_type_of_one_column_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": ["a"], "n": [1]})
    write(tmp_path / "b.parquet", {"prompt": ["a"], "n": ["x"]})
    with pytest.raises(InputError, match=r"'n' holds int64 in .*a\.parquet but string in .*b\.parquet"):
        inspect_here(tmp_path)


def test_two_spellings_of_one_name() -> None:
    assert resolve_columns(["prompt", "seed", "Seed"], {}, "here") == {"prompt": "prompt", "seed": "seed"}
    with pytest.raises(InputError, match="2 columns may be the seed: SEED, Seed"):
        resolve_columns(["prompt", "SEED", "Seed"], {}, "here")


# ---- bad rows


@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        ({"prompt": None}, "InvalidPrompt", "the prompt is null"),
        ({"prompt": ""}, "InvalidPrompt", "the prompt is empty"),
        ({"prompt": " \t\n"}, "InvalidPrompt", "the prompt is empty"),
        ({"prompt": 5}, "InvalidPrompt", "prompt must be text, not 5"),
        ({"seed": -1}, "InvalidSeed", "not -1"),
        ({"seed": 2**64}, "InvalidSeed", "not 18446744073709551616"),
        ({"seed": 1.5}, "InvalidSeed", "seed must be a whole number from 0 to 18446744073709551615, not 1.5"),
        ({"seed": "abc"}, "InvalidSeed", "not 'abc'"),
        ({"seed": True}, "InvalidSeed", "not 'True'"),
        ({"guidance_scale": -0.5}, "InvalidGuidance", "not -0.5"),
        ({"guidance_scale": 10**400}, "InvalidGuidance", "not 1000"),
        ({"width": 100}, "InvalidSize", "width must be a multiple of 8 from 8 to 4096, not 100"),
        ({"height": 0}, "InvalidSize", "height must be"),
        ({"width": 8192}, "InvalidSize", "not 8192"),
        ({"num_inference_steps": 0}, "InvalidSteps", "must be a whole number from 1 to 1000, not 0"),
        ({"num_inference_steps": [1]}, "InvalidSteps", "not '[1]'"),
    ],
)  # fmt: skip
def test_bad_rows_stay_rows_with_their_reason(tmp_path: Path, fields: dict, kind: str, says: str) -> None:
    file = write(tmp_path / "a.jsonl", [{"prompt": "good"}, {"prompt": "bad", "seed": 7} | fields])
    found = inspect_here(file)
    good, bad = rows_of(found)
    assert (good["error_type"], good["error_message"]) == ("", "")
    assert bad["error_type"] == kind
    assert says in bad["error_message"]
    assert found.bad_rows == 1
    assert f"a.jsonl row 2: {bad['error_message']}" in found.bad_samples[0]
    assert bad["seed"] == (7 if "seed" not in fields else derived_seed(bad["id"]))
    assert 0 <= bad["guidance_scale"] < 1e9
    assert (bad["width"], bad["height"]) == (64, 64)


def test_numbers_are_read_from_text_and_floats(tmp_path: Path) -> None:
    text = planned(write(tmp_path / "a.csv", "prompt,seed,width,num_inference_steps\na, 42 ,128.0,20\nb,,,\n"))
    table = {
        "prompt": ["a", "b"],
        "seed": [42.0, None],
        "width": [128, None],
        "num_inference_steps": pa.array([20, None], pa.int8()),
    }
    assert text == planned(write(tmp_path / "a.parquet", table))
    assert [(row["seed"], row["width"], row["num_inference_steps"], row["seed_pinned"]) for row in text] == [
        (42, 128, 20, True),
        (text[1]["seed"], 64, None, False),
    ]


def test_highest_seed_leaves_room_for_the_samples(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", f"prompt,seed\na,{MAX_SEED}\n")
    assert planned(file)[0]["seed"] == MAX_SEED
    assert {row["error_type"] for row in planned(file, images_per_prompt=2)} == {"InvalidSeed"}


# ---- ids and seeds


def test_equal_prompts_are_rows_of_their_own(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "prompt\ncat\ndog\ncat\ncat\n")
    found = planned(file)
    assert len({row["id"] for row in found}) == len({row["seed"] for row in found}) == 4
    assert found == planned(file)


def test_ids_depend_on_content_and_on_nothing_else(tmp_path: Path) -> None:
    one = planned(write(tmp_path / "a.jsonl", [{"prompt": "cat"}, {"prompt": "dog", "seed": 3}]))
    two = planned(write(tmp_path / "b.csv", "caption,seed,note\ndog,3,x\ncat,,y\nbird,,z\n"), images_per_prompt=1)
    assert [row["id"] for row in one] == [two[1]["id"], two[0]["id"]]
    changes = [
        {"seed": 1},
        {"guidance_scale": 7.5},
        {"width": 64},
        {"negative_prompt": ""},
        {"negative_prompt": "c"},
        {},
    ]
    same = planned(write(tmp_path / "c.jsonl", [{"prompt": "cat"} | change for change in changes]))
    assert len({row["id"] for row in same}) == len(changes)
    assert len(one[0]["id"]) == 20


def test_images_per_prompt(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "id,prompt,seed\na,cat,10\n,dog,\n")
    found = planned(file, images_per_prompt=3)
    assert [(row["id"], row["prompt_id"], row["sample"], row["seed"]) for row in found[:3]] == [
        ("a-0", "a", 0, 10), ("a-1", "a", 1, 11), ("a-2", "a", 2, 12)
    ]  # fmt: skip
    assert [row["id"] for row in found[3:]] == [f"{found[3]['prompt_id']}-{sample}" for sample in range(3)]
    assert len({row["seed"] for row in found}) == 6
    assert all(row["seed"] == derived_seed(row["id"]) < 2**32 for row in found[3:])


def test_a_given_id_that_equals_a_derived_one_is_told_apart(tmp_path: Path) -> None:
    derived = planned(write(tmp_path / "a.csv", "prompt\ncat\n"))[0]["id"]
    found = planned(write(tmp_path / "b.csv", f"id,prompt\n,cat\n{derived},other\n"))
    assert found[1]["id"] == derived != found[0]["id"]


def test_occurrences_against_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        size = int(random.integers(1, 60))
        names = random.integers(0, int(random.integers(1, 40)), size)
        given = random.random(size) < 0.3
        keys = np.array([id_key(str(name)) for name in names], "S16")
        cuts = [0, *sorted(random.integers(0, size + 1, 3).tolist()), size]
        monkeypatch.setattr(equal_rows, "SHARE_ROWS", int(random.integers(1, 60)))
        found = find_equal_rows([(keys[a:b], given[a:b]) for a, b in pairwise(cuts)])
        numbers: dict[int, int] = {}
        for row, name in enumerate(names):
            if not given[row]:
                before = int(np.sum((names[:row] == name) & ~given[:row]))
                number = before + bool(np.any((names == name) & given))
                if number:
                    numbers[row] = number
        assert dict(zip(found.rows.tolist(), found.numbers.tolist(), strict=True)) == numbers
        twice = [np.flatnonzero((names == name) & given)[:2] for name in np.unique(names)]
        pairs = sorted((tuple(map(int, rows)) for rows in twice if len(rows) == 2), key=lambda pair: pair[1])
        assert found.num_given_twice == len(pairs)
        assert found.given_twice == tuple(pairs[:3])


def test_limit_is_the_first_prompts_with_the_same_ids_and_seeds(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "prompt\n" + "cat\ndog\n" * 4)
    write(tmp_path / "b.jsonl", [{"prompt": "cat"}, {"prompt": ""}, {"prompt": "x", "seed": -1}])
    everything = planned(tmp_path)
    for limit in range(1, 12):
        found = inspect_here(tmp_path, limit=limit)
        assert rows_of(found) == everything[:limit]
        assert found.bad_rows == max(0, limit - 9)


# ---- input that is refused


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "the file is empty, it has no header line"),
        ("a.csv", "prompt\n", "there are no rows"),
        ("a.jsonl", "", "there are no rows"),
        ("a.parquet", {"prompt": pa.array([], pa.string())}, "there are no rows"),
        ("a.parquet", b"PAR1 torn", r"a\.parquet: not a complete parquet file .* torn or of another kind"),
        ("a.parquet", b"", "not a complete parquet file"),
        ("a.csv", "prompt,seed\na,1\nb\n", r"a\.csv:3: 1 fields where the header has 2"),
        ("a.csv", 'prompt,seed\n"a\nb",1,2\n', r"a\.csv:2: 3 fields"),
        ("a.csv", 'prompt\n"a cat\n', r"a\.csv:2: .*quotes do not match, or the file is torn"),
        ("a.tsv", "prompt\tseed\na\t1\t2\n", r"a\.tsv:2: 3 fields .* Quote fields that hold a tab"),
        ("a.csv", "prompt\n\xe9\n".encode("latin-1"), "not UTF-8 .* Save the file as UTF-8"),
        ("a.csv", "prompt\na\n".encode("utf-16"), "not UTF-8"),
        ("a.jsonl", '{"prompt": "a"}\n{"prom', r"a\.jsonl:2: not a JSON object .* or the file is torn"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: not a JSON object. Write one object a line"),
        ("a.csv.gz", gzip.compress(b"prompt\n" + b"a cat\n" * 999, mtime=0)[:-9], "not a complete csv file"),
        ("a.csv", "name,seed\na,1\n", r"no prompt column; its columns are name, seed. .*input\.columns: {prompt: "),
        ("a.jsonl", '{"name": "a"}\n', "no prompt column; its columns are name"),
        ("a.csv", "Prompt,caption,n\na,b,1\n", r"2 columns may be the prompt: Prompt, caption\. .*{prompt: Prompt}"),
        ("a.csv", "prompt,prompt\na,b\n", "column 'prompt' is there more than once"),
        ("a.csv", "id,prompt\n1,a\n2,b\n1,c\n", r"ids are given twice: '1' \(.*row 1 and .*a\.csv row 3\)\. Make"),
        ("a.parquet", {"prompt": [1, 2]}, "column 'prompt' holds int64, but prompt must be text"),
        ("a.parquet", {"prompt": ["a"], "seed": [[1]]}, "column 'seed' holds list<.*>, but seed must be numbers"),
        ("a.parquet", {"prompt": ["a"], "id": [1.5]}, "column 'id' holds double, but id must be text or whole numbers"),
        ("a.doc", "a cat\n", r"unknown kind of file. Give a \.parquet, \.csv"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_place_and_remedy(tmp_path: Path, name: str, content: Any, says: str) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(InputError, match=says) as caught:
        inspect_here(file)
    assert str(tmp_path) in str(caught.value)


def test_missing_input_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.csv", tmp_path / "no", f"{tmp_path}/*.csv"):
        with pytest.raises(InputError, match=r"no such file or folder|no \.parquet.* file matches"):
            inspect_here(path)
    with pytest.raises(InputError, match="the folder holds no"):
        inspect_here(tmp_path)


def test_second_prompt_key_late_in_a_jsonl_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"prompt": "a"}] * 5000 + [{"text": "b", "prompt": "c"}])
    with pytest.raises(InputError, match="2 columns may be the prompt: prompt, text"):
        inspect_here(file)


def test_torn_row_group_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"prompt": [f"{i} cats" for i in range(9999)]})
    data = bytearray(file.read_bytes())
    data[100:20_000] = bytes(19_900)
    file.write_bytes(data)
    with pytest.raises(InputError, match="not a complete parquet file"):
        inspect_here(file)


def test_file_that_changed_between_the_passes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "prompt\ncat\n")
    found = inspect_here(file)
    write(file, "prompt\ncat\ndog\n")
    with pytest.raises(InputError, match="changed while it was being planned"):
        rows_of(found)


# ---- on Ray


@pytest.mark.ray
def test_rows_on_ray_are_those_without_it(ray_cluster: Any, tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"p{i % 7000}" for i in range(12_000)], "n": pa.array(range(12_000), pa.int16())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2500)
    write(tmp_path / "b.jsonl", [{"prompt": f"q{i % 3}", "n": i} for i in range(9)])
    write(tmp_path / "c.csv", "prompt,n2\nlast,\n")
    found = inspect(source(tmp_path, images_per_prompt=2))
    assert (found.rows, found.num_planned, found.bad_rows) == (12_010, 24_020, 0)
    expected = rows_of(inspect_here(tmp_path, images_per_prompt=2))
    got = raise_aborted(
        pa.concat_tables(rows(found, block_bytes=1 << 18).iter_batches(batch_size=None, batch_format="pyarrow"))
    )
    assert got.to_pylist() == expected
    keys = np.sort(np.array([id_key(row["id"]) for row in expected[1000:]], "S16"))
    left = [row["id"] for row in rows(found, keys).iter_rows()]
    assert left == [row["id"] for row in expected[:1000]]


@pytest.mark.ray
def test_errors_of_tasks_reach_the_driver_as_they_are(ray_cluster: Any, tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "prompt\ncat\n")
    write(tmp_path / "b.csv", "prompt\ncat\nx,y\n")
    with pytest.raises(InputError, match=r"b\.csv:3: 2 fields where the header has 1"):
        inspect(source(tmp_path))
    with pytest.raises(InputError, match=r"input\.columns: colour is no canonical column"):
        inspect(source(tmp_path, columns={"colour": "x"}))
    write(tmp_path / "b.csv", "prompt\ncat\n")
    with pytest.raises(InputError, match=r"input\.columns names 'x', which .* does not have"):
        inspect(source(tmp_path, columns={"seed": "x"}))
    found = inspect(source(tmp_path))
    (tmp_path / "b.csv").unlink()
    with pytest.raises(InputError, match=r"b\.csv: the file changed"):
        raise_aborted(pa.concat_tables(rows(found).iter_batches(batch_size=None, batch_format="pyarrow")))


@pytest.mark.ray
@pytest.mark.s3
def test_prompts_on_s3(ray_cluster: Any, s3: Any) -> None:

    storage = StorageOptions(endpoint_url=s3.endpoint_url)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": ["cat", "dog"]}), sink)
    folder = Folder(f"s3://{s3.bucket()}", storage)
    folder.write("in/a.parquet", sink.getvalue().to_pybytes())
    folder.write("in/b.csv", b"prompt\nbird\n")
    for path in (folder.url_of("in"), folder.url_of("in/*")):
        found = inspect(source(path, storage=storage))
        assert [row["prompt"] for row in rows(found).iter_rows()] == ["cat", "dog", "bird"]
    assert inspect(source(folder.url_of("in/b.csv"), storage=storage)).rows == 1
    with pytest.raises(InputError, match="no such file or folder"):
        inspect(source(folder.url_of("nowhere.csv"), storage=storage))
