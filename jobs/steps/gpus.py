"""Settles what a job's pools ask Ray for, before anything starts: `num_gpus: auto` is a number, never silently 0."""

from dataclasses import replace

from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.settings import Settings
from jobs.terminal.console import Console
from pipelines.cluster.capacity import CapacityError, check_place, resolve_gpus
from pipelines.cluster.nodes import is_own_ray
from pipelines.cluster.pools import PoolSpec


def with_gpus(console: Console, settings: Settings) -> Settings:
    """The settings with a number for each `auto`. Needs a connected Ray.

    Raises ConfigError where the cluster cannot give what a pool asks for, or does not say whether it can.
    """
    pools, faults, local = [], [], is_own_ray()
    console.draw("asking for a place for the pools")
    for index, pool in enumerate(settings.pools):
        try:
            settled = replace(pool, num_gpus=_num_gpus(settings, pool, local))
            check_place(settled.request, local)
            pools.append(settled)
        except CapacityError as error:
            faults.append(Fault(settings.job.at(f"pools.{index}"), f"pools.{index}: {error}"))
    console.clear()
    if faults:
        raise ConfigError(faults)
    return replace(settings, pools=tuple(pools))


def _num_gpus(settings: Settings, pool: PoolSpec, local: bool) -> float:
    if pool.num_gpus is not None:
        return pool.num_gpus
    return 0.0 if settings.sampler.device == "cpu" else resolve_gpus(pool.request, local)
