"""Reads safetensors files by their headers alone: which files a component has, and whether its tensors are there.

No tensor is read and torch is not imported: some hundred kilobytes of a checkpoint of gigabytes.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.actor_error import ActorError
from actors.tensors import Shapes

LARGEST_HEADER = 100 << 20  # bytes; safetensors reads no larger one
LFS = b"version https://git-lfs"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")
_HARMLESS = ("position_ids", "logit_scale", "logit_bias")
_WRAPPERS = {
    "module.": "DataParallel's wrapper",
    "_orig_mod.": "torch.compile's wrapper",
    "cond_stage_model.": "the original one-file layout of Stable Diffusion",
    "first_stage_model.": "the original one-file layout of Stable Diffusion",
    "model.diffusion_model.": "the original one-file layout of Stable Diffusion",
    "conditioner.": "the original one-file layout of SDXL",
    "base_model.model.": "PEFT's wrapper",
}
_ADAPTERS = ("lora", "base_layer", "adapter", "hada_", "lokr_", "dora_scale", "ia3_", "modules_to_save", "ip_adapter")


class CheckpointError(ActorError, ValueError):
    """A folder that cannot be rendered with: the message names the folder, what is wrong and the remedy."""


@dataclass(frozen=True)
class Tensor:
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]


def read_json(root: Path, name: str) -> dict[str, Any]:
    """A config of a checkpoint. Raises CheckpointError where it is missing or no JSON object."""
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder; model.path takes a diffusers folder, a hub id or s3://...")
    try:
        data = (root / name).read_bytes()
        found = json.loads(data)
    except FileNotFoundError:
        raise CheckpointError(f"{root}: no {name}, so this is not a whole diffusers folder") from None
    except OSError as error:
        raise CheckpointError(f"{root}/{name}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{root}/{name}: {_not_json(data, error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{root}/{name}: not a JSON object; take the checkpoint's own file again")
    return found


def _not_json(data: bytes, error: Exception) -> str:
    if data.startswith(LFS):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` in the clone"
    return "empty; download it again" if not data.strip() else f"not valid JSON ({error}); download it again"


def variant_of(folder: Path, stem: str, variant: str | None) -> str | None:
    """The variant that a component is loaded in: the one asked for where it has such files, else the plain one."""
    if variant is None or not folder.is_dir():
        return None
    if any(path.is_file() for path in (folder / f"{stem}.{variant}.safetensors", _index_of(folder, stem, variant))):
        return variant
    for path in folder.iterdir():
        parts = path.name.split(".")
        if len(parts) > 2 and parts[1].startswith(variant):
            raise CheckpointError(
                f"{folder}: {path.name} is of variant {variant!r}, but there is no {stem}.{variant}.safetensors nor "
                "its index; download the variant whole, or leave model.variant out"
            )
    return None


def _index_of(folder: Path, stem: str, variant: str | None) -> Path:
    return folder / f"{stem}.safetensors.index.{variant + '.' if variant else ''}json"


def check_weights(
    folder: Path, stem: str, variant: str | None, index_first: bool, fit: Callable[[Mapping[str, Tensor]], str | None]
) -> None:
    """fit: says what is wrong with a component's tensors. Raises CheckpointError.

    index_first: diffusers reads the index where there is one, transformers the single file.
    """
    if fault := fit(read_component(folder, stem, variant, index_first)):
        raise CheckpointError(f"{folder}: {fault}")


def read_component(folder: Path, stem: str, variant: str | None, index_first: bool) -> dict[str, Tensor]:
    """Every tensor of the files that a component is loaded from. Raises CheckpointError where one is not whole."""
    single, index = folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors", _index_of(folder, stem, variant)
    if index.is_file() and (index_first or not single.is_file()):
        return _read_sharded(folder, index)
    if not single.is_file():
        raise CheckpointError(f"{folder}: no {single.name} and no {index.name}; download the weights again")
    return read_header(single)


def is_sharded(folder: Path, stem: str, variant: str | None) -> bool:
    """Whether there is an index, which diffusers prefers to a single file."""
    return _index_of(folder, stem, variant).is_file()


def _read_sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    listing = read_json(folder, index.name)
    places = listing.get("weight_map")
    if not isinstance(listing.get("metadata"), dict) or not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: no whole index (metadata and weight_map); download it again")
    if odd := [name for name in places.values() if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{index}: {odd[0]!r} is no file's name; download it again")
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {index.name} names {name}, which is not there; download it again")
        shard = read_header(folder / name)
        listed = {key for key, place in places.items() if place == name}
        if listed != shard.keys():
            key = min(listed ^ shard.keys())
            where = "is listed but is not in that file" if key in listed else "is in that file but not listed for it"
            raise CheckpointError(f"{index}: {key} of {name} {where}; take index and shards from one download")
        found |= shard
    return found


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by its header; that the file is as long as they need is checked.

    Raises CheckpointError, also for a Git LFS pointer and for an empty or truncated file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS))
        if size == 0:
            raise CheckpointError(f"{path}: empty (0 bytes); download it again")
        if start == LFS:
            raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in the clone")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        if not 2 <= length <= LARGEST_HEADER:
            raise CheckpointError(f"{path}: not a safetensors file (it begins with {start[:8]!r}); download it again")
        if 8 + length > size:
            raise CheckpointError(f"{path}: truncated, {size} bytes are not even its header; download it again")
        file.seek(8)
        header = file.read(length)
    try:
        return _parsed(json.loads(header), size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error) if isinstance(error, _Torn) else "its header cannot be read"
        raise CheckpointError(f"{path}: {reason}; download it again") from None


class _Torn(ValueError):
    """The header and the bytes behind it do not belong together."""


def _parsed(header: dict[str, Any], size: int) -> dict[str, Tensor]:
    header.pop("__metadata__", None)
    found, spans = {}, []
    for name, entry in header.items():
        tensor, (begin, end) = Tensor(entry["dtype"], tuple(map(int, entry["shape"]))), entry["data_offsets"]
        width = _BYTES.get(tensor.dtype)
        if width is not None and end - begin != width * math.prod(tensor.shape):
            raise _Torn(f"{name} has {end - begin} bytes for shape {tensor.shape} in {tensor.dtype}")
        found[name] = tensor
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise _Torn("its tensors overlap or leave a hole")
        reached = end
    if reached > size:
        raise _Torn(f"truncated, {size} of {reached} bytes of tensors are there")
    if reached < size:
        raise _Torn(f"{size - reached} bytes too long for its header")
    return found


def tensors_fault(
    found: Mapping[str, Tensor], wanted: Shapes, prefix: str = "", ignored: Iterable[str] = (), model: str = "the model"
) -> str | None:
    """What is wrong with the tensors found, for a model that asks for `wanted`; None: they fit.

    prefix: may stand before a name or not. ignored: beginnings of names that this model has no use for.
    """
    named = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    if len(named) < len(found):
        return f"tensors stand in the file both with and without the prefix {prefix!r}; take the original file"
    missing = [name for name in wanted if name not in named]
    extra = [name for name in named if name not in wanted and not _harmless(name, tuple(ignored))]
    if missing or extra:
        return _names_fault(missing, extra, len(wanted), model)
    for name, shape in wanted.items():
        if named[name].shape != shape:
            return f"{name} is {_shown(named[name].shape)} in the file, and by config.json it must be {_shown(shape)}"
        if named[name].dtype not in FLOATS:
            return f"{name} is stored as {named[name].dtype}: quantised weights are not taken, use the original ones"
    return None


def _names_fault(missing: list[str], extra: list[str], count: int, model: str) -> str:
    kind = "; ".join(dict.fromkeys(filter(None, map(_kind_of, extra))))
    if kind:
        return f"{kind}: {extra[0]} is nothing that {model} reads; merge or unwrap it, and save it with save_pretrained"
    if not missing:
        return (
            f"{len(extra)} tensors that {model} does not read by its config.json, the first {extra[0]}: "
            "config and weights are not of one model"
        )
    left = f", and {len(extra)} others are left over, the first {extra[0]}" if extra else ""
    return (
        f"{len(missing)} of the {count} tensors of {model} are not in its files, the first {missing[0]}{left}; "
        "download the weights again, with their own config.json"
    )


def _kind_of(name: str) -> str:
    for start, what in _WRAPPERS.items():
        if name.startswith(start):
            return f"weights under a prefix ({what})"
    return "an adapter that is not merged (LoRA or the like)" if any(a in name.lower() for a in _ADAPTERS) else ""


def _harmless(name: str, ignored: tuple[str, ...]) -> bool:
    return name.rpartition(".")[2] in _HARMLESS or name.startswith(ignored)


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
