"""Converts a checkpoint of one file, as Stable Diffusion was first published, into a diffusers folder.

diffusers' own `from_single_file` does it; this says of which kind the file is, and gives the configs and the tokenizer
that the file does not hold, so that no hub is asked. Safetensors in, safetensors out.
"""

import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import SafetensorError
from transformers import CLIPTokenizer

from actors.checkpoint import CheckpointInfo
from actors.checkpoint_check import check_checkpoint
from actors.weights import CheckpointError, Tensor, read_header

HERE = Path(__file__).parent
KINDS = ("sd1", "sd2", "sd2-base", "sdxl")
UNET = "model.diffusion_model."
_KEY = f"{UNET}input_blocks.0.0.weight"
_REFINER = "conditioner.embedders.0.model."  # of the base model it is a CLIP of transformers
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PARTS = {"VAE": ("first_stage_model.",), "text encoder": ("cond_stage_model.", "conditioner.")}
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class SingleFile:
    """A file's kind, and the number format of its UNet, which the folder keeps."""

    path: str
    kind: str
    dtype: str


def inspect_single_file(path: str, kind: str | None = None) -> SingleFile:
    """Reads the header. kind: of KINDS, where it is not to be guessed. Raises CheckpointError for what is another."""
    if not path.lower().endswith(".safetensors"):
        raise CheckpointError(f"{path}: only .safetensors is read: a pickle can run code. Take the model's safetensors")
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: there is no such file")
    header = read_header(Path(path))
    unet = Counter(tensor.dtype for name, tensor in header.items() if name.startswith(UNET))
    if fault := _fault(header):
        raise CheckpointError(f"{path}: {fault}")
    (dtype, _), *_ = unet.most_common(1)
    if dtype not in _DTYPES:
        raise CheckpointError(f"{path}: its UNet is stored as {dtype}; take the float16 or float32 file")
    return SingleFile(path, kind or _kind(header), dtype)


def _fault(header: Mapping[str, Tensor]) -> str | None:
    """What the file is, where it is no whole checkpoint of Stable Diffusion."""
    if _KEY not in header:
        adapter = any("lora" in name for name in header)
        what = "an adapter (LoRA)" if adapter else "no UNet in the layout of Stable Diffusion 1, 2 or XL"
        return f"{what}; a whole checkpoint is wanted"
    channels = header[_KEY].shape[1] if len(header[_KEY].shape) == 4 else 0
    if channels != 4:
        return f"its UNet takes {channels} channels, not 4: an inpainting or depth model; take the base checkpoint"
    if any(name.startswith(_REFINER) for name in header):
        return "a refiner of SDXL, which goes on from another picture; take the base checkpoint"
    for part, names in _PARTS.items():
        if not any(name.startswith(names) for name in header):
            return f"it holds no {part}; take a file that holds the whole model"
    return None


def _kind(header: Mapping[str, Tensor]) -> str:
    if any(name.startswith("conditioner.embedders.1.") for name in header):
        return "sdxl"
    return "sd2" if any(name.startswith("cond_stage_model.model.") for name in header) else "sd1"


def convert(found: SingleFile, folder: str, config: str | None = None) -> CheckpointInfo:
    """Writes the folder, which must not exist, and checks it. config: a diffusers folder of the same architecture.

    Raises CheckpointError where weights are missing, or the folder would not be rendered with.
    """
    target = Path(folder)
    if target.exists():
        raise CheckpointError(f"{folder}: is there already; give another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as space:
        configs = Path(config) if config else write_configs(found.kind, Path(space) / "configs")
        written = Path(space) / "model"
        _pipeline(found, configs).save_pretrained(written, safe_serialization=True)
        check_checkpoint(str(written))
        shutil.move(written, target)
    return check_checkpoint(folder)


def _pipeline(found: SingleFile, configs: Path) -> Any:
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    pipeline_class = StableDiffusionXLPipeline if found.kind == "sdxl" else StableDiffusionPipeline
    try:
        pipeline = pipeline_class.from_single_file(
            found.path,
            config=str(configs),
            torch_dtype=_DTYPES[found.dtype],
            local_files_only=True,
            **({} if found.kind == "sdxl" else {"safety_checker": None}),
        )
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, AttributeError, SafetensorError) as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"{found.path}: not a whole {found.kind} checkpoint ({line:.200})") from error
    for name, part in pipeline.components.items():
        weights = part.named_parameters() if isinstance(part, torch.nn.Module) else ()
        if lost := [key for key, each in weights if each.is_meta]:
            raise CheckpointError(f"{found.path}: {len(lost)} weights of the {name} are missing, the first {lost[0]}")
    return pipeline


def write_configs(kind: str, folder: Path) -> Path:
    """The configs and tokenizers of a kind's published checkpoint, as a diffusers folder without weights."""
    for name, content in json.loads((HERE / "single_file_configs.json").read_text("utf-8"))[kind].items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), "utf-8")
    tokenizer("<|endoftext|>" if kind in ("sd1", "sdxl") else "!").save_pretrained(folder / "tokenizer")
    if kind == "sdxl":
        tokenizer("!").save_pretrained(folder / "tokenizer_2")
    return folder


def tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's, from its list of merges: 256 bytes, each of them at a word's end, what is merged, and two marks."""
    merges = gzip.decompress((HERE / "clip_merges.txt.gz").read_bytes()).decode("utf-8").splitlines()
    letters = _byte_letters()
    pairs: Any = [tuple(each.split(" ")) for each in merges]  # transformers takes pairs, and calls them text
    merged = (each.replace(" ", "") for each in merges)
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *merged, *_SPECIAL]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=pairs,
        model_max_length=77,
        pad_token=pad,
        unk_token=_SPECIAL[1],
    )


def _byte_letters() -> list[str]:
    """The character that stands for each byte, in the order of the vocabulary: printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in printable]
    return [*map(chr, printable), *(chr(256 + at) for at in range(len(others)))]
