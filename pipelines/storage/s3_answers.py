"""Turns the answers of S3 and compatible stores into reason and remedy: error codes and HTTP statuses.

Pure: it sends nothing. Of an answer only code, status and region are ever shown: its message may repeat what was sent.
"""

import re

from botocore import exceptions as boto

from pipelines.storage.backends import NO_BUCKET, REFUSED, StorageFault

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
    "KMS.ThrottlingException",
    "KMS.LimitExceededException",
    "KMS.KeyUnavailableException",
    "KMS.KMSInternalException",
    "KMS.DependencyTimeoutException",
}
_KEYS = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile"
_ROOM = "Free some space or raise the quota, then type the same command again: what is finished is kept"
_VIRTUAL = ("the store takes a bucket only as a part of its host's name", "Set storage.addressing_style: virtual")
_RIGHTS = "Grant these credentials s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there, or use others"
_OTHER_KEY = "or set another one in storage.put_options.SSEKMSKeyId"
_FAULTS = {
    "AccessDenied": ("access denied", _RIGHTS),
    "AllAccessDisabled": ("all access to the bucket is disabled by its provider", "Ask them, or use another bucket"),
    "AccountProblem": ("the account has a problem of its own, such as an unpaid bill", "Ask the provider"),
    "InvalidAccessKeyId": ("the store does not know this access key", _KEYS),
    "SignatureDoesNotMatch": (
        "the secret key does not fit the access key, or something on the way changes requests",
        _KEYS + ", and the proxies before the store",
    ),
    "InvalidToken": ("the session token is not valid", _KEYS + " and AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": ("this machine's clock differs from the store's by minutes", "Set the clock, by NTP"),
    "InvalidBucketName": ("that is no valid name of a bucket", "Correct the URL"),
    "NoSuchAccessPoint": ("there is no such access point", "Create it or correct its name"),
    "MethodNotAllowed": ("the store does not allow this on such an object", "Check the URL, or use another store"),
    "InvalidObjectState": (
        "the object lies in an archive (Glacier or the like), where it cannot be read",
        "Restore it, name a copy, or leave storage.put_options.StorageClass out",
    ),
    "QuotaExceeded": ("the quota of the store is used up", _ROOM),
    "InsufficientStorage": ("the store is full", _ROOM),
    "XMinioStorageFull": ("the store is full", _ROOM),
    "EntityTooLarge": ("the object is larger than one PUT may be", "Make shards smaller"),
    "InvalidArgument": ("the store does not take an argument of the request", "Check storage.put_options"),
    "InvalidStorageClass": ("the store has no such storage class", "Correct storage.put_options.StorageClass"),
    "NotImplemented": ("the store cannot do this", "Check storage.put_options, or use another store"),
    "SecondLevelDomainForbidden": _VIRTUAL,  # Alibaba
    "PathStyleDomainForbidden": _VIRTUAL,  # Tencent
    "InvalidPathAccess": _VIRTUAL,  # Volcano
    "VirtualHostDomainRequired": _VIRTUAL,  # Huawei
}
_REGIONS = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "IncorrectEndpoint",
}
_KMS = {  # by what is in the code after "KMS"
    "Disabled": ("the KMS key is disabled", f"Enable it, {_OTHER_KEY}"),
    "NotFound": (
        "there is no such KMS key in the bucket's region",
        "Correct storage.put_options.SSEKMSKeyId (an ARN where the key is another account's)",
    ),
    "InvalidState": ("the KMS key cannot be used in its state, such as a pending deletion", f"Fix it, {_OTHER_KEY}"),
    "InvalidKeyUsage": ("the KMS key is of a kind that encrypts no objects", "Name a symmetric encryption key"),
    "AccessDenied": (
        "these credentials may not use the KMS key",
        f"Grant them kms:GenerateDataKey and kms:Decrypt on it, {_OTHER_KEY}",
    ),
    "": ("the store could not use the KMS key", f"Check the key and its policy, {_OTHER_KEY}"),
}
_REFUSALS = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}


def answer_of(error: BaseException) -> tuple[str, int]:
    """(error code, HTTP status) of the server's answer behind an exception; ("", 0) where there was none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, boto.ClientError):
            said = seen.response.get("Error", {})
            code, status = str(said.get("Code", "")), seen.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code == "AccessDenied" and "kms:" in str(said.get("Message", "")):
                code = "KMS.AccessDenied"
            if code in _REGIONS and re.fullmatch(r"[a-z0-9-]{2,30}", region := str(said.get("Region", ""))):
                code = f"{code}:{region}"
            return code, int(status)
        seen = seen.__cause__
    return "", 0


def meaning(code: str, status: int, place: str, bucket: str, anonymous: bool) -> StorageFault:
    """What an answer means. place: the endpoint, for people; anonymous: nobody signed the request."""
    kind, _, region = code.partition(":")
    if code in ("NoSuchKey", "404"):
        return StorageFault("no such object", absent=True)
    if code == "NoSuchBucket":
        return StorageFault(
            f"there is no bucket {bucket!r} at {place}", "Create it or correct its name", kind=NO_BUCKET
        )
    if code in _EXPIRED or (code == "400" and status == 400):  # a HEAD has no body to say that the token expired
        return StorageFault(
            "the credentials have expired", "Refresh them", retryable=True, reconnect=True, kind=REFUSED
        )
    if code in _PASSING:
        return StorageFault(f"{place} answered {code}", "Try again later", retryable=True)
    if code.startswith("KMS"):
        return StorageFault(*next(words for part, words in _KMS.items() if part in code))
    if kind in _REGIONS or (code not in _FAULTS and status in (301, 307, 308)):
        remedy = f"Set storage.region to the bucket's region{f': {region}' if region else ''}"
        return StorageFault("the bucket is in another region", remedy)
    refused = code in _REFUSALS or (code not in _FAULTS and status in (401, 403))
    if refused and anonymous:
        return StorageFault("access denied to who shows no credentials", "Take storage.anonymous out", kind=REFUSED)
    if refused or code in _FAULTS:
        return StorageFault(*_FAULTS.get(code, _FAULTS["AccessDenied"]), kind=REFUSED if refused else "")
    if status >= 500 or status in (408, 409, 429):
        return StorageFault(f"{place} answered {code or status}", "Try again later", retryable=True)
    return StorageFault(f"{place} answered {code or status}", "Look it up in the manual of the store")
