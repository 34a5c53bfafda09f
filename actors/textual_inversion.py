"""Expands prompts with a textual inversion of several vectors: its one word becomes the words of all its vectors.

As diffusers' `maybe_convert_prompt` does; a tokenizer alone would read the first vector only.
"""

from collections.abc import Callable

from transformers import CLIPTokenizer


def expander(tokenizer: CLIPTokenizer) -> Callable[[str], str]:
    """The function that spells a prompt out; the prompt itself where no inversion has more than one vector."""
    added = tokenizer.added_tokens_encoder
    several = {token: _vectors(token, added) for token in added if f"{token}_1" in added}
    if not several:
        return lambda prompt: prompt

    def expand(prompt: str) -> str:
        for token in dict.fromkeys(tokenizer.tokenize(prompt)):
            if token in several:
                prompt = prompt.replace(token, several[token])
        return prompt

    return expand


def _vectors(token: str, added: dict[str, int]) -> str:
    words = [token]
    while f"{token}_{len(words)}" in added:
        words.append(f"{token}_{len(words)}")
    return " ".join(words)
