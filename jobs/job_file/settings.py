"""Resolves a job file, once, into the settings of each room.

It reads headers only: no weights, no prompts, and nothing that needs Ray.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.checkpoint import CheckpointInfo
from actors.checkpoint_check import check_checkpoint, check_solver
from actors.rows import SamplerConfig
from actors.selector import SelectorConfig
from actors.solver import allowed_steps, noise_schedule
from jobs.job_file.errors import blaming
from jobs.job_file.keys import MAX_STEPS, SIZE_MULTIPLE_PX, Pool, changed_picture_keys
from jobs.job_file.places import place, placed_fingerprint
from jobs.job_file.policy import EMBEDDED_POLICY
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.provenance import provenance_config
from jobs.job_file.read import Job
from jobs.job_file.recipes import interval_of, menu_of_job, recipe
from jobs.job_file.scorers import safety_rule, scorer_sources
from jobs.job_file.storage import run_folder, storage_options
from jobs.job_file.tries import Bar
from pipelines.cluster.pools import PoolSpec
from pipelines.files.csv_rows import Dialect
from pipelines.files.readers import TextRules
from pipelines.plan.make import PlanConfig
from pipelines.plan.recipes import JobSampling
from pipelines.prompts.canonical_rows import RowDefaults
from pipelines.prompts.columns import GIVEN, LEFT_OUT
from pipelines.prompts.inspection import PromptSource
from pipelines.render.pool import RenderConfig
from pipelines.render.provenance import ProvenanceConfig
from pipelines.render.quality import ScorerSource
from pipelines.render.safety import SafetyRule
from pipelines.render.tries import TryRules
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan
from pipelines.storage.checkpoints import ModelSource

log = logging.getLogger(__name__)

CALIBRATION = "calibration.json"  # in the run folder
EMBEDDED_MODEL = "training/scenes/model"


@dataclass(frozen=True)
class Settings:
    """A job, resolved. pools: num_gpus None where it says auto; calibrations: what `calibrate` measured for this run,
    by model, device, precision and size.
    """

    job: Job
    run: RunFolder
    model: ModelSource
    checkpoint: CheckpointInfo
    source: PromptSource
    selector: SelectorConfig
    sampler: SamplerConfig
    pools: tuple[PoolSpec, ...]
    scorers: tuple[ScorerSource, ...]
    safety: SafetyRule | None
    calibrations: Mapping[str, Any]
    provenance: ProvenanceConfig
    bar: Bar = field(default_factory=Bar)  # of a plan to come

    @property
    def plan(self) -> PlanConfig:
        """The settings of `pipelines.plan.make.make_plan`."""
        steps = self.job.config.steps
        return PlanConfig(
            source=self.source,
            selector=self.selector,
            pools=self.pools,
            model=self.model,
            sampling=JobSampling(self.sampler.solver, self.sampler.guidance_interval),
            selector_actors=steps.actors,
            selector_num_gpus=steps.num_gpus,
            fingerprint=fingerprint(self.job, self.checkpoint),
            rollout=self.job.rollout,
            bar=self.bar.quality,
            expected_tries=self.bar.expected_tries,
            tries_variance=self.bar.tries_variance,
            num_workers=sum(pool.actors for pool in self.pools),
            lanes=max((pool.lanes for pool in self.pools if pool.lanes), default=None),
        )

    @property
    def render(self) -> RenderConfig:
        """The settings of `pipelines.render.driver.render`."""
        output, failures, tries = self.job.config.output, self.job.config.failures, self.job.config.tries
        return RenderConfig(
            model=self.model,
            sampler=self.sampler,
            pools=self.pools,
            layout=output.layout,
            image_format=output.format,
            scorers=self.scorers,
            safety=self.safety,
            tries=TryRules(1 if self.job.rollout else tries.max, tries.keep),
            provenance=self.provenance,
            no_progress_s=failures.no_progress_s,
            row_timeout_s=failures.row_timeout_s,
            max_failed=failures.max_fraction if failures.stop_early else None,
        )


def resolve(job: Job) -> Settings:
    """The whole job. Raises ConfigError for what it names and cannot be used, as far as headers show it."""
    info, run, model = read_checkpoint(job), run_folder(job), model_source(job)
    measured = read_calibrations(run)
    return Settings(
        job=job,
        run=run,
        model=model,
        checkpoint=info,
        source=prompt_source(job, info),
        selector=_selector(job, info),
        sampler=_sampler(job, info, measured),
        pools=tuple(pool_spec(pool) for pool in job.config.pools),
        scorers=scorer_sources(job),
        safety=safety_rule(job),
        calibrations=measured,
        provenance=provenance_config(job, info, model.path),
    )


def read_checkpoint(job: Job) -> CheckpointInfo:
    """What the model's folder says of itself, checked by its headers; its weights stay where they are.

    Raises ConfigError for a checkpoint that is not whole, or is of another kind than it seems.
    """
    with blaming(job, "model.path"):
        folder, variant = model_source(job).local(metadata_only=True), job.config.model.variant
        info = check_checkpoint(folder, variant)
        check_solver(info, job.config.sampling.solver, job.config.sampling.timestep_spacing)
    if info.has_safety_checker and job.config.safety is None:
        log.warning(
            "%s: its safety checker is not run, pictures are stored unchecked; name a scorer in `safety`",
            job.config.model.path,
        )
    return info


def model_source(job: Job) -> ModelSource:
    """Where each node fetches the checkpoint from; a local folder by its absolute path, for workers run elsewhere."""
    model = job.config.model
    return ModelSource(
        place(model.path, may_be_hub=True) or EMBEDDED_MODEL, model.revision, model.variant, storage_options(job)
    )


def prompt_source(job: Job, info: CheckpointInfo | None) -> PromptSource:
    """The input, with the defaults and limits of its rows; without a model as much as is known.

    Raises ConfigError where a budget has no time grid.
    """
    given, sampling, csv = job.config.input, job.config.sampling, job.config.input.csv
    width, height = (info.width, info.height) if info else (512, 512)
    return PromptSource(
        path=given.path,
        columns={ours: theirs or LEFT_OUT for ours, theirs in given.columns.items() if theirs or ours in GIVEN},
        images_per_prompt=given.images_per_prompt,
        limit=given.limit,
        storage=storage_options(job, "input"),
        text=TextRules(given.encoding, Dialect(csv.delimiter, csv.quotes, csv.skip_spaces)),
        drop=(*given.drop, *(name for name, theirs in given.columns.items() if theirs is None)),
        defaults=RowDefaults(
            guidance_scale=sampling.guidance_scale,
            width=sampling.width or width,
            height=sampling.height or height,
            allowed_steps=_allowed_steps(job, info) if info else frozenset(range(1, MAX_STEPS + 1)),
            size_multiple=max(SIZE_MULTIPLE_PX, info.vae_scale_factor) if info else SIZE_MULTIPLE_PX,
            guidance_interval=interval_of(job),
        ),
    )


def _selector(job: Job, info: CheckpointInfo) -> SelectorConfig:
    steps = job.config.steps
    return SelectorConfig(
        selector=steps.selector,
        choices=menu_of_job(job),
        fixed=recipe(steps.fixed) if steps.fixed else None,
        policy_path=place(steps.policy) or EMBEDDED_POLICY,
        price=steps.price,
        min=steps.min,
        max=steps.max,
        max_tries=job.config.tries.max if job.config.tries.bar == "auto" and job.config.counts_quality else 1,
        decision=steps.decision,
        text_encoder_path=info.path,
        num_threads=None,
        device="auto" if steps.num_gpus else "cpu",  # no GPU that was not asked for
    )


def _sampler(job: Job, info: CheckpointInfo, measured: Mapping[str, Any]) -> SamplerConfig:
    """The engine's settings; lanes and threads are each pool's own."""
    model, sampling = job.config.model, job.config.sampling
    return SamplerConfig(
        model_path=info.path,
        variant=model.variant,
        dtype=model.dtype,
        device=model.device,
        solver=sampling.solver,
        timestep_spacing=sampling.timestep_spacing,
        guidance_interval=interval_of(job),
        compile=sampling.compile,
        channels_last=sampling.channels_last,
        calibrated=tuple((place, found["lanes"]) for place, found in measured.items()),
    )


def pool_spec(pool: Pool) -> PoolSpec:
    """A pool of the job file."""
    return PoolSpec(
        name=pool.name,
        budgets=None if pool.budgets == "all" else tuple(pool.budgets),
        actors=pool.actors,
        num_gpus=None if pool.num_gpus == "auto" else pool.num_gpus,
        num_cpus=pool.num_cpus,
        lanes=None if pool.lanes == "auto" else pool.lanes,
        resources=pool.resources,
    )


def read_calibrations(run: RunFolder) -> dict[str, Any]:
    """What `calibrate` measured for a run; empty where it did not."""
    try:
        return run.read_json(CALIBRATION)
    except FileNotFoundError:
        return {}


def fingerprint(job: Job, info: CheckpointInfo) -> dict[str, Any]:
    """What must stay the same in a run folder: picture keys, the weights of model.path, whether it is a rollout."""
    return placed_fingerprint(job.config.fingerprint()) | {"model.weights": info.fingerprint, "rollout": job.rollout}


def refuse_changed(job: Job, plan: Plan, now: Mapping[str, Any]) -> None:
    """Raises ConfigError for every picture key that differs from the run folder's plan, and for its price."""
    if not plan:
        return
    document = plan.newest.document
    changed = changed_picture_keys(placed_fingerprint(document["fingerprint"]), now)
    changed.pop("input.path", None)  # its rows are held against those that are planned
    price = (document.get("price"), job.config.steps.price)
    if job.config.steps.selector == "policy" and price[0] is not None and price[0] != price[1]:
        changed["steps.price"] = price
    remedy = f"a run folder keeps what decides its pictures; set it back, or another output.path than {plan.run.url}"
    faults = [
        Fault(job.at(key), f"{key} was {old!r} in this run and is {new!r} now: {remedy}")
        for key, (old, new) in changed.items()
    ]
    if faults:
        raise ConfigError(faults)


def _allowed_steps(job: Job, info: CheckpointInfo) -> frozenset[int]:
    """Numbers of steps with a time grid. Raises ConfigError where the job file names another."""
    steps, sampling = job.config.steps, job.config.sampling
    schedule = noise_schedule(info.scheduler_config, sampling.timestep_spacing)
    named = [("steps.fixed", recipe(steps.fixed))] if steps.fixed else []
    named += [("steps.choices", each) for each in menu_of_job(job) or ()]
    faults = []
    for key, each in named:
        solver = each.solver or sampling.solver
        with blaming(job, key):
            has_grid = each.num_steps in allowed_steps(schedule, solver)
        if not has_grid:
            how = f"{solver} with {sampling.timestep_spacing or 'the spacing of this checkpoint'}"
            faults.append(Fault(job.at(key), f"{key}: {how} has no grid of {each.num_steps} steps"))
    if faults:
        raise ConfigError(faults)
    return allowed_steps(schedule, sampling.solver)
