"""A reward table -> what a policy needs to set bars for another try, beside its network, and what corrects it.

The heads are `training.learn.heads`'; here they become the file that a selector reads. It loads the text encoder alone.

Shapes: P prompts, K recipes, S seeds, D features of a prompt.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from actors.offer_heads import TEMPERATURE, OfferHeads
from training.learn.batches import Batch
from training.learn.correction_scale import scaled
from training.learn.heads import ScoreHeads, fit_heads
from training.learn.hyperparameters import Hyperparameters
from training.learn.offer_table import OfferTable
from training.learn.stages import OfferStage
from training.reward_table import RewardTable

LEAST_ERRORS = 2.0  # standard errors by which the dearest recipe is better than one that does as well


def fit_offers(
    table: RewardTable, features: np.ndarray, judge: str | None, scorers: dict[str, float], text_encoder: str
) -> OfferHeads:
    """Of a table with two seeds or more; features (P, D). judge: a scorer of the table that its quality does not count.

    scorers: the weights that the quality is made of. Unlearnable where the table is too small.
    """
    return _offers(_fit(table, features, judge), table, scorers, text_encoder)


def _fit(table: RewardTable, features: np.ndarray, judge: str | None) -> ScoreHeads:
    judged = table.judged_by(judge).quality if judge else None
    return fit_heads(features, table.quality, judged, groups=table.prompts, pooled_sigma=True)


def _offers(heads: ScoreHeads, table: RewardTable, scorers: dict[str, float], text_encoder: str) -> OfferHeads:
    reference = reference_recipe(table.quality)
    return OfferHeads(
        *_linear(heads),
        sigma=heads.sigma,
        share=heads.share,
        banks=heads.banks,
        costs=table.costs / table.costs[reference],
        unit=heads.unit(reference),
        reference=reference,
        choices=table.choices,
        scorers=tuple(sorted(scorers.items())),
        text_encoder=text_encoder,
        num_prompts=len(table.prompts),
    )


def reference_recipe(quality: np.ndarray) -> int:
    """The cheapest recipe that is not worse than the dearest: what a user would take; quality (P, K, S)."""
    means = quality.mean(axis=2)  # (P, K)
    lost = means[:, -1:] - means
    errors = lost.std(axis=0, ddof=1) / np.sqrt(len(lost)) if len(lost) > 1 else np.zeros(lost.shape[1])
    return int(np.argmax(lost.mean(axis=0) <= LEAST_ERRORS * errors))


def _linear(heads: ScoreHeads) -> tuple[np.ndarray, np.ndarray]:
    """weight (D, K) and bias (K,) of level and contrast together."""
    level, contrast = heads.mean.level, heads.mean.contrast
    weights = [ridge.weights / ridge.spread[:, None] for ridge in (level, contrast)]  # (D, 1), (D, K)
    biases = [ridge.intercept - (ridge.mean / ridge.spread) @ ridge.weights for ridge in (level, contrast)]
    return weights[0] + weights[1], biases[0] + biases[1]


def offer_stage(
    learned: tuple[RewardTable, np.ndarray],
    held_out: tuple[RewardTable, np.ndarray],
    judge: str | None,
    learning: Hyperparameters,
    width: int,
    read: bool = True,
) -> OfferStage:
    """The stage that corrects offers, of tables and features (P, D); prompts meet heads that have not seen them.

    read: False: the heads know the mean of all prompts alone, and the correction begins there. The entropy bonus is the
    temperature throughout: more would first unlearn what the heads know.
    """
    features = [each if read else np.zeros_like(each) for each in (learned[1], held_out[1])]
    found = _fit(learned[0], features[0], judge)
    heads = _offers(found, learned[0], {}, "")
    table = OfferTable(heads, found.mu, learned[0].num_seeds)
    return OfferStage(
        learned=table,
        held_out=OfferTable(heads, heads.mu(features[1]), held_out[0].num_seeds),
        learning=replace(learning, prices=table.prices(), temperature=TEMPERATURE, entropy=learning.entropy_end),
        mean=learned[1].mean(axis=0),
        spread=learned[1].std(axis=0),
        width=width,
    )


def with_correction(heads: OfferHeads, stage: OfferStage, weights: dict[str, Any], held_out: list[Batch]) -> OfferHeads:
    """Heads of the whole table with what a stage has learned, as far as it gains on held-out prompts."""
    network = stage.network()
    network.load_state_dict(weights)
    found = scaled(stage.finished(network), stage.held_out, held_out, stage.learning.prices)
    return replace(heads, correction=found)
