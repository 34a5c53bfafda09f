"""QualityScorer: image, prompt, reference -> scores, quality. Several views of a picture's quality, weighed.

What the views are made of: `actors.clip`, `actors.ssim`, and any function that the caller brings.

Shapes: N pictures, D the width of CLIP's embeddings.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from actors.clip import Clip
from actors.scorer_check import scorers_fault
from actors.ssim import ssim

KINDS = ("clip", "aesthetic", "fidelity", "function")
Image = np.ndarray  # (H, W, 3) uint8
ScoreFunction = Callable[[list[Image], list[str]], Sequence[float]]


class ScorerError(ValueError):
    """A scorer that cannot be used: which one, what is wrong, the remedy."""


@dataclass(frozen=True)
class ScorerSpec:
    """One view of quality, by its name in `scores`. weight 0: it is written down and does not count.

    clip: the cosine of picture and prompt in the CLIPModel at `path`, -1 to 1. aesthetic: the linear head `head`
    (safetensors: weight, bias) on the picture's unit embedding there. fidelity: structural similarity to the row's
    reference. function: any `images, prompts -> a float a row`, nan where it cannot judge.
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
    """image, prompt, and where it is asked for reference -> scores, quality.

    Each scorer's value and their weighted sum; where a scorer cannot judge its value is nan, and so is the quality if
    it counts. Raises ScorerError or ClipError where a model cannot be loaded, never for a row's content. A CLIP that
    several scorers share is loaded and run once.
    """

    def __init__(self, config: ScorerConfig) -> None:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.config = config
        paths = sorted({spec.path for spec in config.scorers if spec.path})
        self.clips = {path: Clip(path, config.device) for path in paths}
        self.heads = {spec.name: _head(spec) for spec in config.scorers if spec.kind == "aesthetic"}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Columns of N rows: adds scores (dicts of those that could judge) and quality (None where it is unknown)."""
        scores, quality = self.score(batch["image"], batch["prompt"], batch.get("reference"))
        columns = {name: np.empty(len(quality), object) for name in ("scores", "quality")}
        for row, value in enumerate(quality):
            known = {name: float(values[row]) for name, values in scores.items() if math.isfinite(values[row])}
            columns["scores"][row] = known
            columns["quality"][row] = float(value) if math.isfinite(value) else None
        return {**batch, **columns}

    def score(
        self, images: Sequence[Image], prompts: Sequence[Any], references: Sequence[Image | None] | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """({scorer: (N,)}, quality (N,)) float64; references: None where there is none."""
        if not len(images):
            return {spec.name: np.empty(0) for spec in self.config.scorers}, np.empty(0)
        embeds = {path: clip.images(images) for path, clip in self.clips.items()}
        scores = {
            spec.name: self._score(spec, embeds, images, prompts, references or [None] * len(images))
            for spec in self.config.scorers
        }
        weighed = [spec.weight * scores[spec.name] for spec in self.config.scorers if spec.weight]
        return scores, np.sum(weighed, axis=0)

    def _score(
        self,
        spec: ScorerSpec,
        embeds: dict[str, Tensor],
        images: Sequence[Image],
        prompts: Sequence[Any],
        references: Sequence[Image | None],
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
        assert spec.function is not None
        values = np.asarray(spec.function(list(images), [str(prompt) for prompt in prompts]), np.float64)
        if values.shape != (len(images),):
            raise ScorerError(f"scorer {spec.name!r} gave {values.shape} values for {len(images)} pictures")
        return values


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
