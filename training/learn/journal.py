"""Writes a training's journal into its folder: its checkpoint, metrics.jsonl, and files for TensorBoard.

Written by one worker with whole PUTs, so that any store will do and a kill leaves the old file or the new one.
"""

import io
import json
import secrets
import tempfile
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter

from pipelines.storage.folder import Folder

TRAINING = "training"  # where a folder keeps its training's journal
CHECKPOINT, METRICS, SCALARS = "checkpoint.pt", "metrics.jsonl", "tensorboard"


class Journal:
    """The folder's history up to a step; what a killed worker wrote beyond it is dropped and comes again."""

    def __init__(self, folder: Folder, step: int, place: str = TRAINING) -> None:
        self.folder, self.place = folder, place
        self.records = [record for record in read_metrics(folder, place) if record["step"] <= step]
        self.scalars = Path(tempfile.mkdtemp(prefix="scalars-"))
        self.writer = SummaryWriter(
            str(self.scalars), purge_step=step + 1 if step else None, filename_suffix=f".{secrets.token_hex(4)}"
        )

    def add(self, record: dict[str, float], checkpoint: dict[str, Any]) -> None:
        """Metrics first, the checkpoint last: a training resumes from what its metrics have reached."""
        self.records.append(record)
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(record["step"]))
        self.writer.flush()
        self.folder.write(f"{self.place}/{METRICS}", "".join(json.dumps(each) + "\n" for each in self.records).encode())
        for file in self.scalars.iterdir():
            self.folder.write(f"{self.place}/{SCALARS}/{file.name}", file.read_bytes())
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        self.folder.write(f"{self.place}/{CHECKPOINT}", buffer.getvalue())


def read_metrics(folder: Folder, place: str = TRAINING) -> list[dict[str, float]]:
    """The records of metrics.jsonl so far; [] where there is none."""
    try:
        return [json.loads(line) for line in folder.read(f"{place}/{METRICS}").decode().splitlines()]
    except FileNotFoundError:
        return []


def last_checkpoint(folder: Folder, place: str = TRAINING) -> dict[str, Any] | None:
    """The last checkpoint, tensors on the CPU; None where there is none. Tensors and plain values only, no code."""
    try:
        data = folder.read(f"{place}/{CHECKPOINT}")
    except FileNotFoundError:
        return None
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
