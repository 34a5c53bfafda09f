"""Shards to images and manifests on a real Ray, in a local run folder and on a real S3 server."""

import hashlib
import io
import tarfile
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.rows import SamplerConfig
from pipelines.cluster.pools import PoolSpec
from pipelines.render.driver import render
from pipelines.render.pool import RenderConfig, RenderError
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.precision import DTYPE_KEY, PrecisionError, keep_dtype, settled_dtype
from pipelines.storage.checkpoints import ModelSource
from pipelines.storage.folder import StorageOptions
from tests.checkpoints import make_checkpoint
from tests.engine import latents, loaded, row
from tests.plans import planned_row, write_plan

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1"))


DEFAULT_POOLS = (PoolSpec(lanes=6),)


def config(model="", pools=DEFAULT_POOLS, **values):
    return RenderConfig(ModelSource(model), SamplerConfig("", device="cpu"), tuple(pools), **values)


def manifest_rows(run):
    return [r for table in run.manifests() for r in table.to_pylist()]


def test_every_row_is_rendered_once_and_is_what_the_engine_makes(ray_cluster, model, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    rows = [planned_row(i) for i in range(40)]
    rows[7] |= {"error_type": "EmptyPrompt", "error_message": "the prompt is empty", "num_steps": None}
    write_plan(run, rows, 9)
    seen = []
    result = render(read_plan(run), config(model), seen.append)

    manifest = {r["id"]: r for r in manifest_rows(run)}
    assert sorted(manifest) == [r["id"] for r in rows]
    assert {r["id"] for r in manifest.values() if r["status"] == "failed"} == {"r0007"}
    assert manifest["r0007"]["error_message"] == "the prompt is empty"
    assert manifest["r0007"]["uri"] is None
    assert (result.rows, result.interrupted) == (40, False)
    assert seen[-1].done == seen[-1].total == 40
    assert seen[-1].failed == 1
    assert run.read(DTYPE_KEY) == b"float32"  # what `auto` meant

    sampler = loaded(model, lanes=6)
    expected = latents(sampler, [row(r["id"], r["prompt"], seed=r["seed"], num_steps=r["num_steps"]) for r in rows[:5]])
    for r in rows[:5]:
        stored = run.read(manifest[r["id"]]["uri"])
        assert hashlib.sha256(stored).hexdigest() == manifest[r["id"]]["sha256"]
        image, _ = sampler.model.decode(expected[r["id"]][None])
        difference = np.abs(np.asarray(Image.open(io.BytesIO(stored))).astype(int) - image[0])
        assert difference.max() <= 1  # the decoder's batch is another here
        assert manifest[r["id"]]["note"] == r["note"]
        assert manifest[r["id"]]["lane_steps"] == 2 * r["num_steps"]


def test_done_shards_are_not_rendered_again(ray_cluster, sleeping, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i) for i in range(12)], 4)
    render(read_plan(run), config())
    before = {name: run.stat(f"manifest/{name}") for name in run.names("manifest")}
    run.delete(["manifest/0001-000001.parquet"])
    result = render(read_plan(run), config())
    assert result.rows == 4
    after = {name: run.stat(f"manifest/{name}") for name in run.names("manifest")}
    assert sorted(after) == sorted(before)
    assert {n for n in before if before[n] != after[n]} <= {"0001-000001.parquet"}
    assert render(read_plan(run), config()).rows == 0


