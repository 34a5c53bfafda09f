"""A checkpoint's folder on this node: local as it is, from an object store or a hub fetched once, under a lock.

Only configs, vocabularies and safetensors are fetched: never a pickle, never code.
"""

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipelines.folder import Folder, StorageError, StorageOptions

CACHE_ENV = "STEPTHRIFT_CACHE"
SUFFIXES = (".json", ".txt", ".safetensors", ".model")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_OTHER_VARIANTS = ("*.fp16.safetensors", "*.bf16.safetensors", "*.ema.safetensors", "*.non_ema.safetensors")


def cache_folder() -> Path:
    """Where fetched checkpoints lie on this node: $STEPTHRIFT_CACHE, else ~/.cache/stepthrift."""
    return Path(os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "stepthrift")


def fetch_model(
    path: str, revision: str | None = None, variant: str | None = None, options: StorageOptions | None = None
) -> str:
    """The local folder of a checkpoint given as a folder, a URL (s3://...) or a hub id. Raises StorageError."""
    if "://" in path:
        return _from_store(path, options or StorageOptions())
    if Path(path).expanduser().is_dir():
        return str(Path(path).expanduser())
    if _HUB_ID.fullmatch(path):
        return _from_hub(path, revision, variant)
    raise StorageError(f"no model at {path}: give a diffusers folder, a hub id (owner/name) or an s3:// folder")


def _from_store(url: str, options: StorageOptions) -> str:
    """Files are compared by name, size and etag, so that a changed checkpoint is fetched anew, beside the old one."""
    source = Folder(url, options)
    keys = sorted(key for key, _ in source.walk() if key.endswith(SUFFIXES))
    if not keys:
        raise StorageError(f"no model at {url}: there is no file of a diffusers folder below it")
    state = repr([url, *((key, source.stat(key)) for key in keys)])
    target = cache_folder() / "models" / hashlib.blake2b(state.encode(), digest_size=12).hexdigest()
    with _locked(target):
        if not target.is_dir():
            _download(source, keys, target)
    return str(target)


def _download(source: Folder, keys: list[str], target: Path) -> None:
    """Whole, then renamed: a folder under its final name is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        whole = Path(folder) / "whole"
        for key in keys:
            place = whole / key
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                _copy(source, key, file)
        whole.rename(target)


def _copy(source: Folder, key: str, file: IO[bytes], block: int = 1 << 26) -> None:
    """In blocks of 64 MiB, so that no weights file has to fit into memory."""
    found = source.stat(key)
    size = found[0] if found else 0
    for start in range(0, size, block):
        file.write(source.read_range(key, start, min(size, start + block)))


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process of this node fetches; the others wait, and find it there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise StorageError(
            f"cannot keep the model in {target.parent}: {error.strerror or error}. Set {CACHE_ENV} to another folder"
        ) from error


def _from_hub(name: str, revision: str | None, variant: str | None) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    weights = [f"*/*.{variant}.safetensors", f"*/*.{variant}-*.safetensors"] if variant else ["*/*.safetensors"]
    try:
        return snapshot_download(
            name,
            revision=revision,
            allow_patterns=["model_index.json", "*/*.json", "*/*.txt", *weights],
            ignore_patterns=None if variant else list(_OTHER_VARIANTS),
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StorageError(
            f"no model at {name}: it is no folder here, and the hub says: {reason}. Check the name, the network and "
            "HF_HUB_OFFLINE, or give a local diffusers folder"
        ) from None
