"""Finds the run folder that a command names: by its job file, its path or its URL."""

import json
from pathlib import Path

from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import Job, load_job, read_job
from jobs.job_file.storage import run_folder
from pipelines.run.layout import RunFolder
from pipelines.storage.folder import StorageError


def find_job(path: str, sets: tuple[str, ...], planned: bool = True) -> tuple[Job, RunFolder]:
    """The run folder of a job file, a path or a URL, and its job: the file's, or the one that it was last run by.

    planned: refuse a folder in which nothing is planned yet. Raises ConfigError.
    """
    is_job = Path(path).is_file() or path.endswith((".yaml", ".yml"))
    job = load_job(path, sets) if is_job else _job_of(path, sets)
    run = run_folder(job)
    _demand_reachable(run, path)
    if planned and not run.generations():
        raise ConfigError([Fault(path, f"nothing is planned in {run.url}: is it a run folder?")])
    return job, run


def _job_of(path: str, sets: tuple[str, ...]) -> Job:
    """The job that a run folder holds, at the address by which it was found: it may have been moved."""
    sets = (*sets, f"output.path={json.dumps(path)}")
    at = read_job("input: {path: '?'}", path, sets)
    _demand_reachable(run_folder(at), path)
    text = run_folder(at).job_yaml()
    return read_job(text, f"{path}/job.yaml", sets) if text else at


def _demand_reachable(run: RunFolder, path: str) -> None:
    """Raises ConfigError, within seconds and with the endpoint, where the store does not answer."""
    try:
        run.check_reading()
    except StorageError as error:
        access = run.access()
        tried = f" ({access.endpoint}: {access.endpoint_from}; -s storage.endpoint_url=URL names another)"
        raise ConfigError([Fault(path, f"{error}{tried if access.endpoint else ''}")]) from error
