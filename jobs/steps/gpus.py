"""Settles what a job's pools ask Ray for, before anything starts: `num_gpus: auto` is a number, never silently 0."""

from jobs.job_file.keys import Pool
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import Job
from jobs.terminal.console import Console
from pipelines.cluster.capacity import CapacityError, Request, check_place, resolve_gpus
from pipelines.cluster.nodes import is_own_ray


def with_gpus(console: Console, job: Job) -> Job:
    """The job with a number for each `auto`. Needs a connected Ray.

    Raises ConfigError where the cluster cannot give what a pool asks for, or does not say whether it can.
    """
    pools, faults, local = [], [], is_own_ray()
    console.draw("asking for a place for the pools")
    for index, pool in enumerate(job.config.pools):
        try:
            settled = pool.model_copy(update={"num_gpus": _num_gpus(job, pool, local)})
            check_place(_request(settled, float(settled.num_gpus)), local)
            pools.append(settled)
        except CapacityError as error:
            faults.append(Fault(job.at(f"pools.{index}"), f"pools.{index}: {error}"))
    console.clear()
    if faults:
        raise ConfigError(faults)
    return job.changed(pools=pools)


def _num_gpus(job: Job, pool: Pool, local: bool) -> float:
    if pool.num_gpus != "auto":
        return pool.num_gpus
    if job.config.model.device == "cpu":
        return 0.0
    return resolve_gpus(_request(pool, 0.0), local)


def _request(pool: Pool, num_gpus: float) -> Request:
    wanted = {"CPU": pool.num_cpus, "GPU": num_gpus, **pool.resources}
    return {name: amount for name, amount in wanted.items() if amount}
