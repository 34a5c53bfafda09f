"""What an S3 server may answer, by its own names: one line with the remedy, through the real client, from a socket."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto

from jobs.job_file.positions import ConfigError
from jobs.steps.find_run import find_job
from pipelines.storage.folder import Folder, StorageError, StorageOptions
from pipelines.storage.put_options import content_type, not_applied, wrong_put_options
from pipelines.storage.s3_answers import answer_of
from tests.s3_server import S3Server

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"


@dataclass
class Store:
    """An S3 endpoint that gives every request one answer and keeps what it was asked.

    seen: method, path and Host of each request, and whether it was signed.
    """

    endpoint_url: str = ""
    seen: list[tuple[str, str, str, bool]] = field(default_factory=list)


Answer = Callable[[BaseHTTPRequestHandler], tuple[int, str]]


@contextmanager
def store(answer: Answer) -> Iterator[Store]:
    """A local HTTP server; a HEAD gets the status alone, as HTTP has it."""
    found = Store()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            signed = "Authorization" in self.headers
            found.seen.append((self.command, self.path, self.headers["Host"], signed))
            status, text = answer(self)
            self.send_response(status)
            body = text.encode()
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(body)))
            self.send_header("ETag", '"e"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        found.endpoint_url = f"http://127.0.0.1:{running.server_port}"
        yield found
        running.shutdown()


def always(code: str, status: int, message: str = "hunter2", more: str = "") -> Answer:
    return lambda handler: (status, ERROR.format(code=code, message=message, more=more))


def folder_at(found: Store, url: str = "s3://bucket/run", **options: Any) -> Folder:
    return Folder(url, StorageOptions(found.endpoint_url, **options), deadline_s=0)


def line_of(call: Callable[[], Any]) -> str:
    """What it says, in one line and without the server's own message."""
    with pytest.raises(StorageError) as raised:
        call()
    said = str(raised.value)
    assert "\n" not in said
    assert "hunter2" not in said
    return said


# ---- answers by their names

NAMED = [
    ("KMS.DisabledException", 400, "the KMS key is disabled. Enable it, or set another one in storage.put_options"),
    ("KMS.NotFoundException", 400, "there is no such KMS key in the bucket's region. Correct storage.put_options"),
    ("KMS.KMSInvalidStateException", 400, "cannot be used in its state, such as a pending deletion. Fix it"),
    ("KMSInvalidStateException", 400, "cannot be used in its state"),
    ("KMS.AccessDeniedException", 400, "may not use the KMS key. Grant them kms:GenerateDataKey and kms:Decrypt"),
    ("KMSAccessDenied", 403, "may not use the KMS key. Grant them kms:GenerateDataKey"),
    ("KMS.InvalidKeyUsageException", 400, "of a kind that encrypts no objects. Name a symmetric encryption key"),
    ("KMS.UnheardOfException", 400, "could not use the KMS key. Check the key and its policy"),
    ("InvalidObjectState", 403, "lies in an archive (Glacier or the like), where it cannot be read. Restore it"),
    ("RequestTimeTooSkewed", 403, "clock differs from the store's by minutes. Set the clock"),
    ("SecondLevelDomainForbidden", 403, "as a part of its host's name. Set storage.addressing_style: virtual"),
    ("PathStyleDomainForbidden", 403, "Set storage.addressing_style: virtual"),
    ("InvalidPathAccess", 400, "Set storage.addressing_style: virtual"),
    ("VirtualHostDomainRequired", 400, "Set storage.addressing_style: virtual"),
    ("SignatureDoesNotMatch", 403, "or something on the way changes requests. Check AWS_ACCESS_KEY_ID"),
    ("AuthorizationHeaderMalformed", 400, "the bucket is in another region. Set storage.region"),
    ("IncorrectEndpoint", 400, "the bucket is in another region. Set storage.region"),
    ("AllAccessDisabled", 403, "all access to the bucket is disabled by its provider"),
    ("AccountProblem", 403, "the account has a problem of its own"),
    ("NoSuchAccessPoint", 404, "there is no such access point. Create it or correct its name"),
    ("InvalidStorageClass", 400, "no such storage class. Correct storage.put_options.StorageClass"),
    ("InsufficientStorage", 507, "the store is full. Free some space"),
]


