"""Encodes prompts for the policy with a checkpoint's frozen text encoder: prompts -> token embeddings.

Transformers only, no diffusers: a selection worker needs none. Fixed shapes: a prompt's embeddings do not depend on its
neighbours. Shapes: B prompts, L tokens, H the encoder's width.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from actors.loading import load_whole
from actors.policy import PolicyError
from actors.policy_network import weights_fingerprint
from actors.textual_inversion import expander

BATCH = 32
LONGEST_CHARS = 4000  # no encoder here reads more; a longer text would only cost tokenizer time
_SHORT_LENGTHS = (16, 32)


def encoder_folder(checkpoint: str) -> Path:
    """The text encoder that a policy reads: SDXL's second, larger one, else the only one."""
    root = Path(checkpoint)
    second = root / "text_encoder_2"
    return second if second.is_dir() else root / "text_encoder"


class PromptEncoder:
    """One checkpoint's tokenizer and text encoder in fp32, on a GPU if this process has one, never from the network."""

    def __init__(self, checkpoint: str, device: str = "auto", num_threads: int | None = None) -> None:
        if num_threads:
            torch.set_num_threads(num_threads)
        folder = encoder_folder(checkpoint)
        tokenizer = folder.parent / folder.name.replace("text_encoder", "tokenizer")
        kind = CLIPTextModelWithProjection if folder.name.endswith("_2") else CLIPTextModel
        variant = _variant(folder)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
            model = load_whole(kind, str(folder), dtype=torch.float32, variant=variant)
        except (OSError, ValueError) as error:
            raise PolicyError(f"{folder}: the text encoder cannot be loaded ({str(error).splitlines()[0]})") from None
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._expand = expander(self.tokenizer)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.fingerprint = weights_fingerprint(str(folder), variant)
        self.hidden_size = int(model.config.hidden_size)
        self.max_length = min(self.tokenizer.model_max_length, int(model.config.max_position_embeddings))

    def batches(self, prompts: Sequence[str]) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Rows (b,) into `prompts`, their embeddings (BATCH, L, H) and mask (BATCH, L); the first b of each are real.

        Prompts of like length go together; L is one of three, chosen by a prompt's own length.
        """
        spelt = [self._expand(prompt) for prompt in prompts]
        tokens = self.tokenizer(spelt, truncation=True, max_length=self.max_length)["input_ids"]
        lengths = [*(length for length in _SHORT_LENGTHS if length < self.max_length), self.max_length]
        buckets = np.searchsorted(lengths, [len(ids) for ids in tokens])
        for bucket, length in enumerate(lengths):
            rows = np.flatnonzero(buckets == bucket)
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                yield part, *self._encode([tokens[row] for row in part], length)

    def embed(self, prompts: Sequence[object]) -> list[np.ndarray]:
        """Each prompt's (L_i, H) float16, without padding, in their order."""
        found: dict[int, np.ndarray] = {}
        for rows, embeds, mask in self.batches([plain_text(prompt) for prompt in prompts]):
            lengths = mask.sum(dim=1).tolist()
            values = embeds.cpu().half().numpy()
            found |= {int(row): values[at, : lengths[at]].copy() for at, row in enumerate(rows)}
        return [found[row] for row in range(len(prompts))]

    @torch.inference_mode()
    def _encode(self, tokens: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.full((BATCH, length), int(self.tokenizer.pad_token_id))
        mask = torch.zeros(BATCH, length, dtype=torch.long)
        mask[len(tokens) :, 0] = 1  # rows that only fill the shape
        for row, row_ids in enumerate(tokens):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            mask[row, : len(row_ids)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def prompt_features(tokens: np.ndarray) -> np.ndarray:
    """(L, H) float16 embeddings of one prompt -> (2 H,) float32: the last token's, CLIP's own pooling, and the mean."""
    values = tokens.astype(np.float32)
    return np.concatenate([values[-1], values.mean(axis=0)])


def plain_text(prompt: object) -> str:
    """Any cell as text a tokenizer can read: lone surrogates replaced, what is no text empty, an absurd length cut."""
    if not isinstance(prompt, str):
        return ""
    return prompt[:LONGEST_CHARS].encode("utf-8", "replace").decode("utf-8")


def _variant(folder: Path) -> str | None:
    """None where there are plain weights, else the only variant's name, such as fp16."""
    if (folder / "model.safetensors").exists() or not folder.is_dir():
        return None
    variants = {
        name.split(".")[1] for name in os.listdir(folder) if name.endswith(".safetensors") and name.count(".") == 2
    }
    return sorted(variants)[0] if variants else None
