"""Computes token embeddings of prompts with the frozen text encoder, once, before training. It loads no UNet.

Shapes: P prompts, L_i tokens of prompt i, H the encoder's width.
"""

from collections.abc import Sequence

import numpy as np

from actors.prompt_encoder import PromptEncoder, plain_text
from pipelines.storage.checkpoints import ModelSource


class EmbedPrompts:
    """prompt -> embeds: its (L_i, H) float16 as bytes, without padding. A plain class; Ray Data makes it an actor."""

    def __init__(self, model: ModelSource, num_threads: int | None = None) -> None:
        self.encoder = PromptEncoder(model.local(), num_threads=num_threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One batch of N rows."""
        column = np.empty(len(batch["prompt"]), object)
        column[:] = [tokens.tobytes() for tokens in embed(self.encoder, list(batch["prompt"]))]
        return {**batch, "embeds": column}


def embed(encoder: PromptEncoder, prompts: Sequence[object]) -> list[np.ndarray]:
    """Each prompt's (L_i, H) float16, in their order."""
    found: dict[int, np.ndarray] = {}
    for rows, embeds, mask in encoder.batches([plain_text(prompt) for prompt in prompts]):
        lengths = mask.sum(dim=1).tolist()
        values = embeds.cpu().half().numpy()
        found |= {int(row): values[at, : lengths[at]].copy() for at, row in enumerate(rows)}
    return [found[row] for row in range(len(prompts))]
