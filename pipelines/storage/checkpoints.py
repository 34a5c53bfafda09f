"""Brings a checkpoint's folder to this machine, from an object store (once per node) or the hub; a local one stays.

Only JSON, text and safetensors are read. A pickle becomes an empty file of its name, so that `inspect_checkpoint` can
report it.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipelines.storage.folder import Folder, StorageError, StorageOptions, is_odd

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
CACHE_ENV = "STEPTHRIFT_CACHE"  # a folder of each node, by default ~/.cache/stepthrift
READERS = 4
_CHUNK = 64 << 20  # bytes
_TEXT = (".json", ".txt")
_ONE_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_LARGEST_HEADER = 100 << 20  # bytes; what safetensors reads at most
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# actors.checkpoint takes a checkpoint's fingerprint from these blocks, so that a driver without the weights computes
# the same fingerprint as the workers.
_BLOCK, _NUM_BLOCKS = 1 << 16, 16


@dataclass(frozen=True)
class ModelSource:
    """Where a checkpoint is: a local folder (relative: here, or in the project), a hub id or a URL."""

    path: str
    revision: str | None = None
    variant: str | None = None
    storage: StorageOptions = field(default_factory=StorageOptions)

    def local(self, metadata_only: bool = False) -> str:
        """Its folder on this machine: see `fetch_model`. Raises StorageError."""
        shipped = ROOT / self.path
        if not Path(self.path).exists() and shipped.is_dir():
            return str(shipped)
        return fetch_model(self.path, self.revision, self.variant, self.storage, metadata_only)


def fetch_model(
    path: str,
    revision: str | None = None,
    variant: str | None = None,
    options: StorageOptions | None = None,
    metadata_only: bool = False,
) -> str:
    """The local folder of a checkpoint: a local path as it is, a copy of `s3://` and the like, the hub's `owner/name`.

    The copy is made once per node, under a lock, and is used again while sizes and etags are the same. `metadata_only`
    copies of each weight file only the size, the header and the blocks that its fingerprint needs, which is enough for
    `check_checkpoint` (a hub id is fetched whole). StorageError says why the checkpoint cannot be fetched.
    """
    if is_one_file(path):  # most community checkpoints are one file; diffusers writes the folder
        raise StorageError(
            f"{path} is one file, and model.path takes a diffusers folder. Convert it once: "
            f"python -m jobs convert {shlex.quote(path)} FOLDER, and give that folder"
        )
    if "://" in path and not path.startswith("file://"):
        return _copy(Folder(path, options), variant, metadata_only)
    local = Folder(path).url
    if os.path.isdir(local):
        return local
    if _HUB_ID.fullmatch(path) and not path.startswith("."):
        return _from_hub(path, revision, variant)
    raise StorageError(
        f"there is no model at {path}: model.path takes a diffusers folder, a hub id (owner/name) or s3://..."
    )


def is_one_file(path: str) -> bool:
    """By its name, whether it is there or not."""
    return path.rstrip("/").lower().endswith(_ONE_FILE) and not os.path.isdir(path.removeprefix("file://"))


def _copy(source: Folder, variant: str | None, metadata_only: bool) -> str:
    source.check_reading()
    files = {key: size for key, size in source.walk() if not is_odd(key)}  # no file of a checkpoint is called so
    if not files:
        raise StorageError(f"there is no model at {source.url}: the folder is empty. Correct model.path")
    wanted = {key for key in files if _is_wanted(key, files, variant)}
    kind = "headers" if metadata_only else False
    with ThreadPoolExecutor(READERS) as pool:
        etags = list(pool.map(source.stat, sorted(files)))
    identity = json.dumps([source.url, sorted(wanted), kind, etags])
    name = hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()
    cache = Path(os.environ.get(CACHE_ENV, "~/.cache/stepthrift")).expanduser() / "models"
    target = cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees the lock of a process that dies
            if not target.is_dir():
                _fill(source, files, wanted, target, metadata_only)
    except OSError as error:
        raise StorageError(
            f"cannot keep {source.url} in {cache}: {error.strerror or error}. Make room or set {CACHE_ENV}"
        ) from None
    return str(target)


def _is_wanted(key: str, files: dict[str, int], variant: str | None) -> bool:
    """Text always; of weights the variant's, else the plain ones; of a pipeline none that lie beside its index."""
    path = PurePosixPath(key)
    if path.suffix in _TEXT:
        return True
    if path.suffix != ".safetensors" or (len(path.parts) == 1 and "model_index.json" in files):
        return False
    beside = [PurePosixPath(other).name for other in files if PurePosixPath(other).parent == path.parent]
    of_variant = {name for name in beside if variant and re.search(rf"\.{re.escape(variant)}[.-]", name)}
    plain = {name for name in beside if name.count(".") == 1}
    return path.name in (of_variant or plain or beside)


