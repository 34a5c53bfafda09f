"""Reads a rollout run's manifests into the reward table: a prompt's quality at every recipe and seed.

Nothing is guessed: a prompt that lacks a picture because a row failed, or a score because its scorer could not judge,
is left out and counted; one that lacks it because the rollout has not come there is an error. What is made of quality
is `training.learn.reward`. Shapes: P prompts, K recipes of the menu (by rising cost), S
seeds.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from actors.recipe import Recipe, named
from training.learning_error import Unlearnable

SHOWN = 3  # examples in a message
LEAST_RISE = 0.01  # of the seconds, from the cheapest to the dearest recipe: less is noise
_COLUMNS = ("prompt_id", "prompt", "category", "sample", "num_steps", "seed", "status", "quality", "scores")
_OTHER_COLUMNS = ("lane_steps", "seconds", "score_error", "recipe_name")  # not in every version's manifests


class TableError(Unlearnable):
    """A run that is no whole reward table: what is wrong, in which rows, and the remedy."""


@dataclass(frozen=True)
class RewardTable:
    """quality (P, K, S): what the run weighed; scores (P, K, S): each scorer's own; seconds (K,): of one picture."""

    prompt_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    categories: tuple[str | None, ...]
    choices: tuple[Recipe, ...]
    quality: np.ndarray
    seconds: np.ndarray
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason: prompts
    lane_steps: np.ndarray | None = None  # (K,) of one picture, where it is known

    @property
    def costs(self) -> np.ndarray:
        """(K,) in units of the dearest recipe's."""
        return self.seconds / self.seconds[-1]

    @property
    def num_seeds(self) -> int:
        """S."""
        return int(self.quality.shape[2])

    def take(self, rows: Sequence[int] | np.ndarray) -> "RewardTable":
        """The table of some of its prompts, in that order."""
        picked = [int(row) for row in rows]
        return replace(
            self,
            prompt_ids=tuple(self.prompt_ids[row] for row in picked),
            prompts=tuple(self.prompts[row] for row in picked),
            categories=tuple(self.categories[row] for row in picked),
            quality=self.quality[picked],
            scores={name: values[picked] for name, values in self.scores.items()},
        )

    def ordered(self, menu: Sequence[Recipe]) -> "RewardTable":
        """The table with the recipes in the order of a menu. TableError where it has other ones."""
        if {*menu} != {*self.choices}:
            ours, theirs = ("; ".join(recipe.words for recipe in each) for each in (self.choices, menu))
            raise TableError(f"the table's recipes are ({ours}), those of the policy or the learned table ({theirs})")
        at = [self.choices.index(recipe) for recipe in menu]
        return replace(
            self,
            choices=tuple(menu),
            quality=self.quality[:, at],
            seconds=self.seconds[at],
            scores={name: values[:, at] for name, values in self.scores.items()},
            lane_steps=None if self.lane_steps is None else self.lane_steps[at],
        )

    @property
    def steps(self) -> np.ndarray:
        """(K,) float64."""
        return np.array([choice.num_steps for choice in self.choices], np.float64)

    def judged_by(self, scorer: str) -> "RewardTable":
        """The table with one scorer's own score as its quality. TableError where it did not score every picture."""
        return self.weighed({scorer: 1.0})

    def weighed(self, weights: Mapping[str, float]) -> "RewardTable":
        """The table with a weighted sum of scores as its quality. TableError where one did not score every picture."""
        quality = np.zeros_like(self.quality)
        for scorer, weight in weights.items():
            values = self.scores.get(scorer)
            if values is None or not np.isfinite(values).all():
                raise TableError(
                    f"scorer {scorer!r} did not score every picture; there are {', '.join(sorted(self.scores))}"
                )
            quality = quality + weight * values
        return replace(self, quality=quality)

    def costing_as(self, other: "RewardTable") -> "RewardTable":
        """The table with seconds by another run's line over lane-steps: runs differ by the machine's load."""
        if self.lane_steps is None or other.lane_steps is None or len(other.lane_steps) < 2:
            return self
        slope, offset = _line(other.lane_steps, other.seconds)
        return replace(self, seconds=offset + slope * self.lane_steps)

    def fingerprint(self) -> str:
        """16 hex digits of the prompts, the menu and the quality."""
        about = [self.prompt_ids, self.prompts, [choice.plain() for choice in self.choices]]
        digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self.quality, np.float64).tobytes())
        return digest.hexdigest()


