"""Every crash point of docs/commit-protocol.md, hit on purpose: a real process dies there by kill -9, the next goes on.

The processes do what a worker, a planner and a driver do, on a real S3 server behind the fault proxy, which kills them
just before a request is forwarded or just after it was answered. Repair's points are in tests/test_repair.py.
"""

import multiprocessing
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa
import pytest

from actors.rows import SamplerConfig
from pipelines.integrity.findings import ORPHANS
from pipelines.integrity.verification import verify
from pipelines.plan.shards import Place, PlannedShard
from pipelines.plan.writer import PlanWriter, commit
from pipelines.render.messages import Lease
from pipelines.render.messages import LeasedShard as Leased
from pipelines.render.worker import WorkerConfig
from pipelines.run.drivers import claim, driving
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.schema import CANONICAL_FIELDS, SCORE_FIELDS, manifest_schema, schema_to_json
from pipelines.storage.checkpoints import ModelSource
from pipelines.storage.folder import StorageError, StorageOptions
from tests.fault_proxy import FaultProxy, Rule
from tests.plans import CARRIED, PLAN_SCHEMA, lane_steps, planned_row, write_plan
from tests.sleeping_workers import Drawing
from tests.waiting import until

pytestmark = pytest.mark.s3
ROWS = 6
SHARD = "0001-000000"
MANIFEST = f"manifest/{SHARD}.parquet"
TIMEOUT_S = 120.0
PATIENCE_S = 30.0  # seconds of retries in the processes of these tests
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.sleeping_workers", "pipelines.storage.s3"])


@dataclass(frozen=True)
class Point:
    """Where a process dies: before ("reset") or after ("lost") the request of a kind for a key with this text in it.

    done: the shards, generations or epochs that exist afterwards; left: what verify finds before anybody goes on.
    """

    name: str
    fault: str
    kind: str
    text: str
    skip: int = 0
    done: int = 0
    left: frozenset[str] = frozenset({"manifest_missing"})
    layout: str = "files"


SHARD_POINTS = (
    Point("nothing is written yet", "reset", "PUT", "attempts/"),
    Point("the attempt is written", "lost", "PUT", "attempts/"),
    Point("the precision of the run is settled", "lost", "CREATE", "plan/dtype"),
    Point("some images are written", "lost", "PUT", "images/", skip=2),
    Point("all images are written, the manifest is not", "reset", "CREATE", "manifest/"),
    Point("the data file is written, the manifest is not", "lost", "PUT", "data/", layout="webdataset"),
    Point("the manifest is written, nobody heard of it", "lost", "CREATE", "manifest/", done=1, left=frozenset()),
)
PLAN_POINTS = (
    Point("a part is written", "lost", "PUT", "plan/0001/part-"),
    Point("all parts are written, the index is not", "reset", "CREATE", "shards.parquet"),
    Point("the index is written, plan.json is not", "lost", "CREATE", "shards.parquet"),
    Point("plan.json is about to be written", "reset", "CREATE", "plan.json"),
    Point("plan.json is written, nobody heard of it", "lost", "CREATE", "plan.json", done=1),
)
DRIVER_POINTS = (
    Point("the epoch is not written", "reset", "CREATE", "epochs/"),
    Point("the epoch is written, the driver dies", "lost", "CREATE", "epochs/", done=1),
    Point("a driver dies before it says goodbye", "reset", "PUT", "epochs/", done=1),
)


@pytest.fixture
def proxy(fault_server: tuple[FaultProxy, str]) -> FaultProxy:
    running, _ = fault_server
    running.rules.clear()
    running.injected.clear()
    return running


@pytest.fixture
def run(fault_server: tuple[FaultProxy, str], proxy: FaultProxy) -> RunFolder:
    return RunFolder(f"s3://{fault_server[1]}/{secrets.token_hex(4)}", StorageOptions(proxy.endpoint_url), PATIENCE_S)


@pytest.fixture
def planned(run: RunFolder) -> RunFolder:
    write_plan(run, [planned_row(i) for i in range(ROWS)], ROWS)
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{id: sha256} of a run that nobody broke."""
    run = RunFolder(str(tmp_path_factory.mktemp("run")))
    write_plan(run, [planned_row(i) for i in range(ROWS)], ROWS)
    assert ended(start(work, run)) == 0
    return hashes(run)


def work(run: RunFolder, layout: str = "files") -> None:
    """A worker's life with one lease, in a process of its own: the real worker and sinks, an engine that sleeps."""
    entry = run.shard_index(1).to_pylist()[0]
    names = ("part", "row_group", "rows", "good_rows", "lane_steps")
    shard = Leased(SHARD, *(entry[name] for name in names), ("default",))
    settings = SamplerConfig("", device="cpu", lanes=4, num_threads=1)
    schema = read_plan(run).manifest_schema
    job = WorkerConfig(run, ModelSource("", revision="0.001"), settings, "default", layout, "png", schema)
    worker = Drawing(job, None)
    worker._render(Lease(shard, run.attempts().get(SHARD, 0)))


