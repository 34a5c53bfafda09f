"""Starts one render actor before there is a plan, so that its model is loaded when the first row is there.

A policy is asked in the same process, since most of its start is the import of torch.

Only on a Ray of this process's own, for a job of one pool whose plan starts no dataset: one would wait in silence for
the CPU that the actor holds.
"""

from collections.abc import Callable
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

    @property
    def call(self) -> Callable[..., Any] | None:
        """Runs a function in its process; None where there is none."""
        actor = self._actor
        return None if actor is None else lambda *given: ray.get(actor.call.remote(*given))

    def load(self) -> None:
        """Begins to load the model; after what is called, since imports of two threads stand in each other's way."""
        if self._actor is not None:
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
