"""Hostile input: thousands of generated tables, job files, ids and prompts through what `validate` and `plan` do.

Each must end as rows or as one of our own messages, within seconds, and touch no file but its own. No Ray: the tasks'
own functions are called in this process. `make faults` runs all cases, CI an eighth of them.
"""

import fnmatch
import gzip
import os
import random
import re
import shutil
import signal
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.job_file.positions import ConfigError
from jobs.job_file.read import load_job, read_job
from jobs.pages.html import report_html
from pipelines.files.chosen import tables_below
from pipelines.files.readers import InputError
from pipelines.files.tables import format_of
from pipelines.files.walk import FOLDERS, RUNS, Glob, is_hidden
from pipelines.prompts.canonical_rows import RowDefaults
from pipelines.prompts.inspection import PromptSource, assemble, open_files
from pipelines.prompts.slices import canonical_tables, cut_slices, scan
from pipelines.render.sink import Sink, encode_image
from pipelines.run.layout import RunFolder, parquet_bytes
from pipelines.run.schema import manifest_schema, planned_row
from pipelines.storage.folder import Folder, StorageError, StorageOptions
from tests.hostile import (
    CONTENT,
    IDS,
    SCRIPT,
    TEXTS,
    job_file,
    keys,
    parquet_table,
    pattern,
    text_table,
    tree,
)
from tests.inputs import inspected
from tests.s3_server import S3Server

ROOT = Path(__file__).parent.parent
SLICES = 8  # of all cases; CI runs the first
TABLES, JOBS, TREES, STORES = 6000, 6000, 2000, 160  # cases in all, of each kind; a tree is read by four paths
LIMIT_S = 20  # CPU seconds of one case: a hang, however busy the machine is
OURS = (InputError, StorageError, ConfigError)
DEFAULTS = RowDefaults(5.0, 16, 16, frozenset(range(1, 51)))
EVERY_SLICE = [
    pytest.param(n, marks=[pytest.mark.hours] if n else [], id=f"slice {n + 1} of {SLICES}") for n in range(SLICES)
]


def is_table(key: str) -> bool:
    return format_of(key) is not None


def content(key: str) -> bytes:
    return CONTENT.get(format_of(key) or "", b"prompt\nx\n") if not key.endswith(".gz") else CONTENT["csv.gz"]


class HangError(Exception):
    """A case took longer than LIMIT_S."""


@contextmanager
def watchdog(case: str) -> Iterator[None]:
    def bark(number: int, frame: FrameType | None) -> None:
        raise HangError(case)

    before = signal.signal(signal.SIGPROF, bark)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def planned(path: Path, columns: dict[str, str], samples: int) -> pa.Table:
    """What `plan` makes of a file before it chooses steps: both passes over it, and the schema of its manifests."""
    source = PromptSource(str(path), defaults=DEFAULTS, columns=columns, images_per_prompt=samples)
    files = open_files(source)
    pieces = cut_slices(files, None)
    inspection = assemble(source, files, pieces, [list(scan(piece, source.reading)) for piece in pieces])
    manifest_schema(inspection.carried_schema)
    none = (np.empty(0, np.int64), np.empty(0, np.int32))
    tables = [
        table
        for index, piece in enumerate(inspection.slices)
        for table in canonical_tables(piece, source.reading, inspection.carried, inspection.equal_rows.get(index, none))
    ]
    return pa.concat_tables(tables)


def check_rows(table: pa.Table) -> None:
    """Whatever came in, what comes out can be rendered or says why not, has ids of its own, and can be stored."""
    rows = table.to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["id"]
        assert 0 <= row["seed"] < 2**63
        assert (row["width"] % 8, row["height"] % 8) == (0, 0)
        assert 0 < row["width"] <= 4096
        assert 0 < row["height"] <= 4096
        assert 0 <= row["guidance_scale"] < float("inf")
        assert row["error_type"] or row["prompt"].strip()
        assert bool(row["error_type"]) == bool(row["error_message"])
    stored = pq.read_table(pa.BufferReader(parquet_bytes([table])))
    assert stored.schema == table.schema
    taken = pa.Table.from_pylist(stored.to_pylist(), schema=table.schema)  # as a worker does
    assert repr(taken.to_pylist()) == repr(rows)


