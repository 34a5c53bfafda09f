"""The lane engine against diffusers.StableDiffusionPipeline: same checkpoint, solver, seeds, steps, dtype and batch.

    python -m benchmarks.engine [--model training/scenes/model] [--batch 8] [--steps 20] [--rows 40] [--write]

even: one batch of one budget. mixed: --rows rows of ten budgets, 5 to 50; diffusers has no batch of several budgets, so
it runs each batch to its longest row (`longest`), or batches of one budget (`grouped`). Sides take turns in one
process; the pictures of both are compared. `--model tiny` is a random checkpoint of 16 px, for a trial in seconds.
"""

import argparse
import functools
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from actors.checkpoint import inspect_checkpoint
from actors.clock import DeviceClock
from actors.diffusion import resolve_device, resolve_dtype
from actors.rows import Row, SamplerConfig
from actors.sampler import DDIMSampler
from benchmarks.measure import ROOT, Turns, alternate, arguments, cpu_ratio, machine, markdown, ratio, report
from tests.checkpoints import make_checkpoint

BUDGETS = tuple(range(5, 51, 5))
COLUMNS = (
    *("case", "side", "images", "s, median (spread)", "images/s", "ours / theirs", "the same of CPU seconds"),
    *("in UNet", "in UNet + VAE"),
)
COUNTS = ("UNet calls", "least possible", "lanes used")


@dataclass
class Done:
    """What a side made in one turn: pictures in the order of the rows, and shares of its wall time."""

    images: list[np.ndarray]
    unet_seconds: float
    vae_seconds: float
    calls: int
    fill: float


def in_order(rows: list[Row], batch: int) -> Iterable[list[Row]]:
    """Batches as the rows come."""
    return (rows[i : i + batch] for i in range(0, len(rows), batch))


def by_budget(rows: list[Row], batch: int) -> Iterable[list[Row]]:
    """Batches of one budget; the last of each may not be full."""
    for budget in sorted({row.num_steps for row in rows}):
        yield from in_order([row for row in rows if row.num_steps == budget], batch)


Cut = Callable[[list[Row], int], Iterable[list[Row]]]
Side = Callable[[list[Row]], Done]


class Ours:
    """The sampler, as a worker has it."""

    def __init__(self, path: str, given: argparse.Namespace):
        self.sampler = DDIMSampler(
            SamplerConfig(
                path, lanes=2 * given.batch, dtype=given.dtype, device=given.device, num_threads=given.threads
            )
        )
        self.sampler.load()

    def __call__(self, rows: list[Row]) -> Done:
        """Longest first, as shards are."""
        before = self.sampler.stats()
        ordered = sorted(range(len(rows)), key=lambda i: -rows[i].num_steps)
        futures = {i: self.sampler.submit(rows[i]) for i in ordered}
        images = [futures[i].result().image for i in range(len(rows))]
        now = self.sampler.stats()
        used = {name: now[name] - before[name] for name in now}
        fill = used["lanes_filled"] / used["lanes_offered"]
        return Done(images, used["unet_seconds"], used["vae_seconds"], int(used["unet_calls"]), fill)


class Theirs:
    """The pipeline of diffusers' first example, with its DDIM scheduler; PIL images, as it gives them by default."""

    def __init__(self, path: str, given: argparse.Namespace):
        device = resolve_device(given.device)
        dtype = resolve_dtype(given.dtype, device)
        self.pipe = DiffusionPipeline.from_pretrained(path, safety_checker=None, torch_dtype=dtype).to(device)
        self.pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        self.batch, self.calls = given.batch, 0
        self.clocks = {"unet": DeviceClock(device), "vae": DeviceClock(device)}
        self.pipe.unet.forward = self._timed("unet", self.pipe.unet.forward)
        self.pipe.vae.decode = self._timed("vae", self.pipe.vae.decode)

    def _timed(self, name: str, honest: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += name == "unet"
            with self.clocks[name]:
                return honest(*args, **kwargs)

        return call

    def __call__(self, rows: list[Row], cut: Cut = in_order) -> Done:
        """Batch by batch."""
        unet, vae, calls = self.clocks["unet"].seconds, self.clocks["vae"].seconds, self.calls
        images: dict[str, np.ndarray] = {}
        for batch in cut(rows, self.batch):
            images |= zip((row.id for row in batch), self._batch(batch), strict=True)
        seconds = (self.clocks["unet"].seconds - unet, self.clocks["vae"].seconds - vae)
        used = sum(row.num_steps for row in rows) / (self.batch * (self.calls - calls))
        return Done([images[row.id] for row in rows], *seconds, self.calls - calls, used)

    def _batch(self, rows: list[Row]) -> list[np.ndarray]:
        found = self.pipe(
            [row.prompt for row in rows],
            num_inference_steps=max(row.num_steps for row in rows),
            guidance_scale=rows[0].guidance_scale,
            generator=[torch.Generator().manual_seed(row.seed) for row in rows],
            width=rows[0].width,
            height=rows[0].height,
        )
        return [np.asarray(image) for image in found.images]


def make_rows(count: int, steps: Iterable[int], size: int) -> list[Row]:
    """Guided rows with prompts and seeds of their own."""
    words = ("red", "green", "blue", "star", "ring", "circle", "square", "above", "below", "two", "three", "small")
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(words, k=draw.randint(4, 12))) for _ in range(count)]
    return [
        Row(str(i), prompt, None, 1000 + i, 3.0, size, size, budget)
        for i, (prompt, budget) in enumerate(zip(prompts, steps, strict=True))
    ]


