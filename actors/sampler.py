"""DDIMSampler: rows in, pictures out, on one resident thread that owns the model.

The same class serves a batch job, a request and a test: `submit(row) -> Future`, or a batch of columns.
Not a writer: encoding and storing a picture is the caller's.
"""

import logging
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.allocator import keep_freed_memory
from actors.checkpoint import inspect_checkpoint
from actors.clock import DeviceClock
from actors.denoise import Denoiser, EndOfRows
from actors.diffusion import ENCODE_BATCH, Diffusion, TextEmbeds, resolve_device
from actors.fault import each_alone, is_out_of_memory
from actors.lanes import Flight
from actors.rows import FLAT_LEVELS, ROW_COLUMNS, EngineBroken, FlatPicture, NotFinite, Picture, Row, SamplerConfig
from actors.solver import guided_steps, noise_schedule, step_table

log = logging.getLogger(__name__)
_STOP = object()


class _Requests:
    """The source of submitted rows: (row, future) in the order of submission, without those that were cancelled."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = False

    def take(self, wait: bool) -> "_Request | None":
        while not self._ended:
            try:
                item = self.queue.get(block=wait)
            except queue.Empty:
                return None
            if item is _STOP:
                self._ended = True
            elif item.future.set_running_or_notify_cancel():  # else it was taken back
                return item
        raise EndOfRows


@dataclass(eq=False)
class _Request:
    row: Row
    future: Future


class DDIMSampler:
    """prompt, negative_prompt, seed, guidance_scale, width, height, num_steps -> image, error.

    Columns solver and guidance_interval are read where they are there; else the config's hold.

    The model is loaded by the resident thread at the first row (or by `load`), never in `__init__`.
    """

    def __init__(self, config: SamplerConfig):
        self.config = config
        self._requests = _Requests()
        self._lock = threading.Lock()  # of the five below: what is asked of the thread, and whether it still answers
        self._thread: threading.Thread | None = None
        self._ready: Future[None] = Future()
        self._open: set[Future] = set()
        self._broken: Exception | None = None
        self._closed = False
        self._ended: list[tuple[Flight, torch.Tensor]] = []  # not yet decoded
        self._decode_halvings = 0
        self.images = 0

    @property
    def broken(self) -> Exception | None:
        """What ended the engine, in loading or since; every row that was open then has failed with it, by no fault."""
        return self._broken

    def load(self) -> None:
        """Blocks until the model is on its device and has passed its probe.

        Raises what loading raised or what has broken the engine since: EngineBroken where a known-good prompt fails.
        RuntimeError after `close`.
        """
        with self._lock:
            self._check_open()
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="sampler", daemon=True)
                self._thread.start()
        self._ready.result()

    def submit(self, row: Row) -> "Future[Picture]":
        """The future raises what the row raised. Its callbacks run on the resident thread: keep them short.

        Raises as `load` does.
        """
        self.load()
        future: Future[Picture] = Future()
        future.add_done_callback(self._forget)
        with self._lock:
            self._check_open()
            self._open.add(future)
            self._requests.queue.put(_Request(row, future))
        return future

    def _check_open(self) -> None:
        if self._broken:
            raise self._broken
        if self._closed:
            raise RuntimeError("the sampler is closed")

    def _forget(self, future: Future) -> None:
        with self._lock:
            self._open.discard(future)

    def close(self) -> None:
        """Finishes what was submitted, then ends the thread. A second time, or before anything was loaded: nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._requests.queue.put(_STOP)  # under the lock: behind it no row is ever put
            thread = self._thread
        if thread is not None:
            thread.join()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Columns, as Ray Data gives them: adds image (object array of (H, W, 3) uint8 or None) and error ("")."""
        columns = [name for name in ROW_COLUMNS if name in batch]
        given = zip(*(list(batch[name]) for name in columns), strict=True)
        rows = [Row(**dict(zip(columns, values, strict=True))) for values in given]
        images, errors = np.empty(len(rows), object), np.full(len(rows), "", object)
        for i, future in enumerate([self.submit(row) for row in rows]):
            error = future.exception()
            images[i] = None if error else future.result().image
            errors[i] = f"{type(error).__name__}: {error}" if error else ""
        return dict(batch) | {"image": images, "error": errors}

    def render_class(self, width: int, height: int, lanes: int | None = None, solver: str | None = None) -> str:
        """All that decides a picture beside its row: within a class the bytes are equal, whatever the neighbours."""
        lanes = lanes or self.denoiser.num_lanes(self.model.latent_shape(width, height))
        shape = f"{width}x{height}-{lanes}lanes-{self.decode_batch(width, height)}decode"
        return "/".join((*self._where(), shape, solver or self.config.solver, f"torch-{torch.__version__}"))

    def place(self, width: int, height: int) -> str:
        """What a number of lanes is right for: model, device, precision and size."""
        return "/".join((*self._where(), f"{width}x{height}"))

    def _where(self) -> tuple[str, str, str]:
        model = self.model
        where = model.device.type
        if where == "cpu":
            where = f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}-{torch.get_num_threads()}t"
        elif where == "cuda":
            where = torch.cuda.get_device_name(model.device).replace(" ", "-").lower()
        precision = str(model.dtype).removeprefix("torch.") + ("-compiled" if self.config.compile else "")
        if model.channels_last != (model.device.type == "cuda"):
            precision += "-nhwc" if model.channels_last else "-nchw"
        return model.info.fingerprint, where, precision

    def stats(self) -> dict[str, float]:
        """Since the model was loaded: images, unet_calls, lanes_filled, lanes_offered; unet_, vae_ and text_seconds.

        All of one moment, for any thread; of a device that is lost, the last figures known.
        """
        if not self._ready.done() or self._ready.exception():
            return {}
        with self.denoiser.figures:
            clocks = {f"{name}_seconds": clock.seconds for name, clock in self.clocks.items()}
            return {"images": self.images, **self.denoiser.counts, **clocks}

    def _live(self) -> None:
        """The resident thread."""
        try:
            each_alone(lambda _: self._run(), [None], lambda _, error: self._abandon(error))
        except (EngineBroken, torch.OutOfMemoryError) as error:
            self._abandon(error)

    def _run(self) -> None:
        self._load()
        self.model.probe()
        self._ready.set_result(None)
        self.denoiser.run(self._requests, self._deliver, self._fail, self._flush)

    def _abandon(self, error: Exception) -> None:
        """The loop itself broke: nobody may wait for ever, and no row is to blame, whatever was raised."""
        if self._ready.done() and not isinstance(error, EngineBroken):
            broken = EngineBroken(f"the engine's loop ended with {type(error).__name__}: {error}")
            broken.__cause__, error = error, broken
        with self._lock:
            self._broken = error  # from here on no row is put
            still_open = [*self._open]
        if not self._ready.done():
            self._ready.set_exception(error)
        with suppress(EndOfRows):
            while self._requests.take(wait=False):  # those that were cancelled hear of it
                pass
        for future in still_open:
            with suppress(InvalidStateError):  # it was cancelled or settled meanwhile
                future.set_exception(error)

    def _load(self) -> None:
        config = self.config
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        if resolve_device(config.device).type == "cpu":
            keep_freed_memory()
        info = inspect_checkpoint(config.model_path, config.variant)
        self.model = Diffusion(info, config.dtype, config.device, config.compile, config.channels_last)
        self.schedule = noise_schedule(info.scheduler_config, config.timestep_spacing, config.solver)
        self.denoiser = Denoiser(
            self._predict, self._prepare, self.schedule, self.model.device, self._num_lanes, ENCODE_BATCH, True
        )
        other = {name: DeviceClock(self.model.device) for name in ("vae", "text")}
        self.clocks = {"unet": self.denoiser.clock, **other}

    def _num_lanes(self, shape: tuple[int, int, int]) -> int:
        """As configured, else as calibrated, else enough to fill the device at this latent size."""
        if self.config.lanes:
            return self.config.lanes
        factor = self.model.info.vae_scale_factor
        calibrated = dict(self.config.calibrated).get(self.place(shape[2] * factor, shape[1] * factor))
        if calibrated:
            return calibrated
        area = shape[1] * shape[2]
        if self.model.device.type == "cuda":
            return 32 if area <= 64 * 64 else 16
        return 16 if area <= 32 * 32 else 4

    def decode_batch(self, width: int, height: int) -> int:
        """Pictures of a decoder call."""
        return max(1, min(8, 2**18 // (width * height)) >> self._decode_halvings)

    def _predict(self, *inputs: Any) -> torch.Tensor:
        return self.model.predict(*inputs)

    def _prepare(self, requests: list[_Request]) -> list[Flight]:
        """Encodes the prompts in one call; each row brings its table and its noise."""
        with self.clocks["text"] as block:
            text = self.model.encode([r.row.prompt for r in requests])
            for request in requests:  # most often known
                self.model.unconditional(request.row.negative_prompt)
        flights = [self._flight(request, text, i) for i, request in enumerate(requests)]
        for flight in flights:
            flight.shares.append((block, 1 / len(flights)))
        return flights

    def _flight(self, request: _Request, text: TextEmbeds, i: int) -> Flight:
        row, model = request.row, self.model
        own = None if row.negative_prompt else self.config.guidance_interval
        guided = guided_steps(row.num_steps, row.guidance_scale, row.guidance_interval or own)
        without = model.unconditional(row.negative_prompt)
        added = {}
        if text.pooled is not None and without.pooled is not None:
            size = torch.tensor([row.height, row.width, 0, 0, row.height, row.width], dtype=model.dtype)
            added = {
                "text_embeds": torch.stack([without.pooled[0], text.pooled[i]]),
                "time_ids": size.to(model.device).expand(2, 6),
            }
        return Flight(
            row=request,
            table=step_table(self.schedule, row.num_steps, row.solver or self.config.solver, guided),
            guidance_scale=row.guidance_scale,
            shape=model.latent_shape(row.width, row.height),
            noise=model.noise(row.seed, row.width, row.height),
            embeds=torch.stack([without.prompt_embeds[0], text.prompt_embeds[i]]),
            added=added,
            truncated=text.truncated[i],
            negative_truncated=without.truncated[0],
        )

    def _fail(self, request: _Request, error: Exception) -> None:
        """It is the row's own fault only if a known-good prompt still passes. Raises EngineBroken."""
        if not is_out_of_memory(error):
            self.model.probe(error)
        request.future.set_exception(error)

    def _deliver(self, flight: Flight, latent: torch.Tensor) -> None:
        """Decodes as soon as there is a whole batch of this size; the rest waits for more, or for `_flush`."""
        self._ended.append((flight, latent))
        while len(same := self._ended_of(flight.shape)) >= self._decode_batch_of(flight):
            self._decode(same[: self._decode_batch_of(flight)])

    def _flush(self) -> None:
        while self._ended:
            flight = self._ended[0][0]
            self._decode(self._ended_of(flight.shape)[: self._decode_batch_of(flight)])

    def _ended_of(self, shape: tuple[int, int, int]) -> list[tuple[Flight, torch.Tensor]]:
        return [e for e in self._ended if e[0].shape == shape]

    def _decode_batch_of(self, flight: Flight) -> int:
        return self.decode_batch(flight.row.row.width, flight.row.row.height)

    def _decode(self, ended: list[tuple[Flight, torch.Tensor]]) -> None:
        """One call's worth of one size. Out of memory halves it from now on: who was not decoded has stayed in line."""
        batch, fits = self._decode_batch_of(ended[0][0]), True
        decoded: list[tuple[Flight, np.ndarray, bool]] = []
        try:
            each_alone(
                lambda some: decoded.extend(self._decode_slice(some)), ended, lambda e, error: self._drop(e[0], error)
            )
        except torch.OutOfMemoryError:
            fits = False
        for flight, image, finite in decoded:
            self._resolve(flight, image, finite)
        if not fits and batch > 1:
            self._decode_halvings += 1
        elif not fits:
            self._drop(ended[0][0], MemoryError("out of memory decoding one picture"))

    def _decode_slice(self, ended: list[tuple[Flight, torch.Tensor]]) -> list[tuple[Flight, np.ndarray, bool]]:
        """One decoder call, padded to the batch of its size. -> (flight, image, whether it is finite) each."""
        flights, latents = [flight for flight, _ in ended], torch.stack([latent for _, latent in ended])
        spare = self._decode_batch_of(flights[0]) - len(ended)
        with self.clocks["vae"] as block:
            images, finite = self.model.decode(torch.cat([latents, latents[:1].expand(spare, *latents.shape[1:])]))
        for flight in flights:
            flight.shares.append((block, 1 / len(flights)))
        with self.denoiser.figures:
            self.images += len(flights)
        return [(flight, image, bool(good)) for flight, image, good in zip(flights, images, finite, strict=False)]

    def _drop(self, flight: Flight, error: Exception) -> None:
        self._ended = [e for e in self._ended if e[0] is not flight]
        self._fail(flight.row, error)

    def _resolve(self, flight: Flight, image: np.ndarray, finite: bool) -> None:
        if not finite:
            self._drop(flight, NotFinite("the picture holds inf or nan; model.dtype float32 or bfloat16 may help"))
            return
        if _is_flat(image):
            self._drop(flight, FlatPicture("all pixels of the picture are alike; more steps or another seed may help"))
            return
        row = flight.row.row
        render_class = self.render_class(row.width, row.height, flight.call_lanes, row.solver)
        self._ended = [e for e in self._ended if e[0] is not flight]
        cut = (flight.truncated, flight.negative_truncated)
        flight.row.future.set_result(Picture(image, flight.table.lane_steps, flight.seconds, render_class, *cut))


def _is_flat(image: np.ndarray) -> bool:
    """(H, W, 3) uint8: whether every channel has all pixels within FLAT_LEVELS of each other."""
    low, high = image.min(axis=(0, 1)).astype(int), image.max(axis=(0, 1)).astype(int)
    return bool((high - low <= FLAT_LEVELS).all())
