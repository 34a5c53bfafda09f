"""Bad inputs by the thousand, each from one seed: prompt tables of every format, job files, ids, prompts, trees.

Generators only; what must hold of whatever reads them is in tests/test_faults_input.py.
"""

import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCRIPT = "<script>alert(1)</script>"
TEXTS = (
    "a red fox",
    "",
    " ",
    "\0",
    "a\0b",
    "\ufffe",
    "\ufeffprompt",
    "\u202egnirts",
    "é́́",
    "🦊" * 50,
    "x" * 10_000,
    SCRIPT,
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE rows; --",
    "=HYPERLINK(0)",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "%s%n%x",
    "a,b",
    'a"b',
    "a\tb",
    "a\nb",
    "a\r\nb",
    "null",
    "NaN",
    "1e400",
    "-0",
)
IDS = (
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "...",
    "a/b",
    "a\\b",
    "C:\\x",
    "A",
    "a",
    "ﬀ",
    "K",  # KELVIN SIGN: its lower case is a plain k
    "x" * 10_000,
    "a" * 80,
    "a" * 81,
    "con",
    "nul.txt",
    ".tmp-0123",
    "a\0b",
    "a\nb",
    "-rf",
    "~",
    "$HOME",
    "%2e%2e%2f",
    "s3://bucket/x",
    "a#b",
    "a?b",
    " a ",
    "é",
    "é",
    "\u202e",
)
NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    7,
    8,
    16,
    4096,
    4104,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63),
    2**200,
    1.5,
    1e308,
    float("inf"),
    float("nan"),
    True,
    None,
    "",
    "16",
    "1_6",
    "0x10",
    "1e3",
    "9" * 5000,
    [],
    {},
    "null",
)
NAMES = (
    "prompt",
    "Prompt",
    "prompts",
    "caption",
    "text",
    "id",
    "ID",
    "negative_prompt",
    "seed",
    "guidance_scale",
    "width",
    "height",
    "num_inference_steps",
    "category",
    "shard",
    "uri",
    "sha256",
    "input_uri",
    "input_shard",
    "error_type",
    "status",
    "scores",
    "tries",
    "budget_scores",
    "prompt_id",
    "sample",
    "note",
    "a.b",
    "a/b",
    " ",
    "\0",
    "x" * 300,
    SCRIPT,
    "__index_level_0__",
)
PROMPTS = ("prompt", "prompts", "caption", "text")
NUMERIC = ("seed", "guidance_scale", "width", "height", "num_inference_steps")
KINDS: tuple[pa.DataType, ...] = (
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.int8(),
    pa.int64(),
    pa.uint64(),
    pa.float32(),
    pa.float64(),
    pa.bool_(),
    pa.null(),
    pa.date32(),
    pa.timestamp("ns"),
    pa.time64("us"),
    pa.duration("s"),
    pa.decimal128(20, 3),
    pa.list_(pa.string()),
    pa.list_(pa.list_(pa.int32())),
    pa.struct([("a", pa.string())]),
    pa.map_(pa.string(), pa.int32()),
    pa.dictionary(pa.int8(), pa.string()),
    pa.binary(4),
)


def names(draw: random.Random) -> list[str]:
    """Column names, mostly with one prompt among them."""
    found = draw.sample(NAMES, draw.randint(1, 6))
    if draw.random() < 0.15:
        return found
    others = {name.lower(): name for name in found if name.lower() not in PROMPTS}
    return draw.sample([*others.values(), draw.choice(("prompt", "Caption"))], len(others) + 1)


def value(draw: random.Random, name: str) -> Any:
    """A cell: what its column may hold, or something else."""
    if draw.random() < 0.06:
        return draw.choice((None, [1, "a"], {"a": {"b": []}}, True, draw.choice(NUMBERS), draw.choice(TEXTS)))
    if name == "id":
        return draw.choice(IDS) + draw.choice(("", *(str(draw.randrange(10**6)) for _ in range(6))))
    return draw.choice(NUMBERS) if name in NUMERIC else draw.choice(TEXTS)


