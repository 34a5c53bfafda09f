"""What the rooms get from a job file: their own plain dataclasses."""

import importlib
import logging
from dataclasses import replace
from typing import Any

from actors.checkpoint import CheckpointInfo
from actors.checkpoint_check import check_checkpoint, check_solver
from actors.policy import Setting, read_card, uncalibrated
from actors.policy import check_policy as check_card
from actors.rows import SamplerConfig
from actors.scorer_check import scorers_fault
from actors.selector import SelectorConfig
from actors.solver import allowed_steps, lane_steps, noise_schedule
from jobs.job_file.contradictions import PAPER_CHOICES
from jobs.job_file.errors import blaming
from jobs.job_file.keys import MAX_STEPS, SIZE_MULTIPLE_PX, Pool, Scorer, changed_picture_keys
from jobs.job_file.places import ROOT, place, placed_fingerprint
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import Job
from pipelines.boundary import raised_by
from pipelines.plan.make import PlanConfig, PoolBudgets
from pipelines.prompts.inspection import PromptSource
from pipelines.prompts.rows import RowDefaults
from pipelines.render.pool import PoolSpec, RenderConfig
from pipelines.render.quality import ScorerSource, check_source
from pipelines.run.layout import RunFolder
from pipelines.storage.checkpoints import ModelSource
from pipelines.storage.folder import StorageOptions

log = logging.getLogger(__name__)

CALIBRATION = "calibration.json"  # in the run folder
EMBEDDED_MODEL = "training/scenes/model"
EMBEDDED_POLICY = "training/scenes/policy"


def storage_options(job: Job, section: str = "") -> StorageOptions:
    """Of `input` or `output` if it has its own, else the common one."""
    own = getattr(job.config, section).storage if section else None
    storage = own or job.config.storage
    return StorageOptions(**storage.model_dump())


def run_folder(job: Job) -> RunFolder:
    """The job's run folder; nothing is touched yet."""
    assert job.config.output.path is not None
    return run_at(job, job.config.output.path)


def run_at(job: Job, path: str) -> RunFolder:
    """Another run folder in the output's store."""
    return RunFolder(path, storage_options(job, "output"))


def checkpoint(job: Job) -> CheckpointInfo:
    """What the model's folder says of itself, checked by its headers; its weights stay where they are.

    Raises ConfigError for a checkpoint that is not whole, or is of another kind than it seems.
    """
    with blaming(job, "model.path"):
        folder, variant = model_source(job).local(metadata_only=True), job.config.model.variant
        info = check_checkpoint(folder, variant)
        check_solver(info, job.config.sampling.solver, job.config.sampling.timestep_spacing)
    if info.has_safety_checker:
        log.warning("%s: its safety checker is not run, pictures are stored unchecked", job.config.model.path)
    return info


def prompt_source(job: Job, info: CheckpointInfo | None) -> PromptSource:
    """The input, and what its rows get where they say nothing and may say; without a model as much as is known.

    Raises ConfigError where a budget has no time grid.
    """
    given, sampling = job.config.input, job.config.sampling
    width, height = (info.width, info.height) if info else (512, 512)
    return PromptSource(
        path=given.path,
        columns=given.columns,
        images_per_prompt=given.images_per_prompt,
        limit=given.limit,
        storage=storage_options(job, "input"),
        defaults=RowDefaults(
            guidance_scale=sampling.guidance_scale,
            width=sampling.width or width,
            height=sampling.height or height,
            allowed_steps=_allowed_steps(job, info) if info else frozenset(range(1, MAX_STEPS + 1)),
            size_multiple=max(SIZE_MULTIPLE_PX, info.vae_scale_factor) if info else SIZE_MULTIPLE_PX,
            guidance_interval=interval_of(job),
        ),
    )


def selector_config(job: Job, info: CheckpointInfo) -> SelectorConfig:
    """How budgets are chosen."""
    steps = job.config.steps
    return SelectorConfig(
        selector=steps.selector,
        choices=tuple(steps.choices) if steps.choices else None,
        fixed=steps.fixed,
        policy_path=place(steps.policy) or EMBEDDED_POLICY,
        price=steps.price,
        min=steps.min,
        max=steps.max,
        decision=steps.decision,
        text_encoder_path=info.path,
        num_threads=None,
        device="auto" if steps.num_gpus else "cpu",  # no GPU that was not asked for
    )


