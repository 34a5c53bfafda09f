"""Turns scores and a price into a recipe, and reads and writes the card of a policy's file. No weights.

Pure numpy and JSON, no torch, so that a driver can read a card and refuse it at once. The network is
`actors.policy_network`. Shapes: N rows, K recipes of the menu.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.actor_error import ActorError
from actors.recipe import MAX_STEPS, Recipe, menu_of

CARD, WEIGHTS = "policy.json", "policy.safetensors"
FORMAT = 1
DECISIONS = ("argmax", "sample")


class PolicyError(ActorError, ValueError):
    """A policy that cannot be used here: the message names the file, what is wrong and the remedy."""


def choose_steps(
    scores: np.ndarray,
    costs: np.ndarray,
    price: float,
    temperature: float,
    decision: str = "argmax",
    allowed: np.ndarray | None = None,
    uniforms: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Index into the menu (N,) int64 and its behaviour probability (N,) float64.

    pi(b | prompt, price) = softmax((scores - price * costs) / temperature) over the recipes `allowed` leaves (K,) or
    (N, K). `sample` takes the budget at `uniforms` (N,) in [0, 1); `argmax` the likeliest, the cheapest of equals, with
    probability 1. Since d E[cost] / d price = -Var[cost] / temperature, mean cost never rises with the price. A row
    whose scores are not finite is decided by the price alone. ValueError: temperature not positive, nothing allowed.
    """
    value = _priced(scores, costs, price, temperature, allowed)
    if decision == "argmax":
        best = value == value.max(axis=1, keepdims=True)
        index = np.where(best, np.asarray(costs, np.float64), np.inf).argmin(axis=1)
        return index, np.ones(len(index))
    if decision != "sample" or uniforms is None:
        raise ValueError(f"decision {decision!r} must be one of {', '.join(DECISIONS)}, and sample needs uniforms")
    pi = _softmax(value, temperature)
    passed = (np.asarray(uniforms, np.float64)[:, None] >= np.cumsum(pi, axis=1)).sum(axis=1)
    last = pi.shape[1] - 1 - (pi[:, ::-1] > 0).argmax(axis=1)  # rounding may leave the sum just under 1
    index = np.minimum(passed, last)
    return index, np.take_along_axis(pi, index[:, None], axis=1)[:, 0]


def choice_probabilities(
    scores: np.ndarray, costs: np.ndarray, price: float, temperature: float, allowed: np.ndarray | None = None
) -> np.ndarray:
    """pi (N, K) of `choose_steps`."""
    return _softmax(_priced(scores, costs, price, temperature, allowed), temperature)


def _priced(
    scores: np.ndarray, costs: np.ndarray, price: float, temperature: float, allowed: np.ndarray | None
) -> np.ndarray:
    """scores - price * costs (N, K); -inf where it is not allowed."""
    if not temperature > 0 or not math.isfinite(price):
        raise ValueError(f"temperature {temperature} must be positive and price {price} finite")
    scores = np.asarray(scores, np.float64)
    open_ = np.broadcast_to(np.ones(scores.shape[1], bool) if allowed is None else allowed, scores.shape)
    if not open_.any(axis=1).all():
        raise ValueError("no recipe of the menu is allowed")
    sound = np.isfinite(scores).all(axis=1, keepdims=True)
    value = np.where(sound, scores, 0.0) - price * np.asarray(costs, np.float64)
    return np.where(open_, value, -np.inf)


