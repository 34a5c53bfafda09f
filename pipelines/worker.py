"""RenderWorker: what spends a ticket. It leases a shard, renders every row, stores the pictures, commits the manifest.

Ray Data makes it an actor with two calls at a time, so that the lanes never drain between two shards. It never raises:
what a shard raises is reported to the ledger. Told to leave (SIGTERM, or its node is drained) it drops what is not yet
committed, says so, and ends its process; its tickets go to others.
"""

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from actors.rows import SamplerConfig
from pipelines.epochs import Term
from pipelines.lease import DONE, WAIT, Answer, Beat, Lease, Shard, Slot, Worker
from pipelines.ledger import HEARTBEAT_S, MAX_ATTEMPTS
from pipelines.models import ModelSource
from pipelines.repair import Order, replace_manifest
from pipelines.scoring import ScorerSource, ShardScores, load_scorer
from pipelines.sinks import Sink
from pipelines.store import RunFolder, manifest_key, schema_from_json
from pipelines.watchdog import Submit, Watchdog
from pipelines.work import Dropped, Span, Work, engine_row, settled

if TYPE_CHECKING:
    from actors.sampler import DDIMSampler

log = logging.getLogger(__name__)
POLL_S = 0.3
DTYPE_KEY = "plan/dtype"
WRITERS = 8
LEAVE_S, COMMIT_S = 20.0, 10.0  # to leave, in all, and of it for a commit under way; a pod has 30 s by default


