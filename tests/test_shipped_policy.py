"""The policy that ships: it is of the shipped model, no prompt fools it, and its evaluation is its own."""

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from actors.checkpoint import inspect_checkpoint
from actors.policy import PolicyCard, calibrated, read_card
from actors.recipe import menu_of, step_counts
from actors.selector import SelectorConfig, StepSelector
from jobs.job_file.policy import EMBEDDED_POLICY
from jobs.job_file.settings import EMBEDDED_MODEL

ROOT = Path(__file__).parent.parent
CONFIG = SelectorConfig(
    "policy", policy_path=str(ROOT / EMBEDDED_POLICY), text_encoder_path=str(ROOT / EMBEDDED_MODEL), num_threads=1
)
HOSTILE = [
    "",
    "star",
    "word " * 5000,
    "два красных круга",
    "二つの赤い円",
    "دائرتان حمراوان",
    "🎨🔥" * 40,
    "a\x00red\x1bcircle\u202e",
    "circle circle " * 200,
    "!" * 3000,
    "a" * 100_000,
    "<|endoftext|>" * 50,
    "\ud800",
]
PLAIN, ELABORATE = "simple", "complex, highly detailed, intricate, masterpiece,"


@pytest.fixture(scope="module")
def card() -> PolicyCard:
    return read_card(str(ROOT / EMBEDDED_POLICY))


@pytest.fixture(scope="module")
def captions() -> list[str]:
    with (ROOT / "training/scenes/prompts.csv").open(encoding="utf-8", newline="") as file:
        return [row["prompt"] for row in csv.DictReader(file)]


def prices(card: PolicyCard) -> list[float]:
    points = [point["price"] for point in card.calibration]
    between = [0.5 * (a + b) for a, b in pairwise(points)]
    return [*points[::4], *between[::4], points[-1], 0.3]


def steps(price: float, prompts: list[str], **given: int) -> list[int]:
    rows = {"prompt": np.array(prompts, object), "id": np.array([f"r{n}" for n in range(len(prompts))], object)}
    return list(StepSelector(replace(CONFIG, price=price, **given))(rows)["num_steps"])


def test_it_belongs_to_the_shipped_model(card: PolicyCard) -> None:
    info = inspect_checkpoint(str(ROOT / EMBEDDED_MODEL))
    assert (card.setting.unet, card.setting.solver) == (info.fingerprint, "ddim")
    assert (card.setting.width, card.setting.height) == (info.width, info.height)


def test_its_evaluation_is_shipped_and_of_this_very_policy(card: PolicyCard) -> None:
    found = json.loads((ROOT / EMBEDDED_POLICY / "evaluation/evaluation.json").read_text("utf-8"))
    assert found["version"] == card.version
    headline = found["judges"][found["headline"]]
    assert headline["prompts"] >= 600
    assert len(headline["rules"]["policy"]) >= 8
    assert headline["monotone"]


def test_hostile_prompts_get_no_more_than_held_out_ones_did(card: PolicyCard) -> None:
    for price in prices(card):
        open_ = calibrated(card, price)
        known = {choice.num_steps for choice, is_open in zip(card.choices, open_, strict=True) if is_open}
        assert set(steps(price, HOSTILE)) <= known


def test_words_of_praise_move_budgets_only_within_the_calibration(card: PolicyCard, captions: list[str]) -> None:
    for price in prices(card):
        known = np.array(step_counts(card.choices))[calibrated(card, price)]
        for word in (PLAIN, ELABORATE):
            moved = np.array(steps(price, [f"{word} {caption}" for caption in captions]))
            assert known.min() <= moved.min() <= moved.max() <= known.max()


def test_min_and_max_clamp(card: PolicyCard, captions: list[str]) -> None:
    everything = [*captions, *HOSTILE]
    for price in (0.0, 0.3, 1e3):
        assert all(5 <= count <= 10 for count in steps(price, everything, min=5, max=10))
        assert set(steps(price, everything, min=6, max=6)) == {6}


def test_every_prompt_costs_less_as_the_price_rises(card: PolicyCard, captions: list[str]) -> None:
    by_price = np.array([steps(price, [*captions, *HOSTILE]) for price in sorted(prices(card))])
    assert (np.diff(by_price, axis=0) <= 0).all()
    assert by_price[0].mean() > by_price[-1].mean()


def test_a_card_of_steps_alone_reads_as_recipes_of_so_many(card: PolicyCard, tmp_path: Path) -> None:
    """A file older than recipes: its menu is of numbers, its bounds are in steps."""
    raw = json.loads((ROOT / EMBEDDED_POLICY / "policy.json").read_text("utf-8")) | {"choices": [2, 4, 6, 8, 10]}
    counts = dict(zip(card.costs, raw["choices"], strict=True))
    for point in raw["calibration"]:
        point |= {f"{end}_steps": counts[point.pop(f"{end}_cost")] for end in ("least", "most")}
    (tmp_path / "policy.json").write_text(json.dumps(raw))
    (tmp_path / "policy.safetensors").write_bytes((ROOT / EMBEDDED_POLICY / "policy.safetensors").read_bytes())
    old = read_card(str(tmp_path))
    assert old.choices == menu_of((2, 4, 6, 8, 10))
    for price in prices(card):
        assert calibrated(old, price).tolist() == calibrated(card, price).tolist()
