"""What a policy knows of scores, beside its network: the file from which bars for another try are set.

One safetensors file in the policy's folder, read without torch. How it is learned is `training.learn.offers`', what
offers are is `actors.offers`'.

Shapes: N prompts, K recipes of the menu, D features of a prompt, R residuals of a bank, A offers.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from actors.offer_correction import Correction
from actors.offers import (
    Bank,
    OfferMenu,
    allowed_offers,
    offer_bars,
    offer_costs,
    offer_menu,
    offer_worths,
)
from actors.policy import PolicyCard, PolicyError, choose_steps, policy_folder
from actors.recipe import Recipe, menu_of

OFFERS = "offers.safetensors"
FORMAT = 1
_PREFIX, _LAYERS = "correction.", ("hidden", "hidden_bias", "out", "out_bias")
TEMPERATURE = 0.1  # of `decision: sample`, in the units of prices


class Chosen(NamedTuple):
    """Of N prompts: index of the recipe, bar (-inf: one picture), expected tries, probability; scores (N, K).

    variance: of each prompt's tries.
    """

    recipe: np.ndarray
    bar: np.ndarray
    tries: np.ndarray
    probability: np.ndarray
    scores: np.ndarray  # float32: by the heads expected ones, in the scorer's units
    variance: np.ndarray | float = 0.0


@dataclass(frozen=True)
class OfferHeads:
    """mu = bias + features @ weight, in the scorer's units; weight (D, K), bias, sigma, share (K,); banks (K).

    costs (K,): of one picture, in those of the `reference` recipe; unit: of prices, in the scorer's units. scorers: the
    (name, weight) that scores were made of; policy, text_encoder: the version and fingerprint that it belongs to.
    num_prompts: of the table that it was learned from; 0 in files of earlier versions.
    """

    weight: np.ndarray
    bias: np.ndarray
    sigma: np.ndarray
    share: np.ndarray
    banks: tuple[Bank, ...]
    costs: np.ndarray
    unit: float
    reference: int
    choices: tuple[Recipe, ...]
    scorers: tuple[tuple[str, float], ...]
    text_encoder: str
    policy: str = ""
    correction: Correction | None = None  # of the offers' worths, where one was learned
    num_prompts: int = 0

    def mu(self, features: np.ndarray) -> np.ndarray:
        """Expected score (N, K) of features (N, D)."""
        return self.bias + features.astype(np.float64) @ self.weight

    @cached_property
    def _menus(self) -> dict[int, OfferMenu]:
        return {}

    def menu(self, max_tries: int) -> OfferMenu:
        """All offers of at most so many tries."""
        if max_tries not in self._menus:
            self._menus[max_tries] = offer_menu(self.banks, max_tries)
        return self._menus[max_tries]

    def worths(
        self, mu: np.ndarray, max_tries: int, shift: np.ndarray | float = 0.0, slope: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """(N, A) in units, of mu (N, K); shift, slope (N, K): a correction of mu, and of what a sigma of gain is worth.

        Bars stay where mu sets them.
        """
        a_sigma = np.asarray(self.share * self.sigma + slope)
        return offer_worths(self.menu(max_tries), mu + shift, a_sigma, np.ones(1), self.unit)

    def choose(
        self,
        features: np.ndarray,
        price: float,
        max_tries: int,
        allowed: np.ndarray,
        pinned: np.ndarray,
        decision: str = "argmax",
        uniforms: np.ndarray | None = None,
    ) -> Chosen:
        """What each prompt gets at a price: features (N, D), allowed recipes (K,) or (N, K), pinned seeds (N,) bool."""
        menu, mu = self.menu(max_tries), self.mu(features)
        worths = self.worths(mu, max_tries, *(self.correction(features) if self.correction else ()))
        costs, open_ = offer_costs(menu, self.costs), allowed_offers(menu, allowed, pinned)
        chosen, probability = choose_steps(worths, costs, price, TEMPERATURE, decision, open_, uniforms)
        bars = offer_bars(menu, chosen, mu, self.sigma)
        tries, variance = menu.tries[chosen], menu.variance[chosen]
        return Chosen(menu.recipe[chosen], bars, tries, probability, mu.astype(np.float32), variance)


def save_heads(heads: OfferHeads) -> bytes:
    """The file's bytes, the same for equal heads."""
    banks = np.array([bank.residuals for bank in heads.banks])  # of one table, so that they are of one length
    numbers = {name: getattr(heads, name) for name in ("weight", "bias", "sigma", "share", "costs")}
    tensors = {name: np.asarray(values, np.float64) for name, values in numbers.items()}
    tensors |= {"banks": banks, "level_sd": np.array([bank.level_sd for bank in heads.banks])}
    if all(bank.misses for bank in heads.banks):
        tensors["misses"] = np.array([bank.misses for bank in heads.banks], np.float64)  # (K, offsets, seeds)
    about = {"unit": heads.unit, "reference": heads.reference, "scorers": heads.scorers}
    about["choices"] = [choice.plain() for choice in heads.choices]
    about |= {"text_encoder": heads.text_encoder, "policy": heads.policy, "num_prompts": heads.num_prompts}
    if heads.correction:
        tensors |= {_PREFIX + name: getattr(heads.correction, name) for name in _LAYERS}
        about["correction"] = {"scale": heads.correction.scale, "gain": heads.correction.gain}
    return save(tensors, {"about": json.dumps({"format": FORMAT, **about}, sort_keys=True)})  # one key: in one order


