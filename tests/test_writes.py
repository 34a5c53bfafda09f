"""Every write to a run folder is one call with the whole bytes: a stream that breaks off leaves a truncated object."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STREAMS = {"open_output_stream", "open_append_stream", "ParquetWriter", "write_table", "write_feather", "to_parquet"}
SINKS = {"write_parquet", "write_csv", "write_json", "write_images", "write_webdataset", "write_datasink", "put_file"}
ALLOWED = {  # function: what it writes is no object of a run
    ("pipelines/run/layout.py", "parquet_bytes"): "a buffer in memory",
    ("pipelines/render/sink.py", "_tar"): "a buffer in memory",
    ("pipelines/storage/checkpoints.py", "_copy"): "a lock file on this machine",
    ("pipelines/storage/disk.py", "_write_synced"): "a hidden temporary file, renamed when it is whole",
    ("pipelines/storage/checkpoints.py", "fetch"): "a node's own cache of a checkpoint",
    ("jobs/init.py", "verb"): "a new job file on this machine",
    ("jobs/terminal/console.py", "hold_streams"): "a standard stream",
    ("pipelines/render/isolation.py", "<module>"): "a pipe",
}


def streamed_writes(source: str) -> list[tuple[str, int]]:
    """(function, line) of every call that opens something to write to it bit by bit."""
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and is_stream(node):
            found.append((function, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "<module>")
    return found


def is_stream(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in STREAMS | SINKS:
        return True
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return name in ("open", "fdopen") and any(
        re.fullmatch(r"[rwxabt+]{1,3}", m) and set(m) & set("wxa+") for m in modes
    )


@pytest.mark.parametrize("room", ["pipelines", "jobs"])
def test_no_write_to_a_run_is_streamed(room: str) -> None:
    found = {
        (str(path.relative_to(ROOT)), function): line
        for path in sorted((ROOT / room).rglob("*.py"))
        for function, line in streamed_writes(path.read_text("utf-8"))
    }
    assert {place: line for place, line in found.items() if place not in ALLOWED} == {}


def test_the_check_sees_a_stream() -> None:
    source = """
def one(fs): fs.open("s3://b/k", "wb")
def two(path): path.open(mode="w")
def three(fs): pq.ParquetWriter("k", filesystem=fs)
def four(ds): ds.write_parquet("s3://b")
def fine(fs): fs.open("k", "rb"); open("k"); fs.pipe_file("k", b"")
"""
    assert [function for function, _ in streamed_writes(source)] == ["one", "two", "three", "four"]
