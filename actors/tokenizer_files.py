"""Checks that a folder holds a whole CLIP tokenizer whose tokens the text encoder's embedding has.

Only the files are read: transformers makes up a vocabulary of two tokens where they are missing.
"""

import json
from pathlib import Path
from typing import Any

from actors.weights import LFS, CheckpointError, read_json

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_SPECIAL = {
    "unk_token": "<|endoftext|>",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}


def check_tokenizer(folder: Path, vocab_size: int, max_positions: int, bounded: bool = True) -> None:
    """vocab_size, max_positions: of the text encoder. Raises CheckpointError.

    bounded: the tokenizer's own model_max_length is what prompts are padded to, so that it must be there and fit.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder: the tokenizer is missing; download it again")
    vocabulary, merges = _read_vocabulary(folder)
    _check_merges(folder, vocabulary, merges)
    settings = read_json(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    if "auto_map" in settings:
        raise CheckpointError(f"{folder}/tokenizer_config.json: auto_map asks for code of its own, which is never run")
    _check_length(folder, settings.get("model_max_length"), max_positions, bounded)
    tokens = _with_added(folder, vocabulary, settings)
    if tokens and max(tokens.values()) >= vocab_size:
        raise CheckpointError(
            f"{folder}: its tokens reach number {max(tokens.values())} and the text encoder's embedding has "
            f"{vocab_size} rows; take tokenizer and text encoder from one checkpoint"
        )


def _read_vocabulary(folder: Path) -> tuple[dict[str, int], list[Any]]:
    """Of tokenizer.json where there is one, as transformers reads it, else of vocab.json and merges.txt."""
    if (folder / "tokenizer.json").exists():
        model = read_json(folder, "tokenizer.json").get("model")
        if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
            raise CheckpointError(f"{folder}/tokenizer.json: no BPE vocabulary; take CLIP's own tokenizer")
        return model["vocab"], model.get("merges") or []
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{folder}: no {' and no '.join(missing)}, nor tokenizer.json: without a vocabulary every word is "
            "the unknown one; download it again"
        )
    try:
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    except (UnicodeDecodeError, OSError):
        raise CheckpointError(f"{folder}/merges.txt: not UTF-8 text; download it again") from None
    if lines and lines[0].encode().startswith(LFS):
        raise CheckpointError(f"{folder}/merges.txt: a Git LFS pointer; run `git lfs pull` in the clone")
    return read_json(folder, "vocab.json"), [line for line in lines if line and not line.startswith("#version")]


def _check_merges(folder: Path, vocabulary: dict[str, int], merges: list[Any]) -> None:
    numbers = list(vocabulary.values())
    if len(numbers) < 3 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise CheckpointError(f"{folder}: its vocabulary of {len(numbers)} tokens is none; download it again")
    if len(set(numbers)) < len(numbers):
        raise CheckpointError(f"{folder}: two tokens of its vocabulary have one number; download it again")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise CheckpointError(f"{folder}: {merge!r:.40} is no merge of two tokens; download the tokenizer again")
        if unknown := [part for part in (*pair, "".join(pair)) if part not in vocabulary]:
            raise CheckpointError(
                f"{folder}: its merges name {unknown[0]!r:.40}, which its vocabulary has not; "
                "take both from one download"
            )


def _check_length(folder: Path, length: Any, max_positions: int, bounded: bool) -> None:
    whole = isinstance(length, int) and not isinstance(length, bool) and length >= 3
    if not bounded and (length is None or whole):
        return
    if not whole:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: model_max_length is {length!r}; write the text encoder's {max_positions}"
        )
    if length > max_positions:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: model_max_length is {length}, and the text encoder has {max_positions} "
            f"positions; write {max_positions}"
        )


def _with_added(folder: Path, vocabulary: dict[str, int], settings: dict[str, Any]) -> dict[str, int]:
    """Every token with its number: the vocabulary's, those added, and special ones that are in neither."""
    tokens = dict(vocabulary)
    special: dict[str, Any] = {}
    more: list[tuple[str, int]] = []
    try:
        if (folder / "tokenizer.json").exists():
            added = read_json(folder, "tokenizer.json").get("added_tokens") or []
            more = [(str(token["content"]), int(token["id"])) for token in added]
        else:
            if (folder / "added_tokens.json").exists():
                more = [(name, int(n)) for name, n in read_json(folder, "added_tokens.json").items()]
            if (folder / "special_tokens_map.json").exists():
                special = read_json(folder, "special_tokens_map.json")
        decoder = settings.get("added_tokens_decoder") or {}
        more += [(str(token["content"]), int(number)) for number, token in decoder.items()]
        names = [_content(settings.get(key, special.get(key, usual))) for key, usual in _SPECIAL.items()]
        extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
        names += [_content(token) for token in (extra.values() if isinstance(extra, dict) else extra)]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise CheckpointError(f"{folder}: its added or special tokens cannot be read; download it again") from None
    for name, number in more:
        if tokens.setdefault(name, number) != number:
            raise CheckpointError(
                f"{folder}: {name!r:.40} is {tokens[name]} in its vocabulary and {number} among its added tokens; "
                "take the tokenizer's own files"
            )
    new = sorted(tokens[name] for name in tokens.keys() - vocabulary.keys())
    if new != list(range(len(vocabulary), len(tokens))):  # transformers numbers them so, whatever the file says
        raise CheckpointError(
            f"{folder}: its added tokens are numbered {new[:3]}, and they must go on from {len(vocabulary)}; "
            "save the tokenizer again with save_pretrained"
        )
    if lost := [name for name in names if name not in tokens]:
        raise CheckpointError(
            f"{folder}: its special token {lost[0]!r:.40} is not in its vocabulary; take the tokenizer's own files"
        )
    return tokens


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token["content"]
    if token is not None and not isinstance(token, str):
        raise TypeError(json.dumps(token))
    return token