def mixed_steps(count: int) -> list[int]:
    """Ten budgets, equally often, in an order drawn once."""
    steps = [BUDGETS[i % len(BUDGETS)] for i in range(count)]
    random.Random(1).shuffle(steps)
    return steps


def table_rows(case: str, rows: list[Row], turns: dict[str, Turns], batch: int) -> list[list[Any]]:
    """One line a side."""
    total, longest = sum(row.num_steps for row in rows), max(row.num_steps for row in rows)
    least = max(math.ceil(total / batch), longest)
    found = []
    for name, side in turns.items():
        done: Done = side.values[-1]
        shares = [done.unet_seconds / side.seconds[-1], (done.unet_seconds + done.vae_seconds) / side.seconds[-1]]
        beside = [None, None] if name == "ours" else [ratio(turns["ours"], side), cpu_ratio(turns["ours"], side)]
        numbers = [len(rows), side.text, len(rows) / side.median, *beside, *(f"{share:.1%}" for share in shares)]
        found.append([case, name, *numbers, done.calls, least, f"{done.fill:.1%}"])
    return found


def most_different(ours: Turns, theirs: Turns) -> int:
    """Levels, 0 to 255, by which a pixel differs at most."""
    pairs = zip(ours.values[-1].images, theirs.values[-1].images, strict=True)
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)


def peak_mib(side: str) -> float:
    """Of a process of its own that ran one side once."""
    command = [sys.executable, "-m", "benchmarks.engine", *sys.argv[1:], "--only", side]
    return float(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def own_peak_mib() -> float:
    """Of this process: on the card where there is one, else in memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage would tell of the process that started this one, too
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="training/scenes/model", help="diffusers folder, or tiny")
    parser.add_argument("--batch", type=int, default=8, help="rows of a call; the engine gets two lanes for each")
    parser.add_argument("--steps", type=int, default=20, help="of the even case")
    parser.add_argument("--rows", type=int, default=40, help="of the mixed case; 0: leave it out")
    parser.add_argument("--mixed-repeats", type=int, default=1)
    parser.add_argument("--size", type=int, help="px; default: the checkpoint's")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--memory", action="store_true", help="peak memory too, each side in a process of its own")
    parser.add_argument("--only", choices=("ours", "theirs"), help="one side once; prints its peak memory in MiB")
    return parser.parse_args()


def cases(given: argparse.Namespace, path: str) -> list[list[Any]]:
    """The table's lines."""
    size = given.size or inspect_checkpoint(path).width
    ours, theirs = Ours(path, given), Theirs(path, given)
    even = make_rows(given.batch, [given.steps] * given.batch, size)
    for side in (ours, theirs):  # what is made at the first call is made now
        side(even)
    found = _case("even", even, {"ours": ours, "diffusers": theirs}, given.repeats, given.batch)
    if given.rows:
        mixed = make_rows(given.rows, mixed_steps(given.rows), size)
        sides: dict[str, Side] = {"ours": ours, "longest": theirs, "grouped": functools.partial(theirs, cut=by_budget)}
        found += _case("mixed", mixed, sides, given.mixed_repeats, given.batch)
    return found


def _case(case: str, rows: list[Row], sides: Mapping[str, Side], repeats: int, batch: int) -> list[list[Any]]:
    turns = alternate({name: functools.partial(side, rows) for name, side in sides.items()}, repeats)
    comparable = turns["diffusers" if case == "even" else "grouped"]
    print(f"{case}: pictures of both sides differ by at most {most_different(turns['ours'], comparable)} of 255 levels")
    return table_rows(case, rows, turns, batch)


def run_alone(given: argparse.Namespace, path: str) -> None:
    """One side, once; prints the peak memory of this process."""
    size = given.size or inspect_checkpoint(path).width
    side = Ours(path, given) if given.only == "ours" else Theirs(path, given)
    side(make_rows(given.batch, [given.steps] * given.batch, size))
    print(own_peak_mib())


def main() -> None:
    """Print the table."""
    given = options()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = str(make_checkpoint("sd1", Path(folder) / "tiny")) if given.model == "tiny" else given.model
        if given.only:
            return run_alone(given, path)
        where = machine() | {"model": given.model, "torch_threads": given.threads}
        rows = cases(given, path)
    table = markdown((*COLUMNS, *COUNTS), rows)
    if given.memory:
        peaks = {side: peak_mib(side) for side in ("ours", "theirs")}
        table += f"\n\nPeak memory: ours {peaks['ours']:.0f} MiB, diffusers {peaks['theirs']:.0f} MiB."
    what = f"{given.model}, batch {given.batch}, guided, {given.threads} thread, DDIM"
    report("engine", f"{what}\n\n{table}", {"options": vars(given), "rows": rows}, where, given.write)


if __name__ == "__main__":
    main()
