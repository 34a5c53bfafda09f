"""How actors are made, called, called again and ended, on a real Ray; real workers, with an engine that sleeps."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import pipelines.render.driver
from actors.rows import SamplerConfig
from pipelines.cluster.pools import PoolSpec
from pipelines.render import pool as pools
from pipelines.render.driver import Progress, RenderResult, render
from pipelines.render.pool import RenderConfig, RenderError
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.checkpoints import ModelSource
from pipelines.storage.folder import StorageOptions
from tests import sleeping_workers
from tests.plans import planned_row, write_plan
from tests.waiting import until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent
WORKERS = ("Drawing", "CountingServes")


def config(*specs: PoolSpec, call_s: float = 0.01, **values: Any) -> RenderConfig:
    sampler = SamplerConfig("", dtype="float32")
    return RenderConfig(ModelSource("", revision=str(call_s)), sampler, specs or (PoolSpec(num_cpus=0.1),), **values)


def plan(run: RunFolder, steps: list[int], rows_a_shard: int = 4) -> RunFolder:
    """One shard of equal rows for each number of steps."""
    rows = [planned_row(i, num_steps=count) for i, count in enumerate(c for c in steps for _ in range(rows_a_shard))]
    write_plan(run, rows, rows_a_shard)
    return run


def actors(ray: Any, *states: str) -> list[dict[str, Any]]:
    """Of this session's render workers, those that are in one of these states."""
    import ray._private.state as cluster

    known = cluster.actors().values()
    return [a for a in known if a["ActorClassName"] in WORKERS and a["State"] in states]


