"""A checkpoint's folder on this machine: where it is already, from an object store once a node, or from the hub.

Only JSON, text and safetensors are read. A pickle keeps its name and loses its bytes, so that `inspect_checkpoint` can
say that it is there.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipelines.folder import Folder, StorageError, StorageOptions

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
CACHE_ENV = "STEPTHRIFT_CACHE"  # a folder of each node, by default ~/.cache/stepthrift
READERS = 4
_CHUNK = 64 << 20  # bytes
_TEXT = (".json", ".txt")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# The blocks that a checkpoint's fingerprint is taken from (actors.checkpoint), so that a driver without the weights
# comes to the same fingerprint as the workers.
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
    """The local folder of a checkpoint: a local path as it is, `s3://` and the like by a copy, `owner/name` by the hub.

    The copy is made once a node, under a lock, and is found again while sizes and etags are the same. `metadata_only`
    brings of each weight file the size and the blocks that its fingerprint needs, enough for `inspect_checkpoint` (a
    hub id is fetched whole). StorageError where the checkpoint cannot be had.
    """
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


def _copy(source: Folder, variant: str | None, metadata_only: bool) -> str:
    source.probe(write=False)
    files = dict(source.walk())
    if not files:
        raise StorageError(f"there is no model at {source.url}: the folder is empty. Correct model.path")
    wanted = {key for key in files if _is_wanted(key, files, variant)}
    identity = json.dumps([source.url, sorted(wanted), metadata_only, _etags(source, sorted(files))])
    name = hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()
    cache = Path(os.environ.get(CACHE_ENV, "~/.cache/stepthrift")).expanduser() / "models"
    target = cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{name}.lock"):
            if not target.is_dir():
                _fill(source, files, wanted, target, metadata_only)
    except OSError as error:
        raise StorageError(
            f"cannot keep {source.url} in {cache}: {error.strerror or error}. Make room or set {CACHE_ENV}"
        ) from None
    return str(target)


def _etags(source: Folder, keys: list[str]) -> list[tuple[int, str] | None]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(source.stat, keys))


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
        with file.open("wb") as sink:
            for start, end in (_chunks(size) if whole else _sampled(size)) if key in wanted else ():
                data = source.read_range(key, start, end)
                if len(data) != end - start:
                    raise StorageError(f"{source.url_of(key)} changed while it was read. Try again", retryable=True)
                sink.seek(start)
                sink.write(data)
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process a node at a time; the kernel frees the lock of one that dies."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _from_hub(path: str, revision: str | None, variant: str | None) -> str:
    from huggingface_hub import errors, snapshot_download

    weights = [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"] if variant else ["*.safetensors"]
    try:
        return snapshot_download(
            path,
            revision=revision,
            allow_patterns=["*.json", "*.txt", *weights],
            ignore_patterns=None
            if variant
            else ["*.fp16.safetensors", "*.fp16-*", "*.bf16.safetensors", "*.non_ema.*"],
        )
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