@pytest.mark.parametrize(("code", "status", "says"), NAMED)
def test_an_answer_is_told_by_its_name_at_the_first_try(code: str, status: int, says: str) -> None:
    with store(always(code, status)) as found:
        folder = Folder("s3://bucket/run", StorageOptions(found.endpoint_url), deadline_s=60)
        assert says in line_of(lambda: folder.read("a"))
        assert says in line_of(lambda: folder.write("a", b"1"))
        assert [method for method, *_ in found.seen] == ["GET", "PUT"]


@pytest.mark.parametrize(
    "code", ["KMS.ThrottlingException", "KMS.KeyUnavailableException", "KMS.LimitExceededException"]
)
def test_a_kms_that_is_busy_is_waited_for(code: str) -> None:
    left = [code, code]

    def busy(handler: BaseHTTPRequestHandler) -> tuple[int, str]:
        return (400, ERROR.format(code=left.pop(), message="", more="")) if left else (200, "")

    with store(busy) as found, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.storage.folder.FIRST_WAIT_S", 0.01)
        Folder("s3://bucket/run", StorageOptions(found.endpoint_url), deadline_s=60).write("a", b"1")
        assert len(found.seen) == 3


def test_a_right_that_is_missing_at_the_key_is_not_taken_for_one_at_the_bucket() -> None:
    message = "User: arn:aws:iam::1:user/hunter2 is not authorized to perform: kms:GenerateDataKey on resource: x"
    with store(always("AccessDenied", 403, message)) as found:
        assert "may not use the KMS key" in line_of(lambda: folder_at(found).write("a", b"1"))
    with store(always("AccessDenied", 403)) as found:
        assert "access denied. Grant these credentials s3:ListBucket" in line_of(lambda: folder_at(found).read("a"))


def test_the_region_that_the_store_names_is_told() -> None:
    with store(always("AuthorizationHeaderMalformed", 400, more="<Region>eu-west-3</Region>")) as found:
        said = line_of(lambda: folder_at(found).read("a"))
        assert said.endswith("Set storage.region to the bucket's region: eu-west-3")


@pytest.mark.parametrize("region", ["", "<b>x</b>", "a b", {"b": "x"}, None, "x" * 99])
def test_what_is_no_region_is_not_told(region: Any) -> None:
    error = boto.ClientError({"Error": {"Code": "PermanentRedirect", "Region": region}}, "GetObject")
    assert answer_of(error)[0] == "PermanentRedirect"


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("RequestTimeTooSkewed", 403, "Set the clock"),
        ("SignatureDoesNotMatch", 403, "the secret key does not fit"),
        ("ExpiredToken", 400, "the credentials have expired"),
        ("InvalidToken", 400, "the session token is not valid"),
    ],
)
def test_a_head_that_is_refused_without_a_word_is_asked_for_its_reason(code: str, status: int, says: str) -> None:
    with store(always(code, status)) as found:
        assert says in line_of(lambda: folder_at(found).stat("a"))
        assert {method for method, *_ in found.seen} == {"HEAD", "GET"}


def test_a_head_that_alone_is_refused_is_an_access_denied() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> tuple[int, str]:
        return (403, "") if handler.command == "HEAD" else (200, "<ListBucketResult/>")

    with store(answer) as found:
        assert "access denied. Grant" in line_of(lambda: folder_at(found).stat("a"))


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_server_that_redirects_every_request_is_one_line(status: int) -> None:
    """As one does where the endpoint says http and should say https; botocore follows it for ever."""
    with store(lambda handler: (status, "<html>moved</html>")) as found:
        for call in (lambda: folder_at(found).read("a"), lambda: folder_at(found).stat("a")):
            assert "redirects every request. Check http:// or https://" in line_of(call)


@pytest.mark.parametrize("status", [200, 403, 404, 500])
@pytest.mark.parametrize("page", ["<html><body>Ünder construction</body></html>", ""])
def test_a_server_that_is_no_store_is_one_line(status: int, page: str) -> None:
    with store(lambda handler: (status, page)) as found:
        folder = folder_at(found)
        for call in (folder.names, folder.probe, lambda: folder.delete(["a"]), lambda: folder.stat("a")):
            with suppress(StorageError, FileNotFoundError):
                call()
        assert line_of(folder.probe)


