"""RenderWorker: what spends a ticket. It leases a shard, renders every row, stores the pictures, commits the manifest.

Ray Data makes it an actor with two calls at a time, so that the lanes never drain between two shards. It never raises:
what a shard raises is reported to the ledger.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from actors.rows import Picture, Row, SamplerConfig
from pipelines.folder import StorageError
from pipelines.ledger import DONE, HEARTBEAT_S, MAX_ATTEMPTS, WAIT, Beat, Lease, Shard, Slot, Worker
from pipelines.manifest import failed_row, ok_row, render_key, with_place, with_scores
from pipelines.models import ModelSource
from pipelines.scoring import ScorerSource, ShardScores, load_scorer
from pipelines.sinks import Sink
from pipelines.store import Attempt, RunFolder, manifest_key, schema_from_json

if TYPE_CHECKING:
    from actors.sampler import DDIMSampler

log = logging.getLogger(__name__)
POLL_S = 0.3
DTYPE_KEY = "plan/dtype"
IN_WORK = 128  # rows of a shard between submit and stored: more than the lanes take, and a bound on pictures in memory
WRITERS = 8
Submit = Callable[[Row], "Future[Picture]"]


@dataclass(frozen=True)
class WorkerJob:
    """All that a worker of one pool needs. schemas: of each generation's manifests, as plan.json has them."""

    run: RunFolder
    model: ModelSource
    sampler: SamplerConfig
    pool: str
    layout: str
    image_format: str
    schemas: Mapping[int, str]
    scorers: tuple[ScorerSource, ...] = ()


@dataclass
class _Work:
    """A shard in this worker's hands."""

    shard: Shard
    attempt: Attempt
    rows: list[dict[str, Any]]
    schema: pa.Schema
    sink: Sink
    scores: ShardScores | None = None
    images: int = 0
    broken: bool = False

    def note(self, result: Future) -> None:
        """A result that raised ends the attempt: no more rows are started."""
        self.broken = self.broken or result.exception() is not None


