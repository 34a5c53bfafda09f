"""Settles what `dtype: auto` means in a run: the first worker whose engine works keeps it in the run folder."""

from pipelines.pipeline_error import PipelineError
from pipelines.run.layout import RunFolder

DTYPE_KEY = "plan/dtype"


class PrecisionError(PipelineError, RuntimeError):
    """Another worker settled another precision in the same moment; this one has to load its model again."""


def settled_dtype(run: RunFolder, dtype: str, auto_dtype: str) -> str:
    """The dtype of the job, else of the run, else the one that the pools' devices call for."""
    if dtype != "auto":
        return dtype
    try:
        return run.read(DTYPE_KEY).decode()
    except FileNotFoundError:
        return auto_dtype


def keep_dtype(run: RunFolder, dtype: str) -> None:
    """Keeps the dtype, once the engine has passed its probe. Raises PrecisionError where another stands there."""
    if not run.create(DTYPE_KEY, dtype.encode()):
        raise PrecisionError(f"{run.url} was settled to {run.read(DTYPE_KEY).decode()} while {dtype} was loaded here")
