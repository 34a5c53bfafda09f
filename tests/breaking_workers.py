"""Workers whose device is lost after so many UNet calls on its node, and stays lost for each later process there."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from pipelines.render.worker import RenderWorker


class BreakingDevice(RenderWorker):
    """The real engine. The revision of the job's model: a folder; `<node>.doomed` in it holds the calls that are left.

    `<node>.lives` gets a line for each process that loads its engine there.
    """

    def _loaded(self) -> Any:
        folder, node = Path(str(self.job.model.revision)), ray.get_runtime_context().get_node_id()
        if self._sampler is None:
            with (folder / f"{node}.lives").open("a") as file:
                file.write(f"{os.getpid()}\n")
            lose_device(folder / f"{node}.doomed")
        return super()._loaded()


def lose_device(doomed: Path) -> None:
    """Every UNet call of this process counts; at 0 each raises, as CUDA does once a kernel has failed."""
    from diffusers import UNet2DConditionModel

    honest = UNet2DConditionModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with suppress(FileNotFoundError):
            left = int(doomed.read_text())
            if left <= 0:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            fewer = doomed.with_suffix(f".{os.getpid()}")
            fewer.write_text(str(left - 1))
            fewer.replace(doomed)  # whole: another process of the node may be reading it
        return honest(self, *args, **kwargs)

    UNet2DConditionModel.forward = forward
