"""Runs on each Ray Train worker: takes its rows, steps with the others, writes the journal.

Shapes: P prompts, K budgets, S seeds.
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

from actors.policy import Network
from actors.recipe import Recipe
from pipelines.storage.folder import Folder
from training.learn.batches import TrainingRows, num_slots, own_slots, rows_at
from training.learn.hyperparameters import Hyperparameters
from training.learn.journal import Journal, last_checkpoint
from training.learn.learner import Learner, Units, new_policy, start_of, validate


@dataclass(frozen=True)
class LoopConfig:
    """The settings of each worker's loop."""

    folder: Folder
    network: Network
    learning: Hyperparameters
    units: Units
    choices: tuple[Recipe, ...]
    costs: np.ndarray  # (K,)
    num_rows: int
    reports: int

    def num_steps(self, slots: int) -> int:
        """Steps of the whole training."""
        return self.learning.num_steps(self.num_rows, slots)


def work(config: dict[str, Any]) -> None:
    """The train function of `TorchTrainer`: from the last checkpoint, or the beginning, to the last step."""
    loop: LoopConfig = config["loop"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    slots = num_slots(loop.learning.batch_size, loop.num_rows, workers)
    mine = own_slots(slots, rank, workers)
    rows = rows_of(_records("learned"), loop.network, lambda row: row % slots in mine)
    learner = _learner(loop, slots)
    state = last_checkpoint(loop.folder)
    if state:
        learner.load_state(state["learner"])
    scribe = _CheckpointWriter(loop, slots, state) if rank == 0 else None
    if scribe and not state:
        scribe.measure(learner)
    every, sums, count = max(1, learner.num_steps // loop.reports), dict[str, Tensor](), 0
    while learner.step < learner.num_steps:
        picked = rows_at(learner.step, mine, slots, loop.num_rows, loop.learning.seed)
        watched = learner.learn(rows.batch(picked, get_device()))
        sums = {name: value + sums.get(name, 0) for name, value in watched.items()}
        count += 1
        if learner.step % every == 0 or learner.step == learner.num_steps:
            record = {name: float(over_workers(value / count)) for name, value in sums.items()}
            ray.train.report(scribe.write(learner, record) if scribe else {})
            sums, count = {}, 0


def _learner(loop: LoopConfig, slots: int) -> Learner:
    """The learner, the same on every worker; its forward averages gradients over them."""
    policy = new_policy(loop.network, loop.learning.seed, start_of(loop.learning, loop.units)).to(get_device())
    wrapped = prepare_model(policy)
    return Learner(
        policy, loop.learning, loop.units, loop.choices, loop.costs, loop.num_steps(slots), wrapped, over_workers
    )


def over_workers(value: Tensor) -> Tensor:
    """The mean of a tensor over all workers, on each of them; alone it is the tensor."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class _CheckpointWriter:
    """The first worker's second task: measure on held-out rows, keep the best weights, write the journal."""

    def __init__(self, loop: LoopConfig, slots: int, state: dict[str, Any] | None) -> None:
        self.loop, self.slots = loop, slots
        self.held_out = rows_of(_records("held_out"), loop.network).chunks()
        self.best: dict[str, Any] = state["best"] if state else {"val_gain": -np.inf}
        self.journal = Journal(loop.folder, state["learner"]["step"] if state else 0)

    def measure(self, learner: Learner) -> dict[str, float]:
        """What held-out rows say of the weights, which are kept where they are the best so far.

        Asked before the first step, too: where prompts tell nothing, the best fixed budget of each price stays.
        """
        policy = learner.units.finished(learner.policy)
        found = validate(policy, self.held_out, self.loop.costs, self.loop.learning, self.loop.units.rise)
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


def rows_of(records: Iterable[dict[str, Any]], network: Network, wanted: Any = lambda row: True) -> TrainingRows:
    """Records of the dataset as training rows, those whose number is wanted."""
    embeds, quality = {}, {}
    for record in records:
        row = int(record["row"])
        if wanted(row):
            quality[row] = np.frombuffer(record["quality"], np.float32).reshape(network.num_choices, -1)
            embeds[row] = np.frombuffer(record["embeds"], np.float16).reshape(-1, network.hidden_size)
    return TrainingRows(embeds, quality)
