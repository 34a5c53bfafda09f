"""Says what goes with a PUT on S3: the object's media type, and the options that a job adds.

Pure: it sends nothing. Which options a store has applied is seen by `pipelines.storage.s3`.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import botocore.session
from botocore.validate import ParamValidator

PICTURES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}
_TYPES = PICTURES | {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "csv": "text/csv; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "svg": "image/svg+xml",
    "yaml": "application/yaml",
    "parquet": "application/vnd.apache.parquet",
    "tar": "application/x-tar",
}
_SHOWN = (  # of an object by a HEAD
    *("ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled", "StorageClass", "ContentType", "CacheControl"),
    *("ContentDisposition", "ContentEncoding", "ContentLanguage", "Metadata", "WebsiteRedirectLocation"),
    *("ObjectLockMode", "ObjectLockLegalHoldStatus"),
)
_OURS = {"Bucket", "Key", "Body", "IfNoneMatch", "IfMatch", "WriteOffsetBytes", "ContentLength", "ContentMD5"}


def content_type(key: str, options: Mapping[str, Any]) -> str:
    """By the ending of a key, so that a browser shows what a link to it leads to; a ContentType of the job's own is
    for pictures.
    """
    ending = key.rpartition(".")[2].lower()
    own = options.get("ContentType") if ending in PICTURES else None
    return own or _TYPES.get(ending, "application/octet-stream")


def wrong_put_options(options: Mapping[str, Any]) -> str | None:
    """Why options cannot be meant: S3's PUT knows no such name or takes no such value, or we set it. None: all can."""
    put = botocore.session.get_session().get_service_model("s3").operation_model("PutObject").input_shape
    known = {name.lower(): name for name in put.members}
    faults = []
    for name in options:
        if name in _OURS:
            faults.append(f"{name} is set by this project itself")
        elif name not in put.members:
            close = difflib.get_close_matches(name.lower().replace("-", ""), known, 1)
            guess = f"; did you mean {known[close[0]]}?" if close else ""
            faults.append(f"S3's PUT knows no {name}{guess}")
    if not faults:
        said = ParamValidator().validate({"Bucket": "bucket", "Key": "key", **options}, put).generate_report()
        faults = [" ".join(line.split()) for line in said.splitlines()]
    return "; ".join(faults) or None


def not_applied(options: Mapping[str, Any], shown: Mapping[str, Any]) -> list[str]:
    """Which options a HEAD of an object, put with them, does not show; those that no HEAD tells of pass."""
    return [
        f"{name}: asked for {options[name]!r}, the store shows {shown.get(name)!r}"
        for name in _SHOWN
        if name in options and not _is_met(name, options[name], shown.get(name))
    ]


def _is_met(name: str, wanted: Any, shown: Any) -> bool:
    if name == "StorageClass" and shown is None:
        return wanted == "STANDARD"  # which is not told
    if name == "SSEKMSKeyId" and shown is not None:
        if ":alias/" in f":{wanted}":
            return True  # the key itself is shown, under another name
        return str(shown).rpartition("/")[2] == str(wanted).rpartition("/")[2]  # an id or an ARN of it
    if name == "Metadata" and isinstance(shown, dict):
        return {key.lower(): str(value) for key, value in dict(wanted).items()}.items() <= shown.items()
    return shown == wanted
