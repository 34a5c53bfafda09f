"""Rows that kill their process, raise, run out of memory, hang: each fails with its reason, all others are ok."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.integrity.findings import ORPHANS
from pipelines.integrity.verification import verify
from pipelines.run.layout import RunFolder
from tests.checkpoints import make_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parent.parent
ENGINE = '''
import importlib.abc, importlib.machinery, sys

class Hurt(importlib.abc.MetaPathFinder):
    """actors.sampler as it is, with an engine that some prompts hurt."""

    def find_spec(self, name, path, target=None):
        if name != "actors.sampler":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        honest = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (honest(module), hurt(module))
        return spec

def hurt(module):
    import os, threading, torch
    submit, flight = module.DDIMSampler.submit, module.DDIMSampler._flight
    decode = module.DDIMSampler._decode_slice

    def hurt_submit(self, row):
        if row.prompt == "die":
            os._exit(9)
        if row.prompt == "hang":
            threading.Event().wait()
        return submit(self, row)

    def hurt_flight(self, request, text, i):
        if request.row.prompt == "raise":
            raise ValueError("this row raises")
        return flight(self, request, text, i)

    def hurt_decode(self, ended):
        if "memory" in [flight.row.row.prompt for flight, _ in ended]:
            raise torch.OutOfMemoryError("no memory")
        return decode(self, ended)

    module.DDIMSampler.submit, module.DDIMSampler._flight = hurt_submit, hurt_flight
    module.DDIMSampler._decode_slice = hurt_decode

sys.meta_path.insert(0, Hurt())
'''
JOB = """\
model: {path: MODEL, device: cpu}
input: {path: PROMPTS}
steps: {selector: fixed, fixed: 2}
pools: [{name: default, lanes: 4}]
output: {path: RUN}
failures: {max_fraction: 1, row_timeout_s: 30, no_progress_s: 400}
"""


def run(tmp_path: Path, prompts: list[str]) -> subprocess.CompletedProcess:
    (tmp_path / "hurt").mkdir()
    (tmp_path / "hurt/sitecustomize.py").write_text(ENGINE)
    (tmp_path / "prompts.csv").write_text("\n".join(["prompt", *prompts]))
    model = make_checkpoint("sd1", tmp_path / "model")
    values = {"MODEL": model, "PROMPTS": tmp_path / "prompts.csv", "RUN": tmp_path / "run"}
    text = JOB
    for name, value in values.items():
        text = text.replace(name, str(value))
    (tmp_path / "job.yaml").write_text(text)
    command = [sys.executable, "-m", "jobs", "run", str(tmp_path / "job.yaml"), "--json", "--address", "local"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}/hurt"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550)


def test_each_ends_failed_with_its_reason_and_all_others_are_ok(tmp_path: Path) -> None:
    hurting = {
        "die": ("WorkerDied", "exited with code 9"),
        "hang": ("RowTimeout", "timeout"),
        "raise": ("ValueError", "this row raises"),
        "memory": ("MemoryError", "out of memory decoding one picture"),
    }
    done = run(tmp_path, [*(f"a fox number {i}" for i in range(12)), *hurting])
    assert done.returncode == 0, done.stderr[-3000:]
    folder = RunFolder(str(tmp_path / "run"))
    rows = [row for table in folder.manifests() for row in table.to_pylist()]
    assert len(rows) == len({row["id"] for row in rows}) == 16
    failed = {row["prompt"]: row for row in rows if row["status"] != "ok"}
    assert failed.keys() == hurting.keys()
    for prompt, (kind, words) in hurting.items():
        assert failed[prompt]["error_type"] == kind
        assert words in failed[prompt]["error_message"]
    assert {finding.kind for checked in verify(folder, 1) for finding in checked.findings} <= ORPHANS
    assert json.loads(done.stdout)["failed"] == 4
