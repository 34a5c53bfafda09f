"""Computes rewards from quality and cost: pure numpy over the reward table, no network and no sampling.

What the network learns from a reward is `training.learn.reinforce`. Shapes: P prompts, K budgets of the menu (rising),
S seeds.
"""

from collections.abc import Sequence

import numpy as np

from training.learning_error import Unlearnable

PAPER_TOP, PAPER_LAMBDA, PAPER_GAMMA = 3, 2.0, 1.0
LEAST_PRICE = 0.1  # rises: below it budgets differ by less than a table of a thousand prompts can tell (docs/log.md)


def centred(quality: np.ndarray) -> np.ndarray:
    """Quality (P, K, S) less the mean of its prompt and seed over the budgets.

    The mean is the same whatever budget is drawn, so an expected gradient does not change; what a prompt or a seed is
    worth by itself, most of the variance, is gone.
    """
    return quality - quality.mean(axis=1, keepdims=True)


def priced_reward(quality: np.ndarray, costs: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Centred quality - price * cost, (P, K, S), of quality (P, K, S), costs (K,) and a price a prompt (P,)."""
    return centred(quality) - prices[:, None, None] * costs[None, :, None]


def paper_reward(
    quality: np.ndarray,
    num_steps: Sequence[int],
    top: int = PAPER_TOP,
    weight: float = PAPER_LAMBDA,
    penalty: float = PAPER_GAMMA,
) -> np.ndarray:
    """AdaDiff, section 3: (1 - t / T) + lambda * quality among the prompt's `top` images, else -gamma; (P, K, S).

    t: the budget in steps, T: the largest. The images compared are those of one seed; of equals all are in.
    """
    steps = np.asarray(num_steps, np.float64)
    bar = np.sort(quality, axis=1)[:, -min(top, quality.shape[1])]  # (P, S)
    reward = (1 - steps / steps.max())[None, :, None] + weight * quality
    return np.where(quality >= bar[:, None, :], reward, -penalty)


def sample_prices(uniforms: np.ndarray, low: float, high: float) -> np.ndarray:
    """Prices between two positive bounds, as likely in each octave; from uniforms in [0, 1)."""
    if not 0 < low <= high:
        raise Unlearnable(f"prices {low} to {high} must be positive and rise")
    return low * (high / low) ** np.asarray(uniforms, np.float64)


def rise(quality: np.ndarray) -> float:
    """What steps buy in all: mean quality (P, K, S) of the best budget less that of the worst.

    The unit of rewards and prices, whatever the scorer: at price 1 the largest budget's whole cost weighs as much as
    the whole rise. ValueError where no budget differs.
    """
    if not (found := _spread(quality)) > 0:
        raise Unlearnable("every budget has the same mean quality: there is nothing to choose")
    return found


def in_rises(values: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Values of a scorer in rises of its quality (P, K, S), as prices are; those of a flat one as they are."""
    return values / found if (found := _spread(quality)) > 0 else values


def _spread(quality: np.ndarray) -> float:
    return float(np.ptp(quality.mean(axis=(0, 2))))


def default_temperature(quality: np.ndarray) -> float:
    """A softness of the policy that fits the quality's scale: half the spread of its mean between the budgets."""
    rise(quality)
    return float(centred(quality).mean(axis=(0, 2)).std()) / 2


def default_prices(quality: np.ndarray, costs: np.ndarray) -> tuple[float, float]:
    """The range in which a price changes the best fixed budget, an octave more at both ends.

    The bounds are the least and the largest positive slope of the upper hull of mean quality over cost; the lower one
    is at least LEAST_PRICE.
    """
    slopes = hull_slopes(quality.mean(axis=(0, 2)), np.asarray(costs, np.float64))
    rising = slopes[slopes > 0]
    if not len(rising):
        raise Unlearnable("the smallest budget has the best mean quality: there is nothing to choose")
    low, high = float(rising.min() / 2), float(rising.max() * 2)
    return min(max(low, LEAST_PRICE * rise(quality)), high / 2), high


def hull_slopes(mean_quality: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Quality per cost along the upper hull of the fixed budgets, falling."""
    corners = upper_hull(costs, mean_quality)
    return np.diff(mean_quality[corners]) / np.diff(costs[corners])


def upper_hull(costs: np.ndarray, quality: np.ndarray) -> list[int]:
    """Indices of the budgets on the upper concave hull of (cost, quality), costs rising: no mixture is above it."""
    corners: list[int] = []
    for k in range(len(costs)):
        if corners and costs[k] == costs[corners[-1]]:  # recipes of one cost: the better one counts
            if quality[k] <= quality[corners[-1]]:
                continue
            corners.pop()
        while len(corners) >= 2 and _below(costs, quality, corners[-2], corners[-1], k):
            corners.pop()
        corners.append(k)
    return corners


def _below(costs: np.ndarray, quality: np.ndarray, a: int, b: int, c: int) -> bool:
    """Whether b lies on or below the line from a to c."""
    return bool((quality[b] - quality[a]) * (costs[c] - costs[a]) <= (quality[c] - quality[a]) * (costs[b] - costs[a]))