def check_policy(job: Job, info: CheckpointInfo) -> list[str]:
    """Warnings for what a policy was not calibrated with. Raises ConfigError where it, or a scorer, cannot be used."""
    steps, sampling = job.config.steps, job.config.sampling
    if steps.selector != "policy":
        return []
    if steps.policy is None and job.config.model.path is not None:
        remedy = "name one in steps.policy (rollout, then train), or set steps.selector: words, or fixed"
        raise job.fault("steps.selector", f"the shipped policy reads the embedded model's text encoder alone: {remedy}")
    with blaming(job, "steps.policy"):
        card = read_card(local_policy(job))
        check_card(card, choices=tuple(steps.choices) if steps.choices else None)
    size = (sampling.width or info.width, sampling.height or info.height)
    made_with = (info.fingerprint, sampling.solver, sampling.timestep_spacing, sampling.guidance_scale)
    return uncalibrated(card, Setting(*made_with, *size))


def model_source(job: Job) -> ModelSource:
    """Where each node fetches the checkpoint from; a local folder by its absolute path, for workers run elsewhere."""
    model = job.config.model
    return ModelSource(
        place(model.path, may_be_hub=True) or EMBEDDED_MODEL, model.revision, model.variant, storage_options(job)
    )


def render_config(job: Job, info: CheckpointInfo) -> RenderConfig:
    """All that `pipelines.render.driver.render` is told."""
    pools = tuple(
        PoolSpec(
            name=pool.name,
            budgets=pool_budgets(pool),
            actors=pool.actors,
            num_gpus=None if pool.num_gpus == "auto" else pool.num_gpus,
            num_cpus=pool.num_cpus,
            lanes=None if pool.lanes == "auto" else pool.lanes,
            resources=pool.resources,
        )
        for pool in job.config.pools
    )
    output, failures = job.config.output, job.config.failures
    return RenderConfig(
        model=model_source(job),
        sampler=replace(sampler_config(job, info), calibrated=calibrated_lanes(run_folder(job))),
        pools=pools,
        layout=output.layout,
        image_format=output.format,
        scorers=scorer_sources(job),
        no_progress_s=failures.no_progress_s,
        row_timeout_s=failures.row_timeout_s,
        max_failed=failures.max_fraction if failures.stop_early else None,
    )


def calibrations(run: RunFolder) -> dict[str, Any]:
    """What `calibrate` measured for this run: by model, device, precision and size."""
    try:
        return run.read_json(CALIBRATION)
    except FileNotFoundError:
        return {}


def calibrated_lanes(run: RunFolder) -> tuple[tuple[str, int], ...]:
    """Those places with their lanes, for `lanes: auto`."""
    return tuple((place, found["lanes"]) for place, found in calibrations(run).items())


def scorer_sources(job: Job) -> tuple[ScorerSource, ...]:
    """The job's scorers. Raises ConfigError for one that is named wrongly or lacks its model."""
    sources = _sources(job)
    if faults := _faults_together(job, sources):
        raise ConfigError(faults)
    return sources


def _sources(job: Job) -> tuple[ScorerSource, ...]:
    return tuple(_scorer_source(job, index, scorer) for index, scorer in enumerate(job.config.quality))


def _faults_together(job: Job, sources: tuple[ScorerSource, ...]) -> list[Fault]:
    fault = scorers_fault([s.name for s in sources], [s.weight for s in sources]) if sources else None
    return [Fault(job.at("quality"), f"quality: {fault}")] if fault else []


def check_scorers(job: Job) -> None:
    """Raises ConfigError for scorers without names of their own, or whose weights do not fit their config."""
    sources = _sources(job)
    faults = _faults_together(job, sources)
    for index, source in enumerate(sources):
        try:
            with blaming(job, f"quality.{index}", f"quality.{index}: "):
                check_source(source)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)


def _scorer_source(job: Job, index: int, scorer: Scorer) -> ScorerSource:

    key, kind = f"quality.{index}", scorer.scorer
    if kind in ("clip", "aesthetic") and scorer.path is None:
        raise job.fault(key, f"{key}: {kind} needs path, a CLIPModel's folder, hub id or URL")
    if kind == "aesthetic" and scorer.head is None:
        raise job.fault(key, f"{key}: aesthetic needs head, the safetensors file of its linear head")
    function = _function(job, key, kind) if ":" in kind else None
    path = place(scorer.path, may_be_hub=True)
    model = ModelSource(path, storage=storage_options(job)) if path else None
    name = scorer_name(scorer.name, kind)
    return ScorerSource(name, "function" if function else kind, scorer.weight, model, place(scorer.head), function)


def scorer_name(name: str | None, kind: str) -> str:
    """What a scorer's column is called."""
    return name or kind.replace(":", ".")


