"""Turns `quality` and `safety` into scorers with their models' places, and checks them before anything starts."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.scorer_check import scorers_fault
from jobs.job_file.errors import blaming
from jobs.job_file.keys import Safety, Scorer
from jobs.job_file.places import place
from jobs.job_file.positions import ConfigError, Fault
from jobs.job_file.read import Job
from jobs.job_file.storage import storage_options
from jobs.job_file.user_code import imported_function
from pipelines.render.quality import ScorerSource, check_source
from pipelines.render.safety import SafetyRule
from pipelines.storage.checkpoints import ModelSource


def scorer_sources(job: Job) -> tuple[ScorerSource, ...]:
    """The job's scorers. Raises ConfigError for one that is named wrongly or lacks its model."""
    sources = _sources(job)
    if faults := _faults_together(job, sources):
        raise ConfigError(faults)
    return sources


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
    try:
        with blaming(job, "safety", "safety: "):
            if rule := safety_rule(job):
                check_source(rule.source)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults)


def safety_rule(job: Job) -> SafetyRule | None:
    """The job's safety scorer. Raises ConfigError for one that is named wrongly, as a scorer of quality, or lacks its
    model.
    """
    safety = job.config.safety
    if safety is None:
        return None
    if safety.name in weights(job.config.quality):
        raise job.fault("safety", f"safety: a scorer of quality is named {safety.name}, too: give it another name")
    return SafetyRule(_scorer_source(job, "safety", safety), safety.max)


def scorer_name(name: str | None, kind: str) -> str:
    """The name of a scorer's column."""
    return name or kind.replace(":", ".")


def weights(scorers: Sequence[Scorer]) -> dict[str, float]:
    """What quality is made of: scorer to weight."""
    return {scorer_name(each.name, each.scorer): each.weight for each in scorers}


def counted(weights: Mapping[str, float]) -> dict[str, float]:
    """Those that quality is made of: where they are equal, so is what a score means."""
    return {name: weight for name, weight in weights.items() if weight}


def weights_in(fingerprint: Mapping[str, Any]) -> dict[str, float]:
    """The same of a run, by its plan's fingerprint."""
    return {
        scorer_name(s.get("name"), s["scorer"]): float(s.get("weight", 1.0)) for s in fingerprint.get("quality", ())
    }


def _sources(job: Job) -> tuple[ScorerSource, ...]:
    return tuple(_scorer_source(job, f"quality.{index}", scorer) for index, scorer in enumerate(job.config.quality))


def _faults_together(job: Job, sources: tuple[ScorerSource, ...]) -> list[Fault]:
    fault = scorers_fault([s.name for s in sources], [s.weight for s in sources]) if sources else None
    return [Fault(job.at("quality"), f"quality: {fault}")] if fault else []


def _scorer_source(job: Job, key: str, scorer: Scorer | Safety) -> ScorerSource:
    """key: where the job file has it. A safety scorer stands alone, so its weight is 1."""
    kind, weight = scorer.scorer, scorer.weight if isinstance(scorer, Scorer) else 1.0
    if kind in ("clip", "aesthetic") and scorer.path is None:
        raise job.fault(key, f"{key}: {kind} needs path, a CLIPModel's folder, hub id or URL")
    if kind == "aesthetic" and scorer.head is None:
        raise job.fault(key, f"{key}: aesthetic needs head, the safetensors file of its linear head")
    function = imported_function(job, key, kind) if ":" in kind else None
    path = place(scorer.path, may_be_hub=True)
    model = ModelSource(path, storage=storage_options(job)) if path else None
    name = scorer_name(scorer.name, kind)
    return ScorerSource(name, "function" if function else kind, weight, model, place(scorer.head), function)