@pytest.mark.parametrize(
    ("layout", "image_format"),  # formats are the same code in every layout: tests/test_sinks.py
    [("webdataset", "jpeg"), ("parquet", "png"), ("none", "png")],
)
def test_layouts(ray_cluster, sleeping, tmp_path, layout, image_format):
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i) for i in range(6)], 3)
    render(read_plan(run), config(layout=layout, image_format=image_format))
    for r in manifest_rows(run):
        if layout == "none":
            assert (r["uri"], r["bytes"], r["sha256"]) == (None, None, None)
            continue
        key, name = r["uri"].split("#")
        data = run.read(key)
        if layout == "webdataset":
            stored = data[r["offset"] : r["offset"] + r["bytes"]]
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                assert tar.extractfile(name).read() == stored
                assert len(tar.getnames()) == 6
        else:
            table = pq.read_table(io.BytesIO(data)).to_pylist()
            stored = next(t["image"] for t in table if t["id"] == r["id"])
        assert hashlib.sha256(stored).hexdigest() == r["sha256"]
        assert Image.open(io.BytesIO(stored)).format.lower() == image_format


@pytest.mark.slow
def test_pools_share_what_both_may_serve(ray_cluster, model, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    rows = [planned_row(i, num_steps=2 if i < 20 else 6) for i in range(40)]
    write_plan(run, rows, 5)
    pools = [PoolSpec("short", (2,), lanes=4), PoolSpec("long", (2, 6), lanes=8)]
    render(read_plan(run), config(model, pools))
    manifest = manifest_rows(run)
    assert len(manifest) == 40
    assert {r["render_class"].split("/")[3].split("-")[1] for r in manifest if r["num_steps"] == 6} == {"8lanes"}


def test_a_budget_without_a_pool_is_refused_before_anything_starts(ray_cluster, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i, num_steps=3) for i in range(4)], 2)
    with pytest.raises(RenderError, match="3 steps, which no pool serves"):
        render(read_plan(run), config(pools=[PoolSpec("p", (5,))]))
    assert run.attempts() == {}


def test_stop_commits_what_is_in_work_and_a_second_call_does_the_rest(ray_cluster, sleeping, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i, num_steps=40) for i in range(60)], 5)
    stop = threading.Event()
    first = render(read_plan(run), config(), lambda p: stop.set() if p.done else None, stop)
    done = run.done_shards()
    assert first.interrupted
    assert 0 < len(done) < 12
    assert run.attempts().keys() == done
    second = render(read_plan(run), config())
    assert first.rows + second.rows == 60
    assert len(run.done_shards()) == 12


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_run_with_its_reason(ray_cluster, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    write_plan(run, [planned_row(i) for i in range(4)], 2)
    with pytest.raises(RenderError, match=r"no actor is left that can render 2 shards: pool default: .*nowhere"):
        render(read_plan(run), config(str(tmp_path / "nowhere")))
    assert run.attempts() == {}  # no shard is to blame


@pytest.mark.slow
def test_lanes_stay_full_over_a_whole_job(ray_cluster, model, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    menu = tuple(range(5, 55, 5))
    rows = [planned_row(i, num_steps=menu[i % 10], guidance_scale=1.0 if i % 3 == 0 else 5.0) for i in range(800)]
    write_plan(run, rows, 40)
    result = render(read_plan(run), config(model, [PoolSpec(lanes=16)]))
    assert len(run.done_shards()) == 20
    assert result.lane_fill >= 0.97


def test_the_precision_is_settled_once_and_holds_for_the_run(tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    assert settled_dtype(run, "bfloat16", "float16") == "bfloat16"
    assert settled_dtype(run, "auto", "float16") == "float16"
    keep_dtype(run, "float32")  # by a run on CPUs
    assert settled_dtype(run, "auto", "float16") == "float32"
    with pytest.raises(PrecisionError, match="float32"):
        keep_dtype(run, "float16")


@pytest.mark.s3
def test_s3_from_plan_to_picture(ray_cluster, sleeping, s3):
    run = RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(endpoint_url=s3.endpoint_url))
    write_plan(run, [planned_row(i) for i in range(20)], 6)
    render(read_plan(run), config())
    manifest = manifest_rows(run)
    assert len({r["id"] for r in manifest}) == len(manifest) == 20
    for r in manifest:
        stored = run.read(r["uri"])
        assert hashlib.sha256(stored).hexdigest() == r["sha256"]
        Image.open(io.BytesIO(stored)).verify()