def processes(*names: str) -> list[psutil.Process]:
    """Of this session's Ray, by the class of their actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(name in "".join(process.cmdline()) for name in names or WORKERS):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def in_background() -> Iterator[Callable[..., list[Any]]]:
    """render on a thread; -> its results, once it is joined by `wait`."""
    threads: list[threading.Thread] = []

    def start(run: RunFolder, settings: RenderConfig, on_progress: Any = lambda progress: None) -> list[Any]:
        came: list[Any] = []

        def call() -> None:
            try:
                came.append(render(read_plan(run), settings, on_progress))
            except RenderError as error:
                came.append(error)

        threads.append(threading.Thread(target=call))
        threads[-1].start()
        return came

    yield start
    for thread in threads:
        thread.join(300)


def test_a_pool_that_is_done_ends_its_actors_and_the_other_goes_on(ray_cluster, sleeping, tmp_path):
    run = plan(RunFolder(str(tmp_path / "run")), [2, 2, 60, 60])
    both = (PoolSpec("short", (2,), num_cpus=0.1), PoolSpec("long", (60,), num_cpus=0.1))
    seen: list[tuple[int, int]] = []

    def note(progress: Progress) -> None:
        if 8 <= progress.done < 16:  # the short ones are committed
            seen.append((len(actors(ray_cluster, "ALIVE")), progress.workers))

    result = render(read_plan(run), config(*both, call_s=0.05), note)
    assert (result.rows, result.interrupted) == (16, False)
    assert len(run.done_shards()) == 4
    assert seen[-1] == (1, 1)
    assert [alive for alive, _ in seen] == sorted((alive for alive, _ in seen), reverse=True)  # none is made again
    assert set(run.attempts().values()) == {1}
    assert not actors(ray_cluster, "ALIVE", "PENDING_CREATION", "RESTARTING")


def test_actors_for_which_nothing_is_left_end_before_the_tail(ray_cluster, sleeping, tmp_path):
    run = plan(RunFolder(str(tmp_path / "run")), [80, 80, 2, 2, 2, 2, 2, 2])
    seen: list[int] = []

    def note(progress: Progress) -> None:
        if progress.done >= 24:
            seen.append(len(actors(ray_cluster, "ALIVE")))

    render(read_plan(run), config(PoolSpec(actors=8, num_cpus=0.1), call_s=0.1), note)
    assert seen[-1] <= 2
    assert seen == sorted(seen, reverse=True)  # none is made again
    assert len(run.done_shards()) == 8


def test_no_more_actors_are_made_than_there_are_shards(ray_cluster, sleeping, tmp_path):
    run = plan(RunFolder(str(tmp_path / "run")), [20, 20])
    most: list[int] = []
    render(
        read_plan(run),
        config(PoolSpec(actors=50, num_cpus=0.1), call_s=0.05),
        lambda _: most.append(len(actors(ray_cluster, "ALIVE", "PENDING_CREATION"))),
    )
    assert max(most) == 2


def test_handles_that_find_no_place_are_ended_once_fewer_shards_are_free(ray_cluster, sleeping, tmp_path):
    """Each asks the autoscaler for a machine: none may stay that nobody needs."""
    run = plan(RunFolder(str(tmp_path / "run")), [10] * 6)
    pending: list[int] = []
    settings = config(PoolSpec(actors=6, num_cpus=3), call_s=0.05)  # one fits
    render(read_plan(run), settings, lambda _: pending.append(len(actors(ray_cluster, "PENDING_CREATION"))))
    tail = pending[pending.index(5) :]  # from when one has its place
    assert tail == sorted(tail, reverse=True)
    assert len(set(tail)) > 3
    assert tail[-1] == 0
    assert len(run.done_shards()) == 6


def test_a_pool_that_waits_says_for_what(ray_cluster, sleeping, tmp_path, in_background):
    import ray

    holder = ray.remote(num_cpus=3)(sleeping_workers.Holder).remote()
    ray.get(holder.hold.remote())
    run = plan(RunFolder(str(tmp_path / "run")), [2])
    said: list[str | None] = []
    came = in_background(run, config(PoolSpec(num_cpus=2)), lambda progress: said.append(progress.waiting))
    until(lambda: any(said), seconds=120)
    ray.kill(holder)
    until(lambda: came, seconds=120)
    assert came[0].rows == 4
    assert "waiting for an actor of pool default (2 CPU): a free place on the nodes there are" in said


def test_a_worker_that_is_killed_counts_and_its_shards_are_rendered_again(
    ray_cluster, sleeping, tmp_path, in_background
):
    run = plan(RunFolder(str(tmp_path / "run")), [60, 60])
    before = {process.pid for process in processes()}
    came = in_background(run, config(PoolSpec(num_cpus=0.1), call_s=0.05))
    until(lambda: len(run.attempts()) == 2, seconds=120)
    (worker,) = [process for process in processes() if process.pid not in before]
    worker.kill()
    until(lambda: came, seconds=120)
    assert came[0].rows == 8
    assert run.deaths() == {"0001-000000": (1,), "0001-000001": (1,)}
    assert set(run.attempts().values()) == {2}
    assert len(run.done_shards()) == 2


def test_a_cut_connection_voids_nothing(ray_cluster, sleeping, tmp_path, monkeypatch, in_background):
    """The actor lives: it is called again, and the call joins the one that is under way."""
    notes = tmp_path / "notes"
    notes.mkdir()
    sleeping(sleeping_workers.CountingServes)
    monkeypatch.setattr(pools, "_variables", lambda *_: {"SLEEPING_NOTES": str(notes)})
    run = plan(RunFolder(str(tmp_path / "run")), [100, 100])
    came = in_background(run, config(PoolSpec(num_cpus=0.1), call_s=0.1))
    until(lambda: len(run.attempts()) == 2, seconds=120)
    (actor,) = actors(ray_cluster, "ALIVE")
    assert cut_connections(actor["Address"]["Port"])
    until(lambda: (notes / "serve").read_text().count("\n") >= 2, seconds=120)
    until(lambda: came, seconds=120)
    assert isinstance(came[0], RenderResult), came
    assert came[0].rows == 8
    assert (notes / "all").read_text().count("\n") == 1
    assert len(set((notes / "serve").read_text().split())) == 1  # one process
    assert run.deaths() == {}
    assert set(run.attempts().values()) == {1}


def cut_connections(port: int) -> int:
    """Shuts down this process's TCP connections to that port; -> how many."""
    cut = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.getpeername()[1] == port:
                    connection.shutdown(socket.SHUT_RDWR)
                    cut += 1
        except (OSError, TypeError, IndexError):
            continue
    return cut


def test_actors_that_ray_ends_before_they_begin_end_the_run(ray_cluster, sleeping, tmp_path):
    sleeping(sleeping_workers.RaisingInit)
    run = plan(RunFolder(str(tmp_path / "run")), [2, 2])
    with pytest.raises(RenderError, match=r"ends the actors of pool default before they render: .*no such environment"):
        render(read_plan(run), config())
    assert run.attempts() == {}


def test_a_pool_of_broken_engines_ends_the_run_with_its_reason(ray_cluster, sleeping, tmp_path):
    sleeping(sleeping_workers.NeverFit)
    run = plan(RunFolder(str(tmp_path / "run")), [2, 2])
    with pytest.raises(RenderError, match=r"can render 2 shards: pool default: EngineBroken.*uncorrectable ECC"):
        render(read_plan(run), config(PoolSpec(actors=2, num_cpus=0.1)))
    assert (run.attempts(), run.done_shards()) == ({}, set())


def test_a_run_that_does_not_move_ends_with_its_reason(ray_cluster, sleeping, tmp_path):
    """The row's own deadline is longer than the run's."""
    sleeping(sleeping_workers.Stuck)
    run = plan(RunFolder(str(tmp_path / "run")), [2])
    with pytest.raises(RenderError, match=r"no progress in 10 s: \d shards in work at \d workers, 0 workers died"):
        render(read_plan(run), config(PoolSpec(num_cpus=0.1), no_progress_s=10.0))
    assert run.done_shards() == set()


