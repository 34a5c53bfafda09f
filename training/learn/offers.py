"""A reward table -> what a policy needs to set bars for another try, beside its network.

The heads are `training.learn.heads`'; here they become the file that a selector reads. It loads the text encoder alone.

Shapes: P prompts, K recipes, S seeds, D features of a prompt.
"""

import numpy as np

from actors.offer_heads import OfferHeads
from training.learn.heads import ScoreHeads, fit_heads
from training.reward_table import RewardTable

LEAST_ERRORS = 2.0  # standard errors by which the dearest recipe is better than one that does as well


def fit_offers(
    table: RewardTable, features: np.ndarray, judge: str | None, scorers: dict[str, float], text_encoder: str
) -> OfferHeads:
    """Of a table with two seeds or more; features (P, D). judge: a scorer of the table that its quality does not count.

    scorers: the weights that the quality is made of. Unlearnable where the table is too small.
    """
    judged = table.judged_by(judge).quality if judge else None
    heads = fit_heads(features, table.quality, judged, groups=table.prompts, pooled_sigma=True)
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
