"""The policy that a job names: where it is, whether it fits the checkpoint, the menu and the scorers."""

from actors.checkpoint import CheckpointInfo
from actors.offer_heads import heads_of
from actors.policy import PolicyCard, Setting, read_card, uncalibrated
from actors.policy import check_policy as check_card
from actors.recipe import step_counts
from jobs.job_file.contradictions import known_choices, within_bounds
from jobs.job_file.errors import blaming
from jobs.job_file.places import ROOT
from jobs.job_file.read import Job
from jobs.job_file.recipes import menu_of_job
from jobs.job_file.scorers import counted, weights
from jobs.job_file.storage import storage_options
from pipelines.storage.checkpoints import ModelSource

EMBEDDED_POLICY = "training/scenes/policy"


def check_policy(job: Job, info: CheckpointInfo) -> list[str]:
    """Warnings for what a policy was not calibrated with. Raises ConfigError where it cannot be used."""
    steps, sampling = job.config.steps, job.config.sampling
    if steps.selector != "policy":
        return []
    if steps.policy is None and job.config.model.path is not None:
        remedy = "name one in steps.policy (rollout, then train), or set steps.selector: words, or fixed"
        raise job.fault("steps.selector", f"the shipped policy reads the embedded model's text encoder alone: {remedy}")
    with blaming(job, "steps.policy"):
        policy = local_policy(job)
        card = read_card(policy)
        check_card(card, choices=menu_of_job(job))
    counts = step_counts(card.choices)
    if not within_bounds(job.config, counts):
        known = ", ".join(map(str, counts))
        key = "steps.min" if steps.min else "steps.max"
        raise job.fault(key, f"none of the policy's recipes, of {known} steps, lies within steps.min and steps.max")
    _check_bars(job, policy, card)
    size = (sampling.width or info.width, sampling.height or info.height)
    made_with = (info.fingerprint, sampling.solver, sampling.timestep_spacing, sampling.guidance_scale)
    return uncalibrated(card, Setting(*made_with, *size))


def _check_bars(job: Job, policy: str, card: PolicyCard) -> None:
    """Whether a policy's folder can set bars for the job's scores. Raises ConfigError."""
    tries = job.config.tries
    if tries.max == 1 or tries.bar != "auto" or job.rollout:
        return
    with blaming(job, "tries.bar"):
        heads = heads_of(policy, card)
    theirs = counted(dict(heads.scorers))
    if theirs != counted(weights(job.config.quality)):
        known = ", ".join(f"{name} x {weight:g}" for name, weight in theirs.items())
        raise job.fault("quality", f"quality: the policy's bars are for the scores of {known}; set quality to these")


def menu_of(job: Job) -> tuple[int, ...]:
    """The budgets that may be chosen, of a policy's file where the job file names none. Raises PolicyError."""
    if known := known_choices(job.config):
        return known
    return within_bounds(job.config, step_counts(read_card(local_policy(job)).choices))


def local_policy(job: Job) -> str:
    """The folder of the job's policy, the embedded one where it names none, on this machine. Raises StorageError."""
    path = job.config.steps.policy or str(ROOT / EMBEDDED_POLICY)
    return ModelSource(path, storage=storage_options(job)).local() if "://" in path else path
