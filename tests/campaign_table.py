"""The table of docs/faults.md, from the lines that campaigns wrote. What stands around it is written by hand."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.campaign_kinds import CONTROLS, KINDS, OLD

BEGIN, END = "<!-- campaigns: written by python -m tests.campaign -->", "<!-- campaigns end -->"
CLAIMS = {
    "lost": "rows lost",
    "doubled": "rows doubled",
    "different": "pictures with other bytes than the undisturbed run's",
    "damaged": "findings of `verify --full` other than orphans",
    "unexplained": "objects that neither a manifest nor `verify` names",
    "tracebacks": "tracebacks of a driver",
    "hang": "hangs (a driver that is still there after eight minutes)",
}


def read(path: Path) -> list[dict[str, Any]]:
    """The latest line of each kind, server and seed, in this order; a line that names no kind is of one pool."""
    if not path.exists():
        return []
    lines = [{"kind": OLD} | json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    order = [*KINDS, *CONTROLS]
    latest = {(order.index(line["kind"]), line["server"], line["seed"]): line for line in lines}
    return [latest[key] for key in sorted(latest)]


def write_table(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replaces what stands between the two marks; the page must have them."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text("\n".join([before + BEGIN, "", *table(lines), "", END]) + after, "utf-8")


def table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What varied, what was injected, what came out, and a row a seed."""
    faults, acts = (_summed(line[name] for line in lines) for name in ("faults", "acts"))
    return [
        f"{len(lines)} campaigns, {_good(lines)} of them good: {_sizes(lines)}.",
        "",
        "| kind | what varies | campaigns | good | |",
        "|---|---|---|---|---|",
        *(_kind(name, [line for line in lines if line["kind"] == name]) for name in KINDS),
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
        "| kind | seed | server | rows | layout | exit codes | acts | storage faults | orphans | s | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, lines),
    ]


def _kind(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    return f"| {name} | {KINDS[name].about} | {len(lines)} | {_good(lines)} | {_sizes(lines)} |"


def _good(lines: Sequence[Mapping[str, Any]]) -> int:
    return sum(bool(line["good"]) for line in lines)


def _sizes(lines: Sequence[Mapping[str, Any]]) -> str:
    rows, requests = (sum(line[name] for line in lines) for name in ("rows", "requests"))
    return f"{rows:,} rows, {sum(len(line['exits']) for line in lines)} drivers, {requests:,} requests"


def _row(line: Mapping[str, Any]) -> str:
    acts = ", ".join(name if count == 1 else f"{name} x{count}" for name, count in sorted(line["acts"].items()))
    exits = " ".join("hang" if code is None else str(code) for code in line["exits"])
    cells = (line["kind"], line["seed"], line["server"], line["rows"], line["layout"], exits, acts or "none")
    numbers = (sum(line["faults"].values()), line["orphans"], f"{line['seconds']:.0f}")
    return f"| {' | '.join(map(str, (*cells, *numbers)))} | {'good' if line['good'] else '**failed**'} |"


def _summed(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total
