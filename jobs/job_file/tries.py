"""The `tries` section as a bar: the quality below which a row gets another picture."""

from dataclasses import dataclass

import numpy as np

from actors.tries import quantile_bar
from jobs.job_file.errors import blaming
from jobs.job_file.read import Job
from jobs.job_file.storage import run_at

NO_SCORES = "holds no scored pictures of one try a row: name a run of the same scorers, without tries"


@dataclass(frozen=True)
class Bar:
    """quality: None where every picture is taken. expected_tries: where it is known how many pictures pass."""

    quality: float | None = None
    expected_tries: float | None = None


def bar_of(job: Job) -> Bar:
    """Of the whole job: one for all prompts. Raises ConfigError where tries.scores holds no scores."""
    tries = job.config.tries
    if tries.max == 1 or job.rollout or isinstance(tries.bar, str):
        return Bar()
    if isinstance(tries.bar, float):
        return Bar(tries.bar)
    with blaming(job, "tries.scores"):
        scores = known_scores(job)
    if not len(scores):
        raise job.fault("tries.scores", f"{tries.scores} {NO_SCORES}")
    bar = quantile_bar(scores, tries.bar.quantile)
    below = float((scores < bar).mean())
    return Bar(bar, sum(below**number for number in range(tries.max)))


def known_scores(job: Job) -> np.ndarray:
    """(N,) quality of the pictures of tries.scores that were the only try of their row."""
    found = []
    for manifest in run_at(job, str(job.config.tries.scores)).manifests():
        rows = manifest.select(["quality", "tries"]).to_pylist()
        found += [row["quality"] for row in rows if row["quality"] is not None and len(row["tries"] or ()) == 1]
    return np.array(found, np.float64)