def policy_heads(policy_path: str, card: PolicyCard) -> OfferHeads | None:
    """Those of a policy; None where it has none. PolicyError where they are another policy's."""
    heads = load_heads(policy_folder(policy_path))
    if heads is not None and (heads.policy, heads.choices) != (card.version, card.choices):
        raise PolicyError(f"{policy_path}: {OFFERS} is another policy's; train it again")
    return heads


def heads_of(policy_path: str, card: PolicyCard) -> OfferHeads:
    """Those of a policy, which are to set bars. PolicyError where it has none, or another policy's."""
    heads = policy_heads(policy_path, card)
    if heads is None:
        remedy = "train it on a rollout of two seeds a prompt or more (images_per_prompt), or give tries.bar a number"
        raise PolicyError(f"{policy_path}: this policy knows no spread of scores and sets no bar: {remedy}")
    return heads


def load_heads(folder: str | Path) -> OfferHeads | None:
    """Those of a policy's folder; None where it has none. PolicyError where they are damaged or of another version."""
    file = Path(folder) / OFFERS
    if not file.is_file():
        return None
    try:
        with safe_open(str(file), framework="np") as tensors:
            named = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
            metadata = tensors.metadata() or {}
        about = json.loads(metadata["about"])
        if about["format"] != FORMAT:
            raise PolicyError(f"{file}: another version of the format; train the policy again")
        layers = {name: named.pop(_PREFIX + name) for name in _LAYERS if "correction" in about}
        banks = zip(named.pop("banks").tolist(), named.pop("level_sd").tolist(), strict=True)
        misses = named.pop("misses", np.empty((len(named["bias"]), 0))).tolist()
        return OfferHeads(
            **named,
            banks=tuple(
                Bank(tuple(residuals), level_sd, tuple(map(tuple, counted)))
                for (residuals, level_sd), counted in zip(banks, misses, strict=True)
            ),
            unit=float(about["unit"]),
            reference=int(about["reference"]),
            choices=menu_of(about["choices"]),
            scorers=tuple((str(name), float(weight)) for name, weight in about["scorers"]),
            text_encoder=str(about["text_encoder"]),
            policy=str(about["policy"]),
            correction=Correction(**layers, **about["correction"]) if layers else None,
            num_prompts=int(about.get("num_prompts", 0)),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"{file}: not the scores of a policy ({type(error).__name__}: {error})") from None
