"""Judge a policy on a table and say so: the text, evaluation.json, the picture and the page of `evaluate` and `pilot`.

What is compared is `training.evaluate`'s, the words are `training.findings`'.
"""

import json
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from jobs import build
from jobs.command import DONE
from jobs.console import Console
from jobs.errors import blaming
from jobs.learning import EVALUATION
from jobs.load import Job
from jobs.page import STYLE

if TYPE_CHECKING:
    from pipelines.folder import Folder
    from training.evaluate import Evaluation
    from training.evidence import Setup
    from training.table import RewardTable

OWN = "the job's own scorer"


def judged(
    job: Job,
    policy: str,
    table: "RewardTable",
    learned: "RewardTable | None",
    variants: "Mapping[Setup, RewardTable]",
) -> "dict[str, Evaluation]":
    """By judge, the headline first: a scorer that training never counted, where there is one, and the job's own."""
    from training.evaluate import evaluate
    from training.evidence import evidence, read_prompts

    given = job.config.evaluate
    with blaming(job, "evaluate"):
        reading = read_prompts(policy, build.model_source(job).local(), table, learned)
        judge = given.judge or unseen_judge(job, table)
        return {
            name or OWN: evaluate(evidence(reading, table, learned, name, given.margin, given.prices, variants))
            for name in dict.fromkeys([judge, None])
        }


def unseen_judge(job: Job, table: "RewardTable") -> str | None:
    """The first scorer that is scored but not counted, is a function of one's own, and could judge every picture."""
    import numpy as np

    for scorer in job.config.quality:
        name = build.scorer_name(scorer.name, scorer.scorer)
        counted = job.config.train.quality.get(name, scorer.weight)
        if counted == 0 and ":" in scorer.scorer and np.isfinite(table.scores.get(name, np.array([np.nan]))).all():
            return name
    return None


def curves(job: Job, table: "RewardTable") -> str:
    """What steps buy on a table's prompts, by judge and group, and what a policy could gain at most."""
    from training.curve import curve, text
    from training.evaluate import quality_margin
    from training.evidence import labels

    judge = job.config.evaluate.judge or unseen_judge(job, table)
    tables = ({judge: table.judged_by(judge)} if judge else {}) | {OWN: table}
    return "\n\n".join(text(curve(each, labels(each), quality_margin(each)), name) for name, each in tables.items())


def conclude(
    console: Console,
    run: "Folder",
    title: str,
    found: "Mapping[str, Evaluation]",
    about: Mapping[str, Any],
    bought: str = "",
) -> int:
    """Write evaluation/ into a run's folder (report.html, evaluation.json, frontier.svg) and say what was found.

    -> the exit code.
    """
    from training.chart import frontier_svg
    from training.findings import document

    judges = {name: document(each) for name, each in found.items()}
    whole = json.dumps({**about, "headline": next(iter(found)), "judges": judges}, indent=2, ensure_ascii=False)
    run.write(f"{EVALUATION}/evaluation.json", whole.encode("utf-8", "replace"))
    for number, (name, each) in enumerate(found.items()):
        chart = frontier_svg(each, f"Quality against cost, judged by {name}")
        run.write(f"{EVALUATION}/frontier{'-own' if number else ''}.svg", chart.encode())
    run.write(f"{EVALUATION}/report.html", page(title, found, about, bought).encode("utf-8", "replace"))
    where = f"{run.url}/{EVALUATION}/report.html"
    words = "\n\n".join(part for part in (bought, text(found)) if part)
    console.result({"run": run.url, "status": "done", "report": where, "judges": judges}, f"{words}\n{where}")
    return DONE


def text(found: "Mapping[str, Evaluation]") -> str:
    """The verdict of every judge, the headline's table and its groups before them."""
    from training.findings import groups, table, verdict

    first = next(iter(found.values()))
    parts = [table(first)]
    parts += [groups(first)] if first.groups else []
    parts += [f"Judged by {name}:\n{verdict(each)}" for name, each in found.items()]
    return "\n\n".join(parts)


def page(title: str, found: "Mapping[str, Evaluation]", about: Mapping[str, Any], bought: str = "") -> str:
    """One self-contained page: of each judge the verdict, the picture, table and groups; `bought`: what steps buy."""
    from training.chart import frontier_svg
    from training.findings import groups, table, verdict

    parts = [f"<h1>{escape(title)}</h1>"]
    parts.append(f"<p class=grey>{escape(' · '.join(f'{key}: {value}' for key, value in about.items()))}</p>")
    for name, each in found.items():
        parts.append(f"<h2>Judged by {escape(name)}</h2>")
        parts += [f"<p>{escape(line)}</p>" for line in verdict(each).splitlines()]
        parts.append(frontier_svg(each, "Quality against cost"))
        parts += [f"<h2>By group</h2><pre>{escape(groups(each))}</pre>"] if each.groups else []
        parts.append(f"<h2>All figures</h2><pre>{escape(table(each))}</pre>")
    parts += [f"<h2>What steps buy</h2><pre>{escape(bought)}</pre>"] if bought else []
    style = STYLE + "pre { font-size: 12px; overflow-x: auto } svg { max-width: 100%; height: auto }"
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{style}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"
