"""Imports the functions of a user that a job file names, so that a wrong name is told before anything starts."""

import importlib
from typing import Any

from jobs.job_file.read import Job
from pipelines.boundary import raised_by


def imported_function(job: Job, key: str, name: str) -> Any:
    """`package.module:function` of a key. Raises ConfigError where there is none."""
    module, _, attribute = name.partition(":")
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(getattr(importlib.import_module(module), attribute))
        except SystemExit as end:
            raise RuntimeError("it ends the process that imports it") from end

    if error := raised_by(look):
        known = isinstance(error, ImportError | AttributeError)
        what = f"there is no {name}" if known else f"{module} cannot be imported: {type(error).__name__}"
        raise job.fault(key, f"{key}: {what} ({error})") from error
    if not callable(found[0]):
        raise job.fault(key, f"{key}: {name} is no function but {type(found[0]).__name__}")
    return found[0]
