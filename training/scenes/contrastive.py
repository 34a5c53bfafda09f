"""Trains the scorer: a small CLIP that tells a drawing's caption from others and from its own with one word changed.

It judges pictures for the policy; the checker, which knows the truth, judges both. B batch, L tokens, H = W = 32 px.
"""

import copy
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from training.scenes.architecture import clip
from training.scenes.fit import FitLoop, FitSettings
from training.scenes.mixed import halve_products
from training.scenes.training_files import pixels, token_ids
from training.scenes.world import COLOURS, RELATIONS, SHAPES, TEXTURES, TONES, Scene, parse

BATCH, MAX_LOGIT_SCALE = 96, 4.6  # e^4.6 = 100, as in CLIP


def altered(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one of its words changed: a colour, a shape, a number, the relation or the background."""
    kinds = (
        ["colour", "shape", "number"] * 2 + ["relation"] * bool(scene.relation) + ["texture", "tone"] * bool(scene.tone)
    )
    kind = rng.choice(kinds)
    match kind:
        case "relation":
            return replace(scene, relation=_other(rng, RELATIONS, scene.relation))
        case "texture":
            return replace(scene, texture=_other(rng, TEXTURES, scene.texture))
        case "tone":
            return replace(scene, tone=_other(rng, TONES, scene.tone))
    index = rng.randrange(len(scene.groups))
    group = scene.groups[index]
    choices: Iterable[Any] = {"colour": COLOURS, "shape": SHAPES, "number": range(1, 5)}[kind]
    changed = replace(group, **{kind: _other(rng, choices, getattr(group, kind))})
    return replace(scene, groups=(*scene.groups[:index], changed, *scene.groups[index + 1 :]))


def _other(rng: random.Random, choices: Iterable[Any], current: object) -> Any:
    return rng.choice([choice for choice in choices if choice != current])


class ContrastiveObjective:
    """Draws a batch and gives the contrastive loss; each picture also sees its own caption with one word changed."""

    def __init__(self, work: Path, tokenizer: CLIPTokenizer, model: CLIPModel) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.images = np.load(work / "images.npy", mmap_mode="r")
        self.captions = json.loads((work / "captions.json").read_text())

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Cross-entropy of picture to text (2B texts) and of text to picture (B pictures)."""
        rows = torch.randint(len(self.images), (BATCH,), generator=generator).sort().values.tolist()
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        texts = [self.captions[row] for row in rows]
        texts += [altered(rng, parse(text)).caption() for text in texts]
        out = self.model(
            input_ids=torch.from_numpy(token_ids(self.tokenizer, texts)), pixel_values=pixels(self.images[rows])
        )
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        target = torch.arange(BATCH)
        return F.cross_entropy(out.logits_per_image, target) + F.cross_entropy(out.logits_per_text[:BATCH], target)


def train(
    work: Path, tokenizer: CLIPTokenizer, plan: FitSettings, before_step: Callable[[], None] = lambda: None
) -> CLIPModel:
    """The averaged CLIP; resumes from work/clip.ckpt."""
    torch.manual_seed(0)
    model = clip(tokenizer)
    average = copy.deepcopy(model).requires_grad_(False)
    halve_products(model)
    run = FitLoop(work / "clip.ckpt", {"clip": model}, {"clip": average}, plan)
    run.train(ContrastiveObjective(work, tokenizer, model), before_step)
    return average.eval()
