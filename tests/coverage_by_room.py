"""What no test runs: lines and branches by room, and the largest blocks, from the data that `make coverage` left.

A block is a run of statements without one that ran between them. What a process did that was killed is not in the data.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COUNTS = ("covered_lines", "num_statements", "covered_branches", "num_branches")


@dataclass(frozen=True)
class Block:
    """Statements in a row that never ran. path: from the project's root."""

    path: str
    first: int
    last: int
    statements: int


def measured() -> dict[str, Any]:
    """Coverage's own report of each file."""
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)["files"]


def by_room(files: dict[str, Any]) -> dict[str, Counter[str]]:
    """Counts of lines and branches, summed by the first folder of a path."""
    rooms: dict[str, Counter[str]] = {}
    for path, found in files.items():
        room = rooms.setdefault(Path(path).parts[0], Counter())
        room.update({name: found["summary"][name] for name in COUNTS})
    return rooms


def blocks(path: str, found: dict[str, Any]) -> list[Block]:
    """The runs of missing lines between lines that ran."""
    ran = dict.fromkeys(found["executed_lines"], True) | dict.fromkeys(found["missing_lines"], False)
    made: list[list[int]] = [[]]
    for line in sorted(ran):
        if ran[line]:
            made.append([])
        else:
            made[-1].append(line)
    return [Block(path, lines[0], lines[-1], len(lines)) for lines in made if lines]


def table(rooms: dict[str, Counter[str]]) -> str:
    """Markdown, one line a room."""
    rows = ["| room | lines | of | branches | of |", "|---|---|---|---|---|"]
    for room, counts in sorted(rooms.items()):
        ran, lines, taken, branches = (counts[name] for name in COUNTS)
        shares = f"{100 * ran / lines:.1f} % | {lines:,} | {100 * taken / max(branches, 1):.1f} % | {branches:,}"
        rows.append(f"| `{room}/` | {shares} |")
    return "\n".join(rows)


def main() -> None:
    """Print the table and the largest blocks."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage_by_room", description=__doc__)
    parser.add_argument("--blocks", type=int, default=10)
    given, files = parser.parse_args(), measured()
    print(table(by_room(files)))
    every = [block for path, found in files.items() for block in blocks(path, found)]
    for block in sorted(every, key=lambda block: -block.statements)[: given.blocks]:
        print(f"{block.path}:{block.first}-{block.last}: {block.statements} statements")


if __name__ == "__main__":
    main()
