"""Says in four lines what an input is: its prompts, the columns that are used, those that are carried, what is new."""

from typing import Any

from pipelines.plan.earlier import EarlierRows
from pipelines.prompts.inspection import Inspection
from pipelines.render.open_shard import rendered_rows
from pipelines.run.plan import Plan


def input_figures(inspection: Inspection, earlier: EarlierRows | None, plan: Plan | None) -> dict[str, Any]:
    """What the lines say, in numbers and names. Rows are images to make; planned, done: of the run folder so far."""
    samples, changes = inspection.source.images_per_prompt, earlier.changes if earlier else None
    return {
        "files": len(inspection.files),
        "rows": inspection.num_planned,
        "prompts": inspection.rows,
        "bad_rows": inspection.bad_rows,
        "bad_samples": list(inspection.bad_samples),
        "used": list(inspection.used.values()),
        "meanings": dict(inspection.used),
        "carried": inspection.carried_schema.names,
        "renamed": {each.theirs: each.ours for each in inspection.carried if each.theirs != each.ours},
        "nearly": dict(inspection.nearly),
        "new": inspection.num_planned - (changes.seen if changes else 0),
        "planned": len(earlier.known) if earlier else 0,
        "done": _num_done(plan) if plan else 0,
        "changed": changes.changed if changes else 0,
        "bad": inspection.bad_rows * samples,
    }


def _num_done(plan: Plan) -> int:
    """Rows that have ended."""
    done = plan.run.done_shards()
    rows = sum(entry["rows"] for _, entry in plan.shards("shard", "rows") if entry["shard"] in done)
    return rows + sum(len(rendered_rows(plan.run, shard)) for shard in plan.run.partly_done())


def input_lines(path: str, found: dict[str, Any]) -> list[str]:
    """The four lines."""
    files = f"{found['files']:,} files of " if found["files"] > 1 else ""
    before = f"; planned before: {found['planned']:,}, done: {found['done']:,}" if found["planned"] else ", 0 done"
    return [
        f"input: {_counted(found['prompts'], 'prompt')} in {files}{path}, {_counted(found['rows'], 'image')}",
        f"columns used: {', '.join(_used(*pair) for pair in found['meanings'].items())}",
        f"columns carried along: {', '.join(_carried(found)) or 'none'}",
        f"rows: {found['new']:,} new, {found['changed']:,} changed, {found['bad']:,} bad{before}",
    ]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _used(theirs: str, ours: str) -> str:
    return ours if theirs == ours else f"{ours} (from {theirs})"


def _carried(found: dict[str, Any]) -> list[str]:
    """The carried columns, each with its other name, and with what it may be meant for."""
    theirs = {ours: name for name, ours in found["renamed"].items()}
    said = []
    for ours in found["carried"]:
        name = theirs.get(ours, ours)
        as_other = f" (as {ours})" if name != ours else ""
        meant = f" (is it the {found['nearly'][name]}?)" if name in found["nearly"] else ""
        said.append(f"{name}{as_other}{meant}")
    return said
