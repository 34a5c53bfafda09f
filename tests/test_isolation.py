"""A row that kills its process, in real child processes."""

import numpy as np
import pytest

from actors.rows import SamplerConfig
from actors.sampler import DDIMSampler
from pipelines.isolation import WorkerDied, render_isolated
from tests.checkpoints import make_checkpoint
from tests.engine import row

FATAL = "sitecustomize.py"
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
        if row.prompt == "hang":
            time.sleep(1000)
        return honest(self, row)
    sampler.DDIMSampler.submit = submit
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1")
    return SamplerConfig(str(path), device="cpu", lanes=4, num_threads=1)


@pytest.fixture
def fatal_prompts(tmp_path, monkeypatch):
    (tmp_path / FATAL).write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ISOLATION_TEST_FATAL", "1")


def test_rows_are_what_they_are_without_a_child(config):
    rows = [row(str(i), seed=i) for i in range(3)]
    isolated = render_isolated(config, rows)
    sampler = DDIMSampler(config)
    for r in rows:
        assert np.array_equal(isolated[r.id].image, sampler.submit(r).result().image)
        assert isolated[r.id].render_class == sampler.submit(r).result().render_class
    sampler.close()


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("die", "SIGABRT"),
        pytest.param("exit", "code 3", marks=pytest.mark.slow),
        pytest.param("hang", "hung for 20 s", marks=pytest.mark.slow),
    ],
)
def test_only_the_row_at_fault_fails(config, fatal_prompts, prompt, reason):
    rows = [row(str(i), prompt if i == 2 else "a fox", seed=i) for i in range(4)]
    results = render_isolated(config, rows, silence_s=20)
    assert [r.id for r in rows if isinstance(results[r.id], Exception)] == ["2"]
    assert isinstance(results["2"], WorkerDied)
    assert reason in str(results["2"])
    assert all(results[i].image.shape == (16, 16, 3) for i in "013")


def test_what_a_row_raises_comes_back(config):
    results = render_isolated(config, [row("a", num_steps=3000), row("b")])
    assert "3000 steps" in str(results["a"])
    assert results["b"].image.shape == (16, 16, 3)
