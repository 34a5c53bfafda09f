"""S3 and what speaks like it, through s3fs: one request an operation, one whole PUT a write, no cache, no own retry.

Imported by `pipelines.folder` in the process that uses it; waiting and trying again are done there.
"""

import asyncio
import difflib
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import botocore.session
import s3fs
from botocore import exceptions as boto
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.session import Session
from fsspec.asyn import sync

from pipelines.backends import NO_BUCKET, NO_CREDENTIALS, REFUSED, UNREACHABLE, Fault, Reach, Timeouts

WHOLE_PUT = 5 * 2**29  # s3fs sends up to twice its chunk size, here S3's own limit of 5 GiB, in one PUT
POOL = 32  # connections a process
SLOWEST_BYTES_PER_S = 2**18  # a transfer slower than this is given up and tried again
LARGEST_GET = 200 * 2**20  # bytes; what a GET will bring is not known before (a silent one ends by the read timeout)
T = TypeVar("T")
_WHEN_REQUIRED = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}


class S3Backend:
    """One bucket and prefix. Credentials: environment, profile, role, as botocore finds them in this process."""

    errors: tuple[type[BaseException], ...] = (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError)

    def __init__(
        self, url: str, endpoint_url: str | None, region: str | None, put_options: Mapping[str, Any], timeouts: Timeouts
    ) -> None:
        self.bucket, _, self.prefix = url.partition("://")[2].partition("/")
        self.endpoint_url, self.endpoint_from = _endpoint(endpoint_url)
        self.conditional = True
        self.put_options = dict(put_options)
        self.fs = s3fs.S3FileSystem(
            endpoint_url=endpoint_url,
            client_kwargs={"region_name": region} if region else {},
            config_kwargs={
                "connect_timeout": timeouts.connect_s,
                "read_timeout": timeouts.read_s,
                "max_pool_connections": POOL,
                "retries": {"total_max_attempts": 1},
                **(_WHEN_REQUIRED if self.endpoint_url else {}),  # others than AWS know only some checksums
            },
            s3_additional_kwargs=dict(put_options),
            use_listings_cache=False,
            skip_instance_cache=True,
            max_concurrency=1,
        )
        self.fs.retries = 1
        self.silence_s = timeouts.read_s
        self.served = False  # credentials that worked and are gone come back: a role's refresh failed

    def _key(self, key: str) -> str:
        return "/".join(part for part in (self.prefix, key) if part)

    def _path(self, key: str) -> str:
        return f"{self.bucket}/{self._key(key)}"

    def _do(self, request: Callable[..., Coroutine[Any, Any, T]], *args: Any, sent: int = 0, **options: Any) -> T:
        """Run one request on fsspec's loop, bounded: the client's own timeouts do not cover the sending of a body."""
        bound_s = self.silence_s + sent / SLOWEST_BYTES_PER_S

        async def bounded() -> T:
            return await asyncio.wait_for(request(*args, **options), bound_s)

        answer = sync(self.fs.loop, bounded)
        self.served = True
        return answer

    def _get(self, key: str, **limits: int) -> bytes:
        return self._do(self.fs._cat_file, self._path(key), sent=LARGEST_GET, **limits)

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        kind = {} if "ContentType" in self.put_options else {"ContentType": content_type(key)}
        self._do(self.fs._pipe_file, self._path(key), data, sent=len(data), chunksize=WHOLE_PUT, **kind, **condition)

    def _ask(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return self._do(self.fs._call_s3, operation, Bucket=self.bucket, **parameters)

    def read(self, key: str) -> bytes:
        """One GET."""
        return self._get(key)

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """One GET of a range; nothing where it starts behind the end."""
        try:
            return self._get(key, start=start, end=end)
        except OSError as error:
            if _response(error)[0] == "InvalidRange":
                return b""
            raise

    def write(self, key: str, data: bytes) -> None:
        """One PUT."""
        self._put(key, data)

    def create(self, key: str, data: bytes) -> None:
        """One PUT with `If-None-Match: *`; FileExistsError where the condition failed, ours or another's object."""
        try:
            self._put(key, data, mode="create")
        except OSError as error:
            code, status = _response(error)
            if code == "PreconditionFailed" or status == 412:
                raise FileExistsError(key) from None
            raise

    def unmet(self, key: str) -> list[str]:
        """Which of the put options the store does not show on an object that was just put; "" where it shows all.

        One HEAD. Only options that a HEAD tells of can be seen; a store that is silent of its encryption has none.
        """
        shown = self._ask("head_object", Key=self._key(key))
        asked = {name: self.put_options[name] for name in _SHOWN if name in self.put_options}
        return [
            f"{name}: asked for {wanted!r}, the store shows {shown.get(name)!r}"
            for name, wanted in asked.items()
            if not _is_met(name, wanted, shown.get(name))
        ]

    def stat(self, key: str) -> tuple[int, str] | None:
        """One HEAD."""
        try:
            found = self._ask("head_object", Key=self._key(key))
        except FileNotFoundError:
            return None
        return found["ContentLength"], found["ETag"].strip('"')

    def names_page(self, prefix: str, token: Any) -> tuple[list[str], Any]:
        """Up to 1,000 direct children."""
        page, skip, following = self._list(prefix, token, Delimiter="/")
        names = [found["Key"][skip:] for found in page.get("Contents", [])]
        names += [found["Prefix"][skip:-1] for found in page.get("CommonPrefixes", [])]
        return [name for name in names if name], following

    def walk_page(self, prefix: str, token: Any) -> tuple[list[tuple[str, int]], Any]:
        """Up to 1,000 objects; the empty objects that some tools put for a folder are left out."""
        page, skip, following = self._list(prefix, token)
        root = f"{prefix}/" if prefix else ""
        found = [(root + item["Key"][skip:], item["Size"]) for item in page.get("Contents", [])]
        return [(key, size) for key, size in found if not key.endswith("/") and key], following

    def _list(self, prefix: str, token: str | None, **options: str) -> tuple[dict[str, Any], int, str | None]:
        """One page, the length of the prefix to cut off, the next token."""
        full = f"{self._key(prefix)}/" if self._key(prefix) else ""
        if token:
            options["ContinuationToken"] = token
        page = self._ask("list_objects_v2", Prefix=full, **options)
        return page, len(full), page.get("NextContinuationToken") if page.get("IsTruncated") else None

    def delete(self, keys: list[str]) -> None:
        """One request for up to 1,000 objects."""
        objects = [{"Key": self._key(key)} for key in keys]
        answer = self._ask("delete_objects", Delete={"Objects": objects, "Quiet": True})
        for failed in answer.get("Errors", []):
            raise boto.ClientError({"Error": {"Code": failed.get("Code", "InternalError")}}, "DeleteObjects")

    def reach(self) -> Reach:
        """By botocore's own search, in the session that makes the requests."""
        url = "/".join(part for part in (f"s3://{self.bucket}", self.prefix) if part)
        return Reach(socket.gethostname(), url, self._place(), self.endpoint_from, self._credentials())

    def _credentials(self) -> str:
        try:
            sync(self.fs.loop, self.fs.set_session)
            found = sync(self.fs.loop, self.fs.session.get_credentials)
        except (OSError, boto.BotoCoreError):
            return "none"
        return _credentials_from(found.method) if found else "none"

    def diagnose(self, error: BaseException) -> Fault:
        """By the server's error code, the HTTP status, or the kind of the client's exception."""
        code, status = _response(error)
        if code or status:
            return self._diagnose_answer(code, status)
        if isinstance(error, _NO_CREDENTIALS):
            return Fault(
                "no usable credentials were found",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
                retryable=self.served,
                kind=NO_CREDENTIALS,
            )
        if isinstance(error, boto.ParamValidationError):
            return Fault(f"{self.bucket!r} is no valid name of a bucket", "Correct the URL")
        if isinstance(error, boto.SSLError):
            return Fault(
                f"the TLS connection to {self._place()} failed", "Check its certificate and http:// or https://"
            )
        return Fault(
            f"{self._place()} cannot be reached ({type(error).__name__})",
            "Check that it runs and that the endpoint URL and the network are right",
            retryable=True,
            kind=UNREACHABLE,
        )

    def _diagnose_answer(self, code: str, status: int) -> Fault:
        if code in ("NoSuchKey", "404"):
            return Fault("no such object", absent=True)
        if code == "NoSuchBucket":
            remedy = "Create it or correct its name"
            return Fault(f"there is no bucket {self.bucket!r} at {self._place()}", remedy, kind=NO_BUCKET)
        if code in _EXPIRED or (code == "400" and status == 400):  # a HEAD has no body to say that the token expired
            return Fault("the credentials have expired", "Refresh them", retryable=True, reconnect=True, kind=REFUSED)
        if code in _FAULTS:
            return Fault(*_FAULTS[code], kind=REFUSED if code in _REFUSALS else "")
        if code in _PASSING or status >= 500 or status in (408, 409, 429):
            return Fault(f"{self._place()} answered {code or status}", "Try again later", retryable=True)
        if status in (301, 307, 308):
            return Fault(*_FAULTS["PermanentRedirect"])
        if status in (401, 403):
            return Fault(*_FAULTS["AccessDenied"], kind=REFUSED)
        return Fault(f"{self._place()} answered {code or status}", "Look it up in the manual of the store")

    def _place(self) -> str:
        """The endpoint without what may be secret in it: an environment may hold a user and a password there."""
        if not self.endpoint_url:
            return "S3"
        place = urlsplit(self.endpoint_url)
        return f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}"


