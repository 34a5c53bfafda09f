"""Lists all images of a run, a thousand objects a request, and hands them out by shard.

`pipelines.integrity.verification` compares them with the manifests.
"""

from collections.abc import Iterator
from itertools import groupby

from pipelines.run.layout import RunFolder, shard_of
from pipelines.storage.folder import is_odd


class ImageListing:
    """All objects below images/, by shard, in the store's order. strays: folders of unknown shards, and loose files."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.strays: set[str] = set()
        self._groups = groupby(self._below(), lambda found: shard_of(found[0]))
        self._next = next(self._groups, None)

    def _below(self) -> Iterator[tuple[str, int]]:
        for key, size in self.run.walk("images"):
            if key.count("/") == 1 or is_odd(key):
                self.strays.add(key)
            else:
                yield key, size

    def take(self, shard: str) -> dict[str, int]:
        """{key: bytes} of a shard. Shards are asked for in rising order; nothing of one that is not there."""
        while self._next is not None and self._next[0] < shard:
            self._pass_over()
        found = dict(self._next[1]) if self._next is not None and self._next[0] == shard else {}
        if found:
            self._next = next(self._groups, None)
        return found

    def finish(self) -> None:
        """List what is left."""
        while self._next is not None:
            self._pass_over()

    def _pass_over(self) -> None:
        assert self._next is not None
        self.strays.add(f"images/{self._next[0]}")
        self._next = next(self._groups, None)
