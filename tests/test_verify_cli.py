"""The verb `verify` as a user types it: its exit codes, its words, its document, and where it finds a run."""

import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.job_file.keys import Input, JobConfig
from jobs.steps.find_run import find_job
from pipelines.run.layout import RunFolder, manifest_key
from pipelines.storage.folder import StorageOptions
from tests.finished import finished_run, store

SHARD = "0001-000001"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(RunFolder(str(tmp_path / "runs/spring")))


def test_a_clean_run_by_path_and_by_job_file(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "runs/spring"]) == 0
    out = capsys.readouterr().out
    assert out == (
        "runs/spring: 20 of 20 planned rows in 4 shards\n"
        "all 19 images are there with their sizes; 4 of 19 read and equal\n"
        "clean as far as 4 of 19 images were read; --full reads every one\n"
    )
    Path("spring.yaml").write_text("input: {path: prompts.csv}\n")
    assert main(["verify", "spring.yaml", "--full"]) == 0
    assert capsys.readouterr().out.endswith("19 of 19 read and equal\nclean\n")


def test_damage_is_named_and_counted(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run.read_manifest(SHARD).to_pylist()
    gone = rows[0]
    run.delete([gone["uri"], manifest_key("0001-000002")])
    assert main(["verify", "runs/spring", "--full"]) == 1
    out = capsys.readouterr().out
    assert "15 of 20 planned rows in 4 shards" in out
    assert "manifest_missing: 1 planned shards without a manifest" in out
    assert f"  {gone['uri']} (row {gone['id']}): no such object" in out
    assert "clean" not in out

    assert main(["verify", "runs/spring", "--full", "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    document = json.loads(line)
    assert (document["status"], document["planned"], document["rows"]) == ("damaged", 20, 15)
    assert document["found"] == {"manifest_missing": 1, "image_missing": 1}
    assert {finding["kind"] for finding in document["findings"]} == {"manifest_missing", "image_missing"}
    assert document["findings_left_out"] == 0


def test_more_than_a_few_are_counted_not_listed(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.delete(key for key, _ in run.walk("images"))
    assert main(["verify", "runs/spring", "--full"]) == 1
    out = capsys.readouterr().out
    assert out.count("no such object") == 5
    assert "  and 14 more" in out


def test_orphans_may_be_allowed(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    attempt, _, _ = store(run, SHARD)
    assert main(["verify", "runs/spring"]) == 1
    assert f"images/{SHARD}/{attempt.name}" in capsys.readouterr().out
    assert main(["verify", "runs/spring", "--allow-orphans"]) == 0
    assert f"images/{SHARD}/{attempt.name}" in capsys.readouterr().out
    run.delete([manifest_key(SHARD)])
    assert main(["verify", "runs/spring", "--allow-orphans"]) == 1


@pytest.mark.parametrize("path", ["nowhere", "none.yaml", "prompts.csv"])
def test_what_is_no_run_is_refused(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.csv").write_text("prompt\nx\n")
    assert main(["verify", path]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


@pytest.mark.s3
def test_a_url_by_set_and_by_the_job_file_inside(
    s3, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{s3.bucket()}/it's a run"
    run = finished_run(RunFolder(url, StorageOptions(s3.endpoint_url)))
    assert main(["verify", url, "-s", f"storage.endpoint_url={s3.endpoint_url}"]) == 0
    job = JobConfig(input=Input(path="p.csv"))
    run.write_job(job.model_copy(update={"output": job.output.model_copy(update={"path": "s3://moved/away"})}).dump())
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    assert main(["verify", url]) == 0
    assert capsys.readouterr().out.count("clean") == 2


def test_what_is_not_there_or_cut_short_is_seen_without_full(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    uris = [uri for table in run.manifests() for uri in table["uri"].to_pylist() if uri]
    run.delete(uris[:1])
    run.write(uris[9], run.read(uris[9])[:-1])
    assert main(["verify", "runs/spring"]) == 1
    out = capsys.readouterr().out
    assert f"{uris[0]} (row " in out
    assert "no such object" in out
    assert f"{uris[9]} (row " in out
    assert "17 of 19 images are there with their sizes; 4 of 19 read and equal" in out
    assert "clean" not in out


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("webdataset", "all 19 images are there with their sizes; 4 of 19 read and equal\nclean as far as 4 of 19"),
        ("parquet", "all 19 images are there; 5 of 19 read and equal\nclean as far as 5 of 19"),
        ("none", "no image is stored\nclean\n"),
    ],
)
def test_the_verdict_says_how_far_it_was_looked(
    layout: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(RunFolder(str(tmp_path / "run")), layout)
    assert main(["verify", "run"]) == 0
    assert words in capsys.readouterr().out
    if layout == "none":
        return
    (key,) = [key for key, _ in run.walk("data") if SHARD in key]
    run.delete([key])
    assert main(["verify", "run"]) == 1
    assert "15 of 19 images are there" in capsys.readouterr().out


def test_an_image_of_the_right_size_and_other_bytes_is_told_apart(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = run.read_manifest(SHARD).to_pylist()[0]["uri"]
    data = run.read(uri)
    run.write(uri, data[:-1] + bytes([data[-1] ^ 1]))
    assert main(["verify", "runs/spring", "--full"]) == 1
    assert "all 19 images are there with their sizes; 19 of 19 read and 18 of them equal" in capsys.readouterr().out


@pytest.mark.s3
def test_the_endpoint_is_that_of_the_job(
    s3, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{s3.bucket()}/run"
    run = finished_run(RunFolder(url, StorageOptions(s3.endpoint_url)))
    text = f"input: {{path: p.csv}}\noutput: {{path: '{url}', storage: {{endpoint_url: '{s3.endpoint_url}'}}}}\n"
    Path("spring.yaml").write_text(text)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert main(["verify", "spring.yaml"]) == 0
    run.write_job(text)
    elsewhere = s3.endpoint_url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("AWS_ENDPOINT_URL", elsewhere)  # by which job.yaml is found; the rest is read as it says
    assert find_job(url, ())[1].options.endpoint_url == s3.endpoint_url
    assert main(["verify", url]) == 0
    assert find_job(url, (f"output.storage={{endpoint_url: '{elsewhere}'}}",))[1].options.endpoint_url == elsewhere
    assert capsys.readouterr().out.count("clean") == 2


def test_a_store_that_does_not_answer_is_told_with_its_endpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert main(["verify", "s3://bucket/runs/spring"]) == 2
    err = capsys.readouterr().err
    assert "http://127.0.0.1:1: AWS_ENDPOINT_URL in the environment; -s storage.endpoint_url=URL names another" in err
    assert len(err.splitlines()) == 1
