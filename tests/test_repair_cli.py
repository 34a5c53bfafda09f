"""`repair` and `run --retry-failed` as one types them, on a real Ray."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.__main__ import main
from jobs.steps.repair_run import RerenderedRows
from pipelines.run.drivers import driving
from pipelines.run.layout import RunFolder, manifest_key, parquet_bytes
from pipelines.storage.folder import StorageOptions
from tests.checkpoints import make_checkpoint

JOB = """\
model: {path: MODEL, device: cpu}
input: {path: prompts.csv}
steps: {selector: fixed, fixed: 2}
pools: [{name: default, lanes: 4}]
output: {path: run, layout: LAYOUT}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint("sd1", tmp_path_factory.mktemp("model") / "sd1"))


@pytest.fixture
def job(tmp_path: Path, model: str, sleeping, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(layout: str = "files") -> RunFolder:
        Path("prompts.csv").write_text("prompt\n" + "".join(f"a fox number {i}\n" for i in range(12)) + '""\n')
        Path("job.yaml").write_text(JOB.replace("MODEL", model).replace("LAYOUT", layout))
        return RunFolder("run")

    return write


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def rows(run: RunFolder) -> dict[str, dict]:
    return {row["id"]: row for table in run.manifests() for row in table.to_pylist()}


def change(run: RunFolder, id: str, **values: object) -> None:
    (shard,) = [shard for shard in run.done_shards() if id in run.read_manifest(shard)["id"].to_pylist()]
    table = run.read_manifest(shard)
    new = [row | (values if row["id"] == id else {}) for row in table.to_pylist()]
    run.write(manifest_key(shard), parquet_bytes([pa.Table.from_pylist(new, schema=table.schema)]))


@pytest.mark.ray
@pytest.mark.parametrize("layout", ["files", "webdataset"])
def test_what_is_damaged_is_rendered_again_and_verified(ray_cluster, job, layout: str, capsys) -> None:
    run = job(layout)
    assert typed(capsys, "run", "job.yaml", "-s", "failures.max_fraction=0.5")[0] == 0
    before = rows(run)
    damaged = [row for row in before.values() if row["status"] == "ok"][:2]
    if layout == "files":
        run.delete([damaged[0]["uri"]])
        data = run.read(damaged[1]["uri"])
        run.write(damaged[1]["uri"], data[:-1] + bytes([data[-1] ^ 1]))
        again = 2
    else:
        run.delete([damaged[0]["uri"].partition("#")[0]])
        again = 12
    assert typed(capsys, "verify", "run", "--full")[0] == 1

    code, told = typed(capsys, "repair", "run", "--full", "--delete-orphans")
    assert (code, told["status"], told["left"]) == (0, "repaired", {})
    assert told["repaired"] == {
        "shards": 1,
        "rows": again,
        "ok": again,
        "failed": 0,
        "same_bytes": again,
        "other_bytes": 0,
        "render_classes": [],
    }
    assert told["orphans_deleted"] == (1 if layout == "files" else 0)
    after = rows(run)
    assert {id: row["sha256"] for id, row in after.items()} == {id: row["sha256"] for id, row in before.items()}
    assert [row["uri"] for row in after.values()] != [row["uri"] for row in before.values()]
    assert typed(capsys, "verify", "run", "--full")[0] == 0

    code, told = typed(capsys, "repair", "run", "--full")  # nothing is left to do, and nothing is done
    assert (code, told["status"], told["repaired"]["rows"]) == (0, "clean", 0)
    assert rows(run) == after


@pytest.mark.ray
def test_rows_that_failed_are_rendered_again_with_their_seed(ray_cluster, job, capsys) -> None:
    run = job()
    assert typed(capsys, "run", "job.yaml")[0] == 3  # the empty prompt
    before = rows(run)
    ok = next(row for row in before.values() if row["status"] == "ok")
    gone = dict.fromkeys(("uri", "sha256", "bytes", "render_class"))
    change(run, ok["id"], status="failed", error_type="OutOfMemoryError", error_message="no", **gone)
    run.delete([ok["uri"]])
    code, told = typed(capsys, "run", "job.yaml", "-s", "failures.max_fraction=0.5")
    assert (code, told["failed"], told["rendered_now"]) == (0, 2, 0)
    code, told = typed(capsys, "run", "job.yaml", "-s", "failures.max_fraction=0.5", "--retry-failed")
    assert (code, told["failed"], told["rendered_now"]) == (0, 1, 1)
    after = rows(run)
    assert after[ok["id"]]["sha256"] == ok["sha256"]
    assert {row["revision"] for row in after.values()} == {1}
    assert typed(capsys, "verify", "run", "--full")[0] == 0


@pytest.mark.ray
@pytest.mark.s3
def test_a_run_on_s3_is_repaired_in_place(ray_cluster, s3, job, capsys) -> None:
    job()
    options = StorageOptions(endpoint_url=s3.endpoint_url)
    run = RunFolder(f"s3://{s3.bucket()}/runs/spring", options)
    text = Path("job.yaml").read_text().replace("path: run,", f"path: '{run.url}',")
    Path("job.yaml").write_text(
        f"{text}storage: {{endpoint_url: '{s3.endpoint_url}'}}\nfailures: {{max_fraction: 0.5}}\n"
    )
    assert typed(capsys, "run", "job.yaml")[0] == 0
    before = rows(run)
    gone, torn = [row for row in before.values() if row["status"] == "ok"][:2]
    run.delete([gone["uri"]])
    run.write(torn["uri"], run.read(torn["uri"])[:-1])
    assert typed(capsys, "verify", "job.yaml", "--full")[0] == 1
    code, told = typed(capsys, "repair", "job.yaml", "--full", "--delete-orphans")
    assert (code, told["status"], told["left"], told["orphans_deleted"]) == (0, "repaired", {}, 1)
    assert (told["repaired"]["rows"], told["repaired"]["same_bytes"]) == (2, 2)
    assert {id: row["sha256"] for id, row in rows(run).items()} == {id: row["sha256"] for id, row in before.items()}
    assert run.stat(torn["uri"]) is None
    assert typed(capsys, "verify", "job.yaml", "--full")[0] == 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_row_of_a_rollout_is_repaired_with_all_of_its_noise(ray_cluster, job, capsys) -> None:
    """Its fidelity is measured against the picture of most steps, which has to be there again."""
    run = job()
    job_text = Path("job.yaml").read_text().replace("selector: fixed, fixed: 2", "choices: [1, 2, 3]")
    Path("job.yaml").write_text(f"{job_text}quality: [{{scorer: fidelity}}, {{scorer: 'tests.plans:brightness'}}]\n")
    assert typed(capsys, "rollout", "job.yaml", "-s", "failures.max_fraction=0.5")[0] == 0
    before = rows(run)
    damaged = next(row for row in before.values() if row["status"] == "ok" and row["num_steps"] == 1)
    run.delete([damaged["uri"]])
    code, told = typed(capsys, "repair", "run", "--full", "--delete-orphans")
    assert (code, told["status"], told["orphans_deleted"]) == (0, "repaired", 2)
    assert (told["repaired"]["rows"], told["repaired"]["same_bytes"]) == (3, 3)
    after = rows(run)
    kept = ("sha256", "scores", "quality", "num_steps", "seed")
    assert {id: [row[name] for name in kept] for id, row in after.items()} == {
        id: [row[name] for name in kept] for id, row in before.items()
    }
    assert len({row["scores"][0]["score"] for row in after.values() if row["status"] == "ok"}) > 1
    moved = {id for id, row in after.items() if row["uri"] != before[id]["uri"]}
    assert {(after[id]["prompt_id"], after[id]["sample"]) for id in moved} == {
        (damaged["prompt_id"], damaged["sample"])
    }
    assert typed(capsys, "verify", "run", "--full")[0] == 0


def planned_only(run: RunFolder) -> None:
    from jobs.job_file import settings
    from jobs.job_file.read import load_job

    loaded = load_job("job.yaml")
    run.write_job(loaded.config.dump())
    run.commit_plan(1, {"fingerprint": settings.fingerprint(loaded, settings.read_checkpoint(loaded)), "price": None})


def test_a_second_driver_is_refused(job, capsys) -> None:
    run = job()
    planned_only(run)
    with driving(run):
        assert main(["repair", "run"]) == 2
    assert "another run is active in" in capsys.readouterr().err


def test_another_model_is_refused(job, capsys, tmp_path: Path) -> None:
    run = job()
    planned_only(run)
    other = make_checkpoint("sd2", tmp_path / "other")
    assert main(["repair", "run", "-s", f"model.path={other}"]) == 2
    assert "model.path was" in capsys.readouterr().err


def test_other_bytes_are_told_with_the_class_that_made_them() -> None:
    outcome = RerenderedRows()
    row = {"status": "ok", "sha256": "a", "render_class": "one"}
    outcome.add(row, row)
    outcome.add(row, row | {"sha256": "b", "render_class": "two"})
    outcome.add({}, row)
    outcome.add(row, row | {"status": "failed", "sha256": None, "render_class": None})
    assert outcome.document() == {
        "shards": 0,
        "rows": 4,
        "ok": 3,
        "failed": 1,
        "same_bytes": 1,
        "other_bytes": 1,
        "render_classes": [{"before": "one", "now": "two", "rows": 1}],
    }
