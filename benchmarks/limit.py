"""How near a UNet call comes to what this device can multiply: FLOPs counted, the matrix product measured beside it.

    python -m benchmarks.limit [--model training/scenes/model] [--lanes 2 4 8 16 32] [--matrix 1024] [--write]

A checkpoint on any device; benchmarks.gpu does the same for the shapes of SD 1.5 and SDXL. Calls and
products take turns, and the fastest of each counts.
"""

import argparse
from typing import Any

import torch

from actors.allocator import keep_freed_memory
from actors.calibration import fastest, unet_inputs
from actors.checkpoint import inspect_checkpoint
from actors.diffusion import Diffusion
from benchmarks.gpu import flops, matrix_rate
from benchmarks.measure import arguments, machine, markdown, report

COLUMNS = ("lanes", "ms a call", "lane-steps/s", "GFLOP/s", "of the matrix product's", "images/s at 50 guided steps")


def measured(model: Diffusion, size: int, given: argparse.Namespace) -> tuple[list[list[Any]], str]:
    """The table's lines, and the counts in words."""
    one = unet_inputs(model, size, size, 2)
    step = flops(lambda: model.predict(*one)) / 2
    decode = flops(lambda: model.decode(one[0][:1]))
    rows = []
    for lanes in given.lanes:
        call, rates, seconds = unet_inputs(model, size, size, lanes), [], []
        for _ in range(given.repeats):
            rates.append(matrix_rate(model.device, model.dtype, given.matrix))
            seconds.append(fastest(lambda call=call: model.predict(*call), 5, model.device))  # type: ignore[misc]
        rate = step * lanes / min(seconds)
        images = rate / (100 * step + decode)
        rows.append([lanes, 1e3 * min(seconds), lanes / min(seconds), rate / 1e9, f"{rate / max(rates):.0%}", images])
    counted = f"A lane-step is {step / 1e9:.3g} GFLOP, a decode {decode / 1e9:.3g}"
    product = f"a product of {given.matrix} x {given.matrix} matrices runs at {max(rates) / 1e9:.0f} GFLOP/s"
    return rows, f"{counted}; {product}."


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="training/scenes/model", help="diffusers folder")
    parser.add_argument("--size", type=int, help="px; default: the checkpoint's")
    parser.add_argument("--lanes", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--matrix", type=int, default=1024, help="side of the product; on a GPU 8192")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    where, info = machine(), inspect_checkpoint(given.model)
    rows, words = measured(Diffusion(info, given.dtype, given.device), given.size or info.width, given)
    table = f"{given.model}, {given.threads} thread. {words}\n\n{markdown(COLUMNS, rows)}"
    report("limit", table, {"options": vars(given), "rows": rows}, where, given.write)


if __name__ == "__main__":
    main()
