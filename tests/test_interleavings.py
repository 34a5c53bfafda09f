"""The ledger and the commit protocol, proved by enumeration: every order, with mishaps at each point, and mutations.

Bounds, which are what is not shown: two shards of two rows, of which one picture is written after the other; one slot a
worker (of three workers none gets a second shard). A worker dies, falls silent, is cut off or sends a late heartbeat
only while it has a lease; equal workers begin in their order. A call of the store is tried twice, and one goes
wrong: refused, lost (it happened, and is tried again), unknown (it happened, and nobody says so) or late (it happens at
any time after it was given up). A worker that is told to leave, and repair, are not here. What may go wrong on one path
is `Left`. Orders that differ only in when an image is written are taken once, where nobody can be told to drop it, and
images of an attempt that is over are forgotten, if no manifest can name them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pipelines.render.attempt import ShardAttempt
from pipelines.render.ledger import Ledger
from pipelines.render.messages import Heartbeat, HeartbeatReply
from pipelines.render.sink import Sink
from pipelines.render.worker import RenderWorker
from pipelines.run.layout import RunFolder, manifest_key, parquet_bytes
from pipelines.storage.folder import Folder
from tests.interleavings import (
    BYTES,
    DEATH,
    KEPT,
    LEASE,
    ONCE,
    PROGRESS,
    WHOLE,
    Bench,
    Code,
    Enumeration,
    Found,
    Left,
    Rules,
)

ABRUPT, SUPERSEDED = False, True  # what becomes of a first driver


@dataclass(frozen=True)
class Case:
    """workers: of the first driver; a second one has one more. floor: worlds at least, a little below those found."""

    workers: int
    left: Left
    floor: int
    gives_way: bool = ABRUPT
    cut: bool = False

    def __str__(self) -> str:
        asked = [f"{count} {name}" for name, count in self.left._asdict().items() if count]
        return f"{self.workers} workers, " + (", ".join(asked) or "no mishap") + (", gives way" * self.gives_way)

    def enumerate(self, bench: Bench, until: str = "") -> Found:
        rules = Rules(bench, takers=1, superseded=self.gives_way)
        return Enumeration(rules, self.cut).run(rules.first(self.workers, self.left), until)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench(Code()).ready() as ready:
        yield ready


def check(bench: Bench, case: Case) -> None:
    found = case.enumerate(bench)
    print(
        f"{case}: {found.worlds:,} worlds in {found.stores:,} stores, {found.moves:,} moves, "
        f"{found.paths:.2g} interleavings, {found.ends:,} ends, {found.seconds:.1f} s"
    )
    assert found.violated == {}
    assert found.worlds >= case.floor
    assert found.paths >= found.worlds


@pytest.mark.parametrize(
    "case",
    [
        Case(3, Left(), 100, cut=True),
        Case(3, Left(faults=1), 4_500, cut=True),
        Case(3, Left(kills=1), 5_500, cut=True),
        Case(3, Left(rebuilds=1), 17_000, cut=True),
        Case(3, Left(silences=1), 28_000),
        Case(3, Left(beats=2), 1_100),
        Case(2, Left(takeovers=1), 10_000),
        Case(1, Left(takeovers=1), 15_000, SUPERSEDED),
        Case(1, Left(faults=1, kills=1), 6_500),
    ],
    ids=str,
)
def test_every_order(bench: Bench, case: Case) -> None:
    check(bench, case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(1, Left(faults=2), 3_000),
        Case(1, Left(faults=1, takeovers=1), 25_000),
        Case(3, Left(faults=1, kills=1), 350_000),
        Case(3, Left(rebuilds=1, beats=1), 250_000),
        Case(2, Left(takeovers=1), 100_000, SUPERSEDED),
    ],
    ids=str,
)
def test_every_order_of_more(case: Case) -> None:
    with Bench(Code()).ready() as bench:
        check(bench, case)


@pytest.mark.parametrize("left", [Left(rebuilds=1, faults=1, beats=1), Left(rebuilds=1, silences=1, beats=1)])
def test_a_new_ledger_adopts_nothing_that_its_worker_has_ended(bench: Bench, left: Left) -> None:
    """The heartbeat was under way when the worker failed or released the shard: nobody works on it for a minute."""
    assert LEASE not in Case(1, left, 0).enumerate(bench, until=LEASE).violated


def test_a_late_heartbeat_of_a_dead_process_ends_no_living_one(bench: Bench) -> None:
    assert DEATH not in Case(1, Left(rebuilds=1, kills=1, beats=1), 0).enumerate(bench, until=DEATH).violated


class EagerSink(Sink):
    """Keeps the images until the manifest stands."""

    def put(self, row: Any, image: Any) -> Any:
        write, self.run.write = self.run.write, lambda key, data: self._later().append((key, data))  # type: ignore
        try:
            return super().put(row, image)
        finally:
            self.run.write = write  # type: ignore

    def _later(self) -> list[tuple[str, bytes]]:
        return self.__dict__.setdefault("later", [])


class ManifestFirst(RenderWorker):
    def _commit(self, lease: Any, *rest: Any) -> bool:
        committed = super()._commit(lease, *rest)
        for key, data in self._works[lease.shard.id].sink._later():
            self.job.run.write(key, data)
        return committed


def named_by_attempt(run: RunFolder, shard: str, table: Any) -> bool:
    attempt = table["uri"][0].as_py().split("/")[2]
    return run.create(f"manifest/{shard}-{attempt}.parquet", parquet_bytes([table]))


def split_in_two(run: RunFolder, shard: str, table: Any) -> bool:
    halves = [("a", table.slice(0, 1)), ("b", table.slice(1))]
    return all(run.create(manifest_key(shard + name), parquet_bytes([half])) for name, half in halves)


def put_over(run: RunFolder, shard: str, table: Any) -> bool:
    run.write(manifest_key(shard), parquet_bytes([table]))
    return True


def refusal_is_a_loss(folder: Folder, key: str, data: bytes) -> bool:
    def create(backend: Any) -> bool:
        try:
            backend.create(key, data)
        except FileExistsError:
            return False
        return True

    return folder._call("write", key, create, retry_absent=True)


def delete_by_shard(sink: Sink) -> None:
    sink.run.delete([key for key, _ in sink.run.walk(f"images/{sink.shard}")])


def delete_the_manifest(sink: Sink) -> None:
    sink.run.delete([*sink.keys, manifest_key(sink.shard)])


def commit_or_delete(work: ShardAttempt, call: Any) -> bool:
    """An attempt whose commit raised is taken for one that is not committed."""
    complete = False
    try:
        committed = call()
        complete = True
        return committed
    finally:
        if not complete:
            work.sink.discard()


def done_by_attempts(run: RunFolder) -> set[str]:
    return set(run.attempts())


class Readopts(Ledger):
    """Without the rule that what it lent itself is adopted from no heartbeat."""

    def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        for state in self._open.values():
            state.lent_to = type(state.lent_to)()
        return super().heartbeat(beat)


class Forgets(Ledger):
    """The lease of a worker that died, or fell silent, stays."""

    def _void(self, state: Any, reason: str, counts: bool) -> None:
        pass


class BlamesAll(Ledger):
    """Every lease that ends with its worker counts as a death."""

    def _void(self, state: Any, reason: str, counts: bool) -> None:
        super()._void(state, reason, counts=True)


STORE, SINKS = "pipelines.run.layout.RunFolder.", "pipelines.render.sink.Sink."
WORK = "pipelines.render.attempt.ShardAttempt."
COMMIT, DISCARD = STORE + "commit_manifest", SINKS + "discard"
MUTATIONS = {
    "a manifest before its images": (
        Code(ManifestFirst, patches={"pipelines.render.worker.Sink": EagerSink}),
        Left(),
        BYTES,
    ),
    "a manifest named by its attempt": (Code(patches={COMMIT: named_by_attempt}), Left(silences=1), ONCE),
    "a lease adopted again after a failure": (Code(ledger=Readopts), Left(faults=1, beats=1), LEASE),
    "a lease adopted again after a release": (Code(ledger=Readopts), Left(silences=1, beats=2), LEASE),
    "a shard split in two": (Code(patches={COMMIT: split_in_two}), Left(), WHOLE),
    "a loser deletes the winner's images": (Code(patches={DISCARD: delete_by_shard}), Left(silences=1), BYTES),
    "a loser deletes the manifest": (Code(patches={DISCARD: delete_the_manifest}), Left(silences=1), KEPT),
    "done by attempts": (Code(patches={STORE + "done_shards": done_by_attempts}), Left(), PROGRESS),
    "a death is not voided": (Code(ledger=Forgets), Left(kills=1), PROGRESS),
    "silence is a death": (Code(ledger=BlamesAll), Left(silences=1), DEATH),
    "a lost node is a death": (Code(ledger=BlamesAll), Left(kills=1), DEATH),
    "a manifest put over another": (Code(patches={COMMIT: put_over}), Left(silences=1), KEPT),
    "a refusal is not read back": (Code(patches={STORE + "create": refusal_is_a_loss}), Left(faults=1), BYTES),
    "images deleted where the commit is in doubt": (
        Code(patches={WORK + "commit": commit_or_delete}),
        Left(faults=1),
        BYTES,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name: str) -> None:
    code, left, invariant = MUTATIONS[name]
    with Bench(code).ready() as mutated:
        found = Case(3, left, 0, cut=invariant is PROGRESS).enumerate(mutated, until=invariant)
    print(f"{name}: {found.worlds:,} worlds, {found.seconds:.1f} s, {invariant}: {found.violated.get(invariant)}")
    assert invariant in found.violated
