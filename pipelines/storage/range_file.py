"""Opens a stored object as a read-only file, so that a Parquet reader fetches the row group it needs and no more."""

import io
from typing import Any

from pipelines.storage.folder import Folder


class RangeFile(io.RawIOBase):
    """Ranged reads of an object of a known size, in bytes; nothing is kept."""

    def __init__(self, folder: Folder, key: str, size: int) -> None:
        self._folder, self._key, self._size, self._at = folder, key, size, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase.seek`."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """One request."""
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        data = self._folder.read_range(self._key, self._at, end)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """One request."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
