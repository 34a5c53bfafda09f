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
    for scale in SCALES[1:]:
        gains, _ = _gains(replace(correction, scale=scale), table, held_out, prices)
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
    found = [_gains(replace(correction, scale=scale), table, held_out, prices) for scale in SCALES[1:]]
    gains, cost = max(found, key=lambda each: float(each[0].mean()))
    return {"val_gain": float(gains.mean()), "val_cost": cost}


def _gains(
    correction: Correction, table: OfferTable, held_out: Sequence[Batch], prices: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """(P,) net worth above the heads' own, mean over prices of the range; and the mean cost."""
    rows = np.concatenate([batch.rows for batch in held_out])
    features = np.concatenate([pooled_features(batch.embeds, batch.mask).numpy() for batch in held_out])
    value, tries = table.expected(rows, np.concatenate([batch.quality for batch in held_out]))
    cost = tries * table.costs_of_one
    worths = {"heads": table.worths(rows), "corrected": table.worths(rows, *correction(features))}
    every = np.arange(len(rows))
    gains, costs = [], []
    for price in np.geomspace(*prices, VALIDATION_PRICES):
        chosen = {name: choose_steps(each, table.costs, price, TEMPERATURE)[0] for name, each in worths.items()}
        net = {name: (value - price * cost)[every, offers] for name, offers in chosen.items()}
        gains.append(net["corrected"] - net["heads"])
        costs.append(cost[every, chosen["corrected"]].mean())
    return np.mean(gains, axis=0), float(np.mean(costs))
