"""Starts one render actor while the plan is still being made, so that its model is loaded when the first row is there.

Only on a Ray of this process's own, for a job of one pool whose plan starts no dataset: one would wait in silence for
the CPU that the actor holds.
"""

from contextlib import AbstractContextManager
from typing import Any

import pyarrow as pa
import ray

from pipelines.cluster.nodes import is_own_ray
from pipelines.cluster.pools import PoolSpec
from pipelines.render.pool import RenderConfig, start_worker, worker_config
from pipelines.run.drivers import EpochId
from pipelines.run.layout import RunFolder


class EarlyWorker(AbstractContextManager["EarlyWorker"]):
    """`with EarlyWorker() as early:` start it, plan, then `render(..., early=early)`; one that nobody took is ended."""

    def __init__(self) -> None:
        self._actor: Any = None
        self._spec: PoolSpec | None = None

    def start(self, config: RenderConfig, run: RunFolder, epoch: EpochId) -> None:
        """Needs a connected Ray. config: with a number of GPUs for each pool."""
        if is_own_ray() and len(config.pools) == 1:
            (self._spec,) = config.pools
            self._actor = start_worker(self._spec, worker_config(self._spec, config, run, epoch, pa.schema([])))
            self._actor.warm.remote()

    def take(self, spec: PoolSpec) -> Any:
        """The actor, once, if it is of that pool."""
        if spec != self._spec:
            return None
        actor, self._actor = self._actor, None
        return actor

    def __exit__(self, *_: object) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