def read_table(manifests: Iterable[pa.Table]) -> RewardTable:
    """The table of a rollout's manifests (`RunFolder.manifests()`). TableError."""
    tables = [table.select([n for n in (*_COLUMNS, *_OTHER_COLUMNS) if n in table.column_names]) for table in manifests]
    if not tables:
        raise TableError("the run has no manifest yet: render the rollout first")
    return table_of(pa.concat_tables(tables, promote_options="default").to_pylist())


def table_of(rows: Sequence[Mapping[str, Any]]) -> RewardTable:
    """The table of manifest rows in any order, prompts by rising id. TableError."""
    failed = {row["prompt_id"] for row in rows if row["status"] != "ok"}
    good = [row for row in rows if row["prompt_id"] not in failed]
    if not good:
        raise TableError(f"no prompt has all its pictures: rows failed for each of {len(failed)} prompts")
    unscored = _unscored(good)
    good = [row for row in good if row["prompt_id"] not in unscored]
    if not good:
        raise TableError(_why_unscored(rows))
    cells = _cells(good)
    choices = _menu(good)
    samples = sorted({sample for _, sample, _ in cells})
    about = {row["prompt_id"]: (row["prompt"], row["category"]) for row in good}
    _refuse_missing(cells, about, samples, choices)
    order = sorted(about)
    names = sorted({name for row in good for name in scores_of(row["scores"])})
    return RewardTable(
        prompt_ids=tuple(order),
        prompts=tuple(about[prompt][0] for prompt in order),
        categories=tuple(about[prompt][1] for prompt in order),
        choices=choices,
        quality=_array(cells, order, choices, samples, lambda row: row["quality"]),
        seconds=measured_seconds(good, choices),
        scores={name: _array(cells, order, choices, samples, lambda row, n=name: _score(row, n)) for name in names},
        dropped={reason: len(ids) for reason, ids in (("failed", failed), ("unscored", unscored)) if ids},
        lane_steps=_mean_lane_steps(good, choices),
    )


def _recipe_name(row: Mapping[str, Any]) -> str:
    """What the row was rendered by; rollouts of earlier versions had steps alone."""
    return row.get("recipe_name") or Recipe(row["num_steps"]).name


def _menu(rows: Sequence[Mapping[str, Any]]) -> tuple[Recipe, ...]:
    """Its recipes, by the lane-steps that they took."""
    names = sorted({_recipe_name(row) for row in rows})
    menu = [named(name) for name in names]
    cost = dict(zip(names, _mean_lane_steps(rows, menu), strict=True))
    return tuple(sorted(menu, key=lambda recipe: (cost[recipe.name], recipe.num_steps, recipe.name)))