@pytest.mark.parametrize("stop_early", [True, False])
def test_a_run_whose_rows_fail_by_far_stops_early(ray_cluster, sleeping, tmp_path, stop_early):
    sleeping(sleeping_workers.FailingRows)
    run = plan(RunFolder(str(tmp_path / "run")), [2] * 12, rows_a_shard=20)
    settings = config(max_failed=0.01 if stop_early else None)
    if not stop_early:
        assert render(read_plan(run), settings).rows == 240
        return
    with pytest.raises(RenderError, match=r"30 of 60 rows failed.*30 times ValueError: the picture holds inf or nan"):
        render(read_plan(run), settings)
    assert 3 <= len(run.done_shards()) < 12  # what was in work is committed
    assert run.attempts().keys() == run.done_shards()


def test_a_shard_that_the_ledger_calls_done_and_that_has_no_manifest_is_no_good_end(ray_cluster, sleeping, tmp_path):
    run = plan(RunFolder(str(tmp_path / "run")), [2, 2, 40])
    gone = []

    def lose(progress: Progress) -> None:
        if progress.done >= 8 and not gone:
            gone.extend(sorted(run.done_shards())[:1])
            run.delete([f"manifest/{gone[0]}.parquet"])

    with pytest.raises(RenderError, match="1 of 3 planned shards have no manifest"):
        render(read_plan(run), config(PoolSpec(num_cpus=0.1), call_s=0.05), lose)
    assert gone


def test_a_ledger_that_sees_another_plan_is_no_good_end(ray_cluster, sleeping, tmp_path, monkeypatch):
    run = plan(RunFolder(str(tmp_path / "run")), [2, 2])
    elsewhere = RunFolder(str(tmp_path / "elsewhere"))
    honest = pipelines.render.driver._start_ledger
    monkeypatch.setattr(pipelines.render.driver, "_start_ledger", lambda task: honest(_of(task, elsewhere)))
    with pytest.raises(RenderError, match="the ledger does not see this driver's plan"):
        render(read_plan(run), config())


def _of(task: Any, run: RunFolder) -> Any:
    from dataclasses import replace

    return replace(task, plan=replace(task.plan, run=run))


@pytest.mark.s3
def test_a_ledger_that_is_restarted_while_the_store_is_away_comes_back(
    ray_cluster, sleeping, s3, tmp_path, in_background
):
    patience_s = 5.0  # the ledger says that it cannot read, and the store is back, long before the first shard's commit
    run = plan(RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(s3.endpoint_url), patience_s), [60] * 2)
    settings = config(PoolSpec(num_cpus=0.1), call_s=0.8, layout="none")
    said: list[str | None] = []
    came = in_background(run, settings, lambda progress: said.append(progress.waiting))
    until(lambda: run.attempts(), seconds=120)
    before = {process.pid for process in processes("LedgerActor")}
    s3.kill()
    for process in processes("LedgerActor"):
        process.kill()
    until(lambda: {process.pid for process in processes("LedgerActor")} - before, seconds=120)
    until(lambda: any("the ledger cannot read the run folder" in (text or "") for text in said), seconds=120)
    s3.restart()
    until(lambda: came, seconds=120)
    assert isinstance(came[0], RenderResult), came
    assert len(run.done_shards()) == 2
    assert run.deaths() == {}
    assert set(run.attempts().values()) == {1}  # what was in work was adopted, and not rendered twice


DRIVER = """
import sys
import ray
from pipelines.render import pool as pools
from pipelines.render.driver import render
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from benchmarks.fake_engine import FakeWorker
from tests.test_dispatch import config

pools.RenderWorker = FakeWorker
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=90 << 20)
render(read_plan(RunFolder(sys.argv[1])), config(PoolSpec(num_cpus=0.1), call_s=float(sys.argv[2])))
"""


@pytest.mark.slow
def test_three_drivers_that_are_killed_isolate_no_shard(tmp_path):
    """Their actors die with them, without a word: that says nothing of the shards."""
    run = plan(RunFolder(str(tmp_path / "run")), [100, 100])
    for life in range(1, 4):
        command = [sys.executable, "-c", DRIVER, run.url, "0.5"]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda life=life: sum(run.attempts().values()) == 2 * life, seconds=120)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert run.deaths() == {}
    done = subprocess.run([sys.executable, "-c", DRIVER, run.url, "0.01"], cwd=ROOT, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(run.done_shards()) == 2  # an isolated row needs a real checkpoint, and there is none
    assert all(row["status"] == "ok" for table in run.manifests() for row in table.to_pylist())
