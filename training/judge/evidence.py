"""Gathers what an evaluation is made from: a policy's outputs and reward tables. It loads a text encoder and no UNet.

The comparison is `training.judge.compare`'s; tables are `training.reward_table`'s. Shapes: P prompts, K budgets, S
seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from actors.offer_heads import OfferHeads, policy_heads
from actors.policy import PolicyCard, calibrated, check_policy
from actors.policy_network import load_policy
from actors.prompt_encoder import PromptEncoder, prompt_features
from training.judge.compare import Evidence, quality_margin
from training.judge.spending import Spending, compare_spending
from training.judge.tries import Pictures
from training.learn.batches import TrainingRows
from training.learn.offers import reference_recipe
from training.learn.step_loss import outputs
from training.reward_table import RewardTable, TableError

SOLVERS = {"ddim": "DDIM", "dpmpp_2m": "DPM-Solver++ 2M"}
MOST_SHARED, NUM_BINS = 0.6, 4


class Setup(NamedTuple):
    """One way to render: what a variant differs in."""

    solver: str
    guidance_scale: float


@dataclass(frozen=True)
class PolicyScores:
    """What a policy says of a table's prompts: scores (P, K), in rises; features (P, D) for its heads."""

    card: PolicyCard
    scores: np.ndarray
    features: np.ndarray
    heads: OfferHeads | None


def read_prompts(policy_path: str, model_path: str, table: RewardTable) -> PolicyScores:
    """Load policy and text encoder, read all prompts. PolicyError where they do not fit."""
    policy, card = load_policy(policy_path)
    encoder = PromptEncoder(model_path)
    check_policy(card, text_encoder=encoder.fingerprint)
    tokens = encoder.embed(table.prompts)
    rows = TrainingRows(dict(enumerate(tokens)), dict(enumerate(table.quality)))
    scores, _ = outputs(policy, rows.chunks())
    features = np.stack([prompt_features(each) for each in tokens])
    return PolicyScores(card, scores, features, policy_heads(policy_path, card))


def evidence(
    reading: PolicyScores,
    table: RewardTable,
    learned: RewardTable | None,
    judge: str | None = None,
    margin: float | None = None,
    prices: Sequence[float] | None = None,
    variants: Mapping[Setup, RewardTable] | None = None,
) -> Evidence:
    """For one judge: a scorer's name, or None: the quality as the job weighs it.

    Costs are the policy's own, so that a price means here what it means in a job. variants: the same prompts under
    other solvers and guidance; each solver has its best guidance at every budget by the job's scorer.
    """
    menu = reading.card.choices
    table, learned = table.ordered(menu), learned and learned.ordered(menu)
    variants = {setup: each.ordered(menu) for setup, each in (variants or {}).items()}
    table = replace(table, seconds=np.array(reading.card.costs) * table.seconds[-1])
    judged, known = (t if t is None or judge is None else t.judged_by(judge) for t in (table, learned))
    assert judged is not None
    return Evidence(
        learned=known,
        held_out=judged,
        scores=reading.scores,
        prices=sorted(prices or (point["price"] for point in reading.card.calibration)),
        margin=margin or quality_margin(judged if known is None else known),
        variants=tuned(table, variants, judge, reading.card),
        labels=labels(table),
        allowed=partial(calibrated, reading.card),
    )


def spending(
    reading: PolicyScores | None,
    table: RewardTable,
    learned: RewardTable | None,
    judge: str | None,
    max_tries: int = 4,
    decode_lane_steps: float | None = None,
) -> Spending:
    """Ways to spend on these pictures, by one judge; the chooser is the quality that the job weighs.

    reading: None without a policy. decode_lane_steps: what decode and score of a picture cost beside its lane-steps;
    None: as the policy's card, or without one the table, has costs. TableError where lane-steps are not known.
    """
    heads = reading.heads if reading else None
    menu = reading.card.choices if reading else table.choices
    table, learned = table.ordered(menu), learned and learned.ordered(menu)
    reference = heads.reference if heads else reference_recipe((learned or table).quality)
    costs = heads.costs if heads else table.costs
    if decode_lane_steps is not None:
        if table.lane_steps is None:
            raise TableError("the table does not say its lane-steps: leave out evaluate.decode_lane_steps")
        costs = table.lane_steps + decode_lane_steps
    costs = costs / costs[reference]

    here_priced = replace(heads, costs=costs) if heads else None  # one object, which keeps its menus of offers

    def choose(price: float, most: int) -> tuple[np.ndarray, np.ndarray]:
        assert reading is not None
        assert here_priced is not None
        all_of, free = np.ones(len(menu), bool), np.zeros(len(table.prompts), bool)
        chosen = here_priced.choose(reading.features, price, most, all_of, free)
        return chosen.recipe, chosen.bar

    here, known = _pictures(table, judge, costs), _pictures(learned, judge, costs) if learned else None
    return compare_spending(here, choose if heads else None, known, max_tries, reference)


def _pictures(table: RewardTable, judge: str | None, costs: np.ndarray) -> Pictures:
    judged = table if judge is None else table.judged_by(judge)
    return Pictures(table.choices, judged.quality, table.quality, costs)


def tuned(
    table: RewardTable, variants: Mapping[Setup, RewardTable], judge: str | None, card: PolicyCard
) -> dict[str, RewardTable]:
    """One table a solver, at every budget under the guidance whose mean quality is best by the job's own scorer.

    The policy's own setup is a candidate, too. The judge has no say in what is picked.
    """
    found = {}
    own = Setup(card.setting.solver or "ddim", card.setting.guidance_scale or 0.0)
    for solver in sorted({setup.solver for setup in variants}):
        there = {setup: each.costing_as(table) for setup, each in variants.items() if setup.solver == solver}
        candidates = [*there.values(), *([table] if solver == own.solver else [])]
        found[f"{SOLVERS.get(solver, solver)}, best guidance"] = _best_of(candidates, judge)
    return found


def _best_of(candidates: Sequence[RewardTable], judge: str | None) -> RewardTable:
    means = np.stack([each.quality.mean(axis=(0, 2)) for each in candidates])  # (candidates, K)
    seeds = min(each.num_seeds for each in candidates)
    judged = [each if judge is None else each.judged_by(judge) for each in candidates]
    picked = list(enumerate(means.argmax(axis=0)))
    quality = np.stack([judged[at].quality[:, k, :seeds] for k, at in picked], axis=1)
    return replace(judged[0], quality=quality, seconds=np.array([judged[at].seconds[k] for k, at in picked]))


def labels(table: RewardTable) -> dict[str, list[str]]:
    """Groups of prompts: by category where there are some, by number of words where prompts differ in it."""
    found = {}
    categories = [str(category or "none") for category in table.categories]
    if 1 < len(set(categories)) <= MOST_SHARED * len(categories):
        found["category"] = categories
    words = np.array([len(prompt.split()) for prompt in table.prompts])
    edges = np.unique(np.quantile(words, np.linspace(0, 1, NUM_BINS + 1)).round().astype(int))
    if len(edges) > 2:
        found["words"] = [_bin(count, edges) for count in words]
    return found


def _bin(count: int, edges: np.ndarray) -> str:
    """The range of words that a count falls in, `8 to 11`; the last range has its upper edge, too."""
    at = int(np.clip(np.searchsorted(edges, count, side="right") - 1, 0, len(edges) - 2))
    last = edges[at + 1] - (at < len(edges) - 2)
    return f"{edges[at]} to {last}"
