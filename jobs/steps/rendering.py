"""Renders planned rows into pictures and manifests, and reports the outcome."""

import json
from dataclasses import asdict
from typing import Any

from jobs.job_file.read import Job
from jobs.job_file.settings import Settings, refuse_changed
from jobs.pages.html import report_html
from jobs.pages.totals import Totals, totals, with_images
from jobs.steps.checking import too_many_failed
from jobs.steps.limited import within_limit
from jobs.steps.planning import prepare
from jobs.steps.sole_driver import Stop, followed, ready, sole_driver
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE, FAILED, TOO_MANY_FAILED
from jobs.terminal.progress import ProgressLine, duration, rate, saved_text
from pipelines.integrity.widen import widen_manifests
from pipelines.render.driver import RenderOrders, RenderResult, render
from pipelines.render.early_worker import EarlyWorker
from pipelines.run.drivers import taken_over_by
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan, read_plan
from pipelines.storage.folder import StorageError


def render_job(
    console: Console,
    settings: Settings,
    plan: Plan,
    stop: Stop,
    only: RenderOrders | None = None,
    early: EarlyWorker | None = None,
) -> int:
    """Render what is not done, or `only` so much; sum up, write summary.json and report.html; the exit code."""
    job, run, totalled = settings.job, settings.run, plan.totals()
    stop.interrupts.graceful = True
    largest = None if totalled["reference"] else totalled["largest"]  # mean steps say little where tries count
    epoch, on_progress = (
        stop.epoch.id,
        followed(ProgressLine(console, largest), stop.epoch),
    )
    if changed := widen_manifests(plan, epoch):
        console.say(f"{changed:,} manifests of earlier plans were given the columns of the newest one")
    result = render(plan, settings.render, on_progress, stop, only, epoch=epoch, early=early)
    console.clear()
    found = totals(plan)
    limited = only is not None and only.alone
    summary = summarize(job, totalled, result, found, limited)
    if result.interrupted and stop.epoch.lost.is_set():
        return superseded(console, summary, stop)
    write_report(console, run, summary, found)
    for damage in found.damaged:
        console.say(f"error: {damage}")
    if summary["status"] == "incomplete" and not found.damaged:
        console.say(f"error: {missing(run, summary)}")
    console.result(summary, summary_text(summary))
    if summary["status"] == "incomplete":
        return FAILED
    too_many = too_many_failed(job, found.status["failed"], found.rows)
    return stop.interrupts.exit_code or (TOO_MANY_FAILED if too_many else DONE)


def missing(run: RunFolder, summary: dict[str, Any]) -> str:
    """Says what is missing although rendering ended as if all were done: no cause is known, so it is reported."""
    left = f"{summary['planned'] - summary['rows']:,} of {summary['planned']:,} planned rows have not ended"
    remedy = f"`python -m jobs verify {run.url}` names them, the same command renders what is missing"
    return f"{left}, though nothing interrupted the run: {remedy}"


def superseded(console: Console, summary: dict[str, Any], stop: Stop) -> int:
    """Says that another driver has the run, its summary and its report; the exit code."""
    console.say(f"error: {taken_over_by(stop.epoch)}; what was in work here is committed")
    words = f"superseded: {summary['rows']:,} of {summary['planned']:,} rows are done"
    console.result(summary | {"status": "superseded"}, words)
    return FAILED


