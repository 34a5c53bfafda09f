"""Runs on each Ray Train worker: takes its rows, steps with the others, writes the journal.

Shapes: P prompts, K recipes, S seeds.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed
from ray.train.torch import get_device, prepare_model
from torch import Tensor

from pipelines.storage.folder import Folder
from training.learn.batches import Batch, TrainingRows, num_slots, own_slots, rows_at
from training.learn.journal import Journal, last_checkpoint
from training.learn.learner import Learner
from training.learn.stages import Stage


@dataclass(frozen=True)
class LoopConfig:
    """The settings of each worker's loops: the stages, in their order. num_choices, hidden_size: of the rows."""

    folder: Folder
    stages: tuple[Stage, ...]
    num_choices: int
    hidden_size: int
    num_rows: int
    reports: int

    def num_steps(self, stage: Stage, slots: int) -> int:
        """Steps of a whole stage."""
        return stage.learning.num_steps(self.num_rows, slots)

    def state(self, stage: Stage) -> dict[str, Any] | None:
        """The last checkpoint of a stage."""
        return last_checkpoint(self.folder, stage.place)

    def is_done(self, stage: Stage) -> bool:
        """Whether it has made its last step."""
        state = self.state(stage)
        return state is not None and state["learner"]["step"] >= self.num_steps(stage, state["num_slots"])

    def rows(self, records: Iterable[dict[str, Any]], wanted: Any = lambda row: True) -> TrainingRows:
        """Records of the dataset as training rows, those whose number is wanted."""
        embeds, quality = {}, {}
        for record in records:
            row = int(record["row"])
            if wanted(row):
                quality[row] = np.frombuffer(record["quality"], np.float32).reshape(self.num_choices, -1)
                embeds[row] = np.frombuffer(record["embeds"], np.float16).reshape(-1, self.hidden_size)
        return TrainingRows(embeds, quality)


def work(config: dict[str, Any]) -> None:
    """The train function of `TorchTrainer`: each stage from its last checkpoint, or the beginning, to its last step."""
    loop: LoopConfig = config["loop"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    slots = num_slots(loop.stages[0].learning.batch_size, loop.num_rows, workers)  # the same in every stage
    mine = own_slots(slots, rank, workers)
    rows = loop.rows(_records("learned"), lambda row: row % slots in mine)
    held_out = loop.rows(_records("held_out")).chunks() if rank == 0 else None
    for stage in loop.stages:
        if not loop.is_done(stage):
            _learn(loop, stage, rows, held_out, slots, mine)


def _learn(
    loop: LoopConfig, stage: Stage, rows: TrainingRows, held_out: list[Batch] | None, slots: int, mine: range
) -> None:
    """One stage, to its last step; held_out: the first worker's, which measures."""
    learner, state = _learner(loop, stage, slots), loop.state(stage)
    if state:
        learner.load_state(state["learner"])
    scribe = None if held_out is None else _CheckpointWriter(loop, stage, held_out, slots, state)
    if scribe and not state:
        scribe.measure(learner)
    every, sums, count = max(1, learner.num_steps // loop.reports), dict[str, Tensor](), 0
    while learner.step < learner.num_steps:
        picked = rows_at(learner.step, mine, slots, loop.num_rows, stage.learning.seed)
        watched = learner.learn(rows.batch(picked, get_device()))
        sums = {name: value + sums.get(name, 0) for name, value in watched.items()}
        count += 1
        if learner.step % every == 0 or learner.step == learner.num_steps:
            record = {name: float(over_workers(value / count)) for name, value in sums.items()}
            ray.train.report(scribe.write(learner, record) if scribe else {})
            sums, count = {}, 0


def _learner(loop: LoopConfig, stage: Stage, slots: int) -> Learner:
    """The learner, the same on every worker; its forward averages gradients over them."""
    network = stage.network().to(get_device())
    wrapped = prepare_model(network)
    return Learner(network, stage.learning, stage.loss(over_workers), loop.num_steps(stage, slots), wrapped)


def over_workers(value: Tensor) -> Tensor:
    """The mean of a tensor over all workers, on each of them; alone it is the tensor."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class _CheckpointWriter:
    """The first worker's second task: measure on held-out rows, keep the best weights, write the journal."""

    def __init__(
        self, loop: LoopConfig, stage: Stage, held_out: list[Batch], slots: int, state: dict[str, Any] | None
    ) -> None:
        self.stage, self.held_out, self.slots = stage, held_out, slots
        self.best: dict[str, Any] = state["best"] if state else {"val_gain": -np.inf}
        self.journal = Journal(loop.folder, state["learner"]["step"] if state else 0, stage.place)

    def measure(self, learner: Learner) -> dict[str, float]:
        """What held-out rows say of the weights, which are kept where they are the best so far.

        Asked before the first step, too: where prompts tell nothing, what a stage begins with stays.
        """
        found = self.stage.measure(learner.policy, self.held_out)
        if found["val_gain"] > self.best["val_gain"]:
            weights = {name: tensor.detach().cpu() for name, tensor in learner.policy.state_dict().items()}
            self.best = {"val_gain": found["val_gain"], "step": learner.step, "policy": copy.deepcopy(weights)}
        return found

    def write(self, learner: Learner, record: dict[str, float]) -> dict[str, float]:
        """The record with what held-out rows say; it is in the folder when this returns."""
        record = {"step": learner.step, "progress": learner.progress, "rate": learner.rate()} | record
        record |= self.measure(learner)
        self.journal.add(record, {"learner": learner.state(), "best": self.best, "num_slots": self.slots})
        return record


def _records(name: str) -> Iterable[dict[str, Any]]:
    return ray.train.get_dataset_shard(name).iter_rows()
