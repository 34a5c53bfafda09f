"""What all benchmarks share: the machine they ran on, turns A B A B, medians with their spread, and where results go.

Not a harness: a benchmark is a command with a table. It prints it, appends one JSON line to benchmarks/results/, and
with --write puts the table into its section of docs/performance.md.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
PACKAGES = ("torch", "diffusers", "transformers", "ray", "numpy", "pillow", "isal", "pyarrow")


def arguments(doc: str | None, repeats: int = 3) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns of each side; default {repeats}")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    return parser


def machine() -> dict[str, Any]:
    """Where and with what: cores and load, device, versions, commit, date."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "device": _cuda(),
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()


def _cuda() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def header(where: Mapping[str, Any]) -> str:
    """One line under a table."""
    packages = ", ".join(f"{name} {where[name]}" for name in PACKAGES if where.get(name))
    device = "no GPU" if where["device"] == "cpu" else where["device"]
    return (
        f"{where['date']}, commit {where['commit']}, {where['cores']} cores of {where['cpu']}, load {where['load']} at "
        f"the start, OMP_NUM_THREADS {where['threads']}, {device}; Python {where['python']}, {packages}."
    )


@dataclass
class Turns:
    """One side's turns: seconds of each, CPU seconds of this process in each, and what each gave."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def text(self) -> str:
        """Median and spread, in seconds."""
        return f"{self.median:.3g} ({min(self.seconds):.3g} to {max(self.seconds):.3g})"


def alternate(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Turns]:
    """A B A B ...: each side `repeats` times, so that what else the machine does meets them all."""
    turns = {name: Turns() for name in sides}
    for _ in range(repeats):
        for name, call in sides.items():
            started, cpu = time.perf_counter(), time.process_time()
            turns[name].values.append(call())
            turns[name].seconds.append(time.perf_counter() - started)
            turns[name].cpu_seconds.append(time.process_time() - cpu)
    return turns


def ratio(ours: Turns, theirs: Turns) -> float:
    """Median over the turns of ours / theirs, each with its neighbour in time."""
    return statistics.median(a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True))


def cpu_ratio(ours: Turns, theirs: Turns) -> float:
    """As `ratio`, of CPU seconds: on a busy machine it still holds, where both sides have as many threads."""
    return statistics.median(a / b for a, b in zip(ours.cpu_seconds, theirs.cpu_seconds, strict=True))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as GitHub reads it."""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def report(name: str, table: str, document: Mapping[str, Any], where: Mapping[str, Any], write: bool) -> None:
    """Prints the table with its machine, appends the JSON line, and refreshes the page where that is asked for."""
    print(f"{table}\n\n{header(where)}")
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({"benchmark": name, "machine": dict(where), **document}) + "\n")
    if write:
        PAGE.write_text(with_section(PAGE.read_text("utf-8"), name, f"{table}\n\n{header(where)}"), "utf-8")


def with_section(page: str, name: str, text: str) -> str:
    """The page with the text between `<!-- name -->` and `<!-- /name -->`. Raises ValueError where it has no such."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no section {start} ... {end}")
    return f"{before}{start}\n{text}\n{end}{after}"
