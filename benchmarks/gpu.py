"""The engine on a bare CUDA machine, without Ray: torch, transformers, diffusers and this repository are enough.

    python -m benchmarks.gpu [--family sd15 sdxl] [--lanes 8 16 32 64] [--steps 50] [--write]
    python -m benchmarks.gpu --family tiny --device cpu        # a trial of the command itself

SD 1.5 at 512 px and SDXL at 1024 px: the real shapes with random weights, since speed does not depend on weights. For
each: a lane sweep of eager, channels_last and compiled UNets, whole pictures at one budget and at ten, bit-stability of
a row among other neighbours, images/s, TFLOP/s, and the fraction of the matrix-product rate measured in the same run.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from actors.calibration import fastest, unet_inputs
from actors.checkpoint import inspect_checkpoint
from actors.diffusion import Diffusion, resolve_device, resolve_dtype
from actors.rows import Row, SamplerConfig
from actors.sampler import DDIMSampler
from benchmarks.engine import make_rows, mixed_steps
from benchmarks.measure import arguments, machine, markdown, report
from tests.checkpoints import SCHEDULERS, make_checkpoint, make_tokenizer

TOKENS = 77  # of a prompt, in all published CLIP text encoders
SWEEP = ("UNet", "lanes", "ms a call", "lane-steps/s", "TFLOP/s", "of matrix rate", "peak GiB")
WHOLE = ("rows", "lanes", "images", "s", "images/s", "UNet", "UNet + VAE", "lanes used", "of matrix rate")
VARIANTS: dict[str, dict[str, bool]] = {
    "eager": {"channels_last": False},
    "channels_last": {"channels_last": True},
    "compiled": {"channels_last": True, "compile_unet": True},
}


def make_model(family: str, folder: Path, dtype: torch.dtype) -> Path:
    """A checkpoint of the published shape with random weights; tokens are the tests'."""
    if family == "tiny":
        return make_checkpoint("sd1", folder)
    torch.manual_seed(0)
    scheduler, parts = DDIMScheduler(**SCHEDULERS["sd1" if family == "sd15" else "sdxl"]), _parts(family)
    pipeline: Any
    if family == "sd15":
        unet, vae, text, _ = parts
        pipeline = StableDiffusionPipeline(
            vae, text, make_tokenizer(TOKENS), unet, scheduler, None, None, requires_safety_checker=False
        )
    else:
        unet, vae, text, other = parts
        pipeline = StableDiffusionXLPipeline(
            vae, text, other, make_tokenizer(TOKENS), make_tokenizer(TOKENS), unet, scheduler
        )
    pipeline.to(dtype).save_pretrained(folder, safe_serialization=True)
    return folder


def _parts(family: str) -> tuple[Any, Any, Any, Any]:
    """UNet, VAE and text encoders of stable-diffusion-v1-5 or stable-diffusion-xl-base-1.0, by their configs."""
    xl = family == "sdxl"
    wide: dict[str, Any] = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8}
    if xl:
        wide = {
            "block_out_channels": (320, 640, 1280),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    unet = UNet2DConditionModel(sample_size=128 if xl else 64, cross_attention_dim=2048 if xl else 768, **wide)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=1024 if xl else 512,
        scaling_factor=0.13025 if xl else 0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        force_upcast=False,
    )
    text = CLIPTextModel(_text(768, 3072, 12, 12, 768))
    return unet, vae, text, CLIPTextModelWithProjection(_text(1280, 5120, 32, 20, 1280)) if xl else None


def _text(width: int, inner: int, layers: int, heads: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=TOKENS,
        projection_dim=projection,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=189,
    )


