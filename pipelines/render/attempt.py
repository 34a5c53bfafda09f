"""Carries one attempt to render a shard, from its first row to its commit or its end.

No Ray and no engine: `pipelines.render.worker` says where pictures come from and when an attempt is dropped.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from actors.rows import ROW_COLUMNS, EngineBroken, Picture, Row, SamplerConfig
from pipelines.boundary import raised_by
from pipelines.render.keys import plan_key, render_key
from pipelines.render.manifest_rows import failed_row, filtered_row, ok_row, with_place, with_scores
from pipelines.render.quality import ShardScores
from pipelines.render.safety import SafetyCheck, Unsafe
from pipelines.render.sink import Sink
from pipelines.render.stamp import StampFailed
from pipelines.render.tries import NO_IMAGE, RowFailed, RowTries, Try, TryRules
from pipelines.render.watchdog import Submit
from pipelines.run.schema import PlannedRow
from pipelines.storage.folder import StorageError

IN_WORK = 128  # rows of a shard between submit and stored: more than the lanes take, and a bound on pictures in memory


class Dropped(Exception):
    """The attempt was given up before its commit: nothing of it counts, and it is no failure."""


class BadRow(Exception):
    """A row that was bad at plan time: error type, message."""


class AttemptFailed(RuntimeError):
    """An error that is no row's fault: the attempt ends without a commit."""


@dataclass
class BusySpan:
    """Measures the seconds from a worker's first row to its last picture."""

    started: float | None = None
    ended: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Notes that a row goes to the engine."""
        with self._lock:
            if self.started is None:
                self.started = self.ended = time.monotonic()

    def reach(self) -> None:
        """Notes that a row came back."""
        with self._lock:
            self.ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """0 before the first row."""
        with self._lock:
            return self.ended - self.started if self.started is not None else 0.0


@dataclass(eq=False)
class ShardAttempt:
    """The attempt. images: rendered so far. error: why it ends without a commit; then no more rows are started."""

    rows: list[PlannedRow]
    sink: Sink
    sampler: SamplerConfig
    span: BusySpan
    scores: ShardScores | None = None
    tries: TryRules = field(default_factory=TryRules)
    rules: str = ""  # what else of the job decides a picture, for `plan_key`
    safety: SafetyCheck | None = None
    images: int = 0
    error: BaseException | None = None
    _rendering: set[Future] = field(default_factory=set)
    _committing: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def dropped(self) -> bool:
        """Whether it was given up, and did not fail."""
        return isinstance(self.error, Dropped)

    def render(self, submit: Submit, writers: Executor, in_work: int = IN_WORK) -> list[dict[str, Any]]:
        """Every row's manifest columns; every picture is stored. Raises what ended the attempt.

        What was written is deleted where not all of it could be: no manifest will name it. in_work: rows that are
        submitted and not yet stored, at most.
        """
        complete = False
        try:
            results = self._results(submit, writers, in_work)
            packed = self.sink.close()
            complete = True
        finally:
            if not complete and not self.dropped:
                with suppress(StorageError):  # the store may be what failed
                    self.sink.discard()
        scored = self.scores.found if self.scores else {}
        return [with_scores(with_place(row, packed), scored.get(row["id"])) for row in results]

    def commit(self, call: Callable[[], bool]) -> bool:
        """Calls `call`, which writes the manifest; nobody may drop the attempt from here on. Raises what ended it."""
        with self._lock:
            if self.error:
                raise self.error
            self._committing = True
            return call()

    def drop(self, patience_s: float = 0.0) -> bool:
        """Drops the attempt. False: it failed, or is committed, or its commit did not end within patience_s."""
        if not self._lock.acquire(timeout=patience_s):
            return False
        try:
            if self._committing or self.error:
                return self.dropped
            self.error = Dropped()
        finally:
            self._lock.release()
        self._take_back()
        return True

    def clear_away(self) -> None:
        """Cleans up a dropped attempt: it no longer counts, and its pictures are deleted as far as the store allows."""
        with suppress(StorageError):
            self.sink.run.release_attempt(self.sink.attempt)
            self.sink.discard()

    def _results(self, submit: Submit, writers: Executor, in_work: int) -> list[dict[str, Any]]:
        """One manifest row (its place still open in packed layouts) for each planned row, in their order."""
        room = threading.BoundedSemaphore(max(1, in_work))
        results: list[Future[dict[str, Any]]] = []
        for row in self.rows:
            if self.error:
                break
            room.acquire()
            tries = RowTries(row, self.tries)
            stored = _Followed(writers, partial(self._store, submit, tries)).follow(self._rendered(submit, row))
            stored.add_done_callback(self._note)
            stored.add_done_callback(lambda _: room.release())
            results.append(stored)
        for result in wait(results, return_when=FIRST_EXCEPTION).done:
            self._note(result)
        if self.error:
            self._take_back()
            wait(results)  # what is being written is written: then it can be deleted
            raise self.error
        return [result.result() for result in results]

    def _take_back(self) -> None:
        for rendered in list(self._rendering):
            rendered.cancel()

    def _note(self, result: Future) -> None:
        """A result that raised ends the attempt, unless something else has: no more rows are started."""
        if (error := result.exception()) is not None:
            with self._lock:
                self.error = self.error or error

    def _rendered(self, submit: Submit, row: PlannedRow) -> "Future[Picture]":
        """The future of a row's picture; a dropped attempt takes back a row that still waits."""
        if row.error_type:
            return settled(BadRow(row.error_type, row.error_message))
        self.span.begin()
        rendered = submit(engine_row(row))
        self._rendering.add(rendered)
        rendered.add_done_callback(self._rendering.discard)
        if self.error:
            rendered.cancel()
        return rendered

    def _store(
        self, submit: Submit, tries: RowTries, rendered: "Future[Picture]"
    ) -> "dict[str, Any] | Future[Picture]":
        """On a writer's thread: the row's manifest columns, or its next picture to come.

        Raises what ends the attempt: a store, a broken engine.
        """
        if self.error:
            raise self.error
        row, error = tries.row, rendered.exception()
        if isinstance(error, EngineBroken | AttemptFailed):
            raise error
        if isinstance(error, BadRow):
            return failed_row(row, self.sink.shard, self.sink.attempt, *error.args)
        self.span.reach()
        tries.done.append(self._judged(tries, rendered))
        self._let_go(tries)
        if tries.wants_another():
            return self._rendered(submit, tries.next_row)
        with self._counting:
            self.images += 1
        return self._settled(tries)

    def _judged(self, tries: RowTries, rendered: "Future[Picture]") -> Try:
        """The picture with what is said of it. One that must not be delivered is let go of here."""
        seed, error, scored = tries.next_row.seed, rendered.exception(), None
        picture, safety = None if error is not None else rendered.result(), dict[str, float]()
        image = picture.image if picture else None
        if self.safety and picture:
            safety, error = self.safety.judge(tries.row, picture.image)
            picture, image = (replace(picture, image=NO_IMAGE), None) if error else (picture, picture.image)
        if self.scores and not tries.are_judged:
            self.scores.add(tries.row, image)
        elif self.scores and image is not None:
            scored = self.scores.judge(tries.row, image)
        return Try(seed, picture, scored, error, safety=safety)

    def _settled(self, tries: RowTries) -> dict[str, Any]:
        """The manifest columns of a row that is tried no more; its picture is stored."""
        sink, chosen = self.sink, tries.chosen
        if isinstance(chosen.error, Unsafe):
            return filtered_row(tries, str(chosen.error), sink.shard, sink.attempt)
        if chosen.picture is None or chosen.error is not None:
            error = chosen.error
            kind, message = error.args if isinstance(error, RowFailed) else (type(error).__name__, str(error))
            return failed_row(tries.row, sink.shard, sink.attempt, kind, message, tries)
        final = replace(tries.row, seed=chosen.seed)
        try:
            stored = sink.put(final, chosen.picture.image)
        except StampFailed as error:
            return failed_row(tries.row, sink.shard, sink.attempt, StampFailed.__name__, str(error), tries)
        where = chosen.picture.render_class
        keys = {
            "render_key": render_key(final, where, self.sampler, sink.provenance.stamp_name),
            "plan_key": plan_key(tries.row, where, self.sampler, self.rules),
        }
        return ok_row(tries, stored, keys, sink)

    def _let_go(self, tries: RowTries) -> None:
        """Of a row's pictures only the best is held; the others are stored where they are kept, and freed."""
        chosen = tries.chosen
        for number, each in enumerate(tries.done):
            if each is not chosen and each.picture is not None and each.picture.image.size:
                uri = self._stored_try(tries.row, each, number) if self.tries.keep else None
                tries.done[number] = replace(each, picture=replace(each.picture, image=NO_IMAGE), uri=uri)

    def _stored_try(self, row: PlannedRow, tried: Try, number: int) -> str | None:
        """Where a picture that was not chosen is stored; None where it cannot be stamped."""
        assert tried.picture is not None
        try:
            return self.sink.put(replace(row, seed=tried.seed), tried.picture.image, number).uri
        except StampFailed:
            return None


