"""An HTTP proxy on loopback before an S3 server: it breaks requests on purpose, by seed or by rule, and counts them.

Clients sign for the proxy's host and port; the Host header is forwarded as it came, so that signatures hold. It knows
S3 only as far as to say what kind of request one is and which room of a run folder it is for.
"""

import http.client
import random
import re
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

ROOMS = ("plan", "attempts", "images", "data", "manifest", "epochs", ".probe")
BEFORE = ("500", "503", "reset", "hang", "torn")  # the server does not see the request, or not all of it
AFTER = ("lost", "lied", "cut", "slow")  # the server has done what was asked
FAULTS = BEFORE + AFTER
WRITES = ("PUT", "CREATE", "DELETE")
NEEDS_BODY = ("GET", "LIST")
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
WAIT_S = 120.0  # for a peer that says nothing; longer than any client here waits


@dataclass(frozen=True)
class Request:
    """One request as it came. kind: GET, HEAD, PUT, CREATE (a PUT if absent), LIST or DELETE; room: of a run folder."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    kind: str
    key: str

    @property
    def room(self) -> str:
        """The first part of the key that is a room, else its last part, e.g. `job.yaml`."""
        parts = self.key.split("/")
        return next((part for part in parts if part in ROOMS), parts[-1])


@dataclass
class Rule:
    """Breaks `times` requests of a kind whose key has this text in it, after `skip` of them; `then` is called first.

    fault: one of FAULTS, or "pass": the request goes its way once `then` has returned.
    """

    fault: str
    kind: str
    text: str = ""
    times: int = 1
    skip: int = 0
    then: Callable[[], None] = lambda: None

    def matches(self, request: Request) -> bool:
        """Whether this one is to be broken; those that match are counted."""
        if request.kind != self.kind or self.text not in request.key:
            return False
        self.skip -= 1
        self.times -= self.skip < 0
        return self.skip < 0 <= self.times


@dataclass
class Chance:
    """Breaks a share of all requests, drawn from one seed in the order in which they arrive."""

    seed: int
    share: float
    faults: tuple[str, ...] = FAULTS
    draws: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draws = random.Random(self.seed)

    def draw(self, request: Request) -> str | None:
        """The fault of this request; one that can mean nothing for its kind is none."""
        unlucky, fault = self.draws.random() < self.share, self.draws.choice(self.faults)
        return fault if unlucky and can_have(request.kind, fault) else None


def can_have(kind: str, fault: str) -> bool:
    """Answers without a body cannot be cut or slow; a lost answer is told from a reset by a write that happened."""
    if fault in ("cut", "slow"):
        return kind in NEEDS_BODY
    return kind in WRITES if fault in ("lost", "lied", "torn") else True


@dataclass(frozen=True)
class Injected:
    """One fault, as it happened. seconds: since the proxy started; status: the server's, 0 where it was not asked."""

    seconds: float
    fault: str
    kind: str
    key: str
    status: int


