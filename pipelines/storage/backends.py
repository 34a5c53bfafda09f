"""Defines what a kind of storage must do for `pipelines.storage.folder.Folder`."""

from dataclasses import dataclass
from typing import Any, Protocol

GRANT = "Grant this user the right to write there, or choose another folder"


@dataclass(frozen=True)
class Timeouts:
    """Seconds until a client gives up one connection or one silent read."""

    connect_s: float = 10.0
    read_s: float = 60.0


NO_CREDENTIALS, REFUSED, UNREACHABLE, NO_BUCKET = "no credentials", "refused", "unreachable", "no bucket"


@dataclass(frozen=True)
class StorageFault:
    """What an exception of a client means. `reason` and `remedy` are for people and hold no secret."""

    reason: str
    remedy: str = ""
    retryable: bool = False
    reconnect: bool = False  # a new client, with fresh credentials, before the next try
    absent: bool = False  # there is no such object
    kind: str = ""  # one of the four above, where it is one of them


@dataclass(frozen=True)
class StoreAccess:
    """How one process gets at a folder, for people: endpoint, and where that and the credentials were found.

    It holds no secret, so that it may travel. endpoint: "" where the store has none, as a disk.
    """

    host: str
    place: str
    endpoint: str = ""
    endpoint_from: str = ""
    credentials: str = ""


class Reader(Protocol):
    """One attempt at each reading operation of a Folder. The Folder checks keys; the last page has no next token."""

    errors: tuple[type[BaseException], ...]

    def read(self, key: str) -> bytes:
        """All bytes of the object."""
        ...

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer at the end of the object."""
        ...

    def stat(self, key: str) -> tuple[int, str] | None:
        """(size in bytes, etag), None where there is no object."""
        ...

    def names_page(self, prefix: str, token: Any) -> tuple[list[str], Any]:
        """Names of direct children and the token of the next page."""
        ...

    def walk_page(self, prefix: str, token: Any) -> tuple[list[tuple[str, int]], Any]:
        """(key, size in bytes) of objects below, and the token of the next page."""
        ...

    def diagnose(self, error: BaseException) -> StorageFault:
        """What one of `errors` means."""
        ...

    def access(self) -> StoreAccess:
        """How this process gets at the store. Raises nothing."""
        ...


class Backend(Reader, Protocol):
    """The writing operations, too. conditional: of several creators of one key exactly one wins."""

    conditional: bool

    def write(self, key: str, data: bytes) -> None:
        """Put the whole object, over what was there."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Put the whole object; FileExistsError where there is one."""
        ...

    def delete(self, keys: list[str]) -> None:
        """Delete up to 1,000 objects; a missing one is no error."""
        ...

    def unmet(self, key: str) -> list[str]:
        """Which options of a put are not seen on an object that was just put."""
        ...
