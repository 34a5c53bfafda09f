"""Checks the sections `train` and `evaluate` for `validate`: tables, scorers by name, variants, room for workers.

Each check raises ConfigError; nothing is trained, nothing is rendered.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray

from actors.checkpoint import CheckpointInfo
from actors.checkpoint_check import check_solver
from actors.policy import read_card
from jobs.job_file.errors import blaming
from jobs.job_file.policy import local_policy
from jobs.job_file.read import Job
from jobs.job_file.scorers import weights, weights_in
from jobs.job_file.settings import prompt_source
from jobs.job_file.storage import run_at, run_folder
from jobs.steps.training_settings import (
    reward_table,
    rollout_run,
    train_config,
    training_folder,
    variant_job,
    whole_table,
)
from pipelines.cluster.nodes import is_own_ray
from pipelines.run.plan import read_plan

Check = tuple[Callable[[], Any], str]  # and the key that it blames


def learning_checks(job: Job, info: CheckpointInfo | None) -> Iterator[Check]:
    """The checks of the sections that the job file has."""
    if "train" in job.config.model_fields_set:
        yield from _of_train(job, info)
    if "evaluate" in job.config.model_fields_set:
        yield from _of_evaluate(job, info)


def _of_train(job: Job, info: CheckpointInfo | None) -> Iterator[Check]:
    train = job.config.train
    weighed = {f"train.quality.{name}": name for name in train.quality}
    yield lambda: check_scorers_named(job, "train.table", weighed), "train.quality"
    if train.table:
        yield lambda: check_table(job, info), "train.table"
    if train.path:
        yield lambda: training_folder(job).probe(), "train.path"


def _of_evaluate(job: Job, info: CheckpointInfo | None) -> Iterator[Check]:
    evaluate = job.config.evaluate
    if evaluate.judge:
        key = "evaluate.table" if evaluate.table else "train.table"
        yield lambda: check_scorers_named(job, key, {"evaluate.judge": str(evaluate.judge)}), "evaluate.judge"
    if evaluate.table:
        yield lambda: whole_table(job, "evaluate.table", rollout_run(job, "evaluate.table")), "evaluate.table"
    if evaluate.variants and info is not None:
        yield lambda: check_variants(job, info), "evaluate.variants"
    if job.config.steps.policy and job.config.steps.selector != "policy":  # else it was looked at
        yield lambda: check_judged_policy(job), "steps.policy"


def check_table(job: Job, info: CheckpointInfo | None) -> None:
    """Whether `train` could begin with the table that is named."""
    table, _ = reward_table(job)
    if info is not None:
        train_config(job, info, table)


def check_scorers_named(job: Job, table_key: str, wanted: Mapping[str, str]) -> None:
    """Whether each scorer (key of the job file: name) is one that the table, or the job's `quality`, has."""
    known = scorer_names(job, table_key)
    for key, name in wanted.items():
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, 1)
        guess = f"; did you mean {close[0]}?" if close else ""
        there = f"there are {', '.join(known)}" if known else "there are none: quality is empty"
        raise job.fault(key, f"{key}: no scorer is named {name!r}, {there}{guess}")


def scorer_names(job: Job, table_key: str) -> list[str]:
    """Of the rollout that a key names, or that the run folder holds; else of `quality`."""
    section, _, name = table_key.partition(".")
    path = getattr(getattr(job.config, section), name)
    plan = read_plan(run_at(job, path) if path else run_folder(job))
    if not plan or not plan.newest.is_rollout:
        return list(weights(job.config.quality))
    return list(weights_in(plan.newest.fingerprint))


def check_variants(job: Job, info: CheckpointInfo) -> None:
    """Whether the checkpoint can be rendered with each, at every budget of the menu."""
    seen = []
    for index, variant in enumerate(job.config.evaluate.variants):
        key = f"evaluate.variants.{index}"
        if variant in seen:
            raise job.fault(key, f"{key}: {variant.solver} with guidance {variant.guidance_scale:g} is there already")
        seen.append(variant)
        with blaming(job, key, f"{key}: "):
            check_solver(info, variant.solver, job.config.sampling.timestep_spacing)
        prompt_source(variant_job(job, variant), info)


def check_judged_policy(job: Job) -> None:
    """Whether steps.policy can be read."""
    read_card(local_policy(job))


def check_workers(job: Job) -> None:
    """Whether a Ray of its own has a place for each worker of a training: Ray Train would wait for ever."""
    if not is_own_ray():
        return
    train, there = job.config.train, ray.cluster_resources()
    kind = "GPU" if train.gpu else "CPU"
    if train.workers > there.get(kind, 0):
        key = "train.gpu" if train.gpu and not there.get(kind) else "train.workers"
        raise job.fault(
            key, f"{key}: {train.workers} workers take a {kind} each, and this machine has {there.get(kind, 0):g}"
        )
