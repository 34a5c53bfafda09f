"""Judges a policy on a table and reports it: the text, evaluation.json, the picture and the page.

What is compared is `training.judge.compare`'s, the words are `training.judge.verdict`'.
"""

import json
from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

import yaml

from jobs.job_file.errors import blaming
from jobs.job_file.read import Job
from jobs.job_file.settings import model_source
from jobs.job_file.storage import run_folder
from jobs.pages.html import STYLE
from jobs.steps.training_settings import EVALUATION, table_run, unseen_judge, whole_table
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE
from pipelines.storage.folder import Folder
from training.judge.chart import frontier_svg, spending_svg
from training.judge.compare import Evaluation, evaluate, quality_margin
from training.judge.curve import Curve, curve, curve_text, curve_verdict
from training.judge.evidence import Setup, evidence, labels, read_prompts, spending
from training.judge.recommendation import Recommendation, job_lines, recommend
from training.judge.spending import Spending
from training.judge.spending_words import spending_document, spending_table, spending_verdict
from training.judge.verdict import evaluation_document, frontier_table, groups, verdict
from training.reward_table import RewardTable

MOST_TRIES = 4  # simulated, where the job does not allow more
OWN = "the job's own scorer"


class Judged(NamedTuple):
    """What one judge finds. evaluation: of the policy's recipes, one picture a row; None without a policy."""

    spending: Spending
    advice: Recommendation
    evaluation: Evaluation | None


def judged(
    job: Job,
    policy: str | None,
    table: RewardTable,
    learned: RewardTable | None,
    variants: Mapping[Setup, RewardTable],
) -> dict[str, Judged]:
    """One finding a judge: first, if there is one, a scorer that training never counted; then the job's own."""
    given, most = job.config.evaluate, max(job.config.tries.max, MOST_TRIES)
    with blaming(job, "evaluate"):
        reading = read_prompts(policy, model_source(job).local(), table) if policy else None
        judge = given.judge or unseen_judge(job, table)
        found = {}
        for name in dict.fromkeys([judge, None]):
            spent = spending(reading, table, learned, name, most, given.decode_lane_steps)
            known = reading and evidence(reading, table, learned, name, given.margin, given.prices, variants)
            found[name or OWN] = Judged(spent, recommend(spent), evaluate(known) if known else None)
        return found


def curves(job: Job, table: RewardTable) -> dict[str, Curve]:
    """What each recipe buys on a table's prompts, by judge: who trained never counted first."""
    judge = job.config.evaluate.judge or unseen_judge(job, table)
    tables = ({judge: table.judged_by(judge)} if judge else {}) | {OWN: table}
    return {name: curve(each, labels(each), quality_margin(each)) for name, each in tables.items()}


def curves_text(found: Mapping[str, Curve]) -> str:
    """All of it: by group, and what a policy could gain at most."""
    return "\n\n".join(curve_text(each, name) for name, each in found.items())


def conclude(
    console: Console,
    run: Folder,
    title: str,
    found: Mapping[str, Judged],
    about: Mapping[str, Any],
    bought: str = "",
) -> int:
    """Write evaluation/ into a run's folder (report.html, evaluation.json, frontier.svg) and say what was found.

    -> the exit code.
    """
    judges = {name: document(each) for name, each in found.items()}
    whole = json.dumps({**about, "headline": next(iter(found)), "judges": judges}, indent=2, ensure_ascii=False)
    run.write(f"{EVALUATION}/evaluation.json", whole.encode("utf-8", "replace"))
    for number, (name, each) in enumerate(found.items()):
        chart = spending_svg(each.spending, f"Quality against cost, judged by {name}")
        run.write(f"{EVALUATION}/frontier{'-own' if number else ''}.svg", chart.encode())
    run.write(f"{EVALUATION}/report.html", page(title, found, about, bought).encode("utf-8", "replace"))
    first, where = next(iter(found.values())), f"{run.url}/{EVALUATION}/report.html"
    lines = advised_lines(first, run)
    run.write(f"{EVALUATION}/job-lines.yaml", lines.encode())
    words = "\n\n".join((verdict_text(found), spending_table(first.spending), f"In your job file:\n{lines.rstrip()}"))
    console.result({"run": run.url, "status": "done", "report": where, "judges": judges}, f"{words}\n{where}")
    return DONE


def document(each: Judged) -> dict[str, Any]:
    """All figures of one judge, for a file."""
    steps_only = evaluation_document(each.evaluation) if each.evaluation else {}
    return steps_only | {"spending": spending_document(each.spending, each.advice)}


def advised_lines(each: Judged, run: Folder) -> str:
    """The sections of a job file that take what is recommended, as YAML."""
    lines = job_lines(each.advice, each.spending.choices, each.spending.max_tries, run.url)
    return yaml.safe_dump(lines, sort_keys=False)


def verdict_text(found: Mapping[str, Judged]) -> str:
    """Each judge's verdict, the headline's first."""
    return "\n\n".join(
        f"Judged by {name}:\n{spending_verdict(each.spending, each.advice)}" for name, each in found.items()
    )


def page(title: str, found: Mapping[str, Judged], about: Mapping[str, Any], bought: str = "") -> str:
    """One self-contained page: of each judge the verdict and the picture; then what is folded away."""
    parts = [f"<h1>{escape(title)}</h1>"]
    parts.append(f"<p class=grey>{escape(' · '.join(f'{key}: {value}' for key, value in about.items()))}</p>")
    for name, each in found.items():
        parts.append(f"<h2>Judged by {escape(name)}</h2>")
        parts += [f"<p>{escape(line)}</p>" for line in spending_verdict(each.spending, each.advice).splitlines()]
        parts.append(spending_svg(each.spending, "Quality against cost"))
        parts.append(_folded("Ways to spend, all their points", spending_table(each.spending)))
        parts += _steps_only(each.evaluation) if each.evaluation else []
    parts += [_folded("What steps buy", bought)] if bought else []
    style = STYLE + "pre { font-size: 12px; overflow-x: auto } svg { max-width: 100%; height: auto }"
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{style}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _steps_only(found: Evaluation) -> list[str]:
    """The policy with one picture a row: what reading the prompt is worth without looking at the picture."""
    parts = ["<h3>One picture a row</h3>", *(f"<p>{escape(line)}</p>" for line in verdict(found).splitlines())]
    parts.append(frontier_svg(found, "Quality against cost, one picture a row"))
    parts += [_folded("By group", groups(found))] if found.groups else []
    return [*parts, _folded("All figures, one picture a row", frontier_table(found))]


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def show_curve(console: Console, job: Job) -> None:
    """What each recipe buys on these prompts, to be read before anything is trained; all figures into curve.txt."""
    found, run = curves(job, whole_table(job, "output.path", table_run(job))), run_folder(job)
    run.write("curve.txt", curves_text(found).encode("utf-8", "replace"))
    console.say(curve_verdict(next(iter(found.values())), next(iter(found))))
    console.say(f"by group, by other judges, and what a policy could gain at most: {run.url}/curve.txt")
