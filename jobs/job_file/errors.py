"""Turns whatever is raised into one line with place, reason and remedy.

Our own errors are known by the base class of their room, others by the package that raised them. An error that nobody
foresaw is one line too, and its traceback goes into a file. `blaming` gives an error the job file's key that caused it.
"""

import errno
import os
import re
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from jobs.job_file.places import ROOT
from jobs.job_file.positions import ConfigError, Fault

if TYPE_CHECKING:
    from actors.actor_error import ActorError
    from jobs.job_file.read import Job
    from pipelines.pipeline_error import PipelineError
    from training.learning_error import LearningError

OURS = ("actors", "pipelines", "training", "jobs")


AGAIN = "the same command goes on where it stopped"
STORE = ("a store", f"check the network, storage.endpoint_url and the credentials; {AGAIN}")
CHECKPOINT = ("a checkpoint", "check its folder, or take its files again; `python -m jobs validate JOB` names the part")
TABLE = ("a Parquet file or another table", "write it anew; `python -m jobs verify RUN` names what a run has lost")
RAY = ("Ray", AGAIN)
MEMORY = "there is not enough memory: take fewer pools.actors, fewer pools.lanes or a smaller size"
FOREIGN = {
    **dict.fromkeys(("fsspec", "s3fs", "botocore", "aiobotocore", "aiohttp", "urllib3", "requests", "httpx"), STORE),
    **dict.fromkeys(("gcsfs", "adlfs", "ossfs", "ocifs", "paramiko", "smbprotocol"), STORE),
    **dict.fromkeys(("transformers", "tokenizers", "safetensors", "safetensors_rust", "diffusers"), CHECKPOINT),
    **dict.fromkeys(("huggingface_hub", "accelerate"), CHECKPOINT),
    "pyarrow": TABLE,
    **dict.fromkeys(("ray", "grpc"), RAY),
}
SYSTEM = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "the quota of the disk is used up: free some space",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EACCES: "grant this user the right, or choose another place",
    errno.EPERM: "grant this user the right, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOENT: "correct the path",
    errno.ENOTDIR: "a part of the path is a file: correct it",
    errno.EISDIR: "it is a folder: correct the path",
}
_SECRET = re.compile(r"(?<=//)[^/@\s]+@")  # a user and a password in a URL


@dataclass(frozen=True)
class ErrorMessage:
    """The message of an error. later: what failed may pass: the exit code is 1, not 2; began: work had begun."""

    faults: tuple[Fault, ...]
    later: bool = False
    began: bool = False


def message_of(error: BaseException) -> ErrorMessage | None:
    """The message of an error of ours, or of another package's, found among its causes; None: nobody foresaw it."""
    for each in _chain(error):
        if isinstance(each, ConfigError):
            return ErrorMessage(tuple(each.faults))
        if isinstance(each, room_errors()):
            return ErrorMessage((Fault("", error_line(each)),), each.retryable, each.began)
    return next((said for each in _chain(error) if (said := _foreign(each)) is not None), None)


def room_errors() -> "tuple[type[ActorError], type[PipelineError], type[LearningError]]":
    """The base classes of the other rooms' errors, imported here: a verb that raises nothing does not load them."""
    from actors.actor_error import ActorError
    from pipelines.pipeline_error import PipelineError
    from training.learning_error import LearningError

    return ActorError, PipelineError, LearningError


class blaming:
    """Raises a foreseen error of its body as a ConfigError that blames this key of the job file.

    prefix: goes before the message, where the key's place does not show what is at fault.
    """

    def __init__(self, job: "Job", key: str, prefix: str = "") -> None:
        self.job, self.key, self.prefix = job, key, prefix

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, ConfigError):
            return
        message = message_of(error)
        if message is not None and not message.began:
            place = self.job.at(self.key)
            faults = [Fault(fault.where or place, self.prefix + fault.message) for fault in message.faults]
            raise ConfigError(faults) from error


def error_line(error: BaseException) -> str:
    """What an exception says, without line breaks."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it; what Ray wraps comes before its wrapping, whose text is a traceback."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None)
        if not isinstance(inner, BaseException):
            yield error
            inner = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        error = inner


def _foreign(error: BaseException) -> ErrorMessage | None:
    """The message of another package's error, found by its class or by the code that raised it, or of the system's."""
    package = next((name for name in _packages(error) if name in FOREIGN or name in OURS), "")
    if package in FOREIGN and not _is_task_code(error):
        what, remedy = FOREIGN[package]
        return ErrorMessage((Fault("", f"{what} failed: {_reason(error)}; {remedy}"),), later=FOREIGN[package] is RAY)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a device
        return ErrorMessage((Fault("", MEMORY),))
    if isinstance(error, OSError):
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return ErrorMessage((Fault("", f"{place}{error.strerror or error_line(error)}; {_system_remedy(error)}"),))
    return None


def _system_remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and error.errno is None:  # of a run folder, by its own words
        return "`python -m jobs verify RUN` names what a run has lost"
    return SYSTEM.get(error.errno or 0, "look at the disk, its mount and the network")


def _is_task_code(error: BaseException) -> bool:
    """Whether Ray only wraps what a task of ours raised; then it is no error of Ray's."""
    return any(kind.__name__ in ("RayTaskError", "UserCodeException") for kind in type(error).__mro__)


def _packages(error: BaseException) -> Iterator[str]:
    """The packages of an error's classes, then of the code that raised it, the innermost first."""
    for kind in type(error).__mro__:
        yield kind.__module__.partition(".")[0]
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        yield str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _reason(error: BaseException) -> str:
    """The error's class and first line; of a store's answer the code alone: a server may repeat what was sent."""
    answer = getattr(error, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    text = f"{getattr(error, 'operation_name', 'a request')}: {code}" if code else _SECRET.sub("", first.strip())
    return f"{type(error).__name__}: {text:.300}".rstrip(": ")


def unforeseen(error: BaseException) -> ErrorMessage:
    """The message of an error that nobody foresaw: where it was raised, and where its traceback is."""
    ours = [
        f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename).is_relative_to(ROOT / room) for room in OURS)
    ]
    at = f" at {ours[-1]}" if ours else ""
    text = f"this was not foreseen: {_reason(next(_chain(error)))}{at}; {_kept(error)}. Please report it"
    return ErrorMessage((Fault("", text),), later=True)


def _kept(error: BaseException) -> str:
    """Writes the traceback into a file of its own."""
    text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
    try:
        with tempfile.NamedTemporaryFile(prefix="stepthrift-", suffix=".log", delete=False) as log:
            log.write(text)
    except OSError as full:
        return f"its traceback could not be kept ({full.strerror}): --debug shows it"
    return f"its traceback is in {log.name}"
