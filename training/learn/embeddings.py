"""Computes token embeddings of prompts with the frozen text encoder, once, before training. It loads no UNet.

Shapes: P prompts, L_i tokens of prompt i, H the encoder's width.
"""

import numpy as np

from actors.prompt_encoder import PromptEncoder
from pipelines.storage.checkpoints import ModelSource


class EmbedPrompts:
    """prompt -> embeds: its (L_i, H) float16 as bytes, without padding. A plain class; Ray Data makes it an actor."""

    def __init__(self, model: ModelSource, num_threads: int | None = None) -> None:
        self.encoder = PromptEncoder(model.local(), num_threads=num_threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One batch of N rows."""
        column = np.empty(len(batch["prompt"]), object)
        column[:] = [tokens.tobytes() for tokens in self.encoder.embed(list(batch["prompt"]))]
        return {**batch, "embeds": column}
