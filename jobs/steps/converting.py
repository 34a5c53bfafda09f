"""Converts a checkpoint of one file, and says what it is."""

import shlex

from actors.single_file import convert, inspect_single_file
from actors.weights import CheckpointError
from jobs.job_file.positions import ConfigError, Fault
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE


def convert_file(console: Console, file: str, folder: str, kind: str | None, config: str | None) -> int:
    """Writes the folder; the exit code."""
    if "://" in file or "://" in folder:
        raise ConfigError([Fault(file, "convert reads and writes this machine's disk: copy the file here, first")])
    try:
        found = inspect_single_file(file, kind)
        console.draw(f"converting {file}")
        info = convert(found, folder, config)
    except CheckpointError as error:
        raise ConfigError([Fault("", str(error))]) from error
    document = {"status": "done", "path": folder, "kind": found.kind, "width": info.width, "height": info.height}
    made = f"{folder}: {found.kind}, {info.width} x {info.height} px, {info.prediction_type}, weights {found.dtype}"
    next_one = f"next: python -m jobs init job.yaml --model {shlex.quote(folder)}"
    console.result(document | {"prediction_type": info.prediction_type, "dtype": found.dtype}, f"{made}\n{next_one}")
    return DONE