def _softmax(value: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((value - value.max(axis=1, keepdims=True)) / temperature)
    return weights / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Setting:
    """What a policy's scores were measured with; None: unknown. Sizes in px."""

    unet: str | None = None  # fingerprint
    solver: str | None = None
    timestep_spacing: str | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class Network:
    """The size of StepPolicy. `hidden_size` is the text encoder's width; the paper's: width = hidden_size, 3 layers."""

    hidden_size: int
    num_choices: int
    width: int = 256
    num_layers: int = 3
    num_heads: int = 4


@dataclass(frozen=True)
class PolicyCard:
    """policy.json. Costs are in units of the dearest recipe's, decode and score included; K choices, K costs."""

    choices: tuple[Recipe, ...]  # by rising cost
    costs: tuple[float, ...]
    temperature: float
    text_encoder: str  # fingerprint of its weights
    network: Network
    setting: Setting
    training_data: str = ""  # fingerprint
    calibration: tuple[dict[str, float], ...] = ()  # points on held-out prompts, by rising price; see `calibrated`
    version: str = ""  # hash of weights and card, set when saved

    def __post_init__(self) -> None:
        names = [choice.name for choice in self.choices]
        if not names or len({*names}) < len(names) or not all(1 <= c.num_steps <= MAX_STEPS for c in self.choices):
            raise PolicyError(f"choices {', '.join(names)} must be different and of 1 to {MAX_STEPS} steps")
        costs_rise = all(a <= b for a, b in zip(self.costs, self.costs[1:], strict=False))
        if len(self.costs) != len(self.choices) or not costs_rise or not all(0 < c < math.inf for c in self.costs):
            raise PolicyError(f"costs {self.costs} must be positive, rise, and be one a choice")
        if not 0 < self.temperature < math.inf:
            raise PolicyError(f"temperature {self.temperature} must be positive")
        if self.network.num_choices != len(self.choices):
            raise PolicyError(f"the network has {self.network.num_choices} outputs for {len(self.choices)} choices")


def calibrated(card: PolicyCard, price: float) -> np.ndarray:
    """Recipes (K,) that held-out prompts got at this price: bool. No other prompt gets a dearer one, or a cheaper.

    A point of the calibration has price, mean_cost, mean_steps, quality, least_cost, most_cost. Between two points the
    bounds are those of both, so that they never rise with the price; beyond the last there is no lower one.
    """
    points = sorted(card.calibration, key=lambda point: point["price"])
    below = [_bound(card, point, "most") for point in points if point["price"] <= price]
    above = [_bound(card, point, "least") for point in points if point["price"] >= price]
    high = min((cost for cost in below if cost is not None), default=math.inf)
    low = max((cost for cost in above if cost is not None), default=0.0)
    return np.array([low <= cost <= high for cost in card.costs])


def _bound(card: PolicyCard, point: dict[str, float], which: str) -> float | None:
    """The cost bound of a point; earlier versions had it in steps, and menus of steps alone."""
    if f"{which}_cost" in point:
        return point[f"{which}_cost"]
    costs = {choice.num_steps: cost for choice, cost in zip(card.choices, card.costs, strict=True)}
    return costs.get(int(point.get(f"{which}_steps", 0)))


def card_text(card: PolicyCard) -> str:
    """policy.json's text, the same for equal cards."""
    return json.dumps({"format": FORMAT, **_document(card)}, indent=2, sort_keys=True) + "\n"


def _document(card: PolicyCard) -> dict[str, Any]:
    return asdict(card) | {"choices": [choice.plain() for choice in card.choices]}


def content_version(card: PolicyCard, weights: bytes) -> str:
    """16 hex digits over the card without its version, and the bytes of the weights."""
    bare = {**_document(card), "version": ""}
    return hashlib.blake2b(json.dumps(bare, sort_keys=True).encode() + weights, digest_size=8).hexdigest()


def policy_folder(path: str) -> Path:
    """The folder of a policy given by folder, policy.json or policy.safetensors. PolicyError where there is none."""
    given = Path(path).expanduser()
    if given.is_file() and given.name not in (CARD, WEIGHTS):
        raise PolicyError(
            f"{given}: a policy is {CARD} and {WEIGHTS} in one folder; no other format is read, since it may run code"
        )
    folder = given if given.is_dir() else given.parent
    missing = [name for name in (CARD, WEIGHTS) if not (folder / name).is_file()]
    if missing or not given.exists():
        raise PolicyError(f"{given}: no policy there (no {' and no '.join(missing or [given.name])})")
    return folder


def read_card(path: str) -> PolicyCard:
    """policy.json, checked. Reads no weights. PolicyError names the file and what is wrong."""
    file = policy_folder(path) / CARD
    try:
        raw = json.loads(file.read_text("utf-8"))
        if raw.pop("format") != FORMAT:
            raise PolicyError("another version of the format; train or export it again")
        return PolicyCard(**raw | _parsed(raw))
    except PolicyError as error:
        raise PolicyError(f"{file}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise PolicyError(f"{file}: not a policy card ({type(error).__name__}: {error})") from None


def _parsed(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "choices": menu_of(raw["choices"]),
        "costs": tuple(float(cost) for cost in raw["costs"]),
        "temperature": float(raw["temperature"]),
        "network": Network(**{name: int(value) for name, value in raw["network"].items()}),
        "setting": Setting(**raw["setting"]),
        "calibration": tuple({name: float(point[name]) for name in {"price", *point}} for point in raw["calibration"]),
    }


def uncalibrated(card: PolicyCard, here: Setting) -> list[str]:
    """A warning for each part of the setting that differs from the policy's; unknown parts are not compared."""
    learned, now = asdict(card.setting), asdict(here)
    return [
        f"the policy was trained with {name} {learned[name]}, here it is {now[name]}: uncalibrated here: run pilot"
        for name in learned
        if None not in (learned[name], now[name]) and learned[name] != now[name]
    ]


def check_policy(card: PolicyCard, text_encoder: str | None = None, choices: tuple[Recipe, ...] | None = None) -> None:
    """PolicyError where the text encoder or the menu in use is not the policy's; None is not compared."""
    if text_encoder is not None and text_encoder != card.text_encoder:
        raise PolicyError(
            f"the policy reads text encoder {card.text_encoder}, the checkpoint has {text_encoder}: "
            "use its own checkpoint, or a policy trained for this one"
        )
    if choices is not None and {*choices} != {*card.choices}:
        given, known = ("; ".join(recipe.words for recipe in menu) for menu in (choices, card.choices))
        raise PolicyError(
            f"steps.choices ({given}) is not the policy's menu ({known}): leave steps.choices out, "
            "and narrow it with steps.min and steps.max"
        )