def plan(run: RunFolder, *_: str) -> None:
    """A planner's life: two parts of one shard each, the index, plan.json."""
    writer = PlanWriter(run, 1)
    for start in range(0, ROWS, 3):
        rows = [planned_row(i) for i in range(start, start + 3)]
        table = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA.remove(PLAN_SCHEMA.get_field_index("shard")))
        cost = [lane_steps(row) for row in rows]
        for at, column in enumerate((*CANONICAL_FIELDS, *SCORE_FIELDS)):
            if column.name not in table.column_names:
                table = table.add_column(min(at, table.num_columns), column, pa.nulls(table.num_rows, column.type))
        writer.add(PlannedShard(table, Place(16, 16, ("default",)), 3, sum(cost), max(cost), (1, 2, 3)))
        writer.flush()
    plan = {"manifest_schema": schema_to_json(manifest_schema(CARRIED)), "rows": ROWS, "fingerprint": {}}
    commit(writer, plan)


def drive(run: RunFolder, *_: str) -> None:
    """A driver's life without any work."""
    with driving(run):
        pass


def start(life: Callable[..., None], run: RunFolder, *arguments: str) -> BaseProcess:
    process = PROCESSES.Process(target=life, args=(run, *arguments))
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    """The exit code; a process that hangs fails the test."""
    process.join(TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        pytest.fail("the process hangs")
    return process.exitcode


def die_at(proxy: FaultProxy, point: Point, life: Callable[..., None], run: RunFolder, *arguments: str) -> None:
    """A process that dies there, and nowhere else."""
    dying: list[int] = []

    def kill() -> None:
        until(lambda: dying)
        os.kill(dying[0], signal.SIGKILL)

    proxy.rules.append(Rule(point.fault, point.kind, point.text, skip=point.skip, then=kill))
    process = start(life, run, *arguments)
    assert process.pid
    dying.append(process.pid)
    assert ended(process) == -signal.SIGKILL
    assert [seen.fault for seen in proxy.injected] == [point.fault]


def hashes(run: RunFolder) -> dict[str, str]:
    return {row["id"]: row["sha256"] for table in run.manifests() for row in table.to_pylist()}


def found(run: RunFolder) -> set[str]:
    return {finding.kind for checked in verify(run, 1) for finding in checked.findings}


@pytest.mark.parametrize("point", SHARD_POINTS, ids=lambda point: point.name)
def test_a_worker_dies(proxy: FaultProxy, planned: RunFolder, undisturbed: dict[str, str], point: Point) -> None:
    die_at(proxy, point, work, planned, point.layout)
    assert len(planned.done_shards()) == point.done
    assert found(planned) == point.left
    manifest = planned.stat(MANIFEST)
    assert ended(start(work, planned, point.layout)) == 0
    assert found(planned) <= ORPHANS
    assert hashes(planned) == undisturbed
    assert manifest in (None, planned.stat(MANIFEST))


@pytest.mark.parametrize(
    "fault", ["lost", "reset", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("lied", "503"))]
)
@pytest.mark.parametrize(("kind", "text"), [("PUT", "attempts/"), ("PUT", "images/"), ("CREATE", "manifest/")])
def test_an_answer_is_lost_and_the_worker_lives(
    proxy: FaultProxy, planned: RunFolder, undisturbed: dict[str, str], fault: str, kind: str, text: str
) -> None:
    """The write succeeded and the client saw an error, or it did not and the client tries again: no trace of either."""
    proxy.rules.append(Rule(fault, kind, text))
    assert ended(start(work, planned)) == 0
    assert [seen.fault for seen in proxy.injected] == [fault]
    assert found(planned) == set()
    assert hashes(planned) == undisturbed
    assert planned.attempts() == {SHARD: 1}