def _fill(source: Folder, files: dict[str, int], wanted: set[str], target: Path, metadata_only: bool) -> None:
    """Fetch into a folder beside the target and rename it: a target that exists is whole."""
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    log.info("fetching %s, %.1f MB", source.url, sum(files[key] for key in wanted) / 1e6)

    def fetch(key: str) -> None:
        size = files[key]
        file = part.joinpath(*key.split("/"))
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = not metadata_only or key.endswith(_TEXT)

        def copy(start: int, end: int) -> bytes:
            data = source.read_range(key, start, end)
            if len(data) != end - start:
                raise StorageError(f"{source.url_of(key)} changed while it was read. Try again", retryable=True)
            sink.seek(start)
            sink.write(data)
            return data

        with file.open("wb") as sink:
            for start, end in (_chunks(size) if whole else _sampled(size)) if key in wanted else ():
                data = copy(start, end)
                if start == 0 and not whole and (rest := _rest_of_header(data, size)):
                    copy(*rest)
            sink.truncate(size if key in wanted else 0)

    try:
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(fetch, files))
        os.rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(size, start + _CHUNK)) for start in range(0, size, _CHUNK))


def _sampled(size: int) -> Iterator[tuple[int, int]]:
    starts = sorted({size * block // _NUM_BLOCKS for block in range(_NUM_BLOCKS)})
    return ((start, min(size, start + _BLOCK)) for start in starts if start < size)


def _rest_of_header(first: bytes, size: int) -> tuple[int, int] | None:
    """What the first block of a safetensors file leaves of its header; None: nothing, or it is no such file."""
    length = struct.unpack("<Q", first[:8])[0] if len(first) >= 8 else 0
    if length > _LARGEST_HEADER or 8 + length <= len(first) or 8 + length > size:
        return None
    return len(first), 8 + length


def _from_hub(path: str, revision: str | None, variant: str | None) -> str:
    from huggingface_hub import errors, snapshot_download

    weights = [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"] if variant else ["*.safetensors"]
    others = None if variant else ["*.fp16.safetensors", "*.fp16-*", "*.bf16.safetensors", "*.non_ema.*"]
    wanted = ["*.json", "*.txt", *weights]
    try:
        folder = snapshot_download(path, revision=revision, allow_patterns=wanted, ignore_patterns=others)
        if bare := _without_weights(folder) if variant else []:
            plain = [f"{name}/*.safetensors" for name in bare]
            folder = snapshot_download(path, revision=revision, allow_patterns=plain)
        return folder
    except errors.GatedRepoError:
        reason = "its licence must be accepted on the hub, and HF_TOKEN be set"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except errors.RepositoryNotFoundError:
        reason = "the hub does not know it, nor is it a folder here"
    except errors.LocalEntryNotFoundError:
        reason = "it is not in the local cache and the hub cannot be reached (offline, or HF_HUB_OFFLINE is set)"
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = f"the hub did not give it ({type(error).__name__})"
    raise StorageError(f"cannot get the model {path}: {reason}. Give model.path a diffusers folder or s3://...")


def _without_weights(folder: str) -> list[str]:
    """The components of which the hub has no weights of the variant: diffusers takes their plain ones."""
    configs = [file.parent for file in Path(folder).glob("*/config.json")]
    return sorted(part.name for part in configs if not any(part.glob("*.safetensors")))
