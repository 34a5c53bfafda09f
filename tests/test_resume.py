"""The main job as a user runs it, in a process of its own: killed, limited, grown, with equal prompts."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pipelines.store import RunFolder
from tests.checkpoints import make_checkpoint

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


def command(job: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "jobs", "run", str(job), "--json", "--address", "local", *options]


def run(job: Path, *options: str) -> dict:
    done = subprocess.run(command(job, *options), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def manifests(job: Path) -> tuple[RunFolder, list[dict]]:
    folder = RunFolder(str(job.parent / "run"))
    return folder, [row for table in folder.manifests() for row in table.to_pylist()]


def check_pictures(folder: RunFolder, rows: list[dict]) -> None:
    for row in rows:
        data = folder.read(row["uri"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        Image.open(io.BytesIO(data)).verify()


def test_kill_9_of_the_driver_and_the_same_command_again(job):
    path = job([f"a fox number {i}" for i in range(96)], steps=60)
    sets = ("-s", "pools.0.lanes=2")
    driver = subprocess.Popen(command(path, *sets), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = RunFolder(str(path.parent / "run"))
    deadline = time.monotonic() + 240
    while not folder.done_shards() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    time.sleep(3)  # its Ray notices, and dies with it
    before = {name: folder.stat(f"manifest/{name}") for name in folder.names("manifest")}
    shards = folder.shard_index(1)["shard"].to_pylist()
    assert 0 < len(before) < len(shards)

    summary = run(path, *sets)
    folder, rows = manifests(path)
    assert sorted(r["prompt"] for r in rows) == sorted(f"a fox number {i}" for i in range(96))
    assert len({r["id"] for r in rows}) == 96
    assert {name: folder.stat(f"manifest/{name}") for name in before} == before
    assert summary["rendered_now"] == 96 - sum(
        folder.read_manifest(n.removesuffix(".parquet")).num_rows for n in before
    )
    assert (summary["status"], summary["rows"], summary["ok"]) == ("done", 96, 96)
    check_pictures(folder, rows)


def test_limit_then_the_full_run_with_equal_prompts(job):
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_what_is_in_work(job, number, code):
    path = job([f"a fox number {i}" for i in range(256)], steps=60)
    driver = subprocess.Popen(
        command(path, "-s", "pools.0.lanes=2"), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    folder = RunFolder(str(path.parent / "run"))
    deadline = time.monotonic() + 240
    while not folder.attempts() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(number)
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == code, err[-3000:]
    assert json.loads(out)["status"] == "interrupted"
    assert "python -m jobs run" in err
    done = folder.done_shards()
    assert done
    assert folder.attempts().keys() == done
    assert len(done) < len(folder.shard_index(1))
