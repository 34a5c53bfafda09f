"""Defines RenderWorker, an actor that leases shards, renders every row, stores pictures and commits the manifest.

It never raises: what a shard raises is reported to the ledger, and a process that cannot render says why and does not
lease. Two shards are in hand at a time, so that the lanes never drain between them. Told to leave (SIGTERM, or its node
is drained) it drops what is not yet committed, says so, and ends its process.
"""

import logging
import os
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from actors.rows import EngineBroken, SamplerConfig
from pipelines.boundary import raised_by
from pipelines.cluster.capacity import ActorState, actor_states
from pipelines.render.attempt import IN_WORK, BusySpan, Dropped, InlineExecutor, ShardAttempt, engine_row, settled
from pipelines.render.keys import tries_rules
from pipelines.render.ledger import HEARTBEAT_S, LEASE_TIMEOUT_S
from pipelines.render.manifest_rows import outcome_counts
from pipelines.render.messages import (
    DONE,
    WAIT,
    Heartbeat,
    HeartbeatReply,
    Lease,
    LeasedShard,
    Slot,
    UnfitWorker,
    Worker,
)
from pipelines.render.open_shard import FirstRows, OpenShard, open_shard
from pipelines.render.provenance import Provenance, ProvenanceConfig, load_provenance
from pipelines.render.quality import ScorerSource, ScoringTurns, ShardScores, load_scorer
from pipelines.render.repaired_shard import RepairedShard, RepairOrder, replace_manifest
from pipelines.render.safety import SafetyCheck, SafetyRule
from pipelines.render.sink import Sink
from pipelines.render.tries import TryRules
from pipelines.render.watchdog import Submit, Watchdog
from pipelines.run.drivers import EpochId
from pipelines.run.layout import RunFolder, manifest_key
from pipelines.run.precision import keep_dtype, settled_dtype
from pipelines.run.proof import prove_in_time
from pipelines.run.schema import PlannedRow
from pipelines.storage.checkpoints import ModelSource

if TYPE_CHECKING:
    from actors.sampler import DDIMSampler

log = logging.getLogger(__name__)
POLL_S = 0.3
SLOTS = 2  # shards in hand
WRITERS = 8
CALLED_AGAIN = 3  # times, where the process died
LEAVE_S, COMMIT_S = 20.0, 10.0  # to leave, in all, and of it for a commit under way; a pod has 30 s by default


@dataclass(frozen=True)
class WorkerConfig:
    """All that a worker of one pool needs. schema: of all manifests.

    row_timeout_s: ends the process after so long without progress; None: never. epoch: of the driver. auto_dtype: what
    `dtype: auto` means in a run that has not settled it yet. variables: of the environment, set before torch is loaded.
    """

    run: RunFolder
    model: ModelSource
    sampler: SamplerConfig
    pool: str
    layout: str
    image_format: str
    schema: pa.Schema
    scorers: tuple[ScorerSource, ...] = ()
    safety: SafetyRule | None = None
    tries: TryRules = field(default_factory=TryRules)
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)
    row_timeout_s: float | None = None
    epoch: EpochId | None = None
    auto_dtype: str = "float32"
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def rules(self) -> str:
        """What of the job decides a row's picture beside its columns and the engine."""
        return tries_rules(self.image_format, self.tries.most, self.scorers, self.safety, self.provenance.key_parts)


