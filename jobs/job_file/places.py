"""Resolves the relative paths of a job file, below the working directory, and stores them as absolute ones.

So a run folder may be resumed or repaired from any directory: places are compared, not spellings.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.job_file.keys import JobConfig

ROOT = Path(__file__).resolve().parents[2]
KEYS = (
    "input.path",
    "output.path",
    "model.path",
    "steps.policy",
    "tries.scores",
    "train.table",
    "train.path",
    "evaluate.table",
)
OF_SCORERS, OF_SIGNING = ("path", "head"), ("certificate", "private_key")


def _may_be_hub(key: str) -> bool:
    """Whether it may be a name at the hub: no folder is called so."""
    return key == "model.path" or (key.startswith("quality.") and key.endswith(".path"))


def place(path: str | None, may_be_hub: bool = False) -> str | None:
    """A local path made absolute; URLs and names at the hub stay."""
    if path is None or "://" in path:
        return path
    found = os.path.abspath(os.path.expanduser(path))
    return path if may_be_hub and not os.path.exists(found) else found


def placed(config: "JobConfig") -> "JobConfig":
    """The same job, with absolute paths."""
    data = config.model_dump(mode="json")
    for key, path in _paths(data):
        section, _, name = key.rpartition(".")
        _at(data, section)[name] = path
    return type(config).model_validate(data)


def placed_fingerprint(found: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint with absolute paths; earlier versions stored paths as they were typed.

    What lies below this project is relative to it: each submission of a job has a copy of its own.
    """

    def spelt(path: str | None, key: str) -> str | None:
        at = place(path, _may_be_hub(key))
        return at.removeprefix(f"{ROOT}{os.sep}") if at else at

    flat = dict(found)
    flat |= {key: spelt(flat[key], key) for key in KEYS if key in flat}
    flat["quality"] = [
        scorer | {name: spelt(scorer.get(name), f"quality.{name}") for name in OF_SCORERS}
        for scorer in flat.get("quality", ())
    ]
    return flat


def elsewhere(config: "JobConfig", job_path: str) -> str | None:
    """Where relative paths lead from here; None where the job file is here, too, or no path is relative."""
    if os.path.realpath(os.path.dirname(job_path) or ".") == os.path.realpath("."):
        return None
    data = config.model_dump(mode="json")
    relative = [f"{key} is {path}" for key, path in _paths(data) if path != _at(data, key)]
    if not relative:
        return None
    where = f"looked for below {Path.cwd()}, where this was typed"
    return f"relative paths of {job_path} are {where}: {', '.join(relative)}"


def _paths(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, absolute path) of each local path of a job file."""
    scorers = [f"quality.{index}.{name}" for index in range(len(data["quality"])) for name in OF_SCORERS]
    signing = [f"provenance.c2pa.{name}" for name in OF_SIGNING] if data["provenance"]["c2pa"] else []
    for key in (*KEYS, *scorers, *signing):
        path = place(_at(data, key), _may_be_hub(key))
        if path is not None and "://" not in path:
            yield key, path


def _at(data: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        data = data[int(part) if part.isdecimal() else part]
    return data
