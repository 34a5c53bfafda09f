"""Turns a job file into what training and judging take: tables, hyperparameters, where a policy goes.

The verbs are `jobs.train`, `jobs.evaluate` and `jobs.pilot`.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.checkpoint import CheckpointInfo
from actors.policy import Setting
from jobs.job_file.errors import blaming
from jobs.job_file.keys import Train, Variant
from jobs.job_file.read import Job
from jobs.job_file.scorers import scorer_name, weights_in
from jobs.job_file.settings import model_source
from jobs.job_file.storage import run_at, storage_options
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.folder import Folder
from training.learn.reward import default_prices, default_temperature, in_rises
from training.reward_table import RewardTable, read_table, split

if TYPE_CHECKING:
    from training.learn.hyperparameters import Hyperparameters
    from training.learn.trainer import TrainConfig

log = logging.getLogger(__name__)

EVALUATION = "evaluation"
LEFT_OUT = {
    "failed": "a row of theirs failed (column error_message of the manifest)",
    "unscored": "a picture of theirs was not scored (column score_error of the manifest)",
}
DRAWS = ("reward", "gradient", "baseline", "samples", "entropy", "entropy_end")
KNOBS = (*DRAWS, "epochs", "batch_size", "learning_rate", "seed")  # of Train, by the same names in Hyperparameters


def table_run(job: Job) -> RunFolder:
    """The rollout that is learned from. Raises ConfigError where there is none."""
    return rollout_run(job, _table_key(job))


def _table_key(job: Job) -> str:
    return "train.table" if job.config.train.table else "output.path"


def rollout_run(job: Job, key: str) -> RunFolder:
    """The run folder that a key of the job file names. Raises ConfigError where it is no rollout."""
    section, _, name = key.partition(".")
    run = run_at(job, getattr(getattr(job.config, section), name))
    plan = read_plan(run)
    if not plan:
        raise job.fault(key, f"{run.url} holds no rollout yet: roll it out first")
    if not plan.newest.is_rollout:
        raise job.fault(key, f"{run.url} is no rollout: its rows have one budget each; give the rollout its own folder")
    return run


def whole_table(job: Job, key: str, run: RunFolder) -> RewardTable:
    """A rollout's table, its quality as `train.quality` weighs it. Raises ConfigError."""
    with blaming(job, key, f"{run.url}: "):
        table = read_table(run.manifests())
        for reason, prompts in table.dropped.items():
            log.warning("%s: %d prompts are left out: %s", run.url, prompts, LEFT_OUT[reason])
        return table.weighed(job.config.train.quality) if job.config.train.quality else table


def reward_table(job: Job) -> tuple[RewardTable, RewardTable | None]:
    """(what is learned from, what is kept to judge by; None where evaluate.table names that). Raises ConfigError."""
    table = whole_table(job, _table_key(job), table_run(job))
    if job.config.evaluate.table:
        return table, None
    with blaming(job, "evaluate.share"):
        return split(table, job.config.evaluate.share, EVALUATION)


def training_folder(job: Job) -> Folder:
    """Where a training keeps its journal and its policy."""
    train = job.config.train
    return Folder(train.path or train.table or str(job.config.output.path), storage_options(job, "output"))


def variant_job(job: Job, variant: Variant) -> Job:
    """The same job with another solver and guidance."""
    changes = {"solver": variant.solver, "guidance_scale": variant.guidance_scale}
    return job.changed(sampling=job.config.sampling.model_copy(update=changes))


def setting_of(made: Mapping[str, Any], info: CheckpointInfo) -> Setting:
    """What a rollout was rendered with, by its plan's fingerprint. Raises KeyError for a plan without one."""
    return Setting(
        unet=made["model.weights"],
        solver=made["sampling.solver"],
        timestep_spacing=made["sampling.timestep_spacing"],
        guidance_scale=made["sampling.guidance_scale"],
        width=made["sampling.width"] or info.width,
        height=made["sampling.height"] or info.height,
    )


def train_config(job: Job, info: CheckpointInfo, table: RewardTable) -> "TrainConfig":
    """The settings of `training.learn.trainer.train`. Raises ConfigError where the table cannot be learned from."""
    from training.learn.trainer import TrainConfig

    given = job.config.train
    with blaming(job, "train"):
        made = read_plan(table_run(job)).newest.fingerprint
        return TrainConfig(
            model=model_source(job),
            learning=hyperparameters_of(given, table),
            setting=setting_of(made, info),
            width=given.width,
            num_layers=given.layers,
            num_heads=given.heads,
            held_out=given.held_out,
            num_workers=given.workers,
            use_gpu=given.gpu,
            max_failures=given.max_failures,
            scorers=weights_of(job, made),
            judge=job.config.evaluate.judge or unseen_judge(job, table),
        )


def weights_of(job: Job, made: Mapping[str, Any]) -> dict[str, float]:
    """The scorers that a table's quality is made of, by `train.quality`, else as its plan's fingerprint has them."""
    known = weights_in(made)
    return {**dict.fromkeys(known, 0.0), **job.config.train.quality} if job.config.train.quality else known


def unseen_judge(job: Job, table: RewardTable) -> str | None:
    """The first scorer that is scored but not counted, is a function of one's own, and could judge every picture."""
    for scorer in job.config.quality:
        name = scorer_name(scorer.name, scorer.scorer)
        counted = job.config.train.quality.get(name, scorer.weight)
        if counted == 0 and ":" in scorer.scorer and np.isfinite(table.scores.get(name, np.array([np.nan]))).all():
            return name
    return None


def hyperparameters_of(given: Train, table: RewardTable) -> "Hyperparameters":
    """Prices and temperature come from the table where they are not given. LearningError where no budget pays."""
    from training.learn.hyperparameters import Hyperparameters, as_in_the_paper

    quality = in_rises(table.quality, table.quality)
    low, high = given.prices or default_prices(quality, table.costs)
    values: dict[str, Any] = {name: getattr(given, name) for name in KNOBS}
    learning = Hyperparameters((low, high), given.temperature or default_temperature(quality), **values)
    if given.recipe == "stepthrift":
        return learning
    wanted = {name: value for name, value in values.items() if name in given.model_fields_set}
    return replace(as_in_the_paper(learning), **wanted)