# ---- deletions


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("MissingContentMD5", 400),
        ("InvalidRequest", 400),
        ("NotImplemented", 501),
        ("MethodNotAllowed", 405),
        ("InvalidDigest", 400),
    ],
)
def test_a_store_that_refuses_batches_of_deletions_gets_them_singly(code: str, status: int) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> tuple[int, str]:
        refused = handler.command == "POST"
        return (status, ERROR.format(code=code, message="", more="")) if refused else (204, "")

    with store(answer) as found:
        folder = folder_at(found)
        folder.delete(["a", "b/c"])
        folder.delete(["d"])
        assert [(method, path) for method, path, *_ in found.seen] == [
            ("POST", "/bucket?delete"),
            ("DELETE", "/bucket/run/a"),
            ("DELETE", "/bucket/run/b/c"),
            ("DELETE", "/bucket/run/d"),
        ]


def test_deletions_that_are_refused_singly_too_are_told() -> None:
    with store(always("NotImplemented", 501)) as found:
        assert "the store cannot do this" in line_of(lambda: folder_at(found).delete(["a"]))


def test_deletions_that_are_denied_are_not_tried_singly() -> None:
    with store(always("AccessDenied", 403)) as found:
        assert "access denied" in line_of(lambda: folder_at(found).delete(["a"]))
        assert len(found.seen) == 1


# ---- places

ARN = "arn:aws:s3:us-east-1:123456789012:accesspoint"


@pytest.fixture
def names_resolve(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every host's name is this machine; -> those that were asked for."""
    real, asked = socket.getaddrinfo, []

    def here(host: str | bytes | None, *args: Any, **options: Any) -> Any:
        asked.append(str(host))
        return real("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    return asked


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        (f"s3://{ARN}/my-point/runs/spring", f"{ARN}/my-point", "runs/spring"),
        (f"s3://{ARN}:my-point/runs", f"{ARN}:my-point", "runs"),
        (f"s3://{ARN}/my-point", f"{ARN}/my-point", ""),
        ("s3://arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/p/x", None, "x"),
        ("s3://arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01/accesspoint/p/x/y", None, "x/y"),
        ("s3://arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/p/x", None, "x"),
        ("s3://point-abcdefghijklmnop1234567890-s3alias/x", "point-abcdefghijklmnop1234567890-s3alias", "x"),
    ],
)
def test_access_points_are_buckets(url: str, bucket: str | None, prefix: str) -> None:
    backend: Any = Folder(url)._backend()
    assert backend.prefix == prefix
    assert backend.bucket == (bucket or url.removeprefix("s3://").removesuffix(f"/{prefix}"))


def test_an_access_point_is_asked_by_its_own_host(names_resolve: list[str]) -> None:
    with store(lambda handler: (200, "" if handler.command == "PUT" else "hello")) as found:
        port = found.endpoint_url.rpartition(":")[2]
        options = StorageOptions(f"http://s3.test:{port}", "us-east-1")
        folder = Folder(f"s3://{ARN}/my-point/runs/spring", options, deadline_s=0)
        assert folder.read("a.txt") == b"hello"
        folder.write("b.txt", b"x")
    host = f"my-point-123456789012.s3.test:{port}"
    assert [each[:3] for each in found.seen] == [
        ("GET", "/runs/spring/a.txt", host),
        ("PUT", "/runs/spring/b.txt", host),
    ]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://arn:aws:s3:us-east-1:12:accesspoint/p/x", "is no valid name of a bucket"),
        ("s3://arn:aws:sns:us-east-1:123456789012:topic/x", "is no valid name of a bucket"),
        ("s3://arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap/x", "such a request cannot be made"),
        ("s3://UPPER CASE/x", "is no valid name of a bucket"),
        (f"s3://{'a' * 300}/x", "is no valid name of a bucket"),
    ],
)
def test_a_place_that_no_request_can_name_is_told_at_once(url: str, says: str) -> None:
    folder = Folder(url, StorageOptions(region="us-east-1"), deadline_s=60)
    assert says in line_of(lambda: folder.read("a"))


