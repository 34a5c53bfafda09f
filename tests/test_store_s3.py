"""What only a real S3 server shows: kills, refusals, secrets, whole PUTs, and both layouts' keys."""

import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pyarrow as pa
import pytest
from botocore import exceptions as boto

import pipelines.storage.folder
from pipelines.run.layout import RunFolder
from pipelines.storage.folder import Folder, StorageError, StorageOptions
from pipelines.storage.s3 import S3Backend
from tests.s3_server import S3Server

pytestmark = pytest.mark.s3
SHARD = "0001-000042"


@pytest.fixture
def options(s3: S3Server) -> StorageOptions:
    return StorageOptions(s3.endpoint_url)


@pytest.fixture
def run(s3: S3Server, options: StorageOptions) -> RunFolder:
    return RunFolder(f"s3://{s3.bucket()}/runs/spring", options)


def refusal(folder: Folder) -> str:
    """What a probe says, which pauses for less than its deadline in all, however patient the folder is."""
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(pauses), sleep=pauses.append)
    folder.deadline_s = 1000.0
    with patch("pipelines.storage.folder.time", clock), pytest.raises(StorageError) as raised:
        folder.probe()
    assert sum(pauses) <= pipelines.storage.folder.PROBE_DEADLINE_S
    return str(raised.value)


# the server dies


def test_a_killed_server_is_waited_for(s3: S3Server, run: RunFolder) -> None:
    data = os.urandom(300_000)
    run.write("images/warm", data)
    revive = threading.Timer(1.5, s3.restart)
    s3.kill()
    revive.start()
    started = time.monotonic()
    assert run.create("manifest/a", data) is True
    assert time.monotonic() - started > 1
    revive.join()
    assert run.create("manifest/a", b"other") is False
    assert run.read("manifest/a") == data


def test_kills_in_the_middle_of_writes(s3: S3Server, run: RunFolder) -> None:
    """Every write returns, every object is whole, every key has exactly one creator of eight."""
    bodies = {f"k/{number:03d}": os.urandom(200_000) for number in range(160)}
    won: dict[str, list[bool]] = {key: [] for key in bodies}

    def put(key: str) -> None:
        run.write(key.replace("k/", "plain/"), bodies[key])
        for rival in range(2):
            won[key].append(run.create(key, bodies[key] if rival == 0 else b"rival"))

    with ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(put, key) for key in bodies]
        for _ in range(3):
            time.sleep(0.4)
            s3.kill()
            time.sleep(0.2)
            s3.restart()
        for task in tasks:
            task.result(timeout=60)
    assert all(outcome == [True, False] for outcome in won.values())
    assert all(run.read(key) == data for key, data in bodies.items())
    assert all(run.read(key.replace("k/", "plain/")) == data for key, data in bodies.items())
    assert sorted(run.walk("k")) == sorted((key, len(data)) for key, data in bodies.items())


def test_a_power_cut_keeps_what_was_written(s3: S3Server, run: RunFolder) -> None:
    run.commit_manifest(SHARD, pa.table({"id": ["a"]}))
    s3.kill(everything=True)
    s3.restart()
    assert run.done_shards() == {SHARD}
    assert run.read_manifest(SHARD)["id"].to_pylist() == ["a"]
    assert run.commit_manifest(SHARD, pa.table({"id": ["b"]})) is False