def test_a_commit_in_doubt_to_the_end_deletes_nothing(
    proxy: FaultProxy, planned: RunFolder, undisturbed: dict[str, str]
) -> None:
    """The manifest stands, its writer cannot learn so before its patience ends; the next worker meets it."""
    impatient = RunFolder(planned.url, planned.options, 1.0)
    proxy.rules += [Rule("lost", "CREATE", "manifest/"), Rule("500", "CREATE", "manifest/", times=1000)]
    proxy.rules.append(Rule("500", "GET", "manifest/", times=1000))
    assert ended(start(work, impatient)) == 1
    assert not {seen.kind for seen in proxy.injected} & {"DELETE"}
    proxy.rules.clear()
    assert found(planned) == set()
    before = planned.stat(MANIFEST)
    assert ended(start(work, planned)) == 0
    assert planned.stat(MANIFEST) == before
    assert hashes(planned) == undisturbed


@pytest.mark.parametrize("at", [("PUT", "images/"), ("CREATE", "manifest/")], ids=["in its images", "at its commit"])
def test_a_zombie_commits_after_its_shard_was_leased_to_another(
    proxy: FaultProxy, planned: RunFolder, undisturbed: dict[str, str], at: tuple[str, str]
) -> None:
    """A worker is stopped in mid-work, its shard rendered and committed by another; then it wakes and goes on."""
    stopped: list[int] = []

    def stop() -> None:
        until(lambda: stopped)
        os.kill(stopped[0], signal.SIGSTOP)

    proxy.rules.append(Rule("reset", *at, then=stop))
    zombie = start(work, planned)
    assert zombie.pid
    stopped.append(zombie.pid)
    until(lambda: proxy.injected, seconds=TIMEOUT_S)
    assert ended(start(work, planned)) == 0
    before = planned.read_manifest(SHARD)
    os.kill(zombie.pid, signal.SIGCONT)
    assert ended(zombie) == 0
    assert planned.attempts() == {SHARD: 2}
    assert found(planned) == set()  # it has dropped its own pictures
    assert planned.read_manifest(SHARD) == before
    assert hashes(planned) == undisturbed


def test_a_loser_dies_before_it_has_dropped_its_attempt(
    proxy: FaultProxy, planned: RunFolder, undisturbed: dict[str, str]
) -> None:
    winner: list[BaseProcess] = []

    def overtake() -> None:
        winner.append(start(work, planned))
        assert ended(winner[0]) == 0

    proxy.rules.append(Rule("pass", "CREATE", "manifest/", then=overtake))
    dying: list[int] = []
    proxy.rules.append(Rule("reset", "DELETE", then=lambda: os.kill(dying[0], signal.SIGKILL)))
    loser = start(work, planned)
    assert loser.pid
    dying.append(loser.pid)
    assert ended(loser) == -signal.SIGKILL
    assert found(planned) == {"attempt_orphan"}
    assert hashes(planned) == undisturbed


@pytest.mark.parametrize("point", PLAN_POINTS, ids=lambda point: point.name)
def test_a_planner_dies(proxy: FaultProxy, run: RunFolder, point: Point) -> None:
    die_at(proxy, point, plan, run)
    assert len(run.generations()) == point.done
    if not point.done:
        assert ended(start(plan, run)) == 0
    index = run.shard_index(1).to_pylist()
    ids = [row["id"] for entry in index for row in run.read_shard(entry["part"], entry["row_group"]).to_pylist()]
    assert ids == [f"r{i:04d}" for i in range(ROWS)]
    assert found(run) - {"manifest_missing"} <= {"plan_orphan"}
    assert set(run.read_plan(1)["parts"]) == {entry["part"] for entry in index}


@pytest.mark.parametrize("point", DRIVER_POINTS, ids=lambda point: point.name)
def test_a_driver_dies(proxy: FaultProxy, run: RunFolder, point: Point) -> None:
    die_at(proxy, point, drive, run)
    assert len(run.names("epochs")) == point.done
    assert claim(run, sleep=lambda _: None).id.number == point.done + 1


def test_every_write_of_the_protocol_has_its_points() -> None:
    """The page's tables and these lists name the same keys."""
    page = (Path(__file__).parent.parent / "docs" / "commit-protocol.md").read_text("utf-8")
    points = " ".join(point.text for point in (*SHARD_POINTS, *PLAN_POINTS, *DRIVER_POINTS))
    for key in ("plan/<generation>/part-", "shards.parquet", "plan.json", "attempts/", "images/", "manifest/", "data/"):
        assert key in page
        assert key.replace("<generation>", "0001") in points


def test_an_attempt_that_cannot_be_counted_is_not_begun(proxy: FaultProxy, planned: RunFolder) -> None:
    impatient = RunFolder(planned.url, planned.options, 0.5)
    proxy.rules.append(Rule("503", "PUT", "attempts/", times=1000))
    with pytest.raises(StorageError, match="cannot write"):
        impatient.begin_attempt(SHARD)
    assert found(planned) == {"manifest_missing"}