_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.UnauthorizedSSOTokenError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.ConfigNotFound,
)
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_PASSING = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
}
_KEYS = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile"
_REGION = "Set storage.region to the bucket's region"
_ROOM = "Free some space or raise the quota, then type the same command again: what is finished is kept"
_FAULTS = {
    "AccessDenied": (
        "access denied",
        "Grant these credentials s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there, or use others",
    ),
    "InvalidAccessKeyId": ("the store does not know this access key", _KEYS),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", _KEYS),
    "InvalidToken": ("the session token is not valid", _KEYS + " and AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": ("this machine's clock differs from the store's", "Set the clock"),
    "InvalidBucketName": ("that is no valid name of a bucket", "Correct the URL"),
    "PermanentRedirect": ("the bucket is in another region", _REGION),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _REGION),
    "IllegalLocationConstraintException": ("the bucket is in another region", _REGION),
    "QuotaExceeded": ("the quota of the store is used up", _ROOM),
    "InsufficientStorage": ("the store is full", _ROOM),
    "XMinioStorageFull": ("the store is full", _ROOM),
    "EntityTooLarge": ("the object is larger than one PUT may be", "Make shards smaller"),
    "InvalidArgument": ("the store does not take an argument of the request", "Check storage.put_options"),
    "NotImplemented": ("the store cannot do this", "Check storage.put_options, or use another store"),
}