def text_table(draw: random.Random) -> tuple[str, bytes]:
    """(ending, bytes) of a CSV, TSV or JSONL file, sound or not, packed or not."""
    ending = draw.choice(("csv", "tsv", "jsonl"))
    columns, rows = names(draw), draw.randrange(8)
    if ending == "jsonl":
        lines = [_json_line(draw, columns) for _ in range(rows)]
    else:
        mark = "," if ending == "csv" else "\t"
        cells = [columns, *([_cell(draw, name) for name in columns] for _ in range(rows))]
        lines = [mark.join(line[: draw.randint(1, 9)] if draw.random() < 0.03 else line) for line in cells]
    text = draw.choice(("\n", "\n", "\r\n", "\r")).join(lines) + draw.choice(("", "\n", "\n\n"))
    data = text.encode(draw.choice(("utf-8",) * 6 + ("utf-8-sig", "utf-16")), "surrogatepass")
    data = broken(draw, data) if draw.random() < 0.3 else data
    if draw.random() < 0.15:
        packed = gzip.compress(data, 1)
        return f"{ending}.gz", broken(draw, packed) if draw.random() < 0.5 else packed
    return ending, data


def _cell(draw: random.Random, name: str) -> str:
    text = str(value(draw, name))
    if draw.random() < 0.9:
        return '"' + text.replace('"', '""') + '"'
    return text


def _json_line(draw: random.Random, columns: list[str]) -> str:
    odd = draw.random()
    if odd < 0.02:
        return draw.choice(("[" * 3000, "{", "[]", '"a"', "NaN", "1" * 6000, "", "  ", '{"a":' * 2000, "\x00"))
    row = {name: value(draw, name) for name in columns if draw.random() < 0.9}
    text = json.dumps(row, ensure_ascii=draw.random() < 0.5)
    return text.replace("fox", "\\ud800") if draw.random() < 0.2 else text


def parquet_table(draw: random.Random) -> tuple[str, bytes]:
    """A Parquet file of odd types, often torn."""
    columns = {name: _array(draw, name) for name in names(draw)}
    buffer = io.BytesIO()
    table = pa.table(columns)
    if draw.random() < 0.1:
        table = table.append_column(table.column_names[0], table.column(0))
    pq.write_table(
        table,
        buffer,
        row_group_size=draw.choice((1, 2, 100)),
        compression=draw.choice(("none", "snappy", "gzip", "zstd")),
        use_dictionary=draw.random() < 0.5,
    )
    data = buffer.getvalue()
    return "parquet", broken(draw, data) if draw.random() < 0.4 else data


