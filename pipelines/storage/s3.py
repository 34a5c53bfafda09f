"""Talks to S3 and compatible stores through s3fs: one request an operation, whole PUTs, no cache, no own retry.

Imported by `pipelines.storage.folder` in the process that uses it; waiting and trying again are done there.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import s3fs
from botocore import exceptions as boto
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.session import Session
from fsspec.asyn import sync

from pipelines.storage.backends import NO_CREDENTIALS, UNREACHABLE, StorageFault, StoreAccess, Timeouts
from pipelines.storage.folder import StorageOptions
from pipelines.storage.put_options import content_type, not_applied
from pipelines.storage.s3_answers import answer_of, meaning

WHOLE_PUT = 5 * 2**29  # s3fs sends up to twice its chunk size, here S3's own limit of 5 GiB, in one PUT
POOL = 32  # connections a process
SLOWEST_BYTES_PER_S = 2**18  # a transfer slower than this is given up and tried again
LARGEST_GET = 200 * 2**20  # bytes; what a GET will bring is not known before (a silent one ends by the read timeout)
T = TypeVar("T")
_WHEN_REQUIRED = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}


class S3Backend:
    """One bucket and prefix. Credentials: environment, profile, role, as botocore finds them in this process."""

    errors: tuple[type[BaseException], ...] = (
        *(OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError),
        RecursionError,  # of botocore, which follows redirects for ever
    )

    def __init__(self, url: str, options: StorageOptions, timeouts: Timeouts) -> None:
        self.endpoint_url, self.endpoint_from = _endpoint(options.endpoint_url)
        self.conditional = True
        self.put_options, self.anonymous = dict(options.put_options), options.anonymous
        self.virtual = options.addressing_style == "virtual"
        self.fs = s3fs.S3FileSystem(
            anon=options.anonymous,
            endpoint_url=options.endpoint_url,
            client_kwargs={"region_name": options.region} if options.region else {},
            config_kwargs={
                "connect_timeout": timeouts.connect_s,
                "read_timeout": timeouts.read_s,
                "max_pool_connections": POOL,
                "retries": {"total_max_attempts": 1},
                **({"s3": {"addressing_style": options.addressing_style}} if options.addressing_style else {}),
                **(_WHEN_REQUIRED if self.endpoint_url else {}),  # others than AWS know only some checksums
            },
            s3_additional_kwargs=self.put_options,
            use_listings_cache=False,
            skip_instance_cache=True,
            max_concurrency=1,
        )
        self.fs.retries = 1
        self.bucket, self.prefix = self.fs._find_bucket_key(url.partition("://")[2])  # it knows ARNs
        self.silence_s = timeouts.read_s
        self.served = False  # credentials that worked and are gone come back: a role's refresh failed
        self.batches = True  # of deletions

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
        options = condition | {"ContentType": content_type(key, self.put_options)}
        self._do(self.fs._pipe_file, self._path(key), data, sent=len(data), chunksize=WHOLE_PUT, **options)

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
            if answer_of(error)[0] == "InvalidRange":
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
            code, status = answer_of(error)
            if code == "PreconditionFailed" or status == 412:
                raise FileExistsError(key) from None
            raise

    def unmet(self, key: str) -> list[str]:
        """Which of the put options the store does not show on an object that was just put, by one HEAD."""
        return not_applied(self.put_options, self._head(key))

    def stat(self, key: str) -> tuple[int, str] | None:
        """One HEAD."""
        try:
            found = self._head(key)
        except FileNotFoundError:
            return None
        return found["ContentLength"], found["ETag"].strip('"')

    def _head(self, key: str) -> dict[str, Any]:
        """A refused HEAD has no body that says why: a listing's answer has one."""
        try:
            return self._ask("head_object", Key=self._key(key))
        except OSError as error:
            if answer_of(error)[0] in ("400", "403", "301"):
                self._ask("list_objects_v2", Prefix=self._key(key), MaxKeys=1)
            raise

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
        return [(key, size) for key, size in found if key and (size or not key.endswith("/"))], following

    def _list(self, prefix: str, token: str | None, **options: str) -> tuple[dict[str, Any], int, str | None]:
        """One page, the length of the prefix to cut off, the next token."""
        full = f"{self._key(prefix)}/" if self._key(prefix) else ""
        if token:
            options["ContinuationToken"] = token
        page = self._ask("list_objects_v2", Prefix=full, **options)
        return page, len(full), page.get("NextContinuationToken") if page.get("IsTruncated") else None

    def delete(self, keys: list[str]) -> None:
        """One request for up to 1,000 objects; one each where the store refuses such a batch."""
        if self.batches:
            try:
                self._delete_together(keys)
                return
            except OSError as error:
                if answer_of(error)[0] not in _NO_BATCHES:
                    raise
                self.batches = False
        for key in keys:
            with suppress(FileNotFoundError):
                self._ask("delete_object", Key=self._key(key))

    def _delete_together(self, keys: list[str]) -> None:
        objects = [{"Key": self._key(key)} for key in keys]
        answer = self._ask("delete_objects", Delete={"Objects": objects, "Quiet": True})
        for failed in answer.get("Errors", []):
            raise boto.ClientError({"Error": {"Code": failed.get("Code", "InternalError")}}, "DeleteObjects")

    def access(self) -> StoreAccess:
        """By botocore's own search, in the session that makes the requests."""
        url = "/".join(part for part in (f"s3://{self.bucket}", self.prefix) if part)
        return StoreAccess(socket.gethostname(), url, self._place(), self.endpoint_from, self._credentials())

    def _credentials(self) -> str:
        if self.anonymous:
            return "nobody, as storage.anonymous says"
        try:
            sync(self.fs.loop, self.fs.set_session)
            found = sync(self.fs.loop, self.fs.session.get_credentials)
        except (OSError, boto.BotoCoreError):
            return "none"
        return _credentials_from(found.method) if found else "none"

    def diagnose(self, error: BaseException) -> StorageFault:
        """By the server's error code, the HTTP status, or the kind of the client's exception."""
        code, status = answer_of(error)
        if code or status:
            return meaning(code, status, self._place(), self.bucket, self.anonymous)
        if isinstance(error, _NO_CREDENTIALS):
            return StorageFault(
                "no usable credentials were found",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role; or set "
                "storage.anonymous for a bucket that anybody may read",
                retryable=self.served,
                kind=NO_CREDENTIALS,
            )
        if isinstance(error, RecursionError):
            remedy = "Check http:// or https://, host and port of storage.endpoint_url, and storage.region"
            return StorageFault(f"{self._place()} redirects every request", remedy)
        if isinstance(error, boto.SSLError):
            return StorageFault(
                f"the TLS connection to {self._place()} failed", "Check its certificate and http:// or https://"
            )
        if isinstance(error, boto.BotoCoreError) and not isinstance(error, _ON_THE_WAY):
            if "nvalid bucket name" in str(error) or "for parameter Bucket" in str(error):
                return StorageFault(f"{self.bucket!r} is no valid name of a bucket", "Correct the URL")
            said = " ".join(str(error).split()).rstrip(".")
            return StorageFault(
                f"such a request cannot be made: {said:.200}", "Correct the URL and the storage options"
            )
        return StorageFault(
            f"{self._place()} cannot be reached ({type(error).__name__})",
            "Check that it runs and that the endpoint URL and the network are right",
            retryable=True,
            kind=UNREACHABLE,
        )

    def _place(self) -> str:
        """The endpoint without what may be secret in it: an environment may hold a user and a password there."""
        if not self.endpoint_url:
            return "S3"
        place = urlsplit(self.endpoint_url)
        bucket = f"{self.bucket}." if self.virtual else ""
        return f"{place.scheme}://{bucket}{place.netloc.rpartition('@')[2]}{place.path}"


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
_ON_THE_WAY = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError)
# Stores that want an older checksum than the client's, or know no such request at all.
_NO_BATCHES = {"MissingContentMD5", "InvalidDigest", "InvalidRequest", "NotImplemented", "MethodNotAllowed"}


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