_REFUSALS = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}


def _endpoint(of_the_job: str | None) -> tuple[str | None, str]:
    """The URL that botocore will use, None for AWS, and where it was found."""
    if of_the_job:
        return of_the_job, "storage.endpoint_url of the job"
    session = Session()
    try:
        if session.get_config_variable("ignore_configured_endpoint_urls"):
            return None, "AWS itself"
        files = (session.full_config, session.get_scoped_config())
        found = ConfiguredEndpointProvider(*files, "s3").provide()
    except boto.BotoCoreError:  # a profile or a file that is not there: the request itself says so
        found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    named = [name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if found and os.environ.get(name)]
    if named:
        return found, f"{named[0]} in the environment"
    return (found, "endpoint_url of the AWS configuration") if found else (None, "AWS itself")


def _credentials_from(method: str) -> str:
    """A name of botocore's in plain words."""
    if method == "env":
        return "the environment"
    return "a role" if "role" in method else "a profile"


_SHOWN = (
    *("ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled", "StorageClass", "ContentType", "CacheControl"),
    *("ContentDisposition", "ContentEncoding", "ContentLanguage", "Metadata", "WebsiteRedirectLocation"),
)
_OURS = {"Bucket", "Key", "Body", "IfNoneMatch", "IfMatch", "WriteOffsetBytes", "ContentLength", "ContentMD5"}
_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "json": "application/json",
    "svg": "image/svg+xml",
    "yaml": "application/yaml",
    "html": "text/html; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "tar": "application/x-tar",
    "jsonl": "application/jsonl",
}


def content_type(key: str) -> str:
    """By the ending of a key, so that a browser shows what a link to it leads to."""
    return _TYPES.get(key.rpartition(".")[2].lower(), "application/octet-stream")


def unknown_put_options(options: Mapping[str, Any]) -> str | None:
    """Why an option cannot be meant: S3's PUT does not know its name, or it is not the user's to set. None: all are."""
    known = set(botocore.session.get_session().get_service_model("s3").operation_model("PutObject").input_shape.members)
    faults = []
    for name in options:
        if name in _OURS:
            faults.append(f"{name} is set by this project itself")
        elif name not in known:
            close = difflib.get_close_matches(name.lower(), {each.lower(): each for each in known}, 1)
            meant = {each.lower(): each for each in known}
            guess = f"; did you mean {meant[close[0]]}?" if close else ""
            faults.append(f"S3's PUT knows no {name}{guess}")
    return "; ".join(faults) or None


def _is_met(name: str, wanted: Any, shown: Any) -> bool:
    if name == "StorageClass" and shown is None:
        return wanted == "STANDARD"  # which is not told
    if name == "SSEKMSKeyId" and shown is not None:
        return str(shown).rpartition("/")[2] == str(wanted).rpartition("/")[2]  # an id or an ARN of it
    if name == "Metadata" and isinstance(shown, dict):
        return {key.lower(): str(value) for key, value in dict(wanted).items()}.items() <= shown.items()
    return shown == wanted


def _response(error: BaseException) -> tuple[str, int]:
    """(error code, HTTP status) of the server's answer behind an exception; ("", 0) where there was none.

    Only these two are ever shown: a message of a server may repeat what was sent.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, boto.ClientError):
            status = seen.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(seen.response.get("Error", {}).get("Code", "")), int(status)
        seen = seen.__cause__
    return "", 0