def _unscored(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Prompts with a picture that has no quality, or that lacks a score which most prompts have in full."""
    prompts = {row["prompt_id"] for row in rows}
    names = {name for row in rows for name in scores_of(row["scores"])}
    lacking = {name: {row["prompt_id"] for row in rows if not np.isfinite(_score(row, name))} for name in names}
    usual = [ids for ids in lacking.values() if 2 * len(ids) < len(prompts)]
    without = {row["prompt_id"] for row in rows if row["quality"] is None or not np.isfinite(row["quality"])}
    return without.union(*usual)


def _why_unscored(rows: Sequence[Mapping[str, Any]]) -> str:
    said = next((row["score_error"] for row in rows if row.get("score_error")), None)
    if said is None:
        return "no prompt has the quality of all its pictures: roll out with a quality scorer"
    return f"no prompt has the quality of all its pictures: scorers failed, the first with: {said}"


def scores_of(value: Any) -> dict[str, float]:
    """{scorer: score} of a manifest's column `scores`; in runs of earlier versions it was a map."""
    pairs = [(each["scorer"], each["score"]) if isinstance(each, dict) else each for each in value or ()]
    return dict(pairs)


def _mean_lane_steps(rows: Sequence[Mapping[str, Any]], choices: Sequence[Recipe]) -> np.ndarray:
    return _means(rows, choices, lambda row: row["lane_steps"])


def _means(rows: Sequence[Mapping[str, Any]], choices: Sequence[Recipe], value: Any) -> np.ndarray:
    """(K,) means over the rows of each recipe."""
    found: dict[str, list[float]] = {recipe.name: [] for recipe in choices}
    for row in rows:
        found[_recipe_name(row)].append(value(row))
    return np.array([np.mean(values) for values in found.values()])


def measured_seconds(rows: Sequence[Mapping[str, Any]], choices: Sequence[Recipe]) -> np.ndarray:
    """Seconds (K,) of a picture at each recipe: a line over lane-steps through what was measured.

    A line, since single measurements carry the noise of their machine, and the model is one: so much a lane-step, so
    much a picture. Lane-steps themselves where seconds were not measured or do not rise.
    """
    lane_steps = _mean_lane_steps(rows, choices)
    seconds = _means(rows, choices, lambda row: row.get("seconds") or np.nan)
    if np.isfinite(seconds).all() and np.ptp(lane_steps) > 0:
        slope, offset = _line(lane_steps, seconds)
        if slope * np.ptp(lane_steps) > LEAST_RISE * np.mean(seconds):
            return offset + slope * lane_steps
    return lane_steps.astype(np.float64)


def _line(lane_steps: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """Seconds a lane-step, and a picture beside them, not less than none."""
    slope, offset = np.polyfit(lane_steps, seconds, 1)
    return float(slope), max(float(offset), 0.0)


Cells = dict[tuple[str, int, str], Mapping[str, Any]]  # prompt id, sample, recipe


def _cells(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """Rows by their place. Refuses doubles, and recipes that do not share their noise."""
    cells: Cells = {}
    seeds: dict[tuple[str, int], int] = {}
    for row in rows:
        place = (row["prompt_id"], row["sample"], _recipe_name(row))
        if place in cells:
            raise TableError(f"prompt {place[0]!r}, sample {place[1]} has two pictures at {named(place[2]).words}")
        if seeds.setdefault(place[:2], row["seed"]) != row["seed"]:
            raise TableError(
                f"prompt {place[0]!r}, sample {place[1]} has several seeds: recipes must share their noise"
            )
        cells[place] = row
    return cells


def _refuse_missing(cells: Cells, prompts: Iterable[str], samples: Sequence[int], choices: Sequence[Recipe]) -> None:
    names = [choice.name for choice in choices]
    wanted = [(prompt, sample, name) for prompt in sorted(prompts) for sample in samples for name in names]
    missing = [place for place in wanted if place not in cells]
    if missing:
        short = Counter(prompt for prompt, _, _ in missing)
        some = ", ".join(
            f"{prompt!r} sample {sample} at {named(name).words}" for prompt, sample, name in missing[:SHOWN]
        )
        some += ", ..." * (len(missing) > SHOWN)
        raise TableError(
            f"{len(short)} prompts lack {len(missing)} of {len(wanted)} pictures ({some}): "
            "run the rollout again, it goes on where it stopped"
        )
    if len(samples) < 2:
        raise TableError("the table has one seed a prompt: two or more tell a better recipe from a lucky seed")


def _array(
    cells: Cells, order: Sequence[str], choices: Sequence[Recipe], samples: Sequence[int], value: Any
) -> np.ndarray:
    return np.array([[[value(cells[p, s, k.name]) for s in samples] for k in choices] for p in order], np.float64)


def _score(row: Mapping[str, Any], name: str) -> float:
    score = scores_of(row["scores"]).get(name)
    return np.nan if score is None else float(score)


def split(table: RewardTable, held_out: float, purpose: str = "held out") -> tuple[RewardTable, RewardTable]:
    """(training, held out): a prompt's side follows from its text alone, so that equal prompts are never on both.

    Splits for two purposes are independent.
    """
    sides = np.array([_place(prompt, purpose) < held_out for prompt in table.prompts])
    if sides.all() or not sides.any():
        raise TableError(f"{len(sides)} prompts cannot be split with {held_out:.0%} held out: both sides need one")
    return table.take(np.flatnonzero(~sides)), table.take(np.flatnonzero(sides))


def _place(prompt: str, purpose: str) -> float:
    text = f"{purpose}\n{prompt}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8, person=b"holdout").digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
