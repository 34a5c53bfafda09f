"""Turns a job file and its `--set` values into a JobConfig, or reports every fault at once, with its place and a guess.

It looks at the file alone: `jobs.validate` checks that the model, the input and the output exist.
"""

import difflib
import logging
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jobs.job_file.contradictions import contradictions
from jobs.job_file.keys import DEFAULT_POOL, JobConfig, RecipeKeys, is_secret, leaf_kinds
from jobs.job_file.places import elsewhere
from jobs.job_file.positions import ConfigError, Fault, Path, PlacedYaml, parse, parse_path, parse_value

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
LEARNING = ("train", "evaluate")  # sections whose keys nobody means in another one
_OTHER_NAMES = {"fp32": "float32", "full": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
RECIPES = ("steps.choices", "steps.fixed")  # leaves whose values have keys
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:g} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "one like {pattern}",
}


@dataclass(frozen=True)
class Job:
    """A valid job file, and the places of its parts, for faults that show only later."""

    config: JobConfig
    source: PlacedYaml
    rollout: bool = False  # every row at every budget of the menu, whatever the selector

    def at(self, dotted: str) -> str:
        """The place of a key, or of the nearest enclosing one; "" where all is default."""
        return self.source.where(parse_path(dotted))

    def fault(self, dotted: str, message: str) -> ConfigError:
        """The error that blames this key."""
        return ConfigError([Fault(self.at(dotted), message)])

    def changed(self, **sections: Any) -> "Job":
        """The same job with other sections."""
        return replace(self, config=self.config.model_copy(update=sections))


def load_job(path: str, sets: Sequence[str] = (), limit: int | None = None) -> Job:
    """Read a job file; each of `sets` is `a.b=value` and wins over it. Raises ConfigError with all faults."""
    job = read_job(_text(path), path, sets, limit)
    if note := elsewhere(job.config, path):
        log.warning("%s", note)
    return job


def read_job(text: str, name: str, sets: Sequence[str] = (), limit: int | None = None) -> Job:
    """The same from a text; `name` stands for the file in errors and gives the default run folder its name."""
    source = parse(text, name)
    for assignment in sets:
        _apply(source, assignment)
    if limit is not None:
        source.override(("input", "limit"), limit, f"--limit {limit}")
    config = _validated(source)
    if config.output.path is None:
        output = config.output.model_copy(update={"path": f"runs/{FilePath(name).stem}"})
        config = config.model_copy(update={"output": output})
    return Job(config, source)


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError([Fault(path, "larger than 1 MiB: this is no job file")])
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([Fault(path, f"no such file; `python -m jobs init {path}` writes one")]) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError([Fault(path, f"cannot be read: {reason}")]) from None


def _apply(source: PlacedYaml, assignment: str) -> None:
    name, equals, text = assignment.partition("=")
    path = parse_path(name.strip())
    origin = f"--set {name}=..." if _is_secret(path) or "@" in text else f"--set {assignment}"
    try:
        if not equals or not name.strip():
            raise LookupError("write it as section.key=value")
        if path[0] == "pools" and len(path) > 1 and not source.data.get("pools"):
            source.data["pools"] = [{"name": DEFAULT_POOL}]
        source.override(path, parse_value(text), origin)
    except (LookupError, ConfigError) as error:
        source.faults.append(Fault(origin, str(error.args[0]).removeprefix("value:1:")))


def _validated(source: PlacedYaml) -> JobConfig:
    try:
        config = JobConfig.model_validate(source.data)
        broken: dict[Path, list[ErrorDetails]] = {}
    except ValidationError as error:
        broken = _by_path(error.errors(), source.data)
        config = _salvaged(source.data, broken)
    faults = [*source.faults, *(_fault(source, path, errors) for path, errors in broken.items())]
    for paths, message in contradictions(config):
        if not any(_touches(path, fault) for path in paths for fault in broken):
            faults.append(Fault(source.where(paths[0]), message))
    if faults:
        raise ConfigError(sorted(faults, key=_position))
    return config


def _by_path(errors: Iterable[ErrorDetails], data: Any) -> dict[Path, list[ErrorDetails]]:
    """Errors by the part of the data they blame; of a union's branches only those that got furthest in."""
    found: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        found.setdefault(_data_path(error, data), []).append(error)
    inner = {path[:length] for path in found for length in range(len(path))}
    return {path: errors for path, errors in found.items() if path not in inner or not all(map(_is_branch, errors))}


