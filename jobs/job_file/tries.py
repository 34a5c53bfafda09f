"""The `tries` section as a bar: the quality below which a row gets another picture."""

from dataclasses import dataclass

import numpy as np

from actors.tries import quantile_bar
from jobs.job_file.errors import blaming
from jobs.job_file.read import Job
from jobs.job_file.recipes import recipe
from jobs.job_file.scorers import counted, weights, weights_in
from jobs.job_file.storage import run_at
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan, read_plan

NO_SCORES = "holds no scored pictures of one try a row: name a run of the same scorers, without tries"


@dataclass(frozen=True)
class Bar:
    """quality: None where every picture is taken. The others, of a row: where it is known how many pictures pass."""

    quality: float | None = None
    expected_tries: float | None = None
    tries_variance: float | None = None


def bar_of(job: Job, plan: Plan | None = None) -> Bar:
    """Of the whole job: one for all prompts, that of its plan where there is one.

    Raises ConfigError where tries.scores holds no scores, or those of other scorers.
    """
    tries = job.config.tries
    if plan and (stored := plan.newest.document.get("bar")):
        return Bar(**stored)
    if tries.max == 1 or job.rollout or isinstance(tries.bar, str):
        return Bar()
    if isinstance(tries.bar, float):
        return Bar(tries.bar)
    with blaming(job, "tries.scores"):
        run = run_at(job, str(tries.scores))
        looked = read_plan(run)
        ours = counted(weights(job.config.quality))
        theirs = counted(weights_in(looked.newest.fingerprint)) if looked else {}
        if theirs and theirs != ours:
            what = f"{tries.scores} was scored by {theirs}, this job by {ours}"
            raise job.fault("tries.scores", f"{what}: name a run of the same scorers")
        scores = known_scores(run, _one_recipe(job) if looked and looked.newest.is_rollout else None)
    if not len(scores):
        raise job.fault("tries.scores", f"{tries.scores} {NO_SCORES}")
    bar = quantile_bar(scores, tries.bar.quantile)
    below = float((scores < bar).mean())
    expected = sum(below**number for number in range(tries.max))
    square = sum((2 * number + 1) * below**number for number in range(tries.max))
    return Bar(bar, expected, square - expected**2)


def _one_recipe(job: Job) -> str | None:
    """The name of the job's recipe, where all rows get one."""
    steps = job.config.steps
    return recipe(steps.fixed).name if steps.selector == "fixed" and steps.fixed else None


def known_scores(run: RunFolder, recipe_name: str | None = None) -> np.ndarray:
    """(N,) quality of the pictures of a run that were the only try of their row; of one recipe, where it is named."""
    found = []
    for manifest in run.manifests():
        columns = [name for name in ("quality", "tries", "recipe_name") if name in manifest.column_names]
        rows = [row for row in manifest.select(columns).to_pylist() if row["quality"] is not None]
        found += [
            row["quality"]
            for row in rows
            if len(row["tries"] or ()) == 1 and recipe_name in (None, row.get("recipe_name"))
        ]
    return np.array(found, np.float64)