def engine_row(row: PlannedRow) -> Row:
    """What the engine needs of a planned row."""
    interval = row.guidance_interval
    columns = {name: getattr(row, name) for name in ROW_COLUMNS}
    return Row(**columns | {"guidance_interval": (interval[0], interval[1]) if interval else None})


def settled(result: Any) -> "Future[Any]":
    """A future that has its result, or raises it."""
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


class InlineExecutor(Executor):
    """Runs what is submitted at once, in the thread that submits it: for pictures that come one at a time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """A future that is settled."""
        future: Future[Any] = Future()
        error = raised_by(lambda: future.set_result(fn(*args, **kwargs)))
        if error is not None:
            future.set_exception(error)
        return future


class _Followed:
    """The future `last` of call(future), on the pool once it is settled; where that gives a future, of call(that one).

    No reference leads from here back to a future that is done: what it holds, a picture, is freed at once.
    """

    def __init__(self, pool: Executor, call: Callable[[Future], Any]):
        self.pool, self.call = pool, call
        self.last: Future[Any] = Future()

    def follow(self, rendered: Future) -> "Future[Any]":
        rendered.add_done_callback(self._call)
        return self.last

    def _call(self, rendered: Future) -> None:
        self.pool.submit(self.call, rendered).add_done_callback(self._settle)

    def _settle(self, done: Future) -> None:
        if (error := done.exception()) is not None:
            self.last.set_exception(error)
        elif isinstance(done.result(), Future):
            self.follow(done.result())
        else:
            self.last.set_result(done.result())