class FaultProxy:
    """`with FaultProxy(port) as proxy:` `proxy.endpoint_url` stands for the server at that port of this machine.

    counts: requests by (kind, room), with those that were broken; injected: what was broken, in order. moments: what is
    done at the n-th request from the start, before it goes on. Thread-safe.
    """

    def __init__(self, upstream_port: int, chance: Chance | None = None, hang_s: float = 3.0) -> None:
        self.upstream_port, self.chance, self.hang_s = upstream_port, chance, hang_s
        self.rules: list[Rule] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.injected: list[Injected] = []
        self.moments: dict[int, Callable[[], None]] = {}
        self.closing = threading.Event()
        self._lock, self._started = threading.Lock(), time.monotonic()
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.proxy = self

    @property
    def endpoint_url(self) -> str:
        """What the clients are told."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Its own."""
        return int(self._server.server_address[1])

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="proxy", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No fault by chance meanwhile."""
        chance, self.chance = self.chance, None
        try:
            yield
        finally:
            self.chance = chance

    def decide(self, request: Request) -> Rule | None:
        """Counts a request and says what becomes of it: the first rule that matches, else chance, else nothing."""
        with self._lock:
            self.counts[request.kind, request.room] += 1
            moment = self.moments.pop(self.counts.total(), None)
            rule = next((rule for rule in self.rules if rule.matches(request)), None)
            if rule is None and self.chance and (fault := self.chance.draw(request)):
                rule = Rule(fault, request.kind)
        if moment:
            moment()
        return rule

    def note(self, request: Request, rule: Rule, status: int = 0) -> None:
        """Writes down a fault that happened, and does what comes with it."""
        rule.then()
        fault = rule.fault
        with self._lock:
            seconds = round(time.monotonic() - self._started, 3)
            self.injected.append(Injected(seconds, fault, request.kind, request.key, status))

    def total(self, *kinds: str) -> int:
        """Requests of these kinds, or of all."""
        return sum(count for (kind, _), count in self.counts.items() if not kinds or kind in kinds)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    block_on_close = False
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Connection(socketserver.StreamRequestHandler):
    """One client's connection: requests one after the other, until one ends it."""

    server: _Server
    timeout = WAIT_S
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.proxy = self.server.proxy
        self.upstream: http.client.HTTPConnection | None = None

    def handle(self) -> None:
        with suppress(OSError, http.client.HTTPException):
            while (request := self._read()) and self._serve(request):
                pass

    def finish(self) -> None:
        if self.upstream:
            self.upstream.close()
        with suppress(OSError):
            super().finish()

    def _read(self) -> Request | None:
        """The next request, whole; None at the end of the connection."""
        line = self.rfile.readline(65_536)
        if not line.strip():
            return None
        method, target, _ = line.decode("latin-1").split(" ", 2)
        headers = [(name, value) for name, value in iter(self._header, None)]
        found = {name.lower(): value for name, value in headers}
        assert "transfer-encoding" not in found, "clients here send whole bodies"
        if "expect" in found:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(found.get("content-length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            return None
        headers = [(name, value) for name, value in headers if name.lower() not in ("expect", "connection")]
        return Request(method, target, headers, body, *_kind_and_key(method, target, found))

    def _header(self) -> tuple[str, str] | None:
        name, colon, value = self.rfile.readline(65_536).decode("latin-1").partition(":")
        return (name.strip(), value.strip()) if colon else None

    def _serve(self, request: Request) -> bool:
        """Whether the connection goes on."""
        rule = self.proxy.decide(request)
        fault = rule.fault if rule else None
        if rule and fault not in AFTER:
            self.proxy.note(request, rule)
            if fault in BEFORE:
                return self._instead(request, rule.fault)
        status, headers, body = self._ask(request)
        if rule and fault in AFTER:
            self.proxy.note(request, rule, status)
        if fault == "lost":
            return self._reset()
        if fault == "lied":
            return self._error(500, "InternalError")
        if fault == "cut" and len(body) > 1:
            self._answer(status, headers, body[: len(body) // 2], len(body))
            return self._reset()
        self._answer(status, headers, body, slowly=fault == "slow")
        return True

    def _instead(self, request: Request, fault: str) -> bool:
        """What the client gets where the server is not asked."""
        if fault == "500":
            return self._error(500, "InternalError")
        if fault == "503":
            return self._error(503, "SlowDown")
        if fault == "torn":
            self._half(request)
        if fault == "hang":
            self.proxy.closing.wait(self.proxy.hang_s)
        return self._reset()

    def _ask(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's answer; a connection that it closed meanwhile is opened anew, once. OSError: it is away."""
        for last in (False, True):
            if self.upstream is None:
                self.upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream_port, timeout=WAIT_S)
            try:
                self._send(self.upstream, request, request.body)
                answer = self.upstream.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            except http.client.RemoteDisconnected:
                self.upstream.close()
                self.upstream = None
                if last:
                    raise
        raise AssertionError("unreachable")

    def _half(self, request: Request) -> None:
        """The server gets half of the body and then an end."""
        with suppress(OSError):
            half = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream_port, timeout=WAIT_S)
            self._send(half, request, request.body[: len(request.body) // 2])
            half.close()

    @staticmethod
    def _send(server: http.client.HTTPConnection, request: Request, body: bytes) -> None:
        server.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers:
            server.putheader(name, value)
        server.endheaders(body or None)

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        length: int | None = None,
        slowly: bool = False,
    ) -> None:
        head = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        bodiless = not body and any(name.lower() == "content-length" for name, _ in headers)  # a HEAD's own length
        skip = {"transfer-encoding", "connection"} | (set() if bodiless else {"content-length"})
        head += [f"{name}: {value}" for name, value in headers if name.lower() not in skip]
        if not bodiless and status not in (204, 304):
            head.append(f"Content-Length: {len(body) if length is None else length}")
        self.wfile.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
        step = max(1, len(body) // 8) if slowly else max(1, len(body))
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if slowly:
                self.proxy.closing.wait(self.proxy.hang_s / 8)

    def _error(self, status: int, code: str) -> bool:
        self._answer(status, [("Content-Type", "application/xml")], ERROR.format(code=code).encode())
        return True

    def _reset(self) -> bool:
        """Ends the connection with a reset in place of a goodbye."""
        with suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


def _kind_and_key(method: str, target: str, headers: dict[str, str]) -> tuple[str, str]:
    """What is asked for and under which key; of a listing or a deletion, what it names."""
    url = urlsplit(target)
    query = parse_qs(url.query, keep_blank_values=True)
    key = unquote(url.path).lstrip("/").partition("/")[2]
    if method == "POST" and "delete" in query:
        return "DELETE", key
    if method == "GET" and ("list-type" in query or not key):
        return "LIST", re.sub("/$", "", query.get("prefix", [""])[0])
    if method == "PUT" and headers.get("if-none-match") == "*":
        return "CREATE", key
    return method, key