class Bench:
    """One family on one device."""

    def __init__(self, family: str, path: Path, given: argparse.Namespace):
        self.family, self.path, self.given = family, str(path), given
        self.device = resolve_device(given.device)
        self.dtype = str(resolve_dtype(given.dtype, self.device)).removeprefix("torch.")
        self.info = inspect_checkpoint(self.path)
        self.size = self.info.width
        self.matrix_rate = matrix_rate(self.device, resolve_dtype(given.dtype, self.device), given.matrix)

    def sweep(self) -> list[list[Any]]:
        """UNet calls alone, by variant and lanes; what does not fit or does not compile says so."""
        rows = []
        for name, options in VARIANTS.items():
            if name == "compiled" and self.given.no_compile:
                continue
            model = Diffusion(self.info, self.dtype, self.given.device, **options)
            for lanes in self.given.lanes:
                try:
                    rows.append(self._call(name, model, lanes))
                except torch.OutOfMemoryError:
                    rows.append([name, lanes, "out of memory", None, None, None, None])
                    break
            del model
            self._empty()
        return rows

    def _call(self, name: str, model: Diffusion, lanes: int) -> list[Any]:
        inputs = unet_inputs(model, self.size, self.size, lanes)
        if name == "eager" and not hasattr(self, "flops"):
            self.flops = flops(lambda: model.predict(*unet_inputs(model, self.size, self.size, 2))) / 2
            self.decode_flops = flops(lambda: model.decode(inputs[0][:1]))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = fastest(lambda: model.predict(*inputs), self.given.calls, self.device, warm_up=2)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        rate = self.flops * lanes / seconds
        return [name, lanes, 1e3 * seconds, lanes / seconds, rate / 1e12, f"{rate / self.matrix_rate:.1%}", peak]

    def whole(self, lanes: int) -> tuple[list[list[Any]], str]:
        """Pictures from prompts, one budget and ten; then rows again among other neighbours."""
        sampler = DDIMSampler(
            SamplerConfig(
                self.path,
                lanes=lanes,
                dtype=self.dtype,
                device=self.given.device,
                compile=not self.given.no_compile,
            )
        )
        sampler.load()
        count = self.given.rows
        even = make_rows(count, [self.given.steps] * count, self.size)
        mixed = make_rows(count, mixed_steps(count), self.size)
        render(sampler, even[: lanes // 2])  # what is made or compiled at the first call is made now
        rows = [self._whole(name, sampler, lanes, each) for name, each in (("even", even), ("ten budgets", mixed))]
        stable = stability(sampler, mixed[:8])
        sampler.close()
        self._empty()
        return rows, stable

    def _whole(self, name: str, sampler: DDIMSampler, lanes: int, rows: list[Row]) -> list[Any]:
        before, started = sampler.stats(), time.perf_counter()
        render(sampler, rows)
        seconds, after = time.perf_counter() - started, sampler.stats()
        used = {key: after[key] - before[key] for key in after}
        work = self.flops * used["lanes_filled"] + self.decode_flops * used["images"]
        shares = [used["unet_seconds"], used["unet_seconds"] + used["vae_seconds"]]
        cells = [name, lanes, len(rows), seconds, len(rows) / seconds, *(f"{s / seconds:.1%}" for s in shares)]
        fill = used["lanes_filled"] / used["lanes_offered"]
        return [*cells, f"{fill:.1%}", f"{work / seconds / self.matrix_rate:.1%}"]

    def _empty(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def render(sampler: DDIMSampler, rows: list[Row]) -> dict[str, np.ndarray]:
    """{id: picture}, longest first."""
    futures = {row.id: sampler.submit(row) for row in sorted(rows, key=lambda row: -row.num_steps)}
    return {id: future.result().image for id, future in futures.items()}


def stability(sampler: DDIMSampler, rows: list[Row]) -> str:
    """Each row in company, in the other order, and alone."""
    together, turned = render(sampler, rows), render(sampler, rows[::-1])
    alone = {row.id: render(sampler, [row])[row.id] for row in rows}
    pairs = [(together[row.id], other[row.id]) for row in rows for other in (turned, alone)]
    equal = sum(np.array_equal(*pair) for pair in pairs)
    most = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)
    return f"Rows among other neighbours: {equal} of {len(pairs)} pictures bit-equal, at most {most} levels apart."


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a square matrix product: the limit that a network of the same precision is held against."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / fastest(lambda: a @ b, 20, device, warm_up=2)


def flops(call: Callable[[], object]) -> float:
    """Two for a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--family", nargs="+", default=["sd15", "sdxl"], choices=("sd15", "sdxl", "tiny"))
    parser.add_argument("--lanes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=50, help="of the even rows")
    parser.add_argument("--rows", type=int, default=64, help="of each whole run")
    parser.add_argument("--calls", type=int, default=5, help="UNet calls timed for each line")
    parser.add_argument("--matrix", type=int, default=8192, help="side of the square matrix product")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args()
    where, pages, document = machine(), [], {}
    for family in given.family:
        with tempfile.TemporaryDirectory() as folder:
            path = make_model(family, Path(folder) / family, resolve_dtype(given.dtype, torch.device("cpu")))
            bench = Bench(family, path, given)
            swept = bench.sweep()
            best = max((row for row in swept if isinstance(row[2], float)), key=lambda row: row[3])
            rows, stable = bench.whole(best[1])
        per_image = bench.flops * 2 * given.steps + bench.decode_flops
        limit = bench.matrix_rate / per_image
        words = (
            f"{family}, {bench.size} px, {bench.dtype}: {bench.flops / 1e12:.3g} TFLOP a lane-step, "
            f"{bench.decode_flops / 1e12:.3g} a decode; matrix product {bench.matrix_rate / 1e12:.3g} TFLOP/s, "
            f"so at most {limit:.3g} images/s at {given.steps} guided steps. {stable}"
        )
        assert math.isfinite(limit)
        pages.append(f"{words}\n\n{markdown(SWEEP, swept)}\n\n{markdown(WHOLE, rows)}")
        document[family] = {"sweep": swept, "whole": rows, "stable": stable, "limit": limit}
    report("gpu", "\n\n".join(pages), {"options": vars(given), **document}, where, given.write)


if __name__ == "__main__":
    main()