def _array(draw: random.Random, name: str) -> pa.Array:
    """Four values of a type that the column should have, or of any other."""
    if draw.random() < 0.7 and name not in NUMERIC:
        return pa.array([str(value(draw, name)) for _ in range(4)], pa.string())
    kind = draw.choice(KINDS)
    for given in (draw.sample(NUMBERS[:12], 4), draw.sample(TEXTS, 4), [b"\xff\xfe", b"\xed\xa0\x80", b"", b"a"]):
        try:
            return pa.array(given, kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
    return pa.nulls(4, kind)


def broken(draw: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled or put in."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(found) + 1)
        what = draw.choice(("flip", "flip", "cut", "double", "zero", "insert"))
        if what == "flip" and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif what == "cut":
            del found[at : at + draw.choice((1, 8, len(found)))]
        elif what == "double":
            found[at:at] = found[at : at + 64]
        elif what == "zero":
            found[at : at + 8] = bytes(8)
        else:
            found[at:at] = draw.choice((b"\0", b"\xff\xfe", b'"', b"\n", b"PAR1", draw.randbytes(4)))
    return bytes(found)


KEYS = (
    "input.path",
    "input.columns",
    "input.images_per_prompt",
    "input.limit",
    "steps.choices",
    "steps.selector",
    "steps.fixed",
    "steps.price",
    "steps.min",
    "sampling.width",
    "sampling.guidance_interval",
    "pools",
    "pools.0.actors",
    "pools.0.resources.spot",
    "pools.0.lanes",
    "pools.9.name",
    "output.path",
    "output.format",
    "storage.endpoint_url",
    "storage.put_options",
    "failures.max_fraction",
    "quality",
    "model.path",
    "model.device",
    "version",
    "input",
    "steps",
    "a.b.c",
    "",
    ".",
    "pools.-1",
)
SCALARS = (
    "null",
    "~",
    "true",
    "yes",
    "0",
    "-1",
    "1e400",
    ".nan",
    ".inf",
    "9" * 5000,
    "0x" + "f" * 300,
    "0o7",
    "1:2:3:4",
    "2026-99-99",
    "2026-01-01",
    "2026-01-01 99:99:99",
    "!!python/object/apply:os.system [touch pwned]",
    "!!binary aGk=",
    "!!binary '*'",
    "!!set {a, b}",
    "!!timestamp x",
    "!!int x",
    "!!float x",
    "!!bool x",
    "!x y",
    "<<",
    "=",
    "&a [*a]",
    "*nowhere",
    "[[[[]]]]",
    "{a: {b: {c: d}}}",
    "{? [a]: b}",
    "'\\ud800'",
    '"\\ud800"',
    '"\\0"',
    '"\\x00"',
    "s3://user:password@bucket/x",
    "http://user:pw@host",
    "http://[",
    "https://[::1",
    "file:///etc/passwd",
    "../../x",
    "|\n  text",
    "- a",
    "? a",
    "%TAG",
    "@x",
    "`x`",
    "\t",
    "[1, 2, 2]",
    "[0.9, 0.1]",
    "{min: 3, max: 1}",
    "[{name: a}, {name: a}]",
    "[{scorer: 'os:system'}]",
    "x" * 20_000,
)
PLAUSIBLE = ("1", "2", "0.5", "null", "a", "s3://bucket/a", "{}", "[2, 4]", "ddim", "jpeg", "all", "auto") * 3
SOUND = """\
version: 1
model: {path: null, dtype: auto}
input: {path: prompts.csv, columns: {prompt: text}, images_per_prompt: 2}
steps: {selector: words, choices: [2, 4, 8]}
sampling: {solver: ddim, guidance_scale: 7.5}
pools:
  - {name: default, actors: 2, lanes: 8}
output: {path: out, layout: files, format: png}
failures: {max_fraction: 0.01}
"""


def job_file(draw: random.Random) -> tuple[str, list[str]]:
    """(text, values of --set)."""
    shape = draw.random()
    if shape < 0.4:
        text = broken(draw, SOUND.encode()).decode("utf-8", "surrogateescape" if draw.random() < 0.3 else "replace")
    elif shape < 0.8:
        text = SOUND
        if draw.random() < 0.2:
            text += "\n".join(f"{draw.choice(KEYS) or 'x'}: {draw.choice(SCALARS)}" for _ in range(3))
        elif draw.random() < 0.7:
            lines = SOUND.splitlines(keepends=True)
            at = draw.randrange(len(lines))
            lines[at] = f"{lines[at].partition(':')[0]}: {draw.choice(SCALARS)}\n"
            text = "".join(lines)
    else:
        text = draw.choice(MONSTERS)(draw)
    sets = [f"{draw.choice(KEYS)}={draw.choice((*SCALARS, *PLAUSIBLE))}" for _ in range(draw.choice((0, 0, 1, 1, 3)))]
    return text, sets


def _bomb(draw: random.Random) -> str:
    """Each level names the one before it nine times."""
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines)


def _merge_bomb(draw: random.Random) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n  k{n}: 1" for n in range(1, 9)]
    return "\n".join(lines)


MONSTERS: tuple[Callable[[random.Random], str], ...] = (
    _bomb,
    _merge_bomb,
    lambda draw: "[" * draw.choice((10, 200, 5000)),
    lambda draw: "{a: " * draw.choice((10, 200, 5000)),
    lambda draw: "- " * draw.choice((10, 200, 5000)) + "x",
    lambda draw: "input: " + "x" * 100_000,
    lambda draw: "\n".join(f"k{n}: {n}" for n in range(3000)),
    lambda draw: "a: &a {b: *a}",
    lambda draw: "--- a\n--- b",
    lambda draw: "\0",
    lambda draw: "",
    lambda draw: "[]",
    lambda draw: "text",
    lambda draw: "<<: 1",
    lambda draw: "<<: [1, 2]",
    lambda draw: "<<: &a {<<: *a}",
    lambda draw: "? {a: b}\n: c",
    lambda draw: "? &a [*a]\n: c",
    lambda draw: "!!map [a]",
    lambda draw: "!!seq {a: b}",
    lambda draw: "!!omap [a: b, c]",
    lambda draw: "!!pairs [a]",
    lambda draw: "!!str {a: b}",
    lambda draw: "%YAML 9.9\n---\na: b",
)


FOLDERS = (
    *(
        "a",
        "b.parquet",
        "_tmp",
        ".git",
        "x y",
        "plan",
        "metadata",
        "deep",
        "é",
        "[1]",
        "a*b",
        "q?",
        "#1",
        "100%",
        "-r",
        "~",
    ),
    *(
        "lang=en",
        "lang=de",
        "day=1",
        "day=",
        "=x",
        "a=b=c",
        "prompt=x",
        "na%2Fme=a%20b",
        "d=__HIVE_DEFAULT_PARTITION__",
    ),
    *("two\nlines", "\udcff", "\u202egpj", "CON", "s3:", "_delta_log", ".hoodie", "_spark_metadata", "part-0.csv"),
)
ENDINGS = ("csv", "jsonl", "CSV", "json", "txt", "png", "csv.gz", "csv.zst", "", "parquet.gz", "tsv", "parquet", "csv~")
LINKS = (".", "..", "../..", "/no/such", "f0.csv", "self", "deep", "../a", "f1.txt", "../self", "more.png", "f9.csv")
GLOBS = (
    "*",
    "**",
    "*.csv",
    "*.parquet",
    "[!_]*",
    "lang=*",
    "?*",
    "*=*",
    "f[0-9]*",
    "deep",
    "a",
    "*.gz",
    ".*",
    "_*",
    "[[]1]",
)
_PARQUET = io.BytesIO()
pq.write_table(pa.table({"prompt": ["x"]}), _PARQUET)
CONTENT = {
    "jsonl": b'{"prompt": "x"}\n',
    "csv.gz": gzip.compress(b"prompt\nx\n"),
    "parquet": _PARQUET.getvalue(),
}


def tree(draw: random.Random, home: Path, depth: int = 3) -> None:
    """A folder of files, folders, links (to folders around, to files, to nothing, in a ring), pipes and run folders."""
    home.mkdir()
    for number in range(draw.randint(0, 4)):
        ending = draw.choice(ENDINGS)
        name = draw.choice(("", "", "", "_", ".", "two\n", "\udcff")) + f"f{number}" + (f".{ending}" if ending else "")
        (home / name).write_bytes(CONTENT.get(ending, b"prompt\nx\n"))
    for name in draw.sample(FOLDERS, draw.randint(0, 3)) if depth else ():
        tree(draw, home / name, depth - 1)
    if draw.random() < 0.2:
        _odd_entry(draw, home)
    if draw.random() < 0.08:
        run(home / draw.choice(("run", "day=2")), draw.choice(("job.yaml", "epochs/000001.json")))


def _odd_entry(draw: random.Random, home: Path) -> None:
    path = home / draw.choice(("link", "self", "f9.csv", "more.png", "_l", ".h.csv", "lang=fr"))
    if os.path.lexists(path):
        return
    if draw.random() < 0.15:
        os.mkfifo(path)
    elif draw.random() < 0.2 and (there := next((each for each in home.iterdir() if each.is_file()), None)):
        os.link(there, path)
    else:
        path.symlink_to(draw.choice((*LINKS, home.parent / "deep", home)))


def run(path: Path, marker: str) -> None:
    """A run folder of ours."""
    for key in (
        "plan/0001/part-00000-0.parquet",
        "manifest/0001-000000.parquet",
        "images/0001-000000/1-ab/x.png",
        marker,
    ):
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(CONTENT["parquet"])


def pattern(draw: random.Random) -> str:
    """A glob of one to three parts."""
    return "/".join(draw.choice(GLOBS) for _ in range(draw.randint(1, 3)))


PARTS = (
    "",
    "",
    "a",
    "b.csv",
    "c.json",
    "_h",
    ".h",
    "x y",
    "lang=en",
    "day=1",
    ".",
    "..",
    "é",
    "#",
    "a?b",
    "[1]",
    "run",
    "%2F",
)


def keys(draw: random.Random) -> list[str]:
    """Keys of an object store: parts may be empty, dots, or what is hidden; some end in a slash."""
    found = ["/".join(draw.choice(PARTS) for _ in range(draw.randint(1, 4))) for _ in range(draw.randint(1, 8))]
    found = [key if draw.random() < 0.3 else f"{key}/f.{draw.choice(ENDINGS)}" for key in found]
    if draw.random() < 0.2:
        found += [f"run/{key}" for key in ("plan/0001/part-0.parquet", "job.yaml", "manifest/0001-000000.parquet")]
    return sorted({key for key in found if key.strip("/.")})
