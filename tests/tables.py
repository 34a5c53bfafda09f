"""Reward tables made by hand: a world in which the first word of a prompt decides how many steps pay."""

from typing import Any

import numpy as np

from actors.recipe import menu_of
from training.reward_table import RewardTable

STEPS = (2, 4, 8, 16)
CHOICES = menu_of(STEPS)
COSTS = np.array([0.15, 0.3, 0.55, 1.0])
KINDS = {"plain": 0.05, "rich": 1.0}  # how much a prompt loses at few steps


def manifest_rows(prompts: int = 3, seeds: int = 2, choices: tuple[int, ...] = STEPS) -> list[dict[str, Any]]:
    """A rollout's manifest rows: every prompt at every budget and seed, quality and scores filled."""
    rng = np.random.default_rng(0)
    return [
        {
            "prompt_id": f"p{p}",
            "prompt": f"a fox number {p}",
            "category": "animals" if p % 2 else None,
            "sample": s,
            "num_steps": k,
            "seed": 100 * p + s,
            "status": "ok",
            "quality": float(rng.random()),
            "scores": [("clip", float(rng.random())), ("truth", float(rng.random()))],
            "lane_steps": 2 * k,
            "seconds": 0.1 + 0.02 * 2 * k,
        }
        for p in range(prompts)
        for s in range(seeds)
        for k in choices
    ]


def world(prompts: int = 400, seeds: int = 2, noise: float = 0.05, seed: int = 0, alike: bool = False) -> RewardTable:
    """Half the prompts saturate at once, half need steps; alike: all are of one kind."""
    rng = np.random.default_rng(seed)
    kinds = np.array(["rich"] * prompts if alike else rng.permutation(["plain", "rich"] * (prompts // 2)))
    loss = np.array([KINDS[kind] for kind in kinds])[:, None, None]
    curve = np.exp(-np.array(STEPS) / 1.5)[None, :, None]
    worth = rng.normal(0.7, 0.1, (prompts, 1, 1))
    quality = worth - loss * curve + noise * rng.normal(size=(prompts, len(CHOICES), seeds))
    texts = tuple(f"{kind} scene {number} " + "w " * int(rng.integers(12)) for number, kind in enumerate(kinds))
    ids = tuple(f"p{number:05d}" for number in range(prompts))
    return RewardTable(ids, texts, tuple(kinds.tolist()), CHOICES, quality, COSTS, {"clip": quality})
