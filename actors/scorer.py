"""QualityScorer: image, prompt, reference -> scores, quality. Several views of a picture's quality, weighed.

What the views are made of: `actors.clip`, `actors.ssim`, and any function that the caller brings.

Shapes: N pictures, D the width of CLIP's embeddings.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from actors.actor_error import ActorError
from actors.clip import Clip
from actors.fault import each_alone
from actors.scorer_check import scorers_fault
from actors.ssim import ssim

KINDS = ("clip", "aesthetic", "fidelity", "function")
Image = np.ndarray  # (H, W, 3) uint8
ScoreFunction = Callable[[list[Image], list[str]], Sequence[float]]


class ScorerError(ActorError, ValueError):
    """A scorer that cannot be used: which one, what is wrong, the remedy."""


@dataclass(frozen=True)
class ScorerSpec:
    """One view of quality, by its name in `scores`. weight 0: it is written down and does not count.

    clip: the cosine of picture and prompt in the CLIPModel at `path`, -1 to 1. aesthetic: the linear head `head`
    (safetensors: weight, bias) on the picture's unit embedding there. fidelity: structural similarity to the row's
    reference. function: any `images, prompts -> a float a row`, nan where it cannot judge; the pictures are its own.
    """

    name: str
    kind: str
    weight: float = 1.0
    path: str | None = None  # a local folder
    head: str | None = None  # a local file
    function: ScoreFunction | None = None

    def __post_init__(self) -> None:
        needed = {"clip": ("path",), "aesthetic": ("path", "head"), "fidelity": (), "function": ("function",)}
        if self.kind not in needed:
            raise ScorerError(f"scorer {self.name!r}: {self.kind!r} must be one of {', '.join(KINDS)}")
        missing = [name for name in needed[self.kind] if getattr(self, name) is None]
        if missing:
            raise ScorerError(f"scorer {self.name!r} of kind {self.kind} needs {' and '.join(missing)}")
        if not math.isfinite(self.weight):
            raise ScorerError(f"scorer {self.name!r}: weight {self.weight} must be finite")


@dataclass(frozen=True)
class ScorerConfig:
    """device: auto, cpu or cuda. num_threads: CPU only; None: as they are."""

    scorers: tuple[ScorerSpec, ...]
    device: str = "auto"
    num_threads: int | None = None

    def __post_init__(self) -> None:
        if fault := scorers_fault([spec.name for spec in self.scorers], [spec.weight for spec in self.scorers]):
            raise ScorerError(fault)

    @property
    def needs_reference(self) -> bool:
        """Whether a row wants a reference: its picture of the same seed at the largest budget."""
        return any(spec.kind == "fidelity" for spec in self.scorers)


class QualityScorer:
    """image, prompt, and where it is asked for reference -> scores, quality, score_error.

    Each scorer's value and their weighted sum; where a scorer cannot judge its value is nan, and so is the quality if
    it counts. score_error: what a function raised for this row, or gave instead of a number; None: nothing. Functions
    get copies of the pictures. Raises ScorerError or ClipError where a model cannot be loaded or a function does not
    give one value a picture, never for a row's content. A CLIP that several scorers share is loaded and run once.
    """

    def __init__(self, config: ScorerConfig) -> None:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.config = config
        paths = sorted({spec.path for spec in config.scorers if spec.path})
        self.clips = {path: Clip(path, config.device) for path in paths}
        self.heads = {spec.name: _head(spec) for spec in config.scorers if spec.kind == "aesthetic"}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Columns of N rows: adds scores (dicts of those that could judge), quality (None: unknown) and score_error."""
        errors: dict[int, str] = {}
        scores, quality = self.score(batch["image"], batch["prompt"], batch.get("reference"), errors)
        columns = {name: np.empty(len(quality), object) for name in ("scores", "quality", "score_error")}
        for row, value in enumerate(quality):
            columns["score_error"][row] = errors.get(row)
            known = {name: float(values[row]) for name, values in scores.items() if math.isfinite(values[row])}
            columns["scores"][row] = known
            columns["quality"][row] = float(value) if math.isfinite(value) else None
        return {**batch, **columns}

    def score(
        self,
        images: Sequence[Image],
        prompts: Sequence[Any],
        references: Sequence[Image | None] | None = None,
        errors: dict[int, str] | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """({scorer: (N,)}, quality (N,)) float64; references: None where there is none; errors: is given those of rows.

        A value that is not finite is no score: it is nan here.
        """
        if not len(images):
            return {spec.name: np.empty(0) for spec in self.config.scorers}, np.empty(0)
        embeds = {path: clip.images(images) for path, clip in self.clips.items()}
        errors, references = {} if errors is None else errors, references or [None] * len(images)
        scores = {}
        for spec in self.config.scorers:
            values = self._score(spec, embeds, images, prompts, references, errors)
            scores[spec.name] = np.where(np.isfinite(values), values, np.nan)
        weighed = [spec.weight * scores[spec.name] for spec in self.config.scorers if spec.weight]
        return scores, np.sum(weighed, axis=0)

    def _score(
        self,
        spec: ScorerSpec,
        embeds: dict[str, Tensor],
        images: Sequence[Image],
        prompts: Sequence[Any],
        references: Sequence[Image | None],
        errors: dict[int, str],
    ) -> np.ndarray:
        match spec.kind:
            case "clip":
                assert spec.path is not None
                cosine = (embeds[spec.path] * self.clips[spec.path].prompts(prompts)).sum(dim=1)
                return cosine.double().numpy()
            case "aesthetic":
                assert spec.path is not None
                weight, bias = self.heads[spec.name]
                return (embeds[spec.path] @ weight + bias).double().numpy()
            case "fidelity":
                return np.array([_fidelity(*pair) for pair in zip(images, references, strict=True)])
        return _judged(spec, images, [str(prompt) for prompt in prompts], errors)


def _judged(spec: ScorerSpec, images: Sequence[Image], prompts: Sequence[str], errors: dict[int, str]) -> np.ndarray:
    """(N,) by a user's function; where it raises, it is asked for each picture alone.

    errors: by row, what it raised, or gave instead of a number. ScorerError where it does not give one value a picture.
    """
    assert spec.function is not None
    function, values, miscounted = spec.function, np.full(len(images), np.nan), list[str]()

    def fail(row: int, reason: object) -> None:
        errors[row] = "; ".join([*filter(None, [errors.get(row)]), f"{spec.name}: {reason}"])

    def ask(rows: list[int]) -> None:
        try:
            given = function([images[row].copy() for row in rows], [prompts[row] for row in rows])
        except SystemExit as error:
            raise RuntimeError(f"it called exit({error.code})") from None
        found = list(given) if _is_series(given) else None
        if found is None or len(found) != len(rows):
            what = f"{len(found)} values" if found is not None else f"a {type(given).__name__}"
            miscounted.append(f"gave {what} for {len(rows)} pictures: it must give one number each")
            return
        for row, value in zip(rows, found, strict=True):
            values[row] = _finite(value)
            if math.isnan(values[row]):
                fail(row, f"gave {value!s:.40} ({type(value).__name__})")

    each_alone(ask, list(range(len(images))), lambda row, error: fail(row, f"{type(error).__name__}: {error}"))
    if miscounted:
        raise ScorerError(f"scorer {spec.name!r} {miscounted[0]}")
    return values


def _is_series(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str | Mapping) and getattr(given, "ndim", 1) > 0


def _finite(value: Any) -> float:
    """Nan for what is no number, or no finite one."""
    try:
        value = value.item() if hasattr(value, "item") else value  # of an array or a tensor
        number = math.nan if isinstance(value, str | bytes | bool | type(None)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _fidelity(image: Image, reference: Image | None) -> float:
    """Nan without a reference."""
    if reference is None:
        return math.nan
    return float(ssim(torch.from_numpy(np.ascontiguousarray(image))[None], torch.from_numpy(reference)[None])[0])


def _head(spec: ScorerSpec) -> tuple[Tensor, Tensor]:
    """weight (D,) and bias () of a linear head."""
    assert spec.head is not None
    try:
        tensors = load_file(spec.head)
        return tensors["weight"].float().reshape(-1), tensors["bias"].float().reshape(())
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ScorerError(
            f"scorer {spec.name!r}: {spec.head} must be safetensors with weight (1, D) and bias (1) ({error})"
        ) from None
