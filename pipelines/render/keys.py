"""Computes a picture's two keys: of all that decided it, and of all that will, as far as its plan knows.

Pure. Keys leave out what only moves a picture's last bits: kind of device, lanes, the version of torch.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from actors.recipe import THROUGHOUT
from actors.rows import SamplerConfig
from pipelines.render.quality import ScorerSource
from pipelines.render.safety import SafetyRule
from pipelines.run.schema import PlannedRow

_COLUMNS = ("prompt", "negative_prompt", "seed", "guidance_scale", "width", "height", "num_steps")


def render_key(row: PlannedRow, render_class: str, sampler: SamplerConfig, stamp: str | None = None) -> str:
    """20 hex digits of all that decided the picture. row: with the seed of the try that was kept.

    stamp: name of the function that changed its pixels; keys of pictures without one are those of earlier versions.
    """
    return _digest([*_parts(row, render_class, sampler), *([stamp] if stamp else ())])


def plan_key(row: PlannedRow, render_class: str, sampler: SamplerConfig, rules: str) -> str:
    """20 hex digits of all that decides which picture a planned row gets: its seed is the planned one.

    rules: what else of the job does, see `tries_rules`. Two rows of one key get one picture, in whatever run.
    """
    return _digest([*_parts(row, render_class, sampler), row.bar, rules])


def tries_rules(
    image_format: str,
    most_tries: int,
    scorers: Sequence[ScorerSource],
    safety: SafetyRule | None = None,
    provenance: Sequence[str] = (),
) -> str:
    """What of a job decides a row's picture beside its columns and the engine, as one text.

    provenance: what is done to its pixels and its file.
    """
    rules: list[Any] = [image_format, most_tries, [_judge(each) for each in scorers]]
    return json.dumps(rules + ([[_judge(safety.source), safety.most]] if safety else []) + list(provenance))


def _judge(scorer: ScorerSource) -> list[Any]:
    model, function = scorer.model, scorer.function
    judge = [scorer.name, scorer.kind, scorer.weight, model and [model.path, model.revision], scorer.head]
    return judge + ([function.__module__, function.__qualname__] if function else [])


def _parts(row: PlannedRow, render_class: str, sampler: SamplerConfig) -> list[Any]:
    fingerprint, _, precision, *_ = render_class.split("/")
    interval = tuple(row.guidance_interval or ())
    guided = None if interval == THROUGHOUT else interval or sampler.guidance_interval  # of earlier plans: the job's
    parts = [getattr(row, name) for name in _COLUMNS]
    return [*parts, fingerprint, precision, row.solver or sampler.solver, sampler.timestep_spacing, guided]


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()