class RenderWorker:
    """A ticket in, the ticket out. `__init__` does nothing that can raise: an actor whose does is not replaced."""

    def __init__(self, job: WorkerJob, ledger: Any):
        self.job, self.ledger = job, ledger
        self._lock = threading.Lock()
        self._sampler: DDIMSampler | None = None
        self._scorer: Any = None
        self._scoring = threading.Lock()
        self._worker: Worker | None = None
        self._slots: dict[int, int] = {}
        self._works: dict[str, _Work] = {}
        self._writers = ThreadPoolExecutor(WRITERS, "writer")
        self._span: list[float] = []

    def __call__(self, ticket: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """ticket -> ticket: at most one shard is rendered in between."""
        slot = self._slot()
        while (lease := self._ask("lease", slot)) == WAIT:
            time.sleep(POLL_S)
        if lease != DONE:
            self._serve(slot, lease)
        return ticket

    def _slot(self) -> Slot:
        """The calling thread's slot; the first call makes this process known and starts its heartbeat."""
        with self._lock:
            if self._worker is None:
                actor = ray.get_runtime_context().get_actor_id() or "local"
                self._worker = Worker(actor, secrets.token_hex(4), self.job.pool)
                threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
            number = self._slots.setdefault(threading.get_ident(), len(self._slots))
            return Slot(self._worker, number)

    def _ask(self, method: str, *args: Any) -> Any:
        return ray.get(getattr(self.ledger, method).remote(*args))

    def _beat(self) -> None:
        """Until the process ends. A ledger that is being restarted is asked again a second later."""
        assert self._worker is not None
        while True:
            beat = Beat(self._worker, {w.shard.id: w.images for w in list(self._works.values())}, self._stats())
            try:
                self._ask("beat", beat)
            except ray.exceptions.RayError as error:
                log.warning("no heartbeat: %s", error)
            time.sleep(HEARTBEAT_S)

    def _stats(self) -> dict[str, float]:
        stats = dict(self._sampler.stats()) if self._sampler else {}
        span = self._span[-1] - self._span[0] if len(self._span) == 2 else 0.0
        return stats | {"span_seconds": span}

    def _serve(self, slot: Slot, lease: Lease) -> None:
        try:
            counts = self._render(lease)
        except Exception as error:  # the worker's boundary: Ray would end the dataset, the ledger leases again
            log.exception("shard %s", lease.shard.id)
            self._ask("fail", slot, lease.shard.id, f"{type(error).__name__}: {error}")
        else:
            self._ask("finish", slot, lease.shard.id, counts)
        finally:
            self._works.pop(lease.shard.id, None)

    def _render(self, lease: Lease) -> dict[str, int]:
        run, shard = self.job.run, lease.shard
        if lease.failures and run.stat(manifest_key(shard.id)):  # committed by who did not live to say so
            return _counts(run.read_manifest(shard.id))
        attempt = run.begin_attempt(shard.id)
        rows = run.read_shard(shard.part, shard.row_group).to_pylist()
        submit = self._isolated(rows) if lease.failures >= MAX_ATTEMPTS else self._loaded().submit
        schema = schema_from_json(self.job.schemas[int(shard.id.split("-")[0])])
        sink = Sink(run, shard.id, attempt, self.job.layout, self.job.image_format)
        work = self._works[shard.id] = _Work(shard, attempt, rows, schema, sink, self._scores(rows))
        results, packed = self._stored(submit, work)
        scored = work.scores.found if work.scores else {}
        finished = [with_scores(with_place(r, packed), scored.get(r["id"])) for r in results]
        table = pa.Table.from_pylist(finished, schema=schema)
        if not run.commit_manifest(shard.id, table):
            log.info("shard %s was committed by another worker; this attempt is dropped", shard.id)
            sink.discard()
            table = run.read_manifest(shard.id)
        return _counts(table)

    def _loaded(self) -> "DDIMSampler":
        """The sampler with its model on the device; loaded by the first call, under the lock."""
        with self._lock:
            if self._sampler is None:
                from actors.sampler import DDIMSampler  # torch is imported where pictures are made, not by a driver

                self._sampler = DDIMSampler(self._settings())
            self._sampler.load()
            return self._sampler

    def _stored(self, submit: Submit, work: _Work) -> tuple[list[dict[str, Any]], dict[str, tuple[str, int | None]]]:
        """Rows and places; what was written is deleted where not all of it could be: no manifest will name it."""
        complete = False
        try:
            results = self._results(submit, work)
            packed = work.sink.close()
            complete = True
        finally:
            if not complete:
                with suppress(StorageError):  # the store may be what failed
                    work.sink.discard()
        return results, packed

    def _scores(self, rows: list[dict[str, Any]]) -> ShardScores | None:
        """Where the job has scorers; they are loaded once, by the first shard."""
        if not self.job.scorers:
            return None
        with self._lock:
            if self._scorer is None:
                self._scorer = load_scorer(self.job.scorers, self.job.sampler.device)
        return ShardScores(self._scorer, rows, self._scoring)

    def _settings(self) -> SamplerConfig:
        """The job's, with the folder of the checkpoint on this node."""
        source, dtype = self.job.model, settle_dtype(self.job.run, self.job.sampler)
        return replace(self.job.sampler, model_path=source.local(), variant=source.variant, dtype=dtype)

    def _isolated(self, rows: list[dict[str, Any]]) -> Submit:
        """Every row of a shard that keeps killing its workers, rendered in child processes; the model is theirs."""
        from pipelines.isolation import render_isolated

        with self._lock:
            if self._sampler is not None:
                self._sampler.close()
                self._sampler = None
        pictures = render_isolated(self._settings(), [_engine_row(row) for row in rows if not row["error_type"]])
        return lambda row: _settled(pictures[row.id])

    def _results(self, submit: Submit, work: _Work) -> list[dict[str, Any]]:
        """One manifest row (its place still open in packed layouts) for each planned row, in their order."""
        room = threading.BoundedSemaphore(IN_WORK)
        results: list[Future[dict[str, Any]]] = []
        for row in work.rows:
            if work.broken:
                break
            room.acquire()
            rendered = self._submit(submit, row)
            stored = _then(rendered, self._writers, partial(self._store, work, row))
            stored.add_done_callback(work.note)
            stored.add_done_callback(lambda _: room.release())
            results.append(stored)
        return [result.result() for result in results]

    def _submit(self, submit: Submit, row: dict[str, Any]) -> "Future[Picture]":
        if row["error_type"]:
            return _settled(BadRow(row["error_type"], row["error_message"]))
        self._span = self._span or [time.monotonic(), time.monotonic()]
        return submit(_engine_row(row))

    def _store(self, work: _Work, row: dict[str, Any], rendered: "Future[Picture]") -> dict[str, Any]:
        """On a writer's thread: the row's manifest columns. Raises StorageError, which ends the attempt."""
        error = rendered.exception()
        if isinstance(error, BadRow):
            return failed_row(row, work.shard.id, work.attempt, *error.args)
        self._span[1] = time.monotonic()
        work.images += 1
        if work.scores:
            work.scores.add(row, None if error is not None else rendered.result().image)
        if error is not None:
            return failed_row(row, work.shard.id, work.attempt, type(error).__name__, str(error))
        picture = rendered.result()
        stored = work.sink.put(row, picture.image)
        key = render_key(row, picture.render_class, self.job.sampler)
        return ok_row(row, work.shard.id, work.attempt, picture, stored, key, self.job.image_format)


def settle_dtype(run: RunFolder, sampler: SamplerConfig) -> str:
    """The run's precision: what `auto` meant to its first worker holds for all, on whatever device they are."""
    if sampler.dtype != "auto":
        return sampler.dtype
    from actors.diffusion import resolve_device, resolve_dtype

    chosen = str(resolve_dtype("auto", resolve_device(sampler.device))).removeprefix("torch.")
    run.create(DTYPE_KEY, chosen.encode())
    return run.read(DTYPE_KEY).decode()


def _counts(manifest: pa.Table) -> dict[str, int]:
    rows = manifest.select(["status", "num_steps"]).to_pylist()
    statuses = [row["status"] for row in rows]
    steps = sum(row["num_steps"] for row in rows if row["status"] == "ok")
    return {name: statuses.count(name) for name in ("ok", "failed", "filtered")} | {"steps": steps}


class BadRow(Exception):
    """A row that was bad at plan time: error type, message."""


def _engine_row(row: Mapping[str, Any]) -> Row:
    return Row(**{field.name: row[field.name] for field in fields(Row)})


def _settled(result: Any) -> "Future[Any]":
    """A future that has its result, or raises it."""
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def _then(first: Future, pool: ThreadPoolExecutor, call: Callable[[Future], Any]) -> "Future[Any]":
    """The future of call(first), which runs on the pool once `first` is settled."""
    second: Future[Any] = Future()

    def settle(done: Future) -> None:
        error = done.exception()
        second.set_result(done.result()) if error is None else second.set_exception(error)

    first.add_done_callback(lambda _: pool.submit(call, first).add_done_callback(settle))
    return second
