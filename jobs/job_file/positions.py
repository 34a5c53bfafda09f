"""Reads YAML and keeps the line and column of every key and value, or the `--set` that put it there.

`jobs.job_file.keys` says what the keys mean.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
MOST_NODES = 20_000  # a job file is a page; aliases of aliases can make a page into gigabytes


@dataclass(frozen=True)
class Fault:
    """One thing wrong. where: `file:line:column`, `--set a.b=value` or "" where no place is to blame."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ConfigError(ValueError):
    """Everything wrong with a job file, in the file's order."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


@dataclass
class PlacedYaml:
    """Plain data, and the place of each part. keys, values: path -> place of the key and of its value."""

    data: Any = field(default_factory=dict)
    keys: dict[Path, str] = field(default_factory=dict)
    values: dict[Path, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def where(self, path: Path, of_key: bool = False) -> str:
        """The place of a value, else of its key, else of the nearest enclosing part that was written."""
        for length in range(len(path), -1, -1):
            places = (self.keys, self.values) if of_key and length == len(path) else (self.values, self.keys)
            for place in places:
                if path[:length] in place:
                    return place[path[:length]]
        return ""

    def override(self, path: Path, value: Any, origin: str) -> None:
        """Put a value over what the file says. Raises LookupError where the path leads through no mapping or list."""
        target: Any = self.data
        for part in path[:-1]:
            target = _child(target, part)
        if isinstance(target, list):
            _put_item(target, path[-1], value)
        elif isinstance(target, dict):
            target[path[-1]] = value
        else:
            raise LookupError(f"{_dotted(path[:-1])} is no mapping")
        for places in (self.keys, self.values):
            for known in [known for known in places if known[: len(path)] == path]:
                del places[known]
        self.keys[path] = self.values[path] = origin


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is a number, 010 is not eight and 1:30 is not ninety."""


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in found if tag not in (_INT, _FLOAT)]
    for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


class _Reader:
    """Turns one document's nodes into plain data; notes places, duplicate keys and odd keys as faults."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = PlacedYaml()
        self.nodes = 0
        self.open: set[int] = set()

    def at(self, mark: yaml.Mark) -> str:
        return f"{self.name}:{mark.line + 1}:{mark.column + 1}"

    def fault(self, node: yaml.Node, message: str) -> None:
        self.source.faults.append(Fault(self.at(node.start_mark), message))

    def build(self, loader: _Loader, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise ConfigError([Fault(self.at(node.start_mark), "too many values; a job file is a page")])
        if id(node) in self.open:
            raise ConfigError([Fault(self.at(node.start_mark), "this alias leads back to itself")])
        self.source.values[path] = self.at(node.start_mark)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            self.fault(node, f"the tag {node.tag} means nothing here")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return dict(self.items(loader, node, path))
            if isinstance(node, yaml.SequenceNode):
                return [self.build(loader, item, (*path, index)) for index, item in enumerate(node.value)]
            return self.scalar(loader, node)
        finally:
            self.open.discard(id(node))

    def items(self, loader: _Loader, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        written = {id(key) for key, _ in node.value}
        loader.flatten_mapping(node)  # `<<: *defaults`
        seen: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = self.scalar(loader, key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self.fault(key_node, f"a key must be a word, got {key!r}")
                continue
            if key in seen and id(key_node) in written and id(seen[key]) in written:
                first = self.at(seen[key].start_mark)
                self.fault(key_node, f"{_dotted((*path, key))} is given twice; first at {first}")
            seen[key] = key_node
            self.source.keys[(*path, key)] = self.at(key_node.start_mark)
            yield key, self.build(loader, value_node, (*path, key))

    def scalar(self, loader: _Loader, node: yaml.Node) -> Any:
        try:
            return loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError, TypeError):
            # the last three: PyYAML's own, for a tag on text that it does not fit (`!!bool x`, `!!timestamp x`)
            self.fault(node, f"cannot be read as YAML: {node.value!r:.60}")
            return None


def parse(text: str, name: str) -> PlacedYaml:
    """A job file with its places. Raises ConfigError where the text is no YAML mapping; smaller faults are noted."""
    source = _document(text, name)
    if source.data is None:
        source.data = {}
    if not isinstance(source.data, dict):
        raise ConfigError([Fault(source.where(()), "a job file is a mapping of `key: value` lines")])
    return source


def parse_value(text: str) -> Any:
    """The value of a `--set`, read as YAML. Raises ConfigError."""
    source = _document(text, "value")
    if source.faults:
        raise ConfigError(source.faults)
    return source.data


def _document(text: str, name: str) -> PlacedYaml:
    reader = _Reader(name)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        reader.source.data = None if node is None else reader.build(loader, node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = reader.at(mark) if mark else name
        raise ConfigError([Fault(where, f"not YAML: {error.problem or error.context}")]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Fault(name, f"not YAML: {error}".splitlines()[0])]) from None
    except RecursionError:
        raise ConfigError([Fault(name, "nested too deep")]) from None
    return reader.source


def parse_path(dotted: str) -> Path:
    """`pools.0.actors` as ("pools", 0, "actors")."""
    return tuple(int(part) if part.isdecimal() else part for part in dotted.split("."))


def _child(target: Any, part: str | int) -> Any:
    if isinstance(target, list) and isinstance(part, int) and part < len(target):
        return target[part]
    if not isinstance(target, dict):
        raise LookupError(f"there is no {part!r} to set a value in")
    if target.get(part) is None:
        target[part] = {}
    return target[part]


def _put_item(target: list[Any], index: str | int, value: Any) -> None:
    if not isinstance(index, int) or index > len(target):
        raise LookupError(f"{index!r} is no index of a list of {len(target)}")
    target[index : index + 1] = [value]


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
