"""Plans: chooses every row's steps, cuts shards, and says in words what is planned."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from actors.recipe import named
from jobs.job_file.places import placed
from jobs.job_file.policy import check_policy
from jobs.job_file.provenance import as_planned, check_provenance
from jobs.job_file.read import Job
from jobs.job_file.scorers import check_scorers
from jobs.job_file.settings import Settings, refuse_changed, resolve
from jobs.job_file.tries import bar_of
from jobs.steps.check_nodes import check_nodes
from jobs.steps.checking import OpenInput, check_output, open_input, read_earlier, read_input
from jobs.steps.input_lines import input_figures, input_lines
from jobs.steps.sole_driver import sole_driver
from jobs.terminal.connect_ray import start_ray
from jobs.terminal.console import Console
from jobs.terminal.interrupts import Interrupts, this_command
from jobs.terminal.progress import duration, saved_text
from pipelines.plan.earlier import EarlierRows
from pipelines.plan.make import is_small, make_plan
from pipelines.prompts.inspection import Inspection
from pipelines.render.early_worker import EarlyWorker
from pipelines.run.drivers import EpochId
from pipelines.run.plan import Plan, read_plan

BAR = 32  # characters of the longest bar


def prepare(job: Job) -> tuple[Settings, list[str]]:
    """Checks everything that can be refused without Ray: run folder, model, scorers, what must not change, the policy.

    -> the settings, and warnings of what the policy was not calibrated with.
    """
    run = check_output(job)
    plan = read_plan(run)
    settings = resolve(job := as_planned(job, plan))
    check_scorers(job)
    check_provenance(job)
    refuse_changed(job, plan, settings.plan.fingerprint)
    warnings = check_policy(job, settings.checkpoint)
    return replace(settings, bar=bar_of(job, plan)), warnings


def make(
    console: Console,
    settings: Settings,
    warnings: list[str],
    epoch: EpochId,
    opened: OpenInput,
    early: EarlyWorker | None = None,
) -> Plan:
    """Write the resolved job file and one new generation of the plan, where there is something new; -> all of it.

    early: started once nothing can be refused any more, where there are rows for it and no dataset is in its way.
    Raises SupersededError, and commits nothing, where another driver took over meanwhile.
    """
    job, plan = settings.job, read_plan(settings.run)
    refuse_changed(job, plan, settings.plan.fingerprint)  # again: another driver may have planned before this epoch
    settings = replace(settings, bar=bar_of(job, plan)) if plan else settings
    console.draw(f"reading {job.config.input.path}")
    inspection = opened.inspection or read_input(job, settings.source, opened.files)
    earlier = read_earlier(job, plan, inspection)
    if early and is_early(job, inspection, earlier):
        early.start(settings.render, settings.run, epoch)
    settings.run.write_job(placed(job.config).dump())
    console.say("\n".join(input_lines(job.config.input.path, input_figures(inspection, earlier, plan))))
    for note in warnings:
        console.say(note)
    config = replace(settings.plan, keep_changed=True)  # else it was refused above
    console.draw("choosing the steps of every row")

    def on_progress(done: int, rows: int) -> None:
        console.draw(f"planned {done:,}/{rows:,} rows")

    summary = make_plan(plan, config, on_progress, inspection, earlier, epoch, early.call if early else None)
    if early:
        early.load()
    console.clear()
    for note in summary.notes:
        console.say(note)
    return summary.plan


def is_early(job: Job, inspection: Inspection, earlier: EarlierRows) -> bool:
    """Whether a render actor may start before the plan: rows are new, and it stands in nobody's way."""
    has_new = inspection.num_planned > len(earlier.known)
    return has_new and is_small(inspection) and not job.config.steps.num_gpus


def estimated(settings: Settings, plan: Plan) -> dict[str, Any]:
    """The plan's totals, and what one actor would take for it on each device that was calibrated."""
    found = plan.totals()
    rows = sum(found["budget_histogram"].values())
    expected = estimates(settings.calibrations, rows, found["lane_steps"], found["expected_tries"])
    found["lane_steps_a_row"] = _a_row(found, rows)
    return found | {"max_tries": settings.job.config.tries.max, "bar": _bar(plan), "estimates": expected}


def _a_row(found: Mapping[str, Any], rows: int) -> float | None:
    """Lane-steps of a good row, its expected tries included."""
    return found["lane_steps"] * (found["expected_tries"] or 1.0) / rows if rows else None


def _bar(plan: Plan) -> float | None:
    stored = plan.newest.document.get("bar") if plan else None
    return stored["quality"] if stored else None


def estimates(
    calibrations: Mapping[str, Any], rows: int, lane_steps: int, tries: float | None = None
) -> list[dict[str, Any]]:
    """Seconds that one actor would take for all of it, and for 1,000 images, on each device that was calibrated.

    tries: expected of a row; None: one.
    """
    found = []
    for place, measured in calibrations.items() if rows else ():
        each = sum(measured.get(f"seconds_per_{name}") or 0 for name in ("decode", "prompt", "score"))
        seconds = (tries or 1.0) * (lane_steps * measured["seconds_per_lane_step"] + rows * each)
        found.append({"place": place, "actor_seconds": seconds, "actor_seconds_per_1000": 1000 * seconds / rows})
    return found


def plan_text(run: str, found: dict[str, Any]) -> str:
    """The plan in words and bars."""
    bad = f", {found['failed_rows']:,} of them bad: failed rows of the manifest" if found["failed_rows"] else ""
    lines = [f"{run}: {found['rows']:,} rows{bad}, in {found['shards']:,} shards"]
    if found["mean_steps"] is not None:
        lines.append(saved_text(found | {"largest_budget": found["largest"]}))
    most = max(found["recipe_histogram"].values(), default=1)
    words = {name: named(name).words for name in found["recipe_histogram"]}
    width = max(map(len, words.values()), default=0)
    for name, rows in found["recipe_histogram"].items():
        lines.append(f"{words[name]:>{max(12, width)}} {rows:>9,} rows  {'█' * max(1, round(BAR * rows / most))}")
    if found.get("max_tries", 1) > 1:
        bar = "its own bar" if found["bar"] is None else f"a quality of {found['bar']:.4g}"
        lines.append(f"a picture below {bar} is tried again: at most {found['max_tries']} tries a row{_tries(found)}")
    for estimate in found["estimates"]:
        whole, thousand = duration(estimate["actor_seconds"]), duration(estimate["actor_seconds_per_1000"])
        lines.append(f"about {whole} of one actor, {thousand} for 1,000 images, on {estimate['place']}")
    return "\n".join(lines)


def _tries(found: Mapping[str, Any]) -> str:
    """What is expected, and of all rows the band."""
    if (found["expected_tries"] or 1) <= 1:
        return ""
    words, tries = f", {found['expected_tries']:.2f} expected", found.get("tries")
    if tries is None:
        return words
    return f"{words}; {tries['expected']:,.0f} pictures in all, 95 %: {tries['low']:,.0f} to {tries['high']:,.0f}"


def plan_job(console: Console, job: Job, address: str | None, take_over: bool = False) -> int:
    """Plan what is new in the input, and say what is planned; the exit code."""
    settings, warnings = prepare(job)
    with sole_driver(console, job, settings.run, take_over) as epoch:
        opened = open_input(job, settings.source)
        start_ray(address, console.debug)
        with Interrupts(console, this_command()):
            check_nodes(console, job, settings.run, epoch.id.proof)
            found = estimated(settings, make(console, settings, warnings, epoch.id, opened))
    document = {"run": job.config.output.path, "status": "done", **found}
    console.result(document, plan_text(str(job.config.output.path), found))
    return 0