@pytest.mark.parametrize("part", EVERY_SLICE)
@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_tables(kind: str, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ends: Counter[str] = Counter()
    for case in range(part, TABLES // 2, SLICES):
        draw = random.Random(f"{kind} {case}")
        ending, data = text_table(draw) if kind == "text" else parquet_table(draw)
        columns = draw.choice(({}, {}, {}, {"prompt": "text"}, {"id": "id", "seed": "note"}, {"nope": "x"}))
        path = tmp_path / f"in.{ending}"
        path.write_bytes(data)
        with watchdog(f"{kind} {case}"):
            try:
                check_rows(planned(path, columns, draw.choice((1, 1, 3))))
                ends["rows"] += 1
            except OURS as error:
                ends["refused" if str(error).strip() else "refused without a word"] += 1
            except Exception as error:
                raise AssertionError(f"{kind} {case}: {data[:300]!r}") from error
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name], case
        path.unlink()
    assert ends.keys() == {"rows", "refused"}
    assert ends.total() == TABLES // 2 // SLICES
    assert min(ends["rows"], ends["refused"]) > ends.total() // 20, ends  # the generator makes both


@pytest.mark.parametrize("part", EVERY_SLICE)
def test_job_files(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ends: Counter[str] = Counter()
    for case in range(part, JOBS, SLICES):
        text, sets = job_file(random.Random(f"job {case}"))
        with watchdog(f"job {case}"):
            try:
                job = read_job(text, "job.yaml", sets)
                ends["read"] += 1
                assert read_job(job.config.dump(), "job.yaml").config == job.config
            except ConfigError as error:
                said = bool(error.faults) and all(fault.message for fault in error.faults)
                ends["refused" if said else "refused without a word"] += 1
            except Exception as error:
                raise AssertionError(f"job {case}: {text[:300]!r} {[s[:80] for s in sets]}") from error
        assert list(tmp_path.iterdir()) == [], case
    assert ends.keys() == {"read", "refused"}
    assert ends.total() == JOBS // SLICES
    assert min(ends["read"], ends["refused"]) > ends.total() // 50, ends


def is_run(path: str, folders: list[str], files: list[str]) -> bool:
    marked = "plan" in folders and ("job.yaml" in files or "epochs" in folders)
    return marked and any(re.fullmatch(r"\d{4}", name) for name in os.listdir(os.path.join(path, "plan")))


def entries(home: Path) -> tuple[list[str], list[str]]:
    """(what a tree holds that is no folder to look into, links followed; the run folders), by names below it."""
    found, runs = [], []
    for at, folders, files in os.walk(home, followlinks=True):
        below = os.path.relpath(at, home) + "/" if at != str(home) else ""
        if is_run(at, folders, files):
            runs.append(below)
            folders[:] = []
            continue
        hidden = re.search(r"(^|/)[._]", below)
        links = [name for name in folders if (hidden or name[0] in "._") and os.path.islink(os.path.join(at, name))]
        around = os.path.realpath(at)
        rings = [name for name in folders if is_below(around, os.path.realpath(os.path.join(at, name)))]
        folders[:] = [name for name in folders if name not in (*links, *rings)]
        found += [f"{below}{name}" for name in (*files, *links)]
    return found, runs


def is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")


def names(parts: list[str], pattern: list[str]) -> bool:
    """Whether a glob names a path: component by component, `**` for any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return bool(parts) if len(pattern) == 1 else any(names(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and names(parts[1:], pattern[1:])


def named(key: str, glob: str) -> bool:
    """Whether a glob names a file or a folder around it."""
    parts = key.split("/")
    return any(names(parts[:length], glob.split("/")) for length in range(1, len(parts) + 1))


def is_in_a_folder_beside(home: Path, key: str, glob: str) -> bool:
    """Whether it is a table that a glob names by a folder around it alone: these are told of by the folder."""
    alone = not names(key.split("/"), glob.split("/"))
    return alone and is_table(key) and not is_hidden(key) and (home / key).is_file()


def left_out_unnamed(home: Path, glob: str | None) -> int:
    """How many entries of a tree are neither read nor counted among what is left out. OURS: the tree is refused."""
    held, runs = entries(home)
    wanted = [key for key in held if glob is None or named(key, glob)]
    read, left_out = tables_below(Folder(str(home)), str(home), is_table, Glob(glob) if glob else None)
    beside = [key for key in wanted if key not in read and glob and is_in_a_folder_beside(home, key, glob)]
    assert bool(beside) == bool(left_out.counts.get(FOLDERS))
    counts = sum(count for kind, count in left_out.counts.items() if kind not in (FOLDERS, RUNS))
    assert set(read) <= set(wanted)
    assert not any(key.startswith(run) for key in read for run in runs)
    assert glob or left_out.counts.get(RUNS, 0) == len(runs)
    assert all(note.isprintable() for note in left_out.notes())
    return len(wanted) - len(read) - len(beside) - counts


@pytest.mark.parametrize("part", EVERY_SLICE)
def test_trees(part: int, tmp_path: Path) -> None:
    """Folders, globs, links and partitions: every file is read or counted, or the tree is refused in one line."""
    ends: Counter[str] = Counter()
    for case in range(part, TREES, SLICES):
        draw, home = random.Random(f"tree {case}"), tmp_path / str(case) / "out" / "out" / "in"  # no link leads further
        home.parent.mkdir(parents=True)
        tree(draw, home)
        for glob in (None, *(pattern(draw) for _ in range(3))):
            with watchdog(f"tree {case} {glob}"):
                try:
                    assert left_out_unnamed(home, glob) == 0, (case, glob)
                    ends["read"] += 1
                except OURS as error:
                    ends["refused" if str(error).isprintable() and str(error) else "refused in no line"] += 1
        with watchdog(f"tree {case}"):
            try:
                check_rows(planned(home, {}, 1))
                ends["planned"] += 1
            except OURS as error:
                ends["refused in no line"] += not str(error).isprintable()
        shutil.rmtree(tmp_path / str(case))
    assert +ends == {each: ends[each] for each in ("read", "refused", "planned")}
    assert ends["read"] + ends["refused"] == 4 * TREES // SLICES
    assert min((+ends).values()) > ends.total() // 50, ends


@pytest.mark.s3
@pytest.mark.parametrize("part", EVERY_SLICE)
def test_keys_of_a_store(part: int, s3: S3Server) -> None:
    """Keys with empty parts, dots, slashes at their ends: every object is read or counted, or all are refused."""
    storage, ends = StorageOptions(endpoint_url=s3.endpoint_url), Counter()
    bucket = s3.bucket()
    client: Any = Folder(f"s3://{bucket}", storage)._backend()
    for case in range(part, STORES, SLICES):
        draw = random.Random(f"keys {case}")
        there = keys(draw)
        home = f"s3://{bucket}/{case}"
        for key in there:
            client.fs.call_s3("put_object", Bucket=bucket, Key=f"{case}/{key}", Body=content(key))
        with watchdog(f"keys {case}"):
            try:
                read, left_out = tables_below(Folder(home, storage), home, is_table)
                counts = sum(count for kind, count in left_out.counts.items() if kind != RUNS)
                of_run = [key for key in there if key.startswith("run/")] if RUNS in left_out.counts else []
                assert len(read) + counts == len(set(there) - set(of_run)), (case, there, read, left_out)
                ends["read"] += 1
                if case % 40 == part:  # a second each on a busy machine
                    assert inspected(PromptSource(home, defaults=DEFAULTS, storage=storage)).rows == len(read)
                    ends["planned"] += 1
            except OURS as error:
                ends["refused" if str(error).isprintable() and str(error) else "refused in no line"] += 1
    assert ends.keys() <= {"read", "refused", "planned"}
    assert ends["read"] + ends["refused"] >= STORES // SLICES
    assert ends["read"] > 1, ends


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a: \xed\xa0\x80", b"\0" * 100, bytes(2 << 20), b"\x80" * 10])
def test_job_files_of_bytes(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load_job(str(path))


# bombs: little on disk, much in memory


BOMB = 640 << 20
BOMBS = {
    "one line, jsonl.gz": ("jsonl.gz", lambda: gzip.compress(b" " * BOMB, 1)),
    "one line, tsv.gz": ("tsv.gz", lambda: gzip.compress(b"prompt\n" + b"a" * BOMB, 1)),
    "one field, csv.gz": ("csv.gz", lambda: gzip.compress(b'prompt\n"' + b"a" * BOMB, 1)),
    "one header, csv.gz": ("csv.gz", lambda: gzip.compress(b"a," * (BOMB // 2), 1)),
    "many columns, csv": ("csv", lambda: b",".join(b"c%d" % n for n in range(300_000)) + b"\n"),
    "many keys, jsonl": ("jsonl", lambda: b"".join(b'{"k%d": 1}\n' % n for n in range(100_000))),
}
PROBE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from tests.test_faults_input import OURS, planned
import pathlib
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (500 << 20),) * 2)
try:
    planned(pathlib.Path(sys.argv[2]), {}, 1)
except OURS as error:
    print(str(error)[:300])
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    """At most 500 MiB more than the imports take."""
    ending, make = BOMBS[name]
    path = tmp_path / f"bomb.{ending}"
    path.write_bytes(make())
    command = [sys.executable, "-c", PROBE, str(ROOT), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr[-1500:]) == (0, "")
    assert str(path) in done.stdout


# what the generators found, each on its own


@pytest.mark.parametrize("tag", ["!!bool x", "!!timestamp x", "!!int ''", "!!float x"])
def test_a_tag_that_does_not_fit_its_text_is_a_fault_with_its_place(tag: str) -> None:
    with pytest.raises(ConfigError, match=r"job.yaml:2:10: cannot be read as YAML"):
        read_job(f"input: {{path: x}}\nversion: {tag}", "job.yaml")


def carried(tmp_path: Path, column: pa.Array) -> list[Any]:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * len(column), "note": column}), path)
    table = planned(path, {}, 1)
    check_rows(table)
    return table["note"].to_pylist()


def test_carried_text_that_is_no_utf8_is_mended(tmp_path: Path) -> None:
    raw = pa.array([b"\xfbx", b"sound", None], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    assert carried(tmp_path, text) == ["\ufffdx", "sound", None]


def test_a_carried_dictionary_becomes_its_values(tmp_path: Path) -> None:
    assert carried(tmp_path, pa.array(["a", "b", "a"]).dictionary_encode()) == ["a", "b", "a"]


def test_a_carried_date_that_python_cannot_hold_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """In a worker it would fail its shard, three times, and end the run."""
    with pytest.raises(InputError, match=r"column 'note' \(date32\[day\]\) holds a value that cannot be carried"):
        carried(tmp_path, pa.array([1, 2**31 - 1], pa.int32()).cast(pa.date32()))


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "category", "id"])
def test_a_text_of_absurd_length_is_a_failed_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"]} | {name: ["x" * 100_000, "y" * 100_001]}), path)
    rows = planned(path, {}, 1).to_pylist()
    assert [row["error_message"] for row in rows] == [
        "",
        f"{name} must be at most 100,000 characters long, not 100,001",
    ]
    assert len(rows[1]["id"]) < 100


# ids and prompts on their way out


def test_no_id_leaves_its_attempts_folder(tmp_path: Path) -> None:
    """Every id becomes one plain file name, unlike all others also where case does not count."""
    draw = random.Random(1)
    ids = [*IDS, *(draw.choice(IDS) + draw.choice(IDS) + draw.choice(string.printable) for _ in range(2000))]
    ids = list(dict.fromkeys(id for id in ids if id))
    run = RunFolder(str(tmp_path / "run"))
    attempt = run.begin_attempt("0001-000000")
    image = np.zeros((8, 8, 3), np.uint8)
    sink = Sink(run, "0001-000000", attempt, "files", "png")
    for id in ids[: len(IDS) + 100]:  # the names of the others are looked at below
        sink.put(planned_row({"id": id}), image)
    home = tmp_path / "run" / "images" / "0001-000000" / attempt.name
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "attempts" not in path.parts]
    assert {path.parent for path in written} == {home}
    assert len(written) == len(ids[: len(IDS) + 100])
    names = [RunFolder.image_name(id) for id in ids]
    assert len({name.casefold() for name in names}) == len(ids)
    assert all(set(name) <= set(string.ascii_lowercase + string.digits + "_-") and len(name) <= 81 for name in names)


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_no_id_leaves_its_data_file(tmp_path: Path, layout: str) -> None:
    run = RunFolder(str(tmp_path / "run"))
    sink = Sink(run, "0001-000000", run.begin_attempt("0001-000000"), layout, "png")
    for id in filter(None, dict.fromkeys(IDS)):
        sink.put(planned_row({"id": id, "prompt": "x"}), np.zeros((8, 8, 3), np.uint8))
    for key, _ in sink.close().values():
        place, _, member = key.partition("#")
        assert place == sink.keys[0]
        assert set(member) <= set(string.ascii_lowercase + string.digits + "_-.")
        assert not member.startswith((".", "/"))


class Tags(HTMLParser):
    """The tags of a page and the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {(tag, name) for name, _ in attrs} | {(tag, "")}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_of_hostile_prompts_is_text() -> None:
    """The same tags and attributes as with plain prompts, and the prompts are there to be read."""
    picture = encode_image(np.zeros((8, 8, 3), np.uint8), "png")

    def page(texts: list[str]) -> Tags:
        failures: list[dict[str, Any]] = [{"id": t, "error_type": t, "error_message": t} for t in texts]
        summary = {"run": texts[0], "status": texts[0], "rows": 2, "budget_histogram": {"2": 1}, "failures": failures}
        tags = Tags()
        tags.feed(report_html(summary, [{"prompt": t, "num_steps": 2, "image": picture} for t in texts]))
        return tags

    hostile = [SCRIPT, *TEXTS, "</title><script>x</script>", "<svg onload=x>", "&lt;b&gt;", "\ud800"]
    plain, found = page(["a fox"] * len(hostile)), page(hostile)
    assert found.seen == plain.seen
    assert found.text.count(SCRIPT) == 2 * 4 + 2 + 1  # in both heads, two failures' three cells and two cards, less one