def summarize(
    job: Job, plan: dict[str, Any], result: RenderResult, found: Totals, limited: bool = False
) -> dict[str, Any]:
    """The document of `--json`: rows over all runs on the folder, seconds and rates of this one.

    limited: not all that is planned was to be rendered.
    """
    status = "too many failed" if too_many_failed(job, found.status["failed"], found.rows) else "done"
    if found.rows < plan["rows"] and not limited:
        status = "incomplete"
    if result.interrupted:
        status = "interrupted"
    this_run = {key: value for key, value in asdict(result).items() if key not in ("rows", "interrupted")}
    return {
        "run": job.config.output.path,
        "status": status,
        "rows": found.rows,
        "planned": plan["rows"],
        "limit": job.config.input.limit if limited else None,
        **{status: found.status[status] for status in ("ok", "failed", "filtered")},
        **{
            name: getattr(found, name)
            for name in ("truncated", "negative_truncated", "unscored", "mean_steps", "mean_tries")
        },
        "tries": found.made,
        "expected_tries": plan.get("tries"),
        "largest_budget": plan["largest"],
        "reference": plan.get("reference"),
        "lane_steps_a_row": found.lane_steps / found.status["ok"] if found.lane_steps else None,
        "rendered_now": result.rows,
        **this_run,
        "budget_histogram": {str(steps): found.budgets[steps] for steps in sorted(found.budgets)},
        "failures": [{key: row[key] for key in ("id", "error_type", "error_message")} for row in found.failures],
        "score_errors": [{key: row[key] for key in ("id", "score_error")} for row in found.score_errors],
    }


def write_report(console: Console, run: RunFolder, summary: dict[str, Any], found: Totals) -> None:
    """summary.json and report.html; both are written anew by every run, which ends as well where they cannot be."""
    summary_text = json.dumps(summary, indent=2, ensure_ascii=False)
    page = report_html(summary, with_images(run, found.pictures))
    for name, content in (("summary.json", summary_text), ("report.html", page)):
        try:
            run.write(name, content.encode("utf-8", "replace"))
        except StorageError as error:
            console.say(f"warning: {error}")


def summary_text(summary: dict[str, Any]) -> str:
    """The summary in words."""
    counts = [f"{summary['ok']:,} ok", f"{summary['failed']:,} failed"]
    counts += [f"{summary['filtered']:,} filtered"] if summary["filtered"] else []
    lines = [f"{summary['status']}: {summary['rows']:,} of {summary['planned']:,} rows: {', '.join(counts)}"]
    if summary.get("limit"):
        prompts = f"{summary['limit']:,} prompts" if summary["limit"] > 1 else "prompt"
        lines.append(f"only the first {prompts} were asked for; the same command without the limit renders the rest")
    if summary["mean_steps"]:
        lines.append(saved_text(summary))
    if summary["rendered_now"]:
        lines.append(this_run(summary))
    for name, what in (("truncated", "prompts"), ("negative_truncated", "negative prompts")):
        lines += [f"{summary[name]:,} {what} were longer than the text encoder reads"] if summary[name] else []
    if summary["unscored"]:
        lines.append(f"{summary['unscored']:,} rows were not scored by every scorer (column score_error):")
        lines += [f"  {row['id']}: {row['score_error']}" for row in summary["score_errors"]]
    lines += [f"  failed {row['id']}: {row['error_type']}: {row['error_message']}" for row in summary["failures"]]
    return "\n".join([*lines, f"{summary['run']}/report.html"])


def this_run(summary: dict[str, Any]) -> str:
    """What this call rendered, and how long it took to start and to render."""
    starting, rendering = summary["starting_seconds"], summary["seconds"] - summary["starting_seconds"]
    parts = [
        f"this run: {summary['rendered_now']:,} rows, {duration(starting)} to start and {duration(rendering)} to render"
    ]
    parts += [f"{rate(summary['images_per_second'])} images/s"] if summary["images_per_second"] else []
    parts += [f"lanes {100 * summary['lane_fill']:.1f} % full"] if summary["lane_fill"] else []
    return ", ".join(parts)


def render_planned(console: Console, job: Job, job_path: str, address: str | None, take_over: bool) -> int:
    """Render what is planned and not yet done; the exit code."""
    settings, _ = prepare(job)
    run = settings.run
    if not read_plan(run):
        raise job.fault("output.path", f"nothing is planned in {run.url}: python -m jobs plan {job_path}")
    with (
        sole_driver(console, job, run, take_over) as epoch,
        ready(console, settings, epoch, address) as (settings, stop),
    ):
        plan = read_plan(run)
        refuse_changed(job, plan, settings.plan.fingerprint)  # again: another driver may have planned before this epoch
        return render_job(console, settings, plan, stop, within_limit(settings, plan))
