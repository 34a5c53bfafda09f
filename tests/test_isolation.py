"""A row that kills its process, in real child processes."""

import threading
import time

import numpy as np
import pytest

from actors.rows import EngineBroken, SamplerConfig
from actors.sampler import DDIMSampler
from actors.scorer import QualityScorer, ScorerConfig, ScorerSpec
from pipelines.render import isolation
from pipelines.render.attempt import AttemptFailed, BusySpan, InlineExecutor, ShardAttempt, engine_row
from pipelines.render.isolation import _CHILDREN, SILENCE_S, IsolatedRows, Isolation, WorkerDied
from pipelines.render.quality import ShardScores
from pipelines.render.sink import Sink
from pipelines.render.tries import RowFailed, TryRules
from pipelines.run.layout import Attempt, RunFolder
from tests.checkpoints import make_checkpoint
from tests.engine import row
from tests.marked import MARKED
from tests.plans import brightness, typed_row

FATAL = "sitecustomize.py"
SHARD, BAR = "0001-000000", 143.0  # of `brightness`, prompt length and all: some rows are below it
KILLER = """
import os
if "ISOLATION_TEST_FATAL" in os.environ:
    import time
    import actors.sampler as sampler
    honest = sampler.DDIMSampler.submit
    def submit(self, row):
        if row.prompt == "die":
            os.abort()
        if row.prompt == "exit":
            os._exit(3)
        if row.prompt == "unpicklable":
            class Odd(Exception):
                def __init__(self, one, two):
                    super().__init__(f"{one} {two}")
            future = sampler.Future()
            future.set_exception(Odd("two", "words"))
            return future
        if row.prompt == "break":
            self._model_is_lost()
        if row.prompt == "hang":
            time.sleep(1000)
        return honest(self, row)
    sampler.DDIMSampler.submit = submit
    loaded = sampler.DDIMSampler.load
    def load(self):
        if os.path.exists(os.environ["ISOLATION_TEST_FATAL"]):
            raise RuntimeError("the device is lost")
        loaded(self)
    def lose(self):
        def lost(*args, **kwargs):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.model.predict = self.model.encode = self.model.decode = self.model.unet.forward = lost
    sampler.DDIMSampler.load, sampler.DDIMSampler._model_is_lost = load, lose
"""


def render_isolated(config, rows, silence_s=SILENCE_S):
    """{id: picture, or what became of the row}."""
    found = {}
    Isolation(config, found.__setitem__, silence_s).render(rows)
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1")
    return SamplerConfig(str(path), device="cpu", lanes=4, num_threads=1)


@pytest.fixture
def fatal_prompts(tmp_path, monkeypatch):
    (tmp_path / FATAL).write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ISOLATION_TEST_FATAL", str(tmp_path / "the device is lost"))
    return tmp_path / "the device is lost"


def test_rows_are_what_they_are_without_a_child_and_what_one_raises_comes_back(config):
    rows = [row(str(i), seed=i) for i in range(3)]
    isolated = render_isolated(config, [*rows, row("long", num_steps=3000)])
    assert "3000 steps" in isolated["long"].args[1]
    sampler = DDIMSampler(config)
    for r in rows:
        assert np.array_equal(isolated[r.id].image, sampler.submit(r).result().image)
        assert isolated[r.id].render_class == sampler.submit(r).result().render_class
    sampler.close()


@pytest.mark.parametrize(
    ("prompt", "reason", "count"),
    [
        ("die", "SIGABRT", 2),
        pytest.param("break", "its engine broke", 2, marks=pytest.mark.slow),
        pytest.param("exit", "code 3", 4, marks=pytest.mark.slow),
        pytest.param("hang", "hung for 20 s", 2, marks=pytest.mark.slow),
    ],
)
def test_only_the_row_at_fault_fails(config, fatal_prompts, prompt, reason, count):
    """A process begins for every half of the rows of one that died."""
    rows = [row(str(i), prompt if i == 1 else "a fox", seed=i) for i in range(count)]
    results = render_isolated(config, rows, silence_s=20)
    assert [r.id for r in rows if isinstance(results[r.id], Exception)] == ["1"]
    assert isinstance(results["1"], WorkerDied)
    assert reason in str(results["1"])
    assert all(results[r.id].image.shape == (16, 16, 3) for r in rows if r.id != "1")


@pytest.mark.slow
def test_no_row_is_to_blame_where_no_child_can_load_the_model(config, fatal_prompts):
    fatal_prompts.touch()
    with pytest.raises(EngineBroken, match="no process can load the model here"):
        render_isolated(config, [row("a"), row("b")])