@pytest.mark.parametrize(
    ("style", "host", "path"),
    [(None, "", "/bucket/run/a"), ("path", "", "/bucket/run/a"), ("virtual", "bucket.", "/run/a")],
)
def test_the_bucket_stands_where_the_style_says(
    names_resolve: list[str], style: str | None, host: str, path: str
) -> None:
    with store(lambda handler: (200, "hello")) as found:
        port = found.endpoint_url.rpartition(":")[2]
        options = StorageOptions(f"http://s3.test:{port}", addressing_style=style)
        assert Folder("s3://bucket/run", options, deadline_s=0).read("a") == b"hello"
    assert [each[:3] for each in found.seen] == [("GET", path, f"{host}s3.test:{port}")]


def test_a_host_that_cannot_be_found_is_named_with_its_bucket() -> None:
    options = StorageOptions("http://no-such-host.invalid", addressing_style="virtual")
    said = line_of(lambda: Folder("s3://bucket/run", options, deadline_s=0).read("a"))
    assert "http://bucket.no-such-host.invalid cannot be reached" in said


CONFIGURED = {
    "profile": "[default]\nendpoint_url = {url}\n",
    "services": "[default]\nservices = here\n[services here]\ns3 =\n  endpoint_url = {url}\n",
    "a named profile": "[default]\nendpoint_url = http://127.0.0.1:1\n[profile named]\nendpoint_url = {url}\n",
    "services before profile": (
        "[default]\nendpoint_url = http://127.0.0.1:1\nservices = here\n[services here]\ns3 =\n  endpoint_url = {url}\n"
    ),
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_the_endpoint_of_the_aws_configuration_is_used_and_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    if name == "a named profile":
        monkeypatch.setenv("AWS_PROFILE", "named")
    with store(lambda handler: (200, "hello")) as found:
        (tmp_path / "config").write_text(CONFIGURED[name].format(url=found.endpoint_url))
        folder = Folder("s3://bucket/run", deadline_s=0)
        assert folder.read("a") == b"hello"
        assert folder.access().endpoint == found.endpoint_url
        assert folder.access().endpoint_from == "endpoint_url of the AWS configuration"
        monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
        assert Folder("s3://bucket/run").access().endpoint_from == "AWS itself"


# ---- nobody's credentials


def test_a_public_bucket_is_read_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with store(lambda handler: (200, "hello")) as found:
        assert "storage.anonymous" in line_of(lambda: folder_at(found).read("a"))
        assert found.seen == []
        folder = folder_at(found, anonymous=True)
        assert folder.read("a") == b"hello"
        assert folder.access().credentials == "nobody, as storage.anonymous says"
        assert [signed for *_, signed in found.seen] == [False]


def test_credentials_at_hand_are_not_shown_to_a_public_bucket() -> None:
    with store(lambda handler: (200, "hello")) as found:
        folder_at(found).read("a")
        folder_at(found, anonymous=True).read("a")
        assert [signed for *_, signed in found.seen] == [True, False]


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "Unheard"])
def test_a_bucket_that_is_not_public_says_so(code: str) -> None:
    with store(always(code, 403)) as found:
        said = line_of(lambda: folder_at(found, anonymous=True).read("a"))
        assert "access denied to who shows no credentials. Take storage.anonymous out" in said


@pytest.mark.s3
def test_a_bucket_that_anybody_may_list_and_read_on_a_real_server(s3: S3Server) -> None:
    bucket = s3.bucket()
    own = Folder(f"s3://{bucket}/in", StorageOptions(s3.endpoint_url))
    own.write("a.csv", b"prompt\na\n")
    nobody = Folder(own.url, StorageOptions(s3.endpoint_url, anonymous=True), deadline_s=0)
    assert "access denied to who shows no credentials" in line_of(lambda: nobody.read("a.csv"))
    rights = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    rights["Resource"] = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    s3._client().put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rights]}))
    assert nobody.names() == ["a.csv"]
    assert nobody.stat("a.csv") == own.stat("a.csv")
    assert nobody.read("a.csv") == b"prompt\na\n"
    assert "access denied to who shows no credentials" in line_of(lambda: nobody.probe())


# ---- verify of a run whose store does not answer


def test_verify_names_the_endpoint_that_it_tried_and_how_to_name_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError) as raised:
            find_job("s3://bucket/run", (f"storage.endpoint_url={place}",))
    (fault,) = raised.value.faults
    assert f"{place} cannot be reached" in fault.message
    assert f"({place}: storage.endpoint_url of the job; -s storage.endpoint_url=URL names another)" in fault.message


