"""Says what a correction of offers gains on held-out prompts, and how much of it is to count: not at all, half, all.

Shapes: P prompts, K recipes, A offers, D features.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.offer_correction import SCALES, Correction
from actors.offer_heads import TEMPERATURE
from actors.policy import choose_steps
from training.learn.batches import Batch
from training.learn.offer_loss import pooled_features
from training.learn.offer_table import OfferTable

VALIDATION_PRICES = 8
LEAST_GAIN = 2.0  # standard errors that a correction must gain: the best of many weights gains a little by chance


def scaled(
    correction: Correction, table: OfferTable, held_out: Sequence[Batch], prices: tuple[float, float]
) -> Correction:
    """The correction with the scale of the largest gain on held-out prompts; 0 where none gains for sure."""
    best = replace(correction, scale=0.0, gain=0.0)
    for scale, (gains, _) in zip(SCALES[1:], _by_scale(correction, table, held_out, prices), strict=True):
        gain, error = float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
        if gain > LEAST_GAIN * error and gain > best.gain:
            best = replace(correction, scale=scale, gain=gain)
    return best


def validate_correction(
    correction: Correction, table: OfferTable, held_out: Sequence[Batch], prices: tuple[float, float]
) -> dict[str, float]:
    """What it does on held-out prompts at the better of its scales: val_gain, val_cost.

    val_gain is quality, in units, - price * cost above that of the heads alone.
    """
    found = _by_scale(correction, table, held_out, prices)
    gains, cost = max(found, key=lambda each: float(each[0].mean()))
    return {"val_gain": float(gains.mean()), "val_cost": cost}


def _by_scale(
    correction: Correction, table: OfferTable, held_out: Sequence[Batch], prices: tuple[float, float]
) -> list[tuple[np.ndarray, float]]:
    """For each scale but 0: net worth (P,) above the heads' own, mean over prices of the range, and the mean cost."""
    rows = np.concatenate([batch.rows for batch in held_out])
    features = np.concatenate([pooled_features(batch.embeds, batch.mask).numpy() for batch in held_out])
    value, tries = table.expected(rows, np.concatenate([batch.quality for batch in held_out]))
    worths = [table.worths(rows, *replace(correction, scale=scale)(features)) for scale in SCALES]
    every, cost, nets, costs = np.arange(len(rows)), tries * table.costs_of_one, [], []
    for price in np.geomspace(*prices, VALIDATION_PRICES):
        chosen = [choose_steps(each, table.costs, price, TEMPERATURE)[0] for each in worths]
        nets.append([(value - price * cost)[every, offers] for offers in chosen])
        costs.append([cost[every, offers].mean() for offers in chosen])
    net, spent = np.mean(nets, axis=0), np.mean(costs, axis=0)  # (scales, P), (scales,)
    return [(net[at] - net[0], float(spent[at])) for at in range(1, len(SCALES))]
