"""`status`: who drives a run and how far it is, from its folder alone."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.steps import run_status
from jobs.steps.run_status import status_of, status_text
from pipelines.run.drivers import EXPIRY_S, claim, last_record
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from tests.finished import render_shard
from tests.plans import planned_row, write_plan

PROGRESS = {"done": 12, "failed": 1, "images_per_second": 2.5, "eta_s": 60.0, "workers": 3, "waiting": None}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(str(tmp_path / "run"))
    write_plan(made, [planned_row(i) for i in range(20)], 5)
    return made


def told(run: RunFolder, later_s: float = 0.0) -> tuple[dict, str]:
    now = datetime.now(UTC) + timedelta(seconds=later_s)
    sizes = {entry["shard"]: entry["rows"] for _, entry in read_plan(run).shards("shard", "rows")}
    found = status_of(run.url, last_record(run), sizes, run.done_shards(), now)
    return found, status_text(found, now)


def test_a_planned_run_waits(run: RunFolder) -> None:
    found, text = told(run)
    assert (found["state"], found["rows_done"], found["rows"], found["driver"]) == ("waiting", 0, 20, None)
    assert "nobody renders the rest: the command that began it goes on" in text


def test_a_driver_at_work_says_how_far_it_is(run: RunFolder) -> None:
    epoch = claim(run)
    render_shard(run, "0001-000000")
    epoch.tell(PROGRESS)
    assert epoch.heartbeat()
    found, text = told(run)
    assert (found["state"], found["rows_done"], found["shards_done"], found["images"]) == ("at work", 5, 1, 12)
    assert "5 of 20 rows (25 %) in 1 shards of 4 are done" in text
    assert "12 images made, 1 failed, 2.5 images/s, about 1:00 left, 3 workers" in text
    epoch.tell(PROGRESS | {"waiting": "waiting for an actor of pool default (1 GPU): launching"})
    epoch.heartbeat()
    assert "waiting for an actor of pool default (1 GPU): launching" in told(run)[1]


def test_a_driver_without_a_heartbeat_is_silent_and_one_that_ended_says_so(run: RunFolder) -> None:
    epoch = claim(run)
    assert told(run, EXPIRY_S + 2)[0]["state"] == "silent"
    epoch.end()
    found, text = told(run)
    assert found["state"] == "ended"
    assert "ended 20" in text


def test_a_killed_driver_of_this_machine_is_told_at_once(run: RunFolder) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    epoch = claim(run)
    epoch.record["pid"] = child.pid
    epoch.heartbeat()
    assert told(run)[0]["state"] == "killed"


def test_the_verb_and_its_exit_codes(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", run.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "waiting"
    for shard in run.shard_index(1)["shard"].to_pylist():
        render_shard(run, shard)
    assert main(["status", run.url]) == 0
    assert "done; 20 of 20 rows (100 %) in 4 shards of 4 are done" in capsys.readouterr().out
    assert main(["status", f"{run.url}-not"]) == 2


def test_watch_ends_with_the_run(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_status, "EVERY_S", 0.05)
    epoch = claim(run)
    ends = threading.Timer(0.5, epoch.end)
    ends.start()
    assert main(["status", run.url, "--watch"]) == 1
    ends.join()
    captured = capsys.readouterr()
    assert "at work" in captured.err
    assert ": ended;" in captured.out


def test_a_driver_that_plans_for_the_first_time_is_at_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(str(tmp_path / "new"))
    claim(run)
    assert main(["status", run.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "at work"


def test_a_driver_that_repairs_what_is_done_is_at_work(run: RunFolder) -> None:
    for shard in run.shard_index(1)["shard"].to_pylist():
        render_shard(run, shard)
    epoch = claim(run)
    assert told(run)[0]["state"] == "at work"
    epoch.end()
    assert told(run)[0]["state"] == "done"


@pytest.mark.parametrize("record", ["[]", '{"host": "x", "pid": 1}', '{"progress": 3}'])
def test_a_record_that_is_not_whole_is_none(run: RunFolder, record: str) -> None:
    run.write("epochs/000001.json", record.encode())
    assert told(run)[0]["state"] == "waiting"
