"""A process that does not see its driver's run folder says so: another disk, another store, no keys, no way there."""

import os
import pickle
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.run.drivers import EpochId, claim
from pipelines.run.layout import RunFolder
from pipelines.run.proof import NotSharedError, Proof, probe_object, prove
from pipelines.storage.folder import Folder, StorageError, StorageOptions
from tests.fault_proxy import FaultProxy, Rule
from tests.s3_server import S3Server, server_or_skip

DRIVER = "the driver uses"
KEYS = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])  # the server's only user's


def told(run: Folder, proof: Proof) -> str:
    """What `prove` says; never a secret, and never to be tried again."""
    with pytest.raises(NotSharedError) as raised:
        prove(run, proof)
    error = raised.value
    assert not error.retryable
    assert error.finding
    assert str(error) == f"the run folder {run.url} is not shared with host {socket.gethostname()}: {error.finding}"
    assert pickle.loads(pickle.dumps(error)).finding == error.finding
    assert not any(key in str(error) for key in KEYS)
    assert "\n" not in str(error)
    return error.finding


# a disk


def test_the_driver_itself_and_who_shares_its_disk_see_it(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    epoch = claim(run).id
    prove(run, epoch.proof)
    prove(RunFolder(str(tmp_path / "run")), pickle.loads(pickle.dumps(epoch)).proof)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    proof = claim(RunFolder(str(tmp_path / "run"))).id.proof
    found = told(RunFolder(str(tmp_path / "elsewhere")), proof)
    assert found.startswith("there is no such folder there. Put output.path on a disk that every machine mounts")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("has_a_run", [False, True])
def test_another_folder_of_the_same_path(tmp_path: Path, has_a_run: bool) -> None:
    proof = claim(RunFolder(str(tmp_path / "run"))).id.proof
    (tmp_path / "other").mkdir()
    other = RunFolder(str(tmp_path / "other"))
    if has_a_run:
        claim(other)
        assert other.names("epochs") == [proof.key.rpartition("/")[2]]  # of one name, with another token
    assert "another one there than the driver's on host" in told(other, proof)


@pytest.mark.parametrize("content", [b"", b"[]", b'"token"', b"{}", b'{"token": null}', b"\xff\x00"])
def test_what_is_no_record_is_no_proof(tmp_path: Path, content: bytes) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.write("epochs/000001.json", content)
    assert "another one there" in told(run, Proof("epochs/000001.json", "token"))


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    proof = claim(RunFolder(str(tmp_path / "run"))).id.proof
    (tmp_path / "file").write_text("")
    assert "there is no such folder there" in told(RunFolder(str(tmp_path / "file")), proof)


def test_a_probe_is_written_and_gone(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    with probe_object(run) as proof:
        prove(run, proof)
    assert run.names() == []
    with pytest.raises(NotSharedError):
        prove(run, proof)


def test_a_term_of_old_has_a_proof_too(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    epoch = claim(run).id
    prove(run, EpochId(epoch.number, epoch.token).proof)
    assert "another one there than the driver's. Put" in told(run, EpochId(epoch.number, "other").proof)


# an object store


@pytest.fixture(scope="module")
def another_store(s3: S3Server) -> Iterator[S3Server]:
    """A second server that knows the same user."""
    with server_or_skip(*KEYS) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    return s3.bucket()


@pytest.fixture
def run(bucket: str) -> RunFolder:
    return RunFolder(f"s3://{bucket}/runs/spring")


@pytest.fixture
def proof(run: RunFolder) -> Proof:
    return claim(run).id.proof


@pytest.mark.s3
def test_how_a_process_gets_at_a_store(
    s3: S3Server, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run.access()
    assert (found.host, found.place, found.endpoint) == (socket.gethostname(), run.url, s3.endpoint_url)
    assert (found.endpoint_from, found.credentials) == ("AWS_ENDPOINT_URL in the environment", "the environment")
    job = RunFolder(run.url, StorageOptions("http://user-of-job.example:9")).access()
    assert (job.endpoint, job.endpoint_from) == ("http://user-of-job.example:9", "storage.endpoint_url of the job")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:hidden@s3.example/path")
    own = RunFolder(run.url).access()
    assert (own.endpoint, own.endpoint_from) == ("http://s3.example/path", "AWS_ENDPOINT_URL_S3 in the environment")
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    nothing = RunFolder(run.url).access()
    assert (nothing.endpoint, nothing.endpoint_from, nothing.credentials) == ("S3", "AWS itself", "none")
    config = tmp_path / "config"
    config.write_text(
        f"[profile here]\naws_access_key_id = {KEYS[0]}\naws_secret_access_key = {KEYS[1]}\n"
        f"endpoint_url = {s3.endpoint_url}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "here")
    profile = RunFolder(run.url).access()
    assert (profile.endpoint, profile.endpoint_from) == (s3.endpoint_url, "endpoint_url of the AWS configuration")
    assert profile.credentials == "a profile"
    assert RunFolder(run.url).create("through-the-profile", b"")
    monkeypatch.setenv("AWS_PROFILE", "none-of-that-name")
    assert RunFolder(run.url).access().credentials == "none"
    assert not any(key in str(each) for key in (*KEYS, "hidden") for each in (found, job, own, nothing, profile))


@pytest.mark.s3
def test_the_same_store_is_proved(s3: S3Server, run: RunFolder, proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    prove(run, proof)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    prove(RunFolder(run.url, StorageOptions(s3.endpoint_url)), proof)


@pytest.mark.s3
@pytest.mark.parametrize("bucket_is_there", [True, False])
def test_another_store_of_the_same_names(
    another_store: S3Server,
    s3: S3Server,
    bucket: str,
    proof: Proof,
    bucket_is_there: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if bucket_is_there:
        another_store._client().create_bucket(Bucket=bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", another_store.endpoint_url)
    found = told(RunFolder(f"s3://{bucket}/runs/spring"), proof)
    assert ("there is no such bucket at" in found) != bucket_is_there
    assert f"at {another_store.endpoint_url} (AWS_ENDPOINT_URL in the environment)" in found
    assert f"{DRIVER} {s3.endpoint_url} (AWS_ENDPOINT_URL in the environment). Write storage.endpoint_url" in found


@pytest.mark.s3
def test_one_url_that_means_another_store_elsewhere(s3: S3Server, run: RunFolder, proof: Proof) -> None:
    run.delete([proof.key])
    found = told(run, proof)
    assert f"at {s3.endpoint_url}" in found
    assert "another store than the driver's" in found


@pytest.mark.s3
def test_no_credentials(s3: S3Server, run: RunFolder, proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    found = told(RunFolder(run.url), proof)
    assert found.startswith("it has no credentials, neither in the environment nor by a profile or a role; the driver")
    assert "from the environment, do not travel with a job. Set AWS_ACCESS_KEY_ID and" in found
    assert DRIVER not in found
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    found = told(RunFolder(run.url), proof)
    assert "It also uses S3 (AWS itself) where" in found
    assert f"{DRIVER} {s3.endpoint_url} (AWS_ENDPOINT_URL in the environment). Write storage.endpoint_url" in found


@pytest.mark.s3
def test_refused_credentials(s3: S3Server, run: RunFolder, proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-" + KEYS[1])
    found = told(RunFolder(run.url), proof)
    assert "refuses its credentials, from the environment: the secret key does not fit the access key" in found
    stranger = s3.stranger
    for name, key in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), stranger, strict=True):
        monkeypatch.setenv(name, key)
    found = told(RunFolder(run.url), proof)
    assert "refuses its credentials, from the environment: access denied; the driver's are from" in found
    assert not any(key in found for key in stranger)


@pytest.mark.s3
def test_an_endpoint_that_cannot_be_reached(run: RunFolder, proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        nobody = f"http://127.0.0.1:{held.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    found = told(RunFolder(run.url), proof)
    assert found.startswith(f"{nobody} cannot be reached")
    assert f"and {DRIVER} http://127.0.0.1:" in found
    assert proof.driver is not None
    same = replace(proof, driver=replace(proof.driver, endpoint=nobody))
    assert "That address is each machine itself" in told(RunFolder(run.url), same)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid:9000")
    same = replace(proof, driver=replace(proof.driver, endpoint="http://store.invalid:9000"))
    assert "The driver does reach it: look at that node's network" in told(RunFolder(run.url), same)


@pytest.mark.s3
def test_a_busy_store_proves_nothing(fault_server: tuple[FaultProxy, str]) -> None:
    proxy, bucket = fault_server
    run = RunFolder(f"s3://{bucket}/runs/busy", StorageOptions(proxy.endpoint_url), deadline_s=1.0)
    proof = claim(run).id.proof
    prove(run, proof)
    proxy.rules.append(Rule("503", "GET", "epochs/", times=1000))
    with pytest.raises(StorageError) as raised:
        prove(run, proof)
    proxy.rules.clear()
    assert raised.value.retryable
    assert not isinstance(raised.value, NotSharedError)