def _data_path(error: ErrorDetails, data: Any) -> Path:
    """pydantic's location without the names of union branches: those are in no data."""
    path: Path = ()
    for index, part in enumerate(error["loc"]):
        last = index == len(error["loc"]) - 1
        if isinstance(data, dict) and (part in data or (last and error["type"] == "missing")):
            data, path = data.get(part), (*path, part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data, path = data[part], (*path, part)
    return path


def _is_branch(error: ErrorDetails) -> bool:
    return error["type"].endswith("_type") or error["type"] == "literal_error"


def _salvaged(data: Any, broken: Iterable[Path]) -> JobConfig:
    """The config with every broken part at its default, so that contradictions between the others show too."""
    data = deepcopy(data)
    for path in sorted(broken, key=len, reverse=True):
        _forget(data, path)
    try:
        return JobConfig.model_validate(data)
    except ValidationError:
        return JobConfig.model_validate({"input": {"path": "?"}})


def _forget(data: Any, path: Path) -> None:
    """Drop a broken part with the nearest key around it; what is required gets a stand-in."""
    parents: list[Any] = [data]
    for part in path[:-1]:
        child = parents[-1].get(part) if isinstance(parents[-1], dict) else parents[-1][part]
        if not isinstance(child, dict | list):
            break
        parents.append(child)
    depth = max(index for index, parent in enumerate(parents) if isinstance(parent, dict))
    parents[depth].pop(path[depth], None)
    if path in (("input",), ("input", "path")):
        data["input"] = (data.get("input") or {}) | {"path": "?"}
    elif path[0] == "pools" and path[-1] == "name" and depth == len(path) - 1:
        parents[depth][path[-1]] = f"pool {path[1]}"


def _touches(one: Path, other: Path) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _position(fault: Fault) -> tuple[int, int, int]:
    parts = fault.where.rsplit(":", 2)
    if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal() and not fault.where.startswith("--"):
        return (0, int(parts[1]), int(parts[2]))
    return (1, 0, 0)


def _fault(source: PlacedYaml, path: Path, errors: list[ErrorDetails]) -> Fault:
    name = ".".join(map(str, path))
    kind = errors[0]["type"]
    if kind == "extra_forbidden":
        return Fault(source.where(path, of_key=True), _unknown(path))
    if kind == "missing":
        return Fault(source.where(path[:-1]), f"{name} is missing")
    got = errors[0]["input"]
    if kind == "value_error":
        return Fault(source.where(path), f"{name} {errors[0]['ctx']['error']}")
    bounds = [error for error in errors if not error["type"].endswith("_type")]
    expected = " or ".join(dict.fromkeys(_expected(error) for error in bounds or errors))
    return Fault(source.where(path), f"{name} must be {expected}, got {_shown(got)}{_meant(got, errors)}")


def _expected(error: ErrorDetails) -> str:
    return _EXPECTED.get(error["type"], error["msg"]).format(**error.get("ctx", {}))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else f"{value!r:.80}"


def _meant(got: Any, errors: list[ErrorDetails]) -> str:
    words = [word for error in errors for word in re.findall(r"'(\w+)'", error.get("ctx", {}).get("expected", ""))]
    if not isinstance(got, str):
        return ""
    other_name = _OTHER_NAMES.get(got.lower().removeprefix("torch."))
    close = [other_name] if other_name in words else difflib.get_close_matches(got.lower(), words, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _unknown(path: Path) -> str:
    name, parents = str(path[-1]), tuple(part for part in path[:-1] if not isinstance(part, int))
    if _is_secret(path):
        return (
            f"{'.'.join(map(str, path))}: credentials are never in a job file; they come from the usual chain "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, or the machine's role)"
        )
    message = f"unknown key {'.'.join(map(str, path))}"
    return message + (f"; did you mean {guess}?" if (guess := _guess(name, ".".join(map(str, parents)))) else "")


def _guess(name: str, section: str) -> str:
    """The known key that was meant: of the same name elsewhere, of a like name here, of a like name elsewhere."""
    prefix = f"{section}." if section else ""
    leaves = [key for key in leaf_kinds() if section in LEARNING or key.partition(".")[0] not in LEARNING]
    own = [prefix + name for name in RecipeKeys.model_fields] if section in RECIPES else []
    known = {dotted: dotted.rpartition(".")[2] for dotted in [*own, *leaves, *_sections(leaves)]}
    here = {last: dotted for dotted, last in known.items() if dotted == prefix + last}
    everywhere = {last: dotted for dotted, last in reversed(known.items())}
    if name in everywhere:
        return everywhere[name]
    for names in (here, everywhere):
        if close := difflib.get_close_matches(name.lower(), names, 1, 0.7):
            return names[close[0]]
    return ""


def _sections(leaves: list[str]) -> list[str]:
    return list(dict.fromkeys(dotted.rpartition(".")[0] for dotted in leaves if "." in dotted))


def _is_secret(path: Path) -> bool:
    return path[:1] != ("input", "columns") and is_secret(str(path[-1]))