@pytest.mark.slow
def test_no_row_is_to_blame_where_the_device_is_lost_with_it(config, fatal_prompts):
    """The last row kills its child; and the next child cannot even load."""
    found = {}

    def deliver(id, result):
        found[id] = result
        fatal_prompts.touch()

    with pytest.raises(EngineBroken):
        Isolation(config, deliver).render([row("a"), row("b", "die")])
    assert not [result for result in found.values() if isinstance(result, Exception)]


def test_one_picture_is_in_memory_at_a_time(config):
    """A future's callbacks store its picture; the next one is read after that."""
    rows, held, most = [row(str(i), seed=i) for i in range(12)], [], []
    isolated = IsolatedRows(config, rows, SILENCE_S, lambda: None)
    futures = []
    for r in rows:
        future = isolated.submit(r)
        future.add_done_callback(lambda done: (held.append(done), most.append(len(held)), held.clear()))
        futures.append(future)
    assert [future.result(300).image.shape for future in futures] == [(16, 16, 3)] * 12
    assert most == [1] * 12
    assert isolated._futures == {}


@pytest.mark.slow
def test_rows_that_nobody_waits_for_end_the_child(config):
    rows = [row(str(i), num_steps=200, seed=i) for i in range(64)]
    before = set(threading.enumerate())
    isolated = IsolatedRows(config, rows, SILENCE_S, lambda: None)
    futures = [isolated.submit(r) for r in rows]
    for future in futures[1:]:
        future.cancel()
    (thread,) = [t for t in threading.enumerate() if t.name == "isolation" and t not in before]
    thread.join(300)
    assert not thread.is_alive()
    assert all(future.done() for future in futures)
    assert not _CHILDREN


class Stored:
    """A sink that keeps nothing."""

    run, shard, image_format = None, "s", "png"
    attempt = Attempt("s", 1, "aa")

    def put(self, row, image):
        return Stored()

    def close(self):
        return {}

    def discard(self):
        return None


def planned(count):
    return [typed_row(i) for i in range(count)]


@pytest.mark.parametrize("fault", [OSError(12, "Cannot allocate memory"), OSError(24, "Too many open files")])
def test_what_goes_wrong_around_the_children_is_no_rows_fault(config, monkeypatch, fault):
    def refused(*args, **options):
        raise fault

    monkeypatch.setattr(isolation.subprocess, "Popen", refused)
    rows = planned(4)
    isolated = IsolatedRows(config, [engine_row(row) for row in rows], SILENCE_S, lambda: None)
    work = ShardAttempt(rows, Stored(), config, BusySpan())
    with pytest.raises(AttemptFailed, match=fault.strerror):
        work.render(isolated.submit, InlineExecutor(), in_work=len(rows))


@pytest.mark.slow
def test_an_error_that_cannot_be_pickled_is_its_rows_alone(config, fatal_prompts):
    results = render_isolated(config, [row("a"), row("b", "unpicklable"), row("c")])
    assert isinstance(results["b"], RowFailed)
    assert results["b"].args == ("Odd", "two words")
    assert results["a"].image.shape == results["c"].image.shape == (16, 16, 3)


@pytest.mark.slow
def test_a_store_that_takes_long_is_no_hanging_child(config, monkeypatch):
    """The child waits for its parent, who waits for the store: nobody hangs."""
    found = {}

    def deliver(id, result):
        if not found:
            time.sleep(20)
        found[id] = result

    Isolation(config, deliver, silence_s=10).render([row(str(i), seed=i) for i in range(4)])
    assert sorted(found) == ["0", "1", "2", "3"]
    assert not [result for result in found.values() if isinstance(result, Exception)]


@pytest.mark.slow
def test_tries_in_child_processes_are_those_of_the_worker(config, tmp_path):
    """A row that is tried again waits until the other rows of its shard are done: its pictures are the same."""
    rows = [typed_row(i, num_steps=2, bar=BAR) for i in range(6)]

    def tried(folder, submit, in_work):
        run = RunFolder(str(tmp_path / folder))
        sink = Sink(run, SHARD, run.begin_attempt(SHARD), "files", "png", MARKED)
        scorer = QualityScorer(ScorerConfig((ScorerSpec("bright", "function", function=brightness),)))
        work = ShardAttempt(rows, sink, config, BusySpan(), ShardScores(scorer, rows, threading.Lock()), TryRules(3))
        found = work.render(submit, InlineExecutor(), in_work)
        return [(row["id"], row["seed"], row["sha256"], [each["seed"] for each in row["tries"]]) for row in found]

    sampler = DDIMSampler(config)
    alone = tried("alone", sampler.submit, len(rows))
    sampler.close()
    isolated = IsolatedRows(config, [engine_row(row) for row in rows], SILENCE_S, lambda: None)
    assert tried("isolated", isolated.submit, len(rows)) == alone
    assert 1 < max(len(tries) for *_, tries in alone) <= 3