@dataclass(frozen=True)
class WorkerJob:
    """All that a worker of one pool needs. schemas: of each generation's manifests, as plan.json has them.

    row_timeout_s: without a sign of life from the engine; None: it is waited for. term: of the driver that repairs.
    """

    run: RunFolder
    model: ModelSource
    sampler: SamplerConfig
    pool: str
    layout: str
    image_format: str
    schemas: Mapping[int, str]
    scorers: tuple[ScorerSource, ...] = ()
    row_timeout_s: float | None = None
    term: Term | None = None


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
        self._works: dict[str, Work] = {}
        self._leaving, self._handing = False, threading.Lock()
        self._isolated_moves = 0
        self._watchdog = Watchdog(job.row_timeout_s, self._engine_stats)
        self._writers = ThreadPoolExecutor(WRITERS, "writer")
        self._span = Span()
        self._heed_sigterm()

    def __call__(self, ticket: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """ticket -> ticket: at most one shard is rendered in between."""
        slot = self._slot()
        while self._leaving or (lease := self._ask("lease", slot)) == WAIT:
            time.sleep(POLL_S)
        if lease != DONE:
            self._serve(slot, lease)
        return ticket

    def _heed_sigterm(self) -> None:
        """Ray runs __init__ in the main thread; its own handler would let the running calls go on to their end."""
        in_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id()
        if in_actor and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=self._leave, args=("SIGTERM",)).start())

    def _leave(self, reason: str) -> None:
        """Drop what is not committed, so that it counts as no attempt and others may have it at once; then the end.

        Bounded, whatever the store and the ledger do. A commit under way is waited for a little, and never undone.
        """
        from pipelines.isolation import end_children

        deadline = threading.Timer(LEAVE_S, os._exit, (1,))
        deadline.daemon = True
        deadline.start()
        with self._handing:
            self._leaving = True
        log.warning("this worker leaves: %s", reason)
        dropped = {shard: work for shard, work in list(self._works.items()) if work.drop(COMMIT_S)}
        end_children()
        for shard, work in dropped.items():
            work.clear_away()
            assert self._worker is not None  # it has leased
            with suppress(ray.exceptions.RayError):
                ray.get(self.ledger.release.remote(Slot(self._worker, 0), shard), timeout=HEARTBEAT_S)
        os._exit(1)  # Ray starts the actor again, where there is room for it

    def _slot(self) -> Slot:
        """The calling thread's slot; the first call makes this process known and starts its heartbeat."""
        with self._lock:
            if self._worker is None:
                actor = ray.get_runtime_context().get_actor_id() or "local"
                node = ray.get_runtime_context().get_node_id()
                self._worker = Worker(actor, secrets.token_hex(4), self.job.pool, node)
                threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
            number = self._slots.setdefault(threading.get_ident(), len(self._slots))
            return Slot(self._worker, number)

    def _ask(self, method: str, *args: Any) -> Any:
        return ray.get(getattr(self.ledger, method).remote(*args))

    def _beat(self) -> None:
        """Until the process ends. A ledger that is being restarted is asked again a second later."""
        while True:
            try:
                self._heed(self._ask("beat", self._news()))
            except ray.exceptions.RayError as error:
                log.warning("no heartbeat: %s", error)
            time.sleep(HEARTBEAT_S)

    def _news(self) -> Beat:
        assert self._worker is not None
        return Beat(self._worker, {shard: work.images for shard, work in list(self._works.items())}, self._stats())

    def _heed(self, answer: Answer) -> None:
        if answer.leave:
            self._leave("its node is being drained")
        for shard in answer.done:
            if (work := self._works.get(shard)) and work.drop():
                log.info("shard %s was committed by another worker; this attempt is dropped", shard)

    def _engine_stats(self) -> dict[str, float]:
        return dict(self._sampler.stats()) if self._sampler else {}

    def _stats(self) -> dict[str, float]:
        return self._engine_stats() | {"span_seconds": self._span.seconds, "isolated_moves": self._isolated_moves}

    def _serve(self, slot: Slot, lease: Lease) -> None:
        try:
            counts = self._render(lease)
        except Dropped:
            self._ask("release", slot, lease.shard.id)
        except Exception as error:  # the worker's boundary: Ray would end the dataset, the ledger leases again
            log.exception("shard %s", lease.shard.id)
            self._ask("fail", slot, lease.shard.id, f"{type(error).__name__}: {error}")
        else:
            self._ask("beat", self._news())  # first: after the last shard's end nobody asks for the figures
            self._ask("finish", slot, lease.shard.id, counts)
        finally:
            self._works.pop(lease.shard.id, None)

    def _render(self, lease: Lease) -> dict[str, int]:
        """What became of the rows. Raises Dropped where the attempt was given up and nobody has committed the shard."""
        run, shard, order = self.job.run, lease.shard, lease.order
        if lease.failures and self._is_done(lease):  # committed by who did not live to say so
            return _counts(run.read_manifest(shard.id), order)
        schema = schema_from_json(self.job.schemas[int(shard.id.split("-")[0])])
        mending = order.mending(run, shard.part, shard.row_group, schema) if order else None
        rows = list(mending.again) if mending else run.read_shard(shard.part, shard.row_group).to_pylist()
        work = self._begin(shard, rows)
        try:
            finished = work.render(self._submitter(lease, rows), self._writers)
            table = mending.manifest(finished) if mending else pa.Table.from_pylist(finished, schema=schema)
            if work.commit(partial(self._commit, lease, table)):
                return _counts(table, order)
            log.info("shard %s was committed by another worker; this attempt is dropped", shard.id)
            work.sink.discard()
        except Dropped:
            work.clear_away()
            if not self._is_done(lease):
                raise
        return _counts(run.read_manifest(shard.id), order)

    def _begin(self, shard: Shard, rows: list[dict[str, Any]]) -> Work:
        """Written down in the run folder before anything is done; known to `_leave` from here on."""
        attempt = self.job.run.begin_attempt(shard.id)
        sink = Sink(self.job.run, shard.id, attempt, self.job.layout, self.job.image_format)
        work = Work(rows, sink, self.job.sampler, self._span, self._scores(rows))
        with self._handing:
            self._works[shard.id] = work
            if self._leaving:
                work.drop()
        return work

    def _is_done(self, lease: Lease) -> bool:
        run = self.job.run
        return lease.order.is_done(run) if lease.order else run.stat(manifest_key(lease.shard.id)) is not None

    def _commit(self, lease: Lease, table: pa.Table) -> bool:
        """False: another worker's manifest stands."""
        run, shard, order, term = self.job.run, lease.shard.id, lease.order, self.job.term
        if order is None:
            return run.commit_manifest(shard, table)
        assert term is not None
        if order.is_done(run):
            return False
        replace_manifest(run, term, shard, table)
        return True

    def _submitter(self, lease: Lease, rows: list[dict[str, Any]]) -> Submit:
        """How a row gets its picture: by the engine, or where workers keep dying, in a process apart."""
        if all(row["error_type"] for row in rows):
            return lambda row: settled(AssertionError(row.id))  # no row needs the model
        if lease.failures >= MAX_ATTEMPTS:
            return self._isolated(rows)
        return self._watchdog.watched(self._loaded().submit)

    def _loaded(self) -> "DDIMSampler":
        """The sampler with its model on the device; loaded by the first call, under the lock."""
        with self._lock:
            if self._sampler is None:
                from actors.sampler import DDIMSampler  # torch is imported where pictures are made, not by a driver

                self._sampler = DDIMSampler(self._settings())
            self._sampler.load()
            return self._sampler

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
        from pipelines.isolation import SILENCE_S, render_isolated

        with self._lock:
            if self._sampler is not None:
                self._sampler.close()
                self._sampler = None
        good = [engine_row(row) for row in rows if not row["error_type"]]
        pictures = render_isolated(self._settings(), good, self.job.row_timeout_s or SILENCE_S, self._isolated_moved)
        return lambda row: settled(pictures[row.id])

    def _isolated_moved(self) -> None:
        self._isolated_moves += 1


def settle_dtype(run: RunFolder, sampler: SamplerConfig) -> str:
    """The run's precision: what `auto` meant to its first worker holds for all, on whatever device they are."""
    if sampler.dtype != "auto":
        return sampler.dtype
    from actors.diffusion import resolve_device, resolve_dtype

    chosen = str(resolve_dtype("auto", resolve_device(sampler.device))).removeprefix("torch.")
    run.create(DTYPE_KEY, chosen.encode())
    return run.read(DTYPE_KEY).decode()


def _counts(manifest: pa.Table, order: Order | None) -> dict[str, int]:
    """Of a shard's rows; of a repair those that were to be rendered again."""
    rows = manifest.select(["id", "status", "num_steps"]).to_pylist()
    if order:
        again = set(order.ids)
        rows = [row for row in rows if row["id"] in again]
    statuses = [row["status"] for row in rows]
    steps = sum(row["num_steps"] for row in rows if row["status"] == "ok")
    return {name: statuses.count(name) for name in ("ok", "failed", "filtered")} | {"steps": steps}
