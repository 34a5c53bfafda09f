"""The table of docs/faults.md, from the lines that campaigns wrote. What stands around it is written by hand."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- campaigns: written by python -m tests.campaign -->", "<!-- campaigns end -->"
CLAIMS = {
    "lost": "rows lost",
    "doubled": "rows doubled",
    "different": "pictures with other bytes than the undisturbed run's",
    "damaged": "findings of `verify --full` other than orphans",
    "unexplained": "objects that neither a manifest nor `verify` names",
    "tracebacks": "tracebacks of a driver",
    "hang": "hangs (a driver that is still there after four minutes)",
}


def read(path: Path) -> list[dict[str, Any]]:
    """The latest line of each seed and server, by seed."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    latest = {(line["server"], line["seed"]): line for line in lines}
    return [latest[key] for key in sorted(latest)]


def write_table(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replaces what stands between the two marks; the page must have them."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text("\n".join([before + BEGIN, "", *table(lines), "", END]) + after, "utf-8")


def table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was injected, what came out, and a row a seed."""
    faults, acts = (_summed(line[name] for line in lines) for name in ("faults", "acts"))
    rows, requests = (sum(line[name] for line in lines) for name in ("rows", "requests"))
    good = sum(bool(line["good"]) for line in lines)
    drivers = sum(len(line["exits"]) for line in lines)
    return [
        f"{len(lines)} campaigns, {good} of them good: {rows:,} rows, {drivers} drivers, {requests:,} requests.",
        "",
        "| injected | times |",
        "|---|---|",
        *(f"| storage: {name} | {count:,} |" for name, count in sorted(faults.items())),
        *(f"| {name} | {count:,} |" for name, count in sorted(acts.items())),
        "",
        "| came out | number |",
        "|---|---|",
        *(f"| {words} | {sum(int(line[name]) for line in lines)} |" for name, words in CLAIMS.items()),
        f"| orphans, all named by `verify` | {sum(line['orphans'] for line in lines):,} |",
        "",
        "| seed | server | rows | layout | exit codes | acts | storage faults | orphans | s | |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, lines),
    ]


def _row(line: Mapping[str, Any]) -> str:
    acts = ", ".join(name if count == 1 else f"{name} x{count}" for name, count in sorted(line["acts"].items()))
    exits = " ".join("hang" if code is None else str(code) for code in line["exits"])
    cells = (line["seed"], line["server"], line["rows"], line["layout"], exits, acts or "none")
    numbers = (sum(line["faults"].values()), line["orphans"], f"{line['seconds']:.0f}")
    return f"| {' | '.join(map(str, (*cells, *numbers)))} | {'good' if line['good'] else '**failed**'} |"


def _summed(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total