def _function(job: Job, key: str, name: str) -> Any:
    """`package.module:function`, imported here so that a wrong name is told before anything starts."""
    module, _, attribute = name.partition(":")
    found: list[Any] = []

    def look() -> None:
        try:
            found.append(getattr(importlib.import_module(module), attribute))
        except SystemExit as end:
            raise RuntimeError("it ends the process that imports it") from end

    if error := raised_by(look):
        known = isinstance(error, ImportError | AttributeError)
        what = f"there is no {name}" if known else f"{module} cannot be imported: {type(error).__name__}"
        raise job.fault(key, f"{key}: {what} ({error})") from error
    if not callable(found[0]):
        raise job.fault(key, f"{key}: {name} is no function but {type(found[0]).__name__}")
    return found[0]


def fingerprint(job: Job, info: CheckpointInfo) -> dict[str, Any]:
    """What must stay the same in a run folder: every picture key, the weights behind model.path, what it is for."""
    return placed_fingerprint(job.config.fingerprint()) | {"model.weights": info.fingerprint, "rollout": job.rollout}


def refuse_changed(job: Job, run: RunFolder, now: dict[str, Any]) -> None:
    """Raises ConfigError for every picture key that differs from the run folder's plan, and for its price."""
    generations = run.generations()
    if not generations:
        return
    plan = run.read_plan(generations[-1])
    changed = changed_picture_keys(placed_fingerprint(plan["fingerprint"]), now)
    changed.pop("input.path", None)  # its rows are held against those that are planned
    price = (plan.get("price"), job.config.steps.price)
    if job.config.steps.selector == "policy" and price[0] is not None and price[0] != price[1]:
        changed["steps.price"] = price
    remedy = f"a run folder keeps what decides its pictures; set it back, or another output.path than {run.url}"
    faults = [
        Fault(job.at(key), f"{key} was {old!r} in this run and is {new!r} now: {remedy}")
        for key, (old, new) in changed.items()
    ]
    if faults:
        raise ConfigError(faults)


def plan_config(job: Job, info: CheckpointInfo) -> PlanConfig:
    """All that `pipelines.plan.make.make_plan` is told."""
    interval = sampler_config(job, info).guidance_interval

    def lanes_of_row(num_steps: int, guidance_scale: float, has_negative: bool) -> int:
        return lane_steps(num_steps, guidance_scale, None if has_negative else interval)

    return PlanConfig(
        source=prompt_source(job, info),
        selector=selector_config(job, info),
        pools=tuple(PoolBudgets(pool.name, pool_budgets(pool)) for pool in job.config.pools),
        model=model_source(job),
        lane_steps=lanes_of_row,
        selector_actors=job.config.steps.actors,
        selector_num_gpus=job.config.steps.num_gpus,
        fingerprint=fingerprint(job, info),
        rollout=job.rollout,
        num_workers=sum(pool.actors for pool in job.config.pools),
        lanes=max((pool.lanes for pool in job.config.pools if pool.lanes != "auto"), default=None),
    )


def sampler_config(job: Job, info: CheckpointInfo) -> SamplerConfig:
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
    )


def interval_of(job: Job) -> tuple[float, float] | None:
    """sampling.guidance_interval."""
    interval = job.config.sampling.guidance_interval
    return (interval[0], interval[1]) if interval else None


def pool_budgets(pool: Pool) -> tuple[int, ...] | None:
    """None: all."""
    return None if pool.budgets == "all" else tuple(pool.budgets)


def largest_budget(job: Job) -> int:
    """What savings are counted against, where no plan says it better: the top of the menu. Raises PolicyError."""
    steps = job.config.steps
    if steps.choices is None and steps.selector == "policy":
        return read_card(local_policy(job)).choices[-1]
    return max(steps.choices or PAPER_CHOICES)


def local_policy(job: Job) -> str:
    """The folder of the job's policy, the embedded one where it names none, on this machine. Raises StorageError."""
    path = job.config.steps.policy or str(ROOT / EMBEDDED_POLICY)
    return ModelSource(path, storage=storage_options(job)).local() if "://" in path else path


def _allowed_steps(job: Job, info: CheckpointInfo) -> frozenset[int]:
    """Budgets with a time grid. Raises ConfigError where the job file names another."""
    steps, sampling = job.config.steps, job.config.sampling
    allowed = allowed_steps(noise_schedule(info.scheduler_config, sampling.timestep_spacing), sampling.solver)
    wrong = [("steps.fixed", steps.fixed)] if steps.fixed and steps.fixed not in allowed else []
    wrong += [("steps.choices", count) for count in steps.choices or [] if count not in allowed]
    if wrong:
        how = f"{sampling.solver} with {sampling.timestep_spacing or 'the spacing of this checkpoint'}"
        raise ConfigError([Fault(job.at(key), f"{key}: {how} has no grid of {count} steps") for key, count in wrong])
    return allowed
