"""Checks the machines before a job starts: that all see one run folder and one input, and that a GPU is there.

`pipelines.cluster.nodes` asks them; here an answer becomes a fault of the job file's keys.
"""

import os
from pathlib import Path

from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import Job
from jobs.terminal.console import Console
from pipelines.cluster.nodes import Preflight, ask_every_node
from pipelines.run.layout import RunFolder
from pipelines.run.proof import Proof, probe_object

RAYS_COPY = "runtime_resources/working_dir_files"  # below it Ray unpacks what a job was submitted with
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
NOBODY = "no worker node is up yet: what they see is checked when they start"


def refuse_rays_copy(job: Job) -> None:
    """Raises ConfigError where a submitted job's run folder would lie in the copy that Ray deletes."""
    path = str(job.config.output.path)
    if "://" in path.removeprefix("file://"):
        return
    local = os.path.expanduser(path.removeprefix("file://"))
    relative = SUBMITTED in os.environ and not os.path.isabs(local)
    if relative or RAYS_COPY in str(Path(local).resolve()):
        raise job.fault(
            "output.path",
            f"output.path {path} lies in Ray's own copy of the working directory, which Ray deletes, pictures and all: "
            "give an absolute path on a disk that every machine mounts, or s3://bucket/...",
        )


def check_nodes(console: Console, job: Job, run: RunFolder, proof: Proof, with_input: bool = True) -> None:
    """Ask all nodes that are up. Raises ConfigError with all that they lack; needs a connected Ray.

    with_input: the verb reads the prompts.
    """
    given, device = job.config.input.path, job.config.model.device
    local = given.removeprefix("file://")
    path = local if with_input and "://" not in local else None
    console.draw("asking the nodes what they see")
    found = ask_every_node(run, proof, path, device.startswith("cuda"))
    console.clear()
    faults = [Fault(job.at(fault.key), fault.message) for fault in found.faults]
    if lacking := _lacks_device(job, found):
        faults.append(Fault(job.at("model.device"), lacking))
    if faults:
        raise ConfigError(faults)
    for note in found.silent:
        console.say(f"{note}; its workers will prove it when they start")
    if not found.own and not found.workers:
        console.say(NOBODY)


def check_nodes_by_probe(console: Console, job: Job, run: RunFolder) -> None:
    """The same for a verb that claims no epoch: it writes an object to be read, and deletes it."""
    with probe_object(run) as proof:
        check_nodes(console, job, run, proof)


def _lacks_device(job: Job, found: Preflight) -> str | None:
    """The fault if no machine has the device that the job names; None: it is there, or may come."""
    if found.devices is None or not (found.own or found.workers):
        return None
    if found.autoscaled and any(pool.num_gpus != 0 for pool in job.config.pools):
        return None
    device = job.config.model.device
    number = int(device.partition(":")[2] or 0)
    if number < found.devices:
        return None
    who = "this machine has" if found.own else "the nodes that are up have"
    what = f"{found.devices} of them at most" if found.devices else "none that torch can use"
    return f"model.device is {device}, a CUDA device, and {who} {what}: write auto or cpu, or add a GPU"
