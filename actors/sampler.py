"""DDIMSampler: rows in, pictures out, on one resident thread that owns the model.

The same class serves a batch job, a request and a test: `submit(row) -> Future`, or a batch of columns.
Not a writer: encoding and storing a picture is the caller's.
"""

import logging
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.allocator import keep_freed_memory
from actors.checkpoint import inspect_checkpoint
from actors.clock import DeviceClock
from actors.denoise import Denoiser, EndOfRows, each_alone
from actors.diffusion import ENCODE_BATCH, Diffusion, TextEmbeds, resolve_device
from actors.lanes import Flight
from actors.rows import Picture, Row, SamplerConfig
from actors.solver import guided_steps, noise_schedule, step_table

log = logging.getLogger(__name__)
_STOP = object()


class NotFinite(RuntimeError):
    """The picture holds inf or nan."""


class _Requests:
    """The source of submitted rows: (row, future) in the order of submission, without those that were cancelled."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def take(self, wait: bool) -> "_Request | None":
        while True:
            try:
                item = self.queue.get(block=wait)
            except queue.Empty:
                return None
            if item is _STOP:
                raise EndOfRows
            if item.future.set_running_or_notify_cancel():  # else it was taken back
                return item


@dataclass(eq=False)
class _Request:
    row: Row
    future: Future


class DDIMSampler:
    """prompt, negative_prompt, seed, guidance_scale, width, height, num_steps -> image, error.

    The model is loaded by the resident thread at the first row (or by `load`), never in `__init__`.
    """

    def __init__(self, config: SamplerConfig):
        self.config = config
        self._requests = _Requests()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready: Future[None] = Future()
        self._ended: list[tuple[Flight, torch.Tensor]] = []
        self._open: set[Future] = set()
        self._broken: Exception | None = None
        self._decode_halvings = 0
        self.images = 0

    def load(self) -> None:
        """Blocks until the model is on its device. Raises what loading raised."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="sampler", daemon=True)
                self._thread.start()
        self._ready.result()

    def submit(self, row: Row) -> "Future[Picture]":
        """The future raises what the row raised. Its callbacks run on the resident thread: keep them short."""
        self.load()
        if self._broken:
            raise self._broken
        future: Future[Picture] = Future()
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        self._requests.queue.put(_Request(row, future))
        return future

    def close(self) -> None:
        """Finishes what was submitted, then ends the thread."""
        self._requests.queue.put(_STOP)
        if self._thread is not None:
            self._thread.join()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Columns, as Ray Data gives them: adds image (object array of (H, W, 3) uint8 or None) and error ("")."""
        columns = ("id", "prompt", "negative_prompt", "seed", "guidance_scale", "width", "height", "num_steps")
        rows = [Row(*values) for values in zip(*(list(batch[name]) for name in columns), strict=True)]
        images, errors = np.empty(len(rows), object), np.full(len(rows), "", object)
        for i, future in enumerate([self.submit(row) for row in rows]):
            error = future.exception()
            images[i] = None if error else future.result().image
            errors[i] = f"{type(error).__name__}: {error}" if error else ""
        return dict(batch) | {"image": images, "error": errors}

    def render_class(self, width: int, height: int, lanes: int | None = None) -> str:
        """All that decides a picture beside its row: within a class the bytes are equal, whatever the neighbours."""
        lanes = lanes or self.denoiser.num_lanes(self.model.latent_shape(width, height))
        shape = f"{width}x{height}-{lanes}lanes-{self.decode_batch(width, height)}decode"
        return "/".join((*self._where(), shape, self.config.solver, f"torch-{torch.__version__}"))

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
        """Since the model was loaded: images, unet_calls, lanes_filled, lanes_offered; unet_, vae_ and text_seconds."""
        if not self._ready.done():
            return {}
        clocks = {f"{name}_seconds": clock.seconds for name, clock in self.clocks.items()}
        return {"images": self.images, **self.denoiser.counts, **clocks}

    def _live(self) -> None:
        each_alone(lambda _: self._load(), [None], lambda _, error: self._ready.set_exception(error))
        if self._ready.done():
            return
        self._ready.set_result(None)
        each_alone(lambda _: self._run(), [None], lambda _, error: self._abandon(error))

    def _run(self) -> None:
        self.denoiser.run(self._requests, self._deliver, _fail, self._flush)

    def _abandon(self, error: Exception) -> None:
        """The loop itself broke: nobody may wait for ever."""
        self._broken = error
        for future in list(self._open):
            future.set_exception(error)

    def _load(self) -> None:
        config = self.config
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        if resolve_device(config.device).type == "cpu":
            keep_freed_memory()
        info = inspect_checkpoint(config.model_path, config.variant)
        self.model = Diffusion(info, config.dtype, config.device, config.compile, config.channels_last)
        self.schedule = noise_schedule(info.scheduler_config, config.timestep_spacing)
        self.clocks = {name: DeviceClock(self.model.device) for name in ("unet", "vae", "text")}
        self.denoiser = Denoiser(
            self._predict, self._prepare, self.schedule, self.model.device, self._num_lanes, ENCODE_BATCH
        )

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

    def _predict(self, *args: Any) -> torch.Tensor:
        with self.clocks["unet"]:
            return self.model.predict(*args)

    def _prepare(self, requests: list[_Request]) -> list[Flight]:
        """Encodes the prompts in one call; each row brings its table and its noise."""
        with self.clocks["text"]:
            text = self.model.encode([r.row.prompt for r in requests])
        return [self._flight(request, text, i) for i, request in enumerate(requests)]

    def _flight(self, request: _Request, text: TextEmbeds, i: int) -> Flight:
        row, model = request.row, self.model
        interval = None if row.negative_prompt else self.config.guidance_interval
        guided = guided_steps(row.num_steps, row.guidance_scale, interval)
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
            table=step_table(self.schedule, row.num_steps, self.config.solver, guided),
            guidance_scale=row.guidance_scale,
            shape=model.latent_shape(row.width, row.height),
            noise=model.noise(row.seed, row.width, row.height),
            embeds=torch.stack([without.prompt_embeds[0], text.prompt_embeds[i]]),
            added=added,
            truncated=text.truncated[i],
        )

    def _deliver(self, flight: Flight, latent: torch.Tensor) -> None:
        """Decodes as soon as there is a whole batch of this size; the rest waits for more, or for `_flush`."""
        self._ended.append((flight, latent))
        same = [e for e in self._ended if e[0].shape == flight.shape]
        if len(same) == self.decode_batch(flight.row.row.width, flight.row.row.height):
            self._decode(same)

    def _flush(self) -> None:
        while self._ended:
            shape = self._ended[0][0].shape
            self._decode([e for e in self._ended if e[0].shape == shape])

    def _decode(self, ended: list[tuple[Flight, torch.Tensor]]) -> None:
        """All of one size, in calls of one shape. Out of memory halves that shape from now on."""
        taken = {id(flight) for flight, _ in ended}
        self._ended = [e for e in self._ended if id(e[0]) not in taken]
        while ended:
            batch = self.decode_batch(ended[0][0].row.row.width, ended[0][0].row.row.height)
            first, fits = ended[:batch], True
            try:
                each_alone(self._decode_slice, first, lambda e, error: _fail(e[0].row, error))
            except torch.OutOfMemoryError:
                fits = False
            if not fits and batch > 1:
                self._decode_halvings += 1
                continue
            if not fits:
                _fail(first[0][0].row, MemoryError("out of memory decoding one picture"))
            ended = ended[batch:]

    def _decode_slice(self, ended: list[tuple[Flight, torch.Tensor]]) -> None:
        """One decoder call, padded to the batch of its size."""
        row = ended[0][0].row.row
        latents = torch.stack([latent for _, latent in ended])
        spare = self.decode_batch(row.width, row.height) - len(ended)
        with self.clocks["vae"]:
            images, finite = self.model.decode(torch.cat([latents, latents[:1].expand(spare, *latents.shape[1:])]))
        self.images += len(ended)
        for (flight, _), image, good in zip(ended, images, finite, strict=False):
            self._resolve(flight, image, bool(good))

    def _resolve(self, flight: Flight, image: np.ndarray, finite: bool) -> None:
        request, lane_steps = flight.row, flight.table.lane_steps
        if not finite:
            _fail(request, NotFinite("the picture holds inf or nan; model.dtype float32 or bfloat16 may help"))
            return
        lane_seconds, image_seconds = self._unit_seconds()
        render_class = self.render_class(request.row.width, request.row.height, flight.call_lanes)
        seconds = lane_steps * lane_seconds + image_seconds
        request.future.set_result(Picture(image, lane_steps, seconds, render_class, flight.truncated))

    def _unit_seconds(self) -> tuple[float, float]:
        """Device seconds so far, per lane-step and per image."""
        filled = max(1, self.denoiser.counts["lanes_filled"])
        other = self.clocks["vae"].seconds + self.clocks["text"].seconds
        return self.clocks["unet"].seconds / filled, other / max(1, self.images)


def _fail(request: _Request, error: Exception) -> None:
    request.future.set_exception(error)
