"""Settles what a job's pools ask Ray for, before anything starts: `num_gpus: auto` is a number, never silently 0."""

from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.config import Pool
from jobs.console import Console
from jobs.load import Job
from jobs.source import ConfigError, Fault

if TYPE_CHECKING:
    from pipelines.capacity import Request


def with_gpus(console: Console, job: Job) -> Job:
    """The job with a number for each `auto`. Needs a connected Ray.

    Raises ConfigError where the cluster cannot give what a pool asks for, or does not say whether it can.
    """
    from pipelines.capacity import CapacityError, check_place
    from pipelines.preflight import is_own_ray

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
    return replace(job, config=job.config.model_copy(update={"pools": pools}))


def _num_gpus(job: Job, pool: Pool, local: bool) -> float:
    from pipelines.capacity import resolve_gpus

    if pool.num_gpus != "auto":
        return pool.num_gpus
    if job.config.model.device == "cpu":
        return 0.0
    return resolve_gpus(_request(pool, 0.0), local)


def _request(pool: Pool, num_gpus: float) -> "Request":
    wanted = {"CPU": pool.num_cpus, "GPU": num_gpus, **pool.resources}
    return {name: amount for name, amount in wanted.items() if amount}