class RenderWorker:
    """`serve` is its one long call. `__init__` does nothing that can raise: an actor whose does is not replaced."""

    def __init__(self, job: WorkerConfig, ledger: Any = None):
        os.environ.update(job.variables)  # before torch; a runtime_env with them would cost a process's start
        self.job, self.ledger = job, ledger
        self._lock, self._serving_lock = threading.Lock(), threading.Lock()  # of what is loaded, and of `serve`
        self._sampler: DDIMSampler | None = None
        self._scorer: Any = None
        self._safety: SafetyCheck | None = None
        self._scoring = ScoringTurns()
        self._worker: Worker | None = None
        self._serving: Future[UnfitWorker | None] | None = None
        self._stage = "starting"
        self._works: dict[str, ShardAttempt | None] = {}  # shards in hand, from the lease on; None: not begun
        self._unwanted: set[str] = set()  # those not begun that are another's by now
        self._past: Counter[str] = Counter()  # figures of samplers that made room for isolation
        self._figures = threading.Lock()  # held while a sampler comes or goes, and what is past with it
        self._answered_at = time.monotonic()
        self._leaving, self._handing = False, threading.Lock()
        self._ending = threading.Lock()  # held by the thread that ends the process
        self._isolated_moves = 0
        self._watchdog = Watchdog(job.row_timeout_s, self._engine_stats)
        self._writers = ThreadPoolExecutor(WRITERS, "writer")
        self._span = BusySpan()
        self._provenance = Provenance()
        self._heed_sigterm()

    @ray.method(max_task_retries=CALLED_AGAIN)  # type: ignore[untyped-decorator]
    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function in this process, while it has nothing else to do: what is imported need not be again."""
        with self._lock:
            return function(*arguments)

    def warm(self) -> None:
        """Loads the model before there is a plan. What fails here fails in `serve` again, and is told there."""
        if (error := raised_by(self._prepare)) is not None:
            log.warning("the model could not be loaded ahead", exc_info=error)

    def serve(self, ledger: Any, job: WorkerConfig | None = None) -> UnfitWorker | None:
        """Leases, renders and commits until nothing is left for this worker. An UnfitWorker says why it cannot.

        A second call, after a connection was cut, joins the first. The ledger comes with the call: an actor whose
        constructor was given a handle may not be started again. So does the job: there may have been no plan before.
        """
        with self._serving_lock:
            self.ledger, self.job = ledger, job or self.job
            serving, mine = self._serving, self._serving is None
            if serving is None:
                serving = self._serving = Future()
        if mine:
            outcome: list[UnfitWorker | None] = []
            error = raised_by(lambda: outcome.append(self._serve_all()))
            self._serving = None
            serving.set_exception(error) if error else serving.set_result(outcome[0])
        return serving.result()

    def _serve_all(self) -> UnfitWorker | None:
        self._introduce()
        if (error := raised_by(self._prepare)) is not None:
            log.error("this worker cannot render", exc_info=error)
            return UnfitWorker(f"{type(error).__name__}: {error}")
        with ThreadPoolExecutor(SLOTS, "slot") as slots:
            for ended in [slots.submit(self._serve_slot, number) for number in range(SLOTS)]:
                ended.result()
        return None

    def _introduce(self) -> None:
        """The first call makes this process known and starts its heartbeat."""
        if self._worker is None:
            context, known = ray.get_runtime_context(), dict[str, ActorState]()
            actor = context.get_actor_id() or "local"
            if (error := raised_by(lambda: known.update(actor_states([actor])))) is not None:
                log.warning("how often this actor was started is not known: %s", error)
            life = known[actor].restarts if actor in known else 0
            self._worker = Worker(actor, secrets.token_hex(4), self.job.pool, context.get_node_id(), life)
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _prepare(self) -> None:
        """Checks, before the first lease, that this process sees the run folder, can sign, and has a sound engine."""
        if self.job.epoch is not None:
            self._stage = "looking for the run folder"
            prove_in_time(self.job.run, self.job.epoch.proof)
        self._provenance = load_provenance(self.job.provenance)
        self._stage = "loading the model"
        self._loaded()
        self._stage = ""

    def _serve_slot(self, number: int) -> None:
        assert self._worker is not None
        slot = Slot(self._worker, number)
        while True:
            lease: Lease | str = WAIT if self._leaving else self._ask("lease", slot)
            if isinstance(lease, Lease):
                self._serve_shard(slot, lease)
            elif lease == DONE:
                return
            else:
                time.sleep(POLL_S)

    def _heed_sigterm(self) -> None:
        """Ray runs __init__ in the main thread; its own handler would let the running calls go on to their end."""
        in_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id()
        if in_actor and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=self._leave, args=("SIGTERM",)).start())

    def _leave(self, reason: str) -> None:
        """Drops what is not committed, so that it is no attempt and others may have it at once; then ends the process.

        Bounded, whatever the store and the ledger do. A commit under way is waited for a little, and never undone.
        """
        from pipelines.render.isolation import end_children

        with self._ending:  # for good: this process ends
            deadline = threading.Timer(LEAVE_S, os._exit, (1,))
            deadline.daemon = True
            deadline.start()
            with self._handing:
                self._leaving = True
            log.warning("this worker leaves: %s", reason)
            given_up = {shard: work for shard, work in self._in_hand() if work is None or work.drop(COMMIT_S)}
            end_children()
            for shard, work in given_up.items():
                if work:
                    work.clear_away()
                assert self._worker is not None  # it has leased
                with suppress(ray.exceptions.RayError):
                    ray.get(self.ledger.release.remote(Slot(self._worker, 0), shard), timeout=HEARTBEAT_S)
            os._exit(1)  # Ray starts the actor again, where there is room for it

    def _end_broken(self, reason: str) -> None:
        """Ends the process with its broken engine: what it holds counts as attempts, and others take it."""
        with self._ending:
            log.error("this worker ends: %s", reason)
            with suppress(ray.exceptions.RayError):
                ray.get(self.ledger.engine_broke.remote(self._worker, reason), timeout=LEASE_TIMEOUT_S)
            os._exit(1)

    def _ask(self, method: str, *args: Any) -> Any:
        """Asks the ledger, however long it is away. A heartbeat is not repeated: the next one says more."""
        call = getattr(self.ledger, method)
        if method == "heartbeat":
            return ray.get(call.options(max_task_retries=0).remote(*args), timeout=LEASE_TIMEOUT_S)
        return ray.get(call.remote(*args))

    def _beat(self) -> None:
        """Sends heartbeats until the process ends. A ledger that is away is asked again a second later."""
        interval_s = HEARTBEAT_S

        def beat() -> None:
            nonlocal interval_s
            answer = self._ask("heartbeat", self._news())
            self._answered_at, interval_s = time.monotonic(), max(HEARTBEAT_S, answer.interval_s)
            self._heed(answer)

        while True:
            if (error := raised_by(beat)) is not None:
                log.warning("no heartbeat: %s", error)
                interval_s = HEARTBEAT_S
                self._drop_if_cut_off()
            time.sleep(interval_s)

    def _drop_if_cut_off(self) -> None:
        """Drops all attempts if the ledger was silent for so long that the leases ran out: others work on them."""
        if time.monotonic() - self._answered_at > LEASE_TIMEOUT_S:
            for shard, work in self._in_hand():
                if work and work.drop():
                    log.warning("shard %s is dropped: the ledger has not answered for too long", shard)

    def _in_hand(self) -> list[tuple[str, ShardAttempt | None]]:
        """The attempts in hand at this moment: other threads begin and end them."""
        return list(self._works.items())

    def _news(self) -> Heartbeat:
        assert self._worker is not None
        images = {shard: work.images if work else 0 for shard, work in self._in_hand()}
        return Heartbeat(self._worker, images, self._stats(), self._stage)

    def _heed(self, answer: HeartbeatReply) -> None:
        if answer.leave:
            self._leave("its node is being drained")
        for shard in answer.drop:
            with self._handing:
                work = self._works.get(shard)
                if work is None and shard in self._works:
                    self._unwanted.add(shard)
            if work and work.drop():
                log.info("shard %s is another worker's now; this attempt is dropped", shard)

    def _engine_stats(self) -> dict[str, float]:
        with self._figures:
            sampler, past = self._sampler, self._past
        return dict(past + Counter(sampler.stats())) if sampler else dict(past)

    def _stats(self) -> dict[str, float]:
        scoring = {"score_calls": self._scoring.calls, "score_seconds": self._scoring.seconds}
        spent = {"span_seconds": self._span.seconds, "isolated_moves": self._isolated_moves}
        return self._engine_stats() | scoring | spent

    def _serve_shard(self, slot: Slot, lease: Lease) -> None:
        counts: dict[str, Any] = {}
        self._works[lease.shard.id] = None
        error = raised_by(lambda: counts.update(self._render(lease)))  # the worker's boundary
        if isinstance(error, EngineBroken) or (error is not None and self._sampler and self._sampler.broken):
            self._end_broken(f"{type(error).__name__}: {error}")
        with self._handing:
            self._works.pop(lease.shard.id, None)
            self._unwanted.discard(lease.shard.id)
        if isinstance(error, Dropped):
            self._ask("release", slot, lease.shard.id)
        elif error is not None:
            log.error("shard %s", lease.shard.id, exc_info=error)
            self._ask("fail", slot, lease.shard.id, f"{type(error).__name__}: {error}")
        else:
            with suppress(ray.exceptions.RayError):  # first: after the last shard's end nobody asks for the figures
                self._ask("heartbeat", self._news())
            self._ask("finish", slot, lease.shard.id, counts)

    def _render(self, lease: Lease) -> dict[str, Any]:
        """Renders a shard; the outcomes of its rows. Raises Dropped where it was given up and nobody committed it."""
        shard, order, asked = lease.shard, lease.order, self._asked_for(lease)
        bad = {row.id for row in asked.again if row.error_type}
        if lease.failures and self._is_done(lease):  # committed by who did not live to say so
            return outcome_counts(self._outcome(lease), order, bad)
        work = self._begin(shard, list(asked.again))
        try:
            table = asked.manifest(self._finished(lease, work))
            if work.commit(partial(self._commit, lease, asked, work, table)):
                return outcome_counts(table, order, bad)
            log.info("shard %s was committed by another worker; this attempt is dropped", shard.id)
            work.sink.discard()
        except Dropped:
            work.clear_away()
            if not self._is_done(lease):
                raise
        return outcome_counts(self._outcome(lease), order, bad)

    def _asked_for(self, lease: Lease) -> OpenShard | RepairedShard:
        """The rows of the shard that are to be rendered, and those that stay."""
        shard, order = lease.shard, lease.order
        if isinstance(order, RepairOrder):
            return order.repaired_shard(self.job.run, shard.part, shard.row_group, self.job.schema)
        return open_shard(self.job.run, shard.id, (shard.part, shard.row_group), self.job.schema, order)

    def _outcome(self, lease: Lease) -> pa.Table:
        """What somebody else's commit says of the rows."""
        run, order = self.job.run, lease.order
        return (
            order.outcome(run, self.job.schema) if isinstance(order, FirstRows) else run.read_manifest(lease.shard.id)
        )

    def _begin(self, shard: LeasedShard, rows: list[PlannedRow]) -> ShardAttempt:
        """Begins an attempt: it is written into the run folder first, and `_leave` knows of it from here on."""
        epoch, worker = self.job.epoch, self._worker
        attempt = self.job.run.begin_attempt(shard.id, epoch.number if epoch else None, worker.node if worker else None)
        sink = Sink(self.job.run, shard.id, attempt, self.job.layout, self.job.image_format, self._provenance)
        work = ShardAttempt(
            rows,
            sink,
            self.job.sampler,
            self._span,
            scores=self._scores(rows),
            tries=self.job.tries,
            rules=self.job.rules,
            safety=self._safety_check(),
        )
        with self._handing:
            self._works[shard.id] = work
            if self._leaving or shard.id in self._unwanted:
                work.drop()
        return work

    def _is_done(self, lease: Lease) -> bool:
        run = self.job.run
        return lease.order.is_done(run) if lease.order else run.stat(manifest_key(lease.shard.id)) is not None

    def _commit(self, lease: Lease, asked: OpenShard | RepairedShard, work: ShardAttempt, table: pa.Table) -> bool:
        """False: another worker's manifest stands."""
        run, epoch = self.job.run, self.job.epoch
        if isinstance(asked, OpenShard):
            return asked.commit(run, work.sink.attempt, table)
        assert epoch is not None
        if self._is_done(lease):
            return False
        replace_manifest(run, epoch, asked.shard, table)
        return True

    def _finished(self, lease: Lease, work: ShardAttempt) -> list[dict[str, Any]]:
        """Renders the rows: in the engine or, where workers keep dying over them, in child processes."""
        if all(row.error_type for row in work.rows):
            return work.render(lambda row: settled(AssertionError(row.id)), self._writers)  # no row needs the model
        if lease.isolate:
            return work.render(self._isolated(work.rows), InlineExecutor(), in_work=len(work.rows))
        return work.render(self._watchdog.watched(self._loaded().submit), self._writers, IN_WORK)

    def _loaded(self) -> "DDIMSampler":
        """The sampler with its model on the device, tried on a known-good row. The first call loads it, locked."""
        with self._lock:
            if self._sampler is None:
                from actors.sampler import DDIMSampler  # torch is imported where pictures are made, not by a driver

                settings = self._settings()
                sampler = DDIMSampler(settings)
                sampler.load()
                if self.job.sampler.dtype == "auto":
                    keep_dtype(self.job.run, settings.dtype)
                self._sampler = sampler
            return self._sampler

    def _scores(self, rows: list[PlannedRow]) -> ShardScores | None:
        """The shard's scores, if the job has scorers; the first shard loads them."""
        if not self.job.scorers:
            return None
        with self._lock:
            if self._scorer is None:
                self._scorer = load_scorer(self.job.scorers, self.job.sampler.device)
        return ShardScores(self._scorer, rows, self._scoring)

    def _safety_check(self) -> SafetyCheck | None:
        """The job's safety scorer, if it has one; the first shard loads it."""
        rule = self.job.safety
        with self._lock:
            if self._safety is None and rule is not None:
                scorer = load_scorer([rule.source], self.job.sampler.device)
                self._safety = SafetyCheck(scorer, rule, self._scoring)
            return self._safety

    def _settings(self) -> SamplerConfig:
        """The sampler's settings with the checkpoint's folder on this node and the run's precision."""
        source, dtype = self.job.model, settled_dtype(self.job.run, self.job.sampler.dtype, self.job.auto_dtype)
        return replace(self.job.sampler, model_path=source.local(), variant=source.variant, dtype=dtype)

    def _isolated(self, rows: list[PlannedRow]) -> Submit:
        """Every row of a shard that keeps killing its workers, rendered in child processes; the model is theirs."""
        from actors.allocator import give_back_memory
        from pipelines.render.isolation import SILENCE_S, IsolatedRows

        with self._lock:
            if self._sampler is not None:
                self._sampler.close()
                past = self._past + Counter(self._sampler.stats())
                with self._figures:
                    self._past, self._sampler = past, None
                give_back_memory()  # the children load the model, too
        good = [engine_row(row) for row in rows if not row.error_type]
        silence_s = self.job.row_timeout_s or SILENCE_S
        return IsolatedRows(self._settings(), good, silence_s, self._isolated_moved).submit

    def _isolated_moved(self) -> None:
        self._isolated_moves += 1
