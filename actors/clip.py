"""Embeds pictures and prompts with a frozen CLIP. Any `CLIPModel`: OpenAI's, PickScore, HPSv2.

Shapes: N pictures or prompts, D the common width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from actors.actor_error import ActorError
from actors.loading import load_whole
from actors.prompt_encoder import plain_text

BATCH = 16


class ClipError(ActorError, ValueError):
    """A folder that is no usable CLIPModel: the message names it and what is missing."""


class Clip:
    """Model, tokenizer and image processor of a local folder, in fp32, never from the network."""

    def __init__(self, folder: str, device: str = "auto") -> None:
        try:
            model = load_whole(CLIPModel, folder, dtype=torch.float32)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ClipError(f"{folder}: no CLIPModel with its tokenizer and image processor ({_line(error)})") from None
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.model = model.eval().requires_grad_(False).to(self.device)
        most = int(model.text_model.embeddings.position_embedding.num_embeddings)
        self.max_length = min(self.tokenizer.model_max_length, most)

    @torch.inference_mode()
    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """(N, D) of pictures (H, W, 3) uint8, of any sizes; float32 on the CPU."""
        found = []
        for start in range(0, len(images), BATCH):
            pixels = self.processor(list(images[start : start + BATCH]), return_tensors="pt")["pixel_values"]
            found.append(self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output)
        return F.normalize(torch.cat(found), dim=-1).cpu()

    @torch.inference_mode()
    def prompts(self, prompts: Sequence[object]) -> Tensor:
        """(N, D) of any prompts, what is too long cut; float32 on the CPU."""
        found = []
        for start in range(0, len(prompts), BATCH):
            texts = [plain_text(prompt) for prompt in prompts[start : start + BATCH]]
            tokens = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            found.append(self.model.get_text_features(**tokens.to(self.device)).pooler_output)
        return F.normalize(torch.cat(found), dim=-1).cpu()


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
