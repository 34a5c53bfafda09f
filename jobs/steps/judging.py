"""Judges a policy on a table and reports it: the text, evaluation.json, the picture and the page.

What is compared is `training.judge.compare`'s, the words are `training.judge.verdict`'.
"""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from jobs.job_file.errors import blaming
from jobs.job_file.read import Job
from jobs.job_file.settings import model_source
from jobs.job_file.storage import run_folder
from jobs.pages.html import STYLE
from jobs.steps.training_settings import EVALUATION, table_run, unseen_judge, whole_table
from jobs.terminal.console import Console
from jobs.terminal.exit_codes import DONE
from pipelines.storage.folder import Folder
from training.judge.chart import frontier_svg
from training.judge.compare import Evaluation, evaluate, quality_margin
from training.judge.curve import curve, curve_text
from training.judge.evidence import Setup, evidence, labels, read_prompts
from training.judge.verdict import evaluation_document, frontier_table, groups, verdict
from training.reward_table import RewardTable

OWN = "the job's own scorer"


def judged(
    job: Job,
    policy: str,
    table: RewardTable,
    learned: RewardTable | None,
    variants: Mapping[Setup, RewardTable],
) -> dict[str, Evaluation]:
    """One evaluation a judge: first, if there is one, a scorer that training never counted; then the job's own."""
    given = job.config.evaluate
    with blaming(job, "evaluate"):
        reading = read_prompts(policy, model_source(job).local(), table)
        judge = given.judge or unseen_judge(job, table)
        return {
            name or OWN: evaluate(evidence(reading, table, learned, name, given.margin, given.prices, variants))
            for name in dict.fromkeys([judge, None])
        }


def curves(job: Job, table: RewardTable) -> str:
    """What steps buy on a table's prompts, by judge and group, and what a policy could gain at most."""
    judge = job.config.evaluate.judge or unseen_judge(job, table)
    tables = ({judge: table.judged_by(judge)} if judge else {}) | {OWN: table}
    return "\n\n".join(
        curve_text(curve(each, labels(each), quality_margin(each)), name) for name, each in tables.items()
    )


def conclude(
    console: Console,
    run: Folder,
    title: str,
    found: Mapping[str, Evaluation],
    about: Mapping[str, Any],
    bought: str = "",
) -> int:
    """Write evaluation/ into a run's folder (report.html, evaluation.json, frontier.svg) and say what was found.

    -> the exit code.
    """
    judges = {name: evaluation_document(each) for name, each in found.items()}
    whole = json.dumps({**about, "headline": next(iter(found)), "judges": judges}, indent=2, ensure_ascii=False)
    run.write(f"{EVALUATION}/evaluation.json", whole.encode("utf-8", "replace"))
    for number, (name, each) in enumerate(found.items()):
        chart = frontier_svg(each, f"Quality against cost, judged by {name}")
        run.write(f"{EVALUATION}/frontier{'-own' if number else ''}.svg", chart.encode())
    run.write(f"{EVALUATION}/report.html", page(title, found, about, bought).encode("utf-8", "replace"))
    where = f"{run.url}/{EVALUATION}/report.html"
    words = "\n\n".join(part for part in (bought, verdict_text(found)) if part)
    console.result({"run": run.url, "status": "done", "report": where, "judges": judges}, f"{words}\n{where}")
    return DONE


def verdict_text(found: Mapping[str, Evaluation]) -> str:
    """The verdict of every judge, the headline's table and its groups before them."""
    first = next(iter(found.values()))
    parts = [frontier_table(first)]
    parts += [groups(first)] if first.groups else []
    parts += [f"Judged by {name}:\n{verdict(each)}" for name, each in found.items()]
    return "\n\n".join(parts)


def page(title: str, found: Mapping[str, Evaluation], about: Mapping[str, Any], bought: str = "") -> str:
    """One self-contained page: of each judge the verdict, the picture, table and groups; `bought`: what steps buy."""
    parts = [f"<h1>{escape(title)}</h1>"]
    parts.append(f"<p class=grey>{escape(' · '.join(f'{key}: {value}' for key, value in about.items()))}</p>")
    for name, each in found.items():
        parts.append(f"<h2>Judged by {escape(name)}</h2>")
        parts += [f"<p>{escape(line)}</p>" for line in verdict(each).splitlines()]
        parts.append(frontier_svg(each, "Quality against cost"))
        parts += [f"<h2>By group</h2><pre>{escape(groups(each))}</pre>"] if each.groups else []
        parts.append(f"<h2>All figures</h2><pre>{escape(frontier_table(each))}</pre>")
    parts += [f"<h2>What steps buy</h2><pre>{escape(bought)}</pre>"] if bought else []
    style = STYLE + "pre { font-size: 12px; overflow-x: auto } svg { max-width: 100%; height: auto }"
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{style}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def show_curve(console: Console, job: Job) -> None:
    """What steps buy on these prompts, by judge and group, to be read before anything is trained; into curve.txt."""
    words = curves(job, whole_table(job, "output.path", table_run(job)))
    run_folder(job).write("curve.txt", words.encode("utf-8", "replace"))
    console.say(words)
