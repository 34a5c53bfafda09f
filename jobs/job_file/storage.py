"""Opens a job's run folder, with the options by which its store is reached."""

from jobs.job_file.read import Job
from pipelines.run.layout import RunFolder
from pipelines.storage.folder import StorageOptions


def storage_options(job: Job, section: str = "") -> StorageOptions:
    """The options of `input` or `output` if it has its own, else the common ones."""
    own = getattr(job.config, section).storage if section else None
    storage = own or job.config.storage
    return StorageOptions(**storage.model_dump())


def run_folder(job: Job) -> RunFolder:
    """The job's run folder; nothing is touched yet."""
    assert job.config.output.path is not None
    return run_at(job, job.config.output.path)


def run_at(job: Job, path: str) -> RunFolder:
    """Another run folder in the output's store."""
    return RunFolder(path, storage_options(job, "output"))
