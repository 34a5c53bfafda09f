"""The main job as a user types it, before an engine that sleeps: killed, limited, grown, with equal prompts."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

from jobs.__main__ import main
from pipelines.run.layout import RunFolder
from tests.checkpoints import make_checkpoint
from tests.waiting import until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent
JOB = """\
version: 1
model: {path: MODEL, device: cpu}
input: {path: PROMPTS}
steps: {selector: fixed, fixed: STEPS}
pools: [{name: default, lanes: 4}]
output: {path: RUN}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1")


@pytest.fixture
def job(tmp_path, model):
    def write(prompts: list[str], steps: int = 2) -> Path:
        table = tmp_path / "prompts.jsonl"
        table.write_text("".join(json.dumps({"prompt": p, "note": i}) + "\n" for i, p in enumerate(prompts)))
        names = {"MODEL": model, "PROMPTS": table, "RUN": tmp_path / "run", "STEPS": steps}
        text = JOB
        for name, value in names.items():
            text = text.replace(name, str(value))
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return write


DRIVER = """
import sys
from jobs.__main__ import main
from pipelines.render import pool as pools
from tests.sleeping_workers import Drawing

pools.RenderWorker = Drawing
sys.exit(main(sys.argv[1:]))
"""


def driver(job: Path, **pipes: int) -> "subprocess.Popen[str]":
    """With a process and a Ray of its own."""
    line = [sys.executable, "-c", DRIVER, "run", str(job), "--json", "--address", "local"]
    return subprocess.Popen(line, cwd=ROOT, text=True, **pipes)


@pytest.fixture
def run(ray_cluster, sleeping, capsys):
    """The command in this process: its summary."""

    def typed(job: Path, *options: str) -> dict:
        code = main(["run", str(job), "--json", *options])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(said.out)

    return typed


def manifests(job: Path) -> tuple[RunFolder, list[dict]]:
    folder = RunFolder(str(job.parent / "run"))
    return folder, [row for table in folder.manifests() for row in table.to_pylist()]


def check_pictures(folder: RunFolder, rows: list[dict]) -> None:
    for row in rows:
        data = folder.read(row["uri"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        Image.open(io.BytesIO(data)).verify()


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_kill_9_of_the_driver_and_the_same_command_again(job, run):
    path = job([f"a fox number {i}" for i in range(96)], steps=60)
    killed = driver(path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = RunFolder(str(path.parent / "run"))
    until(lambda: folder.done_shards() or killed.poll() is not None)
    its_ray = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    until(lambda: all(map(is_gone, its_ray)))  # its workers notice, and end
    before = {name: folder.stat(f"manifest/{name}") for name in folder.names("manifest")}
    shards = folder.shard_index(1)["shard"].to_pylist()
    assert 0 < len(before) < len(shards)

    summary = run(path)
    folder, rows = manifests(path)
    assert sorted(r["prompt"] for r in rows) == sorted(f"a fox number {i}" for i in range(96))
    assert len({r["id"] for r in rows}) == 96
    assert {name: folder.stat(f"manifest/{name}") for name in before} == before
    assert summary["rendered_now"] == 96 - sum(
        folder.read_manifest(n.removesuffix(".parquet")).num_rows for n in before
    )
    assert (summary["status"], summary["rows"], summary["ok"]) == ("done", 96, 96)
    check_pictures(folder, rows)


def test_limit_then_the_full_run_with_equal_prompts(job, run):
    prompts = [f"a fox number {i % 20}" for i in range(30)]  # ten of them twice
    path = job(prompts)
    first = run(path, "--limit", "10")
    folder, rows = manifests(path)
    assert (first["rows"], len(rows)) == (10, 10)
    before = {name: folder.stat(f"manifest/{name}") for name in folder.names("manifest")}

    full = run(path)
    folder, rows = manifests(path)
    assert (full["rows"], full["rendered_now"]) == (30, 20)
    assert {name: folder.stat(f"manifest/{name}") for name in before} == before
    assert sorted(r["note"] for r in rows) == list(range(30))
    assert sorted(r["prompt"] for r in rows) == sorted(prompts)
    assert len({r["id"] for r in rows}) == 30
    assert len({r["sha256"] for r in rows}) == 30
    check_pictures(folder, rows)

    again = run(path)
    assert (again["rows"], again["rendered_now"]) == (30, 0)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_what_is_in_work(job, number, code):
    path = job([f"a fox number {i}" for i in range(256)], steps=60)
    signalled = driver(path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    folder = RunFolder(str(path.parent / "run"))
    until(lambda: folder.attempts() or signalled.poll() is not None)
    signalled.send_signal(number)
    out, err = signalled.communicate(timeout=240)
    assert signalled.returncode == code, err[-3000:]
    summary = json.loads(out)
    assert summary["status"] == "interrupted"
    assert 0 < summary["ok"] == summary["rows"] < summary["planned"] == 256
    assert f"go on later with: python -m jobs run {path}" in err
    done = folder.done_shards()
    assert done
    assert folder.attempts().keys() == done
    assert len(done) < len(folder.shard_index(1))
    assert len(list(folder.walk("images"))) == summary["ok"]
