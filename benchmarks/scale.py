"""Planning and rendering at sizes that no network could be run at: a fake engine that sleeps in each UNet call.

    python -m benchmarks.scale [--rows 2000 10000] [--shards 20] [--actors 2 8] [--call-s 0.01] [--write]

For each size a plan is made and rendered by real workers in real pools, one table line for each number of actors, in a
process of its own, so that its memory is its own. Overhead is the actors' time, between their first and their last row,
that the engine did not sleep. `fit` is a straight line through the sizes: what a billion rows would need. Resume is a
second run that finds all of it done.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.recipe import menu_of
from actors.rows import SamplerConfig
from actors.selector import SelectorConfig
from benchmarks.fake_engine import CALL_ENV, FakeWorker
from benchmarks.measure import ROOT, arguments, machine, markdown, report
from benchmarks.plan import MIB, Peaks, write_prompts
from pipelines.cluster.pools import PoolSpec
from pipelines.plan.make import PlanConfig, make_plan
from pipelines.prompts.canonical_rows import RowDefaults
from pipelines.prompts.inspection import PromptSource
from pipelines.render import pool as pools
from pipelines.render.driver import render
from pipelines.render.ledger import Ledger
from pipelines.render.messages import Heartbeat, Lease, LeasedShard, Slot, Worker
from pipelines.render.pool import RenderConfig, planned_shards
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.checkpoints import ModelSource

MENU = (3, 4, 5, 6, 8)
BILLION = 1_000_000_000
SHARD_ROWS = 500  # for the straight lines; a default plan has 280 at 27 mean steps, 2,000 at few
LEDGERS = (2_000, 20_000, 200_000, 2_000_000)  # open shards
WORKERS = 1_000
COLUMNS = (
    *("rows", "shards", "actors", "plan s", "plan MiB", "render s", "actors busy", "overhead ms a shard"),
    *("lanes used", "driver MiB", "ledger MiB", "resume s"),
)


@dataclass
class Line:
    """One run. Memory is the growth of private memory, by its peak; busy: in the engine, of first to last row.

    actor_seconds: all actors' time from their first to their last row.
    """

    rows: int
    shards: int
    actors: int
    plan_s: float
    plan_mib: float
    render_s: float
    busy: float
    overhead_ms: float
    lanes_used: float
    driver_mib: float
    ledger_mib: float
    resume_s: float
    actor_seconds: float

    @property
    def cells(self) -> list[Any]:
        """As the table shows it."""
        shares = {"busy": f"{self.busy:.1%}", "lanes_used": f"{self.lanes_used:.1%}"}
        return [shares.get(name, value) for name, value in vars(self).items() if name != "actor_seconds"]


def plan(folder: Path, rows: int, shards: int) -> tuple[RunFolder, float, float, int]:
    """-> the run, seconds, MiB, shards. The prompts are written by another process, whose memory is not counted."""
    (folder / "prompts").mkdir(parents=True)
    ray.get(ray.remote(write_prompts).remote(folder / "prompts", rows))
    source = PromptSource(str(folder / "prompts"), defaults=RowDefaults(7.5, 8, 8, frozenset(range(1, 1000))))
    each = max(1, rows // shards)
    config = PlanConfig(
        source,
        SelectorConfig("words", menu_of(MENU)),
        (PoolSpec("default"),),
        shard_rows=each,
        shard_lane_steps=2 * MENU[-1] * each,
    )
    run, peaks, started = RunFolder(str(folder / "run")), Peaks(), time.monotonic()
    before = peaks.now()
    summary = make_plan(read_plan(run), config)
    peaks.stop()
    return run, time.monotonic() - started, (peaks.driver - before) / MIB, summary.shards


def rendered(run: RunFolder, actors: int, layout: str) -> tuple[Any, Peaks, float]:
    """-> the result, memory, MiB that the driver had before."""
    config = RenderConfig(
        ModelSource(""), SamplerConfig("", dtype="float32"), (PoolSpec(actors=actors, num_cpus=0.01),), layout
    )
    peaks = Peaks()
    before = peaks.now()
    result = render(read_plan(run), config)
    peaks.stop()
    return result, peaks, before / MIB


def measure(rows: int, actors: int, given: argparse.Namespace) -> Line:
    """Plan, render, resume; after a plan of a few rows, which loads what any plan loads."""
    pools.RenderWorker = FakeWorker  # type: ignore[misc]
    ray.init(address="local", num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        plan(Path(name) / "first", 100, 2)
        run, plan_s, plan_mib, shards = plan(Path(name), rows, num_shards(rows, actors, given))
        result, peaks, before = rendered(run, actors, given.layout)
        assert len(run.done_shards()) == shards
        assert sum(table.num_rows for table in run.manifests()) == rows
        started = time.monotonic()
        specs = (PoolSpec(actors=actors),)
        assert {shard.id for shard in planned_shards(read_plan(run), specs)} == run.done_shards()
        resume_s = time.monotonic() - started
    slept = result.unet_calls * seconds_asleep(given.call_s)
    overhead = 1000 * (result.actor_seconds - slept) / shards
    memory = (peaks.driver / MIB - before, peaks.ledger / MIB)
    shares = (slept / result.actor_seconds, overhead, result.lane_fill)
    return Line(
        rows, shards, actors, plan_s, plan_mib, result.seconds, *shares, *memory, resume_s, result.actor_seconds
    )


def num_shards(rows: int, actors: int, given: argparse.Namespace) -> int:
    """Of a plan, as asked for."""
    if given.shard_rows:
        return -(-rows // given.shard_rows)
    return max(given.shards, actors * given.shards_an_actor)


def seconds_asleep(call_s: float) -> float:
    """What a sleep of that length takes on this machine, now that it does nothing else."""
    seconds = []
    for _ in range(50):
        started = time.perf_counter()
        time.sleep(call_s)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def alone(rows: int, actors: int) -> Line:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--only", str(rows), str(actors)]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    (line,) = (line for line in found.splitlines() if line.startswith("{"))  # Ray's warnings are around it
    return Line(**json.loads(line))


def ledger_costs(shards: int, slots: int = 128) -> tuple[float, float]:
    """us of a lease and its finish while so many shards are open and others are leased; bytes a shard."""
    tracemalloc.start()
    ledger = Ledger(
        LeasedShard(f"0001-{i:06d}", sys.intern(f"part-{i // 40:05d}"), i % 40, 500, 500, 5000 - i % 700, ("default",))
        for i in range(shards)
    )
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    mine, *others = [Slot(Worker(f"w{i}", "1", "default"), 0) for i in range(slots)]
    for slot in others:
        ledger.lease(slot)
    calls, counts = 500, {"ok": 500, "failed": 0, "filtered": 0, "steps": 2500}
    started = time.perf_counter()
    for _ in range(calls):
        lease = ledger.lease(mine)
        assert isinstance(lease, Lease)
        ledger.finish(mine, lease.shard.id, counts)
    return 1e6 * (time.perf_counter() - started) / calls, memory / shards


def ledger_of_workers(workers: int = WORKERS, open_shards: int = 20_000) -> tuple[float, float, float]:
    """us of a heartbeat and of a lease with its finish, ms of a snapshot, where each worker holds two shards."""
    ledger = Ledger(LeasedShard(f"0001-{i:06d}", "part", i, 500, 500, 5000, ("default",)) for i in range(open_shards))
    slots = [[Slot(Worker(f"w{i}", "1", "default"), number) for number in (0, 1)] for i in range(workers)]
    held = {slot: ledger.lease(slot) for two in slots for slot in two}
    counts = {"ok": 500, "failed": 0, "filtered": 0, "steps": 2500}
    beats = [Heartbeat(two[0].worker, {held[slot].shard.id: 7 for slot in two}, {"images": 1.0}) for two in slots]  # type: ignore[union-attr]
    seconds = []
    for beat in beats:
        started = time.perf_counter()
        ledger.heartbeat(beat)
        seconds.append(time.perf_counter() - started)
    turns, started = [slot for two in slots for slot in two][:500], time.perf_counter()
    for slot in turns:
        ledger.finish(slot, held[slot].shard.id, counts)  # type: ignore[union-attr]
        assert isinstance(ledger.lease(slot), Lease)
    lease = (time.perf_counter() - started) / len(turns)
    started = time.perf_counter()
    ledger.snapshot()
    return 1e6 * statistics.median(seconds), 1e6 * lease, 1e3 * (time.perf_counter() - started)


def ledger_words() -> str:
    """At sizes that need no pictures: 500 rows a shard make a billion rows two million shards."""
    words = []
    for shards in LEDGERS:
        us, size = ledger_costs(shards)
        words.append(f"{shards:,} shards {us:.0f} us, {size:.0f} bytes a shard")
    beat, lease, snapshot = ledger_of_workers()
    many = (
        f"{WORKERS:,} workers with two shards each: a heartbeat {beat:.0f} us, a lease and its finish {lease:.0f} us, "
    )
    many += f"a snapshot for the driver {snapshot:.1f} ms"
    return f"A lease and its finish at the ledger: {'; '.join(words)}. {many}."


def fit(lines: list[Line]) -> str:
    """Memory and resume as straight lines, and where they are at a billion rows in shards of 500."""
    words = []
    for name, by, unit in (
        ("plan_mib", "rows", "MiB"),
        ("driver_mib", "shards", "MiB"),
        ("ledger_mib", "shards", "MiB"),
        ("resume_s", "shards", "s"),
    ):
        sizes = [getattr(line, by) for line in lines]
        if len(set(sizes)) < 2:
            continue
        slope, start = np.polyfit(sizes, [getattr(line, name) for line in lines], 1)
        at = start + slope * (BILLION if by == "rows" else BILLION / SHARD_ROWS)
        each = f"{slope * MIB:,.0f} bytes" if unit == "MiB" else f"{1e6 * slope:.0f} us"
        words.append(f"{name}: {start:.3g} {unit} + {each} a {by[:-1]}, {at:,.0f} {unit} at 1e9 rows")
    return f"Straight lines: {'; '.join(words)}." if words else "One size: no line can be fitted."


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[2000])
    parser.add_argument("--shards", type=int, default=20, help="of a plan, about")
    parser.add_argument("--shard-rows", type=int, help="shards are of so many rows, not --shards of them")
    parser.add_argument("--shards-an-actor", type=int, default=0, help="and no fewer than so many an actor")
    parser.add_argument("--rows-an-actor", type=int, help="weak scaling: rows are so many an actor, not --rows")
    parser.add_argument("--actors", type=int, nargs="+", default=[2])
    parser.add_argument("--call-s", type=float, default=0.01, help="seconds of a UNet call")
    parser.add_argument("--layout", default="none", choices=("none", "webdataset", "files", "parquet"))
    parser.add_argument("--only", type=int, nargs=2, metavar=("ROWS", "ACTORS"), help="one line, as JSON")
    given = parser.parse_args()
    os.environ[CALL_ENV] = str(given.call_s)
    if given.only:
        rows, actors = given.only
        print(json.dumps(vars(measure(rows, actors, given))))
        return
    where = machine()
    sizes = [(rows, actors) for rows in given.rows for actors in given.actors]
    if given.rows_an_actor:
        sizes = [(given.rows_an_actor * actors, actors) for actors in given.actors]
    lines = [alone(rows, actors) for rows, actors in sizes]
    table = markdown(COLUMNS, [line.cells for line in lines])
    if given.rows_an_actor:
        rates = [line.rows / line.actor_seconds for line in lines]
        each = ", ".join(f"{line.actors} actors {rate / rates[0]:.1%}" for line, rate in zip(lines, rates, strict=True))
        table += f"\n\nWeak scaling, {given.rows_an_actor:,} rows an actor, rows an actor-second: {each}."
    else:
        table += f"\n\n{fit(lines)}\n\n{ledger_words()}"
    what = f"Fake engine, {given.call_s} s a call of 8 guided rows, budgets {MENU}, layout {given.layout}."
    document = {"options": vars(given), "rows": [vars(line) for line in lines]}
    name = "weak" if given.rows_an_actor else "scale"
    report(name, f"{what}\n\n{table}", document, where, given.write)


if __name__ == "__main__":
    main()
