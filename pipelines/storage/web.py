"""Reads files of a web server: by ranges if the server knows them, else the whole file, which is kept if it is small.

It lists nothing: an input names one file. The environment sets the proxies.
"""

import hashlib
import http.client
import socket
import urllib.error
import urllib.request
import zlib
from typing import Any
from urllib.parse import quote, urlsplit

from pipelines.storage.backends import REFUSED, UNREACHABLE, StorageFault, StoreAccess, Timeouts

MOST_BYTES = 256 << 20  # of a file whose server knows neither its length nor ranges


class TooLarge(OSError):
    """A file that would have to be held whole, and is too large for it."""


class WebReader:
    """One web address. It keeps the last file that had to be read whole."""

    errors: tuple[type[BaseException], ...] = (OSError, http.client.HTTPException, zlib.error)

    def __init__(self, url: str, timeouts: Timeouts) -> None:
        self.url, self.timeouts = url, timeouts
        self._whole: tuple[str, bytes, str] | None = None  # key, bytes, etag

    def _open(self, key: str, **headers: str) -> http.client.HTTPResponse:
        address = quote(f"{self.url}/{key}", safe="/:?&=%#+,;@!$'()*~[]") if key else self.url
        request = urllib.request.Request(address, headers={"Accept-Encoding": "identity"} | headers)
        return urllib.request.urlopen(request, timeout=self.timeouts.read_s)

    def read(self, key: str) -> bytes:
        """All bytes of the file."""
        return self._all(key)[0]

    def _all(self, key: str) -> tuple[bytes, str]:
        """(bytes, etag), by one GET, or of the file that is kept."""
        if self._whole is not None and self._whole[0] == key:
            return self._whole[1:]
        with self._open(key) as answer:
            return self._keep(key, answer)

    def _keep(self, key: str, answer: http.client.HTTPResponse) -> tuple[bytes, str]:
        data = answer.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise TooLarge(key)
        _complete(answer, data)
        if answer.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
            data = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, MOST_BYTES)
        self._whole = (key, data, _etag(answer) or hashlib.blake2b(data, digest_size=16).hexdigest())
        return self._whole[1:]

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end); a server that knows no ranges gives all of them, which are kept."""
        if self._whole is not None and self._whole[0] == key:
            return self._whole[1][start:end]
        try:
            with self._open(key, Range=f"bytes={start}-{end - 1}") as answer:
                if answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    return _complete(answer, answer.read(end - start))
                return self._keep(key, answer)[0][start:end] if answer.status == 200 else self._all(key)[0][start:end]
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return b""
            raise

    def stat(self, key: str) -> tuple[int, str] | None:
        """(size in bytes, etag), None if there is no such file. If the server tells no size, the file is read."""
        self._whole = None
        try:
            with self._open(key, Range="bytes=0-0") as answer:
                size = _total(answer)
                if size is None or not _etag(answer):
                    if answer.status == 206:
                        return self._measured(key)
                    data, etag = self._keep(key, answer)
                    return len(data), etag
                return size, _etag(answer)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                return None
            if error.code == 416:  # an empty file has no first byte
                return self._measured(key)
            raise

    def _measured(self, key: str) -> tuple[int, str]:
        data, etag = self._all(key)
        return len(data), etag

    def names_page(self, prefix: str, token: Any) -> tuple[list[str], Any]:
        """No names: a web server lists nothing."""
        return [], None

    def walk_page(self, prefix: str, token: Any) -> tuple[list[tuple[str, int]], Any]:
        """No objects, for the same reason."""
        return [], None

    def access(self) -> StoreAccess:
        """The server."""
        return StoreAccess(socket.gethostname(), self.url, self._place())

    def _place(self) -> str:
        place = urlsplit(self.url)
        return f"{place.scheme}://{place.netloc.rpartition('@')[2]}"

    def diagnose(self, error: BaseException) -> StorageFault:
        """By the status of the answer, or by the lack of one."""
        if isinstance(error, TooLarge):
            limit = f"{MOST_BYTES >> 20} MiB"
            return StorageFault(
                f"{self._place()} tells no length and no ranges of a file over {limit}", "Download the file"
            )
        if isinstance(error, urllib.error.HTTPError):
            return self._answered(error.code)
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        said = getattr(reason, "strerror", None) or type(reason).__name__
        remedy = "Check that it runs and that the address and the network are right"
        return StorageFault(f"{self._place()} cannot be reached ({said})", remedy, retryable=True, kind=UNREACHABLE)

    def _answered(self, status: int) -> StorageFault:
        if status in (404, 410):
            return StorageFault("no such object", absent=True)
        said = f"{self._place()} answered {status} ({http.client.responses.get(status, 'unknown')})"
        if status in (401, 403, 407):
            return StorageFault(said, "Use an address that needs no login, or download the file", kind=REFUSED)
        return StorageFault(said, "Try again later", retryable=status >= 500 or status in (408, 425, 429))


def _complete(answer: http.client.HTTPResponse, data: bytes) -> bytes:
    """The bytes; IncompleteRead where the connection ended before the length that was announced."""
    if answer.length:
        raise http.client.IncompleteRead(data, answer.length)
    return data


def _total(answer: http.client.HTTPResponse) -> int | None:
    """The length of the whole file, where the answer says it and the bytes are those of the file."""
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        return None
    ranged = answer.status == 206
    length = answer.headers.get("Content-Range", "").rpartition("/")[2] if ranged else str(answer.length)
    return int(length) if length.isdecimal() else None


def _etag(answer: http.client.HTTPResponse) -> str:
    return answer.headers.get("ETag", "").strip('"') or answer.headers.get("Last-Modified", "")