def test_a_lost_answer_is_read_back(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is stored, the client sees a reset; the second try is refused and still is a success."""
    real, lost = S3Backend.create, []

    def lossy(self: S3Backend, key: str, data: bytes) -> None:
        real(self, key, data)
        if not lost:
            lost.append(key)
            raise ConnectionResetError

    monkeypatch.setattr(S3Backend, "create", lossy)
    assert run.create("manifest/a", b"mine") is True
    assert lost == ["manifest/a"]
    assert run.create("manifest/a", b"other") is False


# refusals


def test_a_missing_bucket(options: StorageOptions) -> None:
    words = refusal(Folder("s3://no-such-bucket/runs", options))
    assert "there is no bucket 'no-such-bucket'" in words
    assert "Create it" in words
    with pytest.raises(StorageError, match="no bucket"):
        Folder("s3://no-such-bucket/runs", options).read("a")
    with pytest.raises(StorageError, match="no bucket"):
        Folder("s3://no-such-bucket/runs", options).names()


def test_an_unreachable_endpoint() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        place = f"http://127.0.0.1:{taken.getsockname()[1]}"
        words = refusal(Folder("s3://bucket/runs", StorageOptions(place)))
    assert f"{place} cannot be reached" in words
    assert "Check that it runs" in words


def test_an_endpoint_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.storage.folder.PROBE_DEADLINE_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "cannot be reached" in refusal(Folder("s3://bucket/runs", StorageOptions(place)))


def test_wrong_credentials(
    s3: S3Server, run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="pipelines")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrongsecret0123456789")
    words = refusal(Folder(run.url, run.options))
    assert "the secret key does not fit" in words
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrongkey0123456789")
    words += refusal(Folder(run.url, run.options))
    assert "does not know this access key" in words
    for secret in ("wrongsecret0123456789", "wrongkey0123456789", s3.access_key, s3.secret_key):
        assert secret not in words + caplog.text


def test_no_credentials(run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no usable credentials were found. Set AWS_ACCESS_KEY_ID" in refusal(Folder(run.url, run.options))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "no usable credentials" in refusal(Folder(run.url, run.options))


def test_no_credentials_and_no_metadata_service(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no usable credentials" in refusal(Folder(run.url, run.options))


def test_a_bucket_of_somebody_else(s3: S3Server, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    key, secret = s3.stranger
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    words = refusal(Folder(run.url, run.options))
    assert "access denied. Grant these credentials s3:ListBucket" in words
    assert secret not in words
    assert run.url in words


def test_a_bad_bucket_name(options: StorageOptions) -> None:
    assert "no valid name of a bucket" in refusal(Folder("s3://bad!name/runs", options))


# what the server may answer, by the classes of the retry wrapper


def answer(code: str, status: int) -> boto.ClientError:
    return boto.ClientError(
        {"Error": {"Code": code, "Message": "hunter2"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


@pytest.mark.parametrize(
    ("code", "status", "retryable", "reconnect"),
    [
        ("InternalError", 500, True, False),
        ("SlowDown", 503, True, False),
        ("502", 502, True, False),
        ("TooManyRequests", 429, True, False),
        ("RequestTimeout", 400, True, False),
        ("ConditionalRequestConflict", 409, True, False),
        ("ExpiredToken", 400, True, True),
        ("AccessDenied", 403, False, False),
        ("403", 403, False, False),
        ("NoSuchBucket", 404, False, False),
        ("SignatureDoesNotMatch", 403, False, False),
        ("InvalidAccessKeyId", 403, False, False),
        ("PermanentRedirect", 301, False, False),
        ("QuotaExceeded", 403, False, False),
        ("Unheard", 418, False, False),
    ],
)
def test_classes_of_answers(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, code: str, status: int, retryable: bool, reconnect: bool
) -> None:
    tries: list[S3Backend] = []

    def fail(self: S3Backend, key: str, data: bytes) -> None:
        tries.append(self)
        if len(tries) < 3:
            raise answer(code, status)

    monkeypatch.setattr(S3Backend, "write", fail)
    monkeypatch.setattr("pipelines.storage.folder.FIRST_WAIT_S", 0.01)
    if retryable:
        run.write("a", b"1")
        assert len(tries) == 3
        assert (tries[0] is not tries[2]) == reconnect
    else:
        with pytest.raises(StorageError) as raised:
            run.write("a", b"1")
        assert len(tries) == 1
        assert "hunter2" not in str(raised.value)
        assert f"{run.url}/a" in str(raised.value)


def test_expired_credentials_are_read_anew(
    s3: S3Server, run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A profile whose keys are replaced while we run, as a credential helper does."""
    profile = tmp_path / "credentials"
    profile.write_text(f"[default]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    run.write("a", b"1")
    real, expired = S3Backend.write, []

    def expire(self: S3Backend, key: str, data: bytes) -> None:
        if not expired:
            expired.append(key)
            raise answer("ExpiredToken", 400)
        real(self, key, data)

    monkeypatch.setattr(S3Backend, "write", expire)
    run.write("a", b"2")
    assert run.read("a") == b"2"


def test_a_role_whose_refresh_fails_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write("a", b"1")
    real, failures = S3Backend.write, [1]

    def fail(self: S3Backend, key: str, data: bytes) -> None:
        if failures and failures.pop():
            raise boto.CredentialRetrievalError(provider="iam-role", error_msg="metadata service")
        real(self, key, data)

    monkeypatch.setattr(S3Backend, "write", fail)
    run.write("a", b"2")
    assert run.read("a") == b"2"


# secrets


def test_no_secret_in_a_pickle_a_message_or_a_traceback(
    s3: S3Server, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    run.write("a", b"1")
    shown = pickle.dumps(run).decode("latin-1") + repr(run) + repr(run.options) + repr(vars(run))
    try:
        Folder("s3://no-such-bucket/runs", run.options).write("a", b"1")
    except StorageError as error:
        shown += "".join(traceback.format_exception(error)) + repr(pickle.dumps(error))
    assert "no-such-bucket" in shown
    assert s3.secret_key not in shown + caplog.text


# processes and requests


def test_a_fork_connects_anew(run: RunFolder) -> None:
    run.write("a", b"1")
    child = os.fork()
    if child == 0:
        os._exit(0 if run.read("a") == b"1" and run._pid == os.getpid() else 1)
    deadline = time.monotonic() + 120
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked reader hangs")
        time.sleep(0.05)
    assert done[1] == 0


def test_a_process_that_wrote_ends(run: RunFolder) -> None:
    code = (
        "import pickle, sys; run = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "run.write('a', b'1'); print(run.read('a').decode())"
    )
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", code, pickle.dumps(run).hex()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "Traceback" not in done.stderr


@pytest.fixture
def requests(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The S3 operations that reach the wire."""
    import s3fs

    made: list[str] = []
    real = s3fs.S3FileSystem._call_s3

    async def count(self: s3fs.S3FileSystem, method: str, *args: object, **kwargs: object) -> object:
        made.append(method)
        return await real(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", count)
    return made


def test_one_request_an_operation(run: RunFolder, requests: list[str]) -> None:
    large = bytes(110 << 20)  # s3fs alone would cut it into parts
    run.write("large", large)
    run.create("manifest/a", b"1")
    run.read("manifest/a")
    run.read_range("large", 5, 10)
    run.stat("large")
    run.names("manifest")
    list(run.walk())
    run.delete(["large", "manifest/a"])
    assert requests == [
        "put_object",
        "put_object",
        "get_object",
        "get_object",
        "head_object",
        "list_objects_v2",
        "list_objects_v2",
        "delete_objects",
    ]


@pytest.mark.parametrize("layout", ["files", "webdataset"])
def test_both_layouts_commit_twice(run: RunFolder, layout: str) -> None:
    """Two workers on one shard: their bytes never meet, one manifest stands, and what it names is there."""
    names = ["cat", RunFolder.image_name("../../etc/passwd")]
    won = []
    for worker in (b"first", b"second"):
        attempt = run.begin_attempt(SHARD)
        if layout == "files":
            uris = [run.image_key(SHARD, attempt, name, "png") for name in names]
            for uri in uris:
                run.write(uri, worker + uri.encode())
        else:
            key = run.data_key(SHARD, attempt, "tar")
            run.write(key, worker)
            uris = [f"{key}#{name}.png" for name in names]
        won.append(run.commit_manifest(SHARD, pa.table({"id": names, "uri": uris})))
    assert won == [True, False]
    for uri in run.read_manifest(SHARD)["uri"].to_pylist():
        assert run.read(uri.partition("#")[0]).startswith(b"first")
    assert run.attempts() == {SHARD: 2}


def test_put_options_reach_the_store(s3: S3Server, run: RunFolder) -> None:
    marked = Folder(run.url, StorageOptions(s3.endpoint_url, put_options={"Metadata": {"team": "spring"}}))
    marked.write("a", b"1")
    marked.create("b", b"2")
    backend = marked._backend()
    assert isinstance(backend, S3Backend)
    for key in ("a", "b"):
        head = backend.fs.call_s3("head_object", Bucket=backend.bucket, Key=backend._key(key))
        assert head["Metadata"] == {"team": "spring"}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("images/0001-000000/1-aa/r0.png", "image/png"),
        ("images/0001-000000/1-aa/r0.jpg", "image/jpeg"),
        ("images/0001-000000/1-aa/r0.webp", "image/webp"),
        ("plan/0001/plan.json", "application/json"),
        ("report.html", "text/html; charset=utf-8"),
        ("manifest/0001-000000.parquet", "application/vnd.apache.parquet"),
        ("data/0001-000000-1-aa.tar", "application/x-tar"),
        ("plan/dtype", "application/octet-stream"),
    ],
)
def test_every_object_says_what_it_is(s3: S3Server, run: RunFolder, key: str, kind: str) -> None:
    backend = run._backend()
    assert isinstance(backend, S3Backend)
    for put in (run.write, run.create):
        put(key, b"1")
        head = backend.fs.call_s3("head_object", Bucket=backend.bucket, Key=backend._key(key))
        assert head["ContentType"] == kind
        run.delete([key])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"SSEKMSKeyID": "alias/x"}, "did you mean SSEKMSKeyId?"),
        ({"ServerSideEncryptionn": "AES256"}, "did you mean ServerSideEncryption?"),
        ({"serverSideEncryption": "AES256"}, "did you mean ServerSideEncryption?"),
        ({"StorageKlass": "STANDARD_IA"}, "did you mean StorageClass?"),
        ({"cache-control": "no-store"}, "did you mean CacheControl?"),
        ({"Bucket": "other"}, "Bucket is set by this project itself"),
        ({"IfNoneMatch": "*"}, "IfNoneMatch is set by this project itself"),
        ({"colour": "red"}, "S3's PUT knows no colour"),
    ],
)
def test_a_put_option_that_would_be_dropped_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(StorageError, match=r"storage\.put_options") as error:
        Folder("s3://bucket/run", StorageOptions("http://127.0.0.1:1", put_options=options)).write("a", b"1")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"CacheControl": "no-store"},
        {"ContentType": "image/png"},
        {"Metadata": {"team": "spring"}},
        {"ContentDisposition": "inline"},
        {"StorageClass": "STANDARD"},
    ],
)
def test_put_options_that_the_store_applies_pass_the_probe(
    s3: S3Server, run: RunFolder, options: dict[str, object]
) -> None:
    assert Folder(run.url, StorageOptions(s3.endpoint_url, put_options=options)).probe()


@pytest.mark.parametrize(
    ("shown", "unmet"),
    [
        ({}, ["ServerSideEncryption", "StorageClass"]),
        ({"ServerSideEncryption": "AES256", "StorageClass": "STANDARD_IA"}, ["ServerSideEncryption"]),
        ({"ServerSideEncryption": "aws:kms", "StorageClass": "STANDARD_IA"}, []),
    ],
)
def test_a_store_that_does_not_apply_what_is_asked_for_is_refused(
    s3: S3Server, run: RunFolder, monkeypatch: pytest.MonkeyPatch, shown: dict[str, str], unmet: list[str]
) -> None:
    """radosgw has no KMS: what a HEAD shows is a stand-in's."""
    asked = {"ServerSideEncryption": "aws:kms", "StorageClass": "STANDARD_IA"}
    folder = Folder(run.url, StorageOptions(s3.endpoint_url, put_options=asked))
    honest = S3Backend._ask
    monkeypatch.setattr(S3Backend, "_put", lambda self, key, data, **condition: None)
    monkeypatch.setattr(
        S3Backend, "_ask", lambda self, what, **kw: shown if what == "head_object" else honest(self, what, **kw)
    )
    backend = folder._backend()
    assert [each.partition(":")[0] for each in backend.unmet("a")] == unmet


def test_encryption_that_the_store_cannot_give_is_refused_before_the_start(s3: S3Server, run: RunFolder) -> None:
    options = StorageOptions(s3.endpoint_url, put_options={"ServerSideEncryption": "AES256", "StorageClass": "GLACIER"})
    with pytest.raises(StorageError):
        Folder(run.url, options).probe()
