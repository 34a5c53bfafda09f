"""StepSelector: prompt -> scores, recipe, action_probability. One plain class for a batch job, a server and a test.

torch and transformers are imported by the selector `policy` alone.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.offer_heads import Chosen, OfferHeads, heads_of
from actors.policy import DECISIONS, calibrated, check_policy, choose_steps
from actors.recipe import MAX_STEPS, Recipe, menu_of

PAPER_CHOICES = menu_of(range(5, 51, 5))  # AdaDiff, section 4: 5, 10, ..., 50
MOST_WORDS = 30  # the selector `words` gives prompts of so many words or more the largest budget
SELECTORS = ("fixed", "words", "policy")


@dataclass(frozen=True)
class SelectorConfig:
    """selector: fixed, words or policy. `choices` None: the policy's own menu, without a policy the paper's."""

    selector: str
    choices: tuple[Recipe, ...] | None = None  # by rising cost
    fixed: Recipe | None = None
    policy_path: str | None = None  # a folder, its policy.json or its policy.safetensors
    price: float = 0.3  # of the rise of mean quality over the menu, given up to save one image of the dearest recipe
    min: int | None = None  # steps; recipes outside min and max are never chosen
    max: int | None = None
    decision: str = "argmax"  # or sample: by the policy, with randomness from the row's id
    text_encoder_path: str | None = None  # a local checkpoint folder
    num_threads: int | None = None  # of torch; None: its own choice
    device: str = "auto"  # of the text encoder and the network
    max_tries: int = 1  # of a row; from 2 on a policy sets bars, where its file has what that takes


class StepSelector:
    """prompt, id, num_inference_steps, seed_pinned, error_type -> recipe_name and the other columns of `ADDED`.

    bar: below this score another seed is tried, None: never; expected_tries with it. A row that pins its steps gets the
    menu's recipe of so many (the plain one or, without it, the cheapest), else those steps alone; it has no probability
    and no bar. A bad row (an error_type) gets no recipe. No prompt makes it raise; a config or a policy that cannot be
    used does, as ValueError. `choices` is the whole menu, K recipes.
    """

    def __init__(self, config: SelectorConfig) -> None:
        _check(config)
        self.config = config
        self.policy_version: str | None = None
        self.heads: OfferHeads | None = None  # where bars are the policy's
        self.choices = _menu(config)
        if config.selector == "policy":
            self._load_policy()
        low, high = config.min or 1, config.max or MAX_STEPS
        self.allowed = np.array([low <= choice.num_steps <= high for choice in self.choices])  # (K,)
        if not self.allowed.any():
            raise ValueError(f"steps.min {config.min} and steps.max {config.max} leave no recipe of the menu")
        if config.selector == "policy" and self.heads is None:
            self.allowed = self._within_calibration()

    @property
    def bank_prompts(self) -> int | None:
        """Prompts that the policy's bars were learned from; None where none are set or it does not say."""
        return (self.heads.num_prompts or None) if self.heads else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """One batch of N rows; the columns added are of Python objects, None where there is no value."""
        num_rows = len(batch["prompt"])
        errors = batch.get("error_type", [""] * num_rows)
        pins = [_pin(value) for value in batch.get("num_inference_steps", [None] * num_rows)]
        seeds = batch.get("seed_pinned", [False] * num_rows)
        free = [row for row in range(num_rows) if not errors[row] and pins[row] is None]
        columns: dict[str, list[Any]] = {name: [None] * num_rows for name in ADDED}
        for row in range(num_rows):
            if not errors[row] and (steps := pins[row]) is not None:
                self._fill(columns, row, self._pinned(steps))
        if free:
            prompts = [batch["prompt"][row] for row in free]
            pinned = np.array([bool(seeds[row]) for row in free])
            self._select(columns, free, prompts, [str(batch["id"][row]) for row in free], pinned)
        return {**batch, **{name: _objects(values) for name, values in columns.items()}}

    def _select(
        self, columns: dict[str, list[Any]], rows: list[int], prompts: list[Any], ids: list[str], pinned: np.ndarray
    ) -> None:
        """Fill the columns of rows that are free to choose. pinned (N,) bool: rows with one seed, and one try."""
        uniforms = np.array([uniform(row_id) for row_id in ids]) if self.config.decision == "sample" else None
        found = self._chosen(prompts, pinned, uniforms)
        for at, row in enumerate(rows):
            self._fill(columns, row, self.choices[found.recipe[at]])
            columns["action_probability"][row] = float(np.float32(found.probability[at]))
            if self.config.selector == "policy":
                columns["budget_scores"][row] = found.scores[at]
                columns["policy_version"][row] = self.policy_version
                columns["price"][row] = float(self.config.price)
            if np.isfinite(found.bar[at]):
                columns["bar"][row] = float(found.bar[at])
                columns["expected_tries"][row] = float(np.float32(found.tries[at]))
                columns["tries_variance"][row] = float(np.float32(np.broadcast_to(found.variance, len(rows))[at]))

    def _pinned(self, num_steps: int) -> Recipe:
        alike = [choice for choice in self.choices if choice.num_steps == num_steps]
        plain = Recipe(num_steps)
        return plain if plain in alike or not alike else alike[0]

    def _fill(self, columns: dict[str, list[Any]], row: int, recipe: Recipe) -> None:
        columns["recipe_name"][row], columns["num_steps"][row] = recipe.name, recipe.num_steps

    def _chosen(self, prompts: list[Any], pinned: np.ndarray, uniforms: np.ndarray | None) -> Chosen:
        """What each of N prompts gets: a recipe, and where the policy sets bars, its bar."""
        config, one = self.config, np.ones(len(prompts))
        if self.heads is not None:
            from actors.prompt_encoder import prompt_features

            features = np.stack([prompt_features(tokens) for tokens in self.encoder.embed(prompts)])
            return self.heads.choose(
                features, config.price, config.max_tries, self.allowed, pinned, config.decision, uniforms
            )
        if config.selector != "policy":
            return Chosen(self._by_words(prompts), -np.inf * one, one, one, np.empty((len(prompts), 0)))
        scores, costs = self.score(prompts), np.array(self.card.costs)  # (N, K), (K,)
        index, probability = choose_steps(
            scores, costs, config.price, self.card.temperature, config.decision, self.allowed, uniforms
        )
        return Chosen(index, -np.inf * one, one, probability, scores)

    def score(self, prompts: Sequence[Any]) -> np.ndarray:
        """The policy's scores (N, K) float32; a prompt's do not depend on the others."""
        from actors.prompt_encoder import plain_text

        scores = np.zeros((len(prompts), len(self.choices)), np.float32)
        for rows, embeds, mask in self.encoder.batches([plain_text(prompt) for prompt in prompts]):
            scores[rows] = self.policy(embeds, mask).scores[: len(rows)].cpu().numpy()
        return scores

    def _by_words(self, prompts: list[Any]) -> np.ndarray:
        """The recipe whose place in the menu is the word count's in 1 to MOST_WORDS, clamped to those allowed.

        AdaDiff compares with "longer prompts, more steps" and does not say how long; this line is ours.
        """
        words = np.array([num_words(prompt) if isinstance(prompt, str) else 0 for prompt in prompts])
        place = np.clip(words - 1, 0, MOST_WORDS - 1) * len(self.choices) // MOST_WORDS
        usable = np.flatnonzero(self.allowed)
        return np.clip(place, usable[0], usable[-1])

    def _within_calibration(self) -> np.ndarray:
        """The recipes (K,) that held-out prompts got, too, or where none is left the nearest of those allowed.

        A prompt unlike any the policy has learned from cannot buy more steps than those did.
        """
        known = calibrated(self.card, self.config.price)
        if (inside := self.allowed & known).any():
            return inside
        if not known.any():
            return self.allowed
        usable = np.flatnonzero(self.allowed)
        nearest = usable[0] if usable[0] > np.flatnonzero(known)[-1] else usable[-1]
        return np.arange(len(self.choices)) == nearest

    def _load_policy(self) -> None:
        from actors.policy_network import load_policy
        from actors.prompt_encoder import PromptEncoder

        if not self.config.policy_path or not self.config.text_encoder_path:
            raise ValueError("the selector policy needs a policy and the checkpoint whose text encoder it reads")
        policy, card = load_policy(self.config.policy_path)
        check_policy(card, choices=self.config.choices)
        encoder = PromptEncoder(self.config.text_encoder_path, self.config.device, self.config.num_threads)
        check_policy(card, text_encoder=encoder.fingerprint)
        self.policy, self.encoder, self.card = policy.to(encoder.device), encoder, card
        self.choices, self.policy_version = card.choices, card.version
        if self.config.max_tries > 1:
            self.heads = heads_of(self.config.policy_path, card)