def test_verify_names_the_endpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with store(always("NoSuchBucket", 404)) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", found.endpoint_url)
        with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL_S3 in the environment; -s storage\.endpoint_url=URL"):
            find_job("s3://bucket/run", ())


# ---- what is put with an object


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("images/s/a/r.png", "image/png"),
        ("images/s/a/r.jpg", "image/jpeg"),
        ("images/s/a/r.webp", "image/webp"),
        ("plan.json", "application/json"),
        ("output.jsonl", "application/jsonl"),
        ("m.parquet", "application/vnd.apache.parquet"),
        ("d.tar", "application/x-tar"),
        ("report.html", "text/html; charset=utf-8"),
        ("rows.csv", "text/csv; charset=utf-8"),
        ("job.yaml", "application/yaml"),
        ("frontier.svg", "image/svg+xml"),
        ("plan/dtype", "application/octet-stream"),
        ("attempts/s/1-ab.released", "application/octet-stream"),
    ],
)
def test_a_type_of_the_jobs_own_is_for_pictures_alone(key: str, kind: str) -> None:
    assert content_type(key, {}) == kind
    own = content_type(key, {"ContentType": "image/x-own"})
    assert own == ("image/x-own" if key.startswith("images/") else kind)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"BucketKeyEnabled": "yes"}, "Invalid type for parameter BucketKeyEnabled"),
        ({"Metadata": {"team": 1}}, "Invalid type for parameter Metadata.team"),
        ({"Metadata": "team=spring"}, "Invalid type for parameter Metadata"),
        ({"CacheControl": 3600}, "Invalid type for parameter CacheControl"),
        ({"SSEKMSKeyId": ["a"]}, "Invalid type for parameter SSEKMSKeyId"),
        ({"Storage-Class": "STANDARD"}, "did you mean StorageClass?"),
        ({"Taging": "a=b"}, "did you mean Tagging?"),
        ({"ContentLength": 1}, "ContentLength is set by this project itself"),
    ],
)
def test_an_option_that_no_put_can_have_is_refused_before_anything_is_sent(options: dict, says: str) -> None:
    assert says in str(wrong_put_options(options))
    with store(lambda handler: (200, "")) as found:
        assert "storage.put_options" in line_of(lambda: folder_at(found, put_options=options).probe())
        assert found.seen == []


def test_an_option_that_a_put_can_have_passes() -> None:
    options = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k", "BucketKeyEnabled": True, "Tagging": "a=b"}
    assert wrong_put_options(options | {"ACL": "bucket-owner-full-control", "Metadata": {"a": "b"}}) is None


@pytest.mark.parametrize(
    ("asked", "shown", "dropped"),
    [
        ({"SSEKMSKeyId": "alias/pictures"}, {"SSEKMSKeyId": "arn:aws:kms:r:1:key/ab"}, []),
        ({"SSEKMSKeyId": "ab"}, {"SSEKMSKeyId": "arn:aws:kms:r:1:key/ab"}, []),
        ({"SSEKMSKeyId": "ab"}, {"SSEKMSKeyId": "arn:aws:kms:r:1:key/cd"}, ["SSEKMSKeyId"]),
        ({"SSEKMSKeyId": "alias/pictures"}, {}, ["SSEKMSKeyId"]),
        ({"Metadata": {"Team": "x"}}, {"Metadata": {"team": "x", "more": "y"}}, []),
        ({"Metadata": {"Team": "x"}}, {"Metadata": {}}, ["Metadata"]),
        ({"ObjectLockMode": "GOVERNANCE"}, {}, ["ObjectLockMode"]),
        ({"BucketKeyEnabled": True}, {"BucketKeyEnabled": False}, ["BucketKeyEnabled"]),
        ({"StorageClass": "STANDARD"}, {}, []),
        ({"Tagging": "a=b"}, {}, []),
    ],
)
def test_what_a_head_shows_is_held_against_what_was_asked_for(asked: dict, shown: dict, dropped: list[str]) -> None:
    assert [said.partition(":")[0] for said in not_applied(asked, shown)] == dropped


def test_codes_are_found_behind_the_clients_own_errors() -> None:
    error = OSError("x")
    error.__cause__ = boto.ClientError(
        {"Error": {"Code": "A"}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "PutObject"
    )
    assert answer_of(error) == ("A", 400)
    assert answer_of(ValueError("x")) == ("", 0)
