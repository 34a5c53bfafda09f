"""Corrects what the heads say an offer is worth: a small network over a prompt's features, learned by REINFORCE.

Pure numpy, read without torch. It knows no price, so that the modelled cost still falls as the price rises. How it is
learned is `training.learn.offer_loss`'. Shapes: N prompts, K recipes, D features, W hidden units.
"""

from dataclasses import dataclass

import numpy as np

SCALES = (0.0, 0.5, 1.0)  # how much of it may count


@dataclass(frozen=True)
class Correction:
    """max(0, features @ hidden + hidden_bias) @ out + out_bias, (N, 2 K) in the scorer's units.

    hidden (D, W), hidden_bias (W,), out (W, 2 K), out_bias (2 K,). scale: how much of it counts, one of SCALES, by what
    it gained on held-out prompts; gain: that, in units of prices.
    """

    hidden: np.ndarray
    hidden_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    scale: float = 1.0
    gain: float = 0.0

    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, K) twice, of features (N, D): what is added to mu, and to the worth of one sigma of gain."""
        if not self.scale:
            return (np.zeros((len(features), len(self.out_bias) // 2)),) * 2
        hidden = np.maximum(0.0, features.astype(np.float64) @ self.hidden + self.hidden_bias)
        shift, slope = np.split(self.scale * (hidden @ self.out + self.out_bias), 2, axis=1)
        return shift, slope

    @property
    def words(self) -> str:
        """What validation made of it, for people."""
        used = {0.0: "not at all", 0.5: "by half", 1.0: "in full"}[self.scale]
        gained = f"it gained {self.gain:+.4f} sigma on held-out prompts" if self.scale else "it gained nothing for sure"
        return f"the correction of what offers are worth is used {used}: {gained}"
