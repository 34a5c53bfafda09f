"""Makes the training set's files: drawings, captions, the tokenizer, the captions' tokens, latents.

No training here. Every text that `world.held_out` names is left out, so no training drawing carries a held-out caption.
N drawings, H = W = 32 px, L tokens, C latent channels, h = w = 8.
"""

import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from training.scenes.architecture import MAX_TOKENS
from training.scenes.drawing import draw
from training.scenes.world import CELL, SIZE, Image, Scene, held_out, random_scene

CHUNK = 2500
_ALPHABET = [chr(c) for c in range(33, 127)]
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def write_atomically(path: Path, data: bytes) -> None:
    """A reader, or a resumed run, sees the old file or the new one and nothing between."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def training_scenes(seed: str, count: int) -> tuple[np.ndarray, list[str]]:
    """((count, H, W, 3) uint8, captions) of scenes that are not held out."""
    rng, images, captions = random.Random(seed), list[Image](), list[str]()
    while len(images) < count:
        scene = random_scene(rng)
        image = None if held_out(scene.caption()) else draw(rng, scene)
        if image is not None:
            images.append(image)
            captions.append(scene.caption())
    return np.stack(images), captions


def held_out_scenes(count: int, seed: int = 0, richness: int | None = None) -> list[tuple[Scene, Image]]:
    """Scenes with drawings, their captions all different and none of them in the training set."""
    rng, found, seen = random.Random(f"scenes-held-out-{seed}"), list[tuple[Scene, Image]](), set[str]()
    while len(found) < count:
        scene = random_scene(rng, richness or len(found) % 6 + 1)
        caption = scene.caption()
        image = draw(rng, scene) if held_out(caption) and caption not in seen else None
        if image is not None:
            seen.add(caption)
            found.append((scene, image))
    return found


def _chunk(index: int) -> tuple[np.ndarray, list[str]]:
    return training_scenes(f"scenes-train-{index}", CHUNK)


def draw_all(work: Path, count: int, workers: int) -> None:
    """images.npy and captions.json, the same for any number of workers."""
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_chunk, range(-(-count // CHUNK))))
    np.save(work / "images.npy", np.concatenate([images for images, _ in parts])[:count])
    captions = [caption for _, some in parts for caption in some][:count]
    write_atomically(work / "captions.json", json.dumps(captions).encode())


def train_tokenizer(work: Path, folder: Path) -> None:
    """A byte pair encoding in CLIP's format; every printable ASCII character is a piece, so any prompt can be read."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=None))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    captions = json.loads((work / "captions.json").read_text())
    trainer = trainers.BpeTrainer(
        vocab_size=700, end_of_word_suffix="</w>", initial_alphabet=_ALPHABET, special_tokens=[], show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text())
    pieces = [piece for letter in _ALPHABET for piece in (letter, letter + "</w>")]
    for token in [*pieces, "<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(token, len(vocab))
    lines = (folder / "merges.txt").read_text().splitlines()
    merges: Any = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        model_max_length=MAX_TOKENS,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.save_pretrained(folder)


def encode_captions(work: Path, tokenizer: CLIPTokenizer) -> None:
    """tokens.npy: (N, L) int64."""
    captions = json.loads((work / "captions.json").read_text())
    np.save(work / "tokens.npy", token_ids(tokenizer, captions))


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> np.ndarray:
    """(N, L) int64, padded and cut as the pipeline does it."""
    out = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="np")
    return out.input_ids.astype(np.int64)


def pixels(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return x.contiguous(memory_format=torch.channels_last)


def object_cells(images: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, h, w) bool: latent cells that an object touches."""
    colourful = (images.max(-1).astype(int) - images.min(-1)) > 40
    side = SIZE // CELL
    return colourful.reshape(-1, side, CELL, side, CELL).any((2, 4))


def encode_images(work: Path, autoencoder: AutoencoderKL) -> None:
    """latents.npy: (N, C, h, w) float16; cells.npy: (N, h, w) bool."""
    images = np.load(work / "images.npy", mmap_mode="r")
    latents, cells = [], []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(images), 250):
            some = images[start : start + 250]
            latents.append(autoencoder.encode(pixels(some)).latent_dist.mean.float().numpy().astype(np.float16))
            cells.append(object_cells(np.asarray(some)))
    np.save(work / "cells.npy", np.concatenate(cells))
    np.save(work / "latents.npy", np.concatenate(latents))
