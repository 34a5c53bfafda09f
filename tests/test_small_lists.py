"""Small lists of prompts are planned without a dataset, with the same outcome, while a worker starts."""

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from actors.selector import SelectorConfig
from pipelines.cluster.pools import PoolSpec
from pipelines.plan import make
from pipelines.plan.budgets import SelectorSource, selector_of
from pipelines.plan.make import is_small, make_plan
from pipelines.plan.selector_process import SelectorProcess
from pipelines.prompts import slices, two_passes
from pipelines.prompts.inspection import PromptSource, open_files
from pipelines.prompts.two_passes import inspect, needs_ray
from pipelines.render import early_worker
from pipelines.render.early_worker import EarlyWorker
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from tests.test_plan import DEFAULTS, FakeConfig, WordSelector, config

GOOD = "".join(f"r{i},{'word ' * (i % 9 + 1)},,{i}\n" for i in range(40))
ROWS = f"id,prompt,num_inference_steps,shop\n{GOOD}bad,,,x\n"


WORDS = {"selector_class": None, "selector": SelectorConfig("words")}


def prompts(folder: Path, name: str = "a.csv", text: str = ROWS) -> PromptSource:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return PromptSource(str(path), defaults=DEFAULTS)


def test_a_small_list_of_text_is_read_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_passes, "_scan_all", None)  # by Ray's tasks
    found = inspect(prompts(tmp_path))
    assert (found.rows, found.bad_rows, is_small(found)) == (41, 1, True)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz"])
def test_what_may_end_its_reader_or_unpack_to_anything_takes_tasks(tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"prompt": ["a cat"]}), tmp_path / name)
        source = PromptSource(str(tmp_path / name), defaults=DEFAULTS)
    else:
        source = prompts(tmp_path, name)
    assert needs_ray(source, open_files(source))


def test_long_lists_and_many_files_take_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = prompts(tmp_path)
    assert not needs_ray(source, open_files(source))
    monkeypatch.setattr(slices, "SMALL_BYTES", len(ROWS) - 1)
    assert needs_ray(source, open_files(source))
    monkeypatch.setattr(slices, "SMALL_BYTES", 1 << 20)
    for i in range(slices.SMALL_FILES):
        prompts(tmp_path, f"b{i}.csv", "prompt\ncat\n")
    whole = PromptSource(str(tmp_path), defaults=DEFAULTS)
    assert needs_ray(whole, open_files(whole))


def test_a_list_of_many_images_is_not_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = inspect(prompts(tmp_path))
    monkeypatch.setattr(make, "SMALL_ROWS", 40)
    assert not is_small(found)


@pytest.mark.ray
@pytest.mark.parametrize(
    "changes", [{}, {"rollout": True}, {"selector_class": None, "selector": SelectorConfig("words")}]
)
def test_both_ways_plan_the_same(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    source, planned = prompts(tmp_path), []
    for small in (True, False):
        monkeypatch.setattr(slices, "SMALL_BYTES", (1 << 20) if small else 0)
        run = RunFolder(str(tmp_path / f"run-{small}"))
        plan = make_plan(read_plan(run), config(source.path, **changes)).plan
        rows = [row for entry in run.shard_index(1).to_pylist() for row in _shard(run, entry)]
        document = plan.newest.document
        planned.append((rows, document["notes"], document["budget_histogram"], document["failed_rows"]))
    assert planned[0] == planned[1]
    assert len(planned[0][0]) in (41, 41 * 3)


def _shard(run: RunFolder, entry: dict[str, Any]) -> list[dict[str, Any]]:
    return run.read_shard(entry["part"], entry["row_group"]).to_pylist()


def test_a_policy_is_asked_where_it_is_told_to_and_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def call(function: Any, *arguments: Any) -> Any:
        called.append(function)
        return function(*arguments)

    scoring = SelectorSource(FakeConfig("policy"), None, WordSelector)
    process = SelectorProcess(scoring, call=call)
    assert len(process.describe()[0]) == 3
    process.end()
    assert [function.__name__ for function in called] == ["_described", "cache_clear"]
    assert selector_of.cache_info().currsize == 0


def test_only_a_policy_takes_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "remote", None)
    assert len(SelectorProcess(SelectorSource(FakeConfig(), None, WordSelector)).describe()[0]) == 3


class Actor:
    """As a handle of a RenderWorker; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.warm = SimpleNamespace(remote=lambda: self.asked.append("warm"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Actor]:
    """The actors that were started, on a Ray of this process's own; `asked` ends with "killed" where it was ended."""
    actors: list[Actor] = []
    monkeypatch.setattr(early_worker, "is_own_ray", lambda: True)
    monkeypatch.setattr(early_worker, "worker_config", lambda *_: None)
    monkeypatch.setattr(early_worker, "start_worker", lambda *_: actors.append(Actor()) or actors[-1])
    monkeypatch.setattr(ray, "kill", lambda actor: actor.asked.append("killed"))
    return actors


def start(early: EarlyWorker, *pools: PoolSpec) -> None:
    settings: Any = SimpleNamespace(pools=pools)
    early.start(settings, RunFolder("run"), None)  # type: ignore[arg-type]


def test_an_early_worker_is_taken_once_and_lives_on(started: list[Actor]) -> None:
    with EarlyWorker() as early:
        start(early, PoolSpec("p"))
        early.load()
        assert early.take(PoolSpec("other")) is None
        assert early.take(PoolSpec("p")) is started[0]
        assert early.take(PoolSpec("p")) is None
    assert started[0].asked == ["warm"]


def test_an_early_worker_that_nobody_took_is_ended(started: list[Actor]) -> None:
    with EarlyWorker() as early:
        start(early, PoolSpec("p"))
    assert started[0].asked == ["killed"]


def test_none_is_early_on_a_cluster_or_for_several_pools(started: list[Actor], monkeypatch: pytest.MonkeyPatch) -> None:
    with EarlyWorker() as early:
        start(early, PoolSpec("p"), PoolSpec("q"))
        monkeypatch.setattr(early_worker, "is_own_ray", lambda: False)
        start(early, PoolSpec("p"))
        assert (early.call, early.take(PoolSpec("p"))) == (None, None)
    assert started == []