_WORDS = re.compile(r"[^\s,;|，、。；]+")
_UNSPACED = (  # scripts without spaces between words, and the characters of an average word
    (
        re.compile(
            r"[\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
        ),
        2,
    ),
    (re.compile(r"[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\uaa60-\uaa7f]"), 4),
)


def num_words(prompt: str) -> int:
    """Words of a prompt: what stands between spaces and commas; in a script without spaces by its characters.

    Two characters a word in Chinese and Japanese, four in Thai, Lao, Khmer, Burmese and Tibetan.
    """
    count = 0.0
    for characters, a_word in _UNSPACED if not prompt.isascii() else ():
        prompt, found = characters.subn(" ", prompt)
        count += found / a_word
    return len(_WORDS.findall(prompt)) + math.ceil(count)


ADDED = (
    "budget_scores",
    "recipe_name",
    "num_steps",
    "action_probability",
    "policy_version",
    "price",
    "bar",
    "expected_tries",
    "tries_variance",
)


def uniform(row_id: str) -> float:
    """A number in [0, 1) that is the row's own, the same on every machine."""
    digest = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"budget").digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def _check(config: SelectorConfig) -> None:
    if config.selector not in SELECTORS:
        raise ValueError(f"steps.selector {config.selector!r} must be one of {', '.join(SELECTORS)}")
    if config.decision not in DECISIONS:
        raise ValueError(f"steps.decision {config.decision!r} must be one of {', '.join(DECISIONS)}")
    if config.selector == "fixed" and not config.fixed:
        raise ValueError("steps.selector fixed needs steps.fixed")


def _menu(config: SelectorConfig) -> tuple[Recipe, ...]:
    if config.selector == "fixed" and config.fixed:
        return (config.fixed,)
    menu = tuple(dict.fromkeys(config.choices or PAPER_CHOICES))
    if not all(1 <= choice.num_steps <= MAX_STEPS for choice in menu):
        raise ValueError(f"steps.choices {[choice.num_steps for choice in menu]} must lie in 1 to {MAX_STEPS}")
    return menu


def _pin(value: Any) -> int | None:
    """The steps a row pins; None for null and NaN."""
    return None if value is None or value != value else int(value)


def _objects(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), object)
    for row, value in enumerate(values):  # a slice would unpack the lists
        column[row] = value
    return column
