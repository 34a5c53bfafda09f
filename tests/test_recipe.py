"""Recipes: their names, menus in any order, how a row's columns are filled from them, and the keys of a picture."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from actors.recipe import THROUGHOUT, Recipe, by_cost, named, recipe_of, step_counts
from actors.rows import SamplerConfig
from actors.solver import lane_steps
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import read_job
from jobs.job_file.recipes import menu_of_job
from pipelines.plan.recipes import JobSampling, lane_steps_of_rows, recipe_columns
from pipelines.render.keys import plan_key, render_key, tries_rules
from pipelines.render.quality import ScorerSource
from pipelines.run.schema import CANONICAL_FIELDS, PlannedRow
from tests.finished import RENDER_CLASS
from tests.plans import brightness, typed_row

RECIPES = (
    Recipe(8),
    Recipe(4, "dpmpp_2m"),
    Recipe(4, None, 3.0),
    Recipe(4, None, 0.0),
    Recipe(12, None, None, (0.0, 0.8)),
    Recipe(1000, "ddim", 2.25, (0.125, 1.0)),
    Recipe(7, "ddim", 1 / 3, (1e-5, 0.7000000000000001)),
    Recipe(7, None, 1e6),
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_name_and_a_plain_value_go_there_and_back(recipe: Recipe) -> None:
    assert named(recipe.name) == recipe
    assert recipe_of(recipe.plain()) == recipe_of(recipe) == recipe
    assert recipe.is_plain == (recipe == Recipe(8))


def test_names_are_short_and_each_recipe_has_its_own() -> None:
    assert [recipe.name for recipe in RECIPES[:3]] == ["8", "4-dpmpp_2m", "4-g3"]
    assert RECIPES[5].name == "1000-ddim-g2.25-0.125to1"
    assert RECIPES[5].words == "1000 steps, ddim, guidance 2.25 from 0.125 to 1"
    assert Recipe(1).words == "1 step"
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize("name", ["", "eight", "8-", "8-euler", "8-g", "8-0.2", "8 ", "-8", "8-g3-ddim"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no recipe's name"):
        named(name)


def test_a_menu_is_sorted_by_lane_steps_whatever_its_order() -> None:
    half = Recipe(8, None, None, (0.5, 1.0))  # 12 lane-steps; unguided 8
    menu = (Recipe(8, None, 1.0), Recipe(5), half, Recipe(8))
    for given in (menu, menu[::-1], (*menu, half)):
        assert by_cost(given, 7.5, None) == menu
    assert by_cost(menu, 1.0, None) == (Recipe(5), Recipe(8), half, Recipe(8, None, 1.0))  # nothing is guided
    assert step_counts(menu) == (5, 8)


# ---- the job file


def steps_of(steps: str) -> Any:
    return read_job(f"input: {{path: p.csv}}\nsteps: {steps}\n", "job.yaml")


def test_a_menu_in_another_order_is_the_same_job() -> None:
    one = steps_of("{selector: words, choices: [8, {num_steps: 4, solver: dpmpp_2m}, {num_steps: 4}]}")
    two = steps_of("{selector: words, choices: [4, 8, {num_steps: 4, solver: dpmpp_2m}]}")
    assert one.config.fingerprint() == two.config.fingerprint()
    assert menu_of_job(one) == menu_of_job(two) == (Recipe(4), Recipe(4, "dpmpp_2m"), Recipe(8))
    assert one.config.fingerprint() != steps_of("{selector: words, choices: [4, 8]}").config.fingerprint()


def test_a_recipe_of_steps_alone_is_that_number() -> None:
    fixed, stated = (steps_of(f"{{selector: fixed, fixed: {each}}}").config for each in ("8", "{num_steps: 8}"))
    assert fixed.fingerprint() == stated.fingerprint()
    assert fixed.steps.fixed == stated.steps.fixed == 8


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        ("{choices: [{num_steps: 4}, 4]}", "2:18: steps.choices 4 stands there twice: each recipe once"),
        (
            "{choices: [{num_steps: 4, guidance_scale: 3}, {guidance_scale: 3.0, num_steps: 4}]}",
            "2:18: steps.choices {num_steps: 4, guidance_scale: 3.0} stands there twice: each recipe once",
        ),
        (
            "{choices: [2, {num_steps: 4, guidance_interval: [0.8, 0.2]}]}",
            "2:56: steps.choices.1.guidance_interval the start must lie before the end",
        ),
        (
            "{choices: [2, {num_steps: 4, guidance_interval: [0.8, 2]}]}",
            "2:62: steps.choices.1.guidance_interval.1 must be 1 or less, got 2",
        ),
        ("{choices: [2, {num_steps: 4, eta: 1}]}", "2:37: unknown key steps.choices.1.eta"),
        ("{choices: [2, {guidance_scale: 3}]}", "2:22: steps.choices.1.num_steps is missing"),
        ("{choices: [2, 0]}", "2:22: steps.choices.1 must be 1 or more, got 0"),
        ("{choices: [2, {num_steps: 0}]}", "2:34: steps.choices.1.num_steps must be 1 or more, got 0"),
        (
            "{choices: [{num_steps: 4, solver: euler}]}",
            "2:42: steps.choices.0.solver must be 'ddim' or 'dpmpp_2m', got 'euler'",
        ),
        ("{selector: fixed, fixed: 0}", "2:33: steps.fixed must be 1 or more, got 0"),
        ("{selector: fixed, fixed: {solver: ddim}}", "2:33: steps.fixed.num_steps is missing"),
    ],
)
def test_a_wrong_recipe_is_one_error_at_its_place(steps: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        steps_of(steps)
    assert [str(each) for each in caught.value.faults] == [f"job.yaml:{fault}"]


def test_a_key_that_a_recipe_nearly_has_is_guessed() -> None:
    with pytest.raises(ConfigError, match=r"unknown key steps\.choices\.0\.solvr; did you mean steps\.choices\.solver"):
        steps_of("{choices: [{num_steps: 4, solvr: ddim}]}")


# ---- a row's columns


def columns(recipe: Recipe, sampling: JobSampling, **row: Any) -> dict[str, Any]:
    given = {"guidance_scale": 7.5, "guidance_pinned": False} | row
    table = pa.Table.from_pylist([given], schema=pa.schema(CANONICAL_FIELDS))
    made = recipe_columns(table, [recipe], [recipe.name], sampling)
    return {name: column.to_pylist()[0] for name, column in made.items()}


def test_what_a_recipe_leaves_open_is_the_jobs() -> None:
    job = JobSampling("dpmpp_2m", (0.1, 0.9))
    plain = columns(Recipe(8), job)
    assert plain == {
        "recipe_name": "8", "num_steps": 8, "solver": "dpmpp_2m", "guidance_scale": 7.5, "guidance_interval": [0.1, 0.9]
    }  # fmt: skip
    own = columns(Recipe(4, "ddim", 3.0, (0.2, 0.8)), job)
    assert (own["solver"], own["guidance_scale"], own["guidance_interval"]) == ("ddim", 3.0, [0.2, 0.8])
    assert columns(Recipe(8), JobSampling())["guidance_interval"] == list(THROUGHOUT)
    assert columns(Recipe(8, None, None, THROUGHOUT), job)["guidance_interval"] == list(THROUGHOUT)


def test_a_row_pins_its_own_guidance() -> None:
    recipe = Recipe(4, None, 3.0)
    assert columns(recipe, JobSampling(), guidance_scale=2.0, guidance_pinned=True)["guidance_scale"] == 2.0
    assert columns(recipe, JobSampling(), guidance_scale=2.0)["guidance_scale"] == 3.0


@pytest.mark.parametrize(("negative", "interval"), [("blurry", [0.0, 1.0]), ("", [0.2, 0.8]), (None, [0.2, 0.8])])
def test_a_row_with_a_negative_prompt_is_guided_throughout(negative: str | None, interval: list[float]) -> None:
    for recipe, job in ((Recipe(4, None, None, (0.2, 0.8)), None), (Recipe(4), (0.2, 0.8))):
        made = columns(recipe, JobSampling("ddim", job), negative_prompt=negative)
        assert made["guidance_interval"] == interval


def test_lane_steps_are_those_of_the_columns() -> None:
    rows = [{"num_steps": 8, "guidance_scale": 5.0, "guidance_interval": each} for each in ([0.5, 1.0], None)]
    rows += [{"num_steps": None, "guidance_scale": 5.0, "guidance_interval": None}]
    table = pa.Table.from_pylist(rows)
    assert lane_steps_of_rows(table).tolist() == [lane_steps(8, 5.0, (0.5, 1.0)), 16, 0] == [12, 16, 0]


# ---- the keys of a picture

SAMPLER = SamplerConfig("")
SCORER = ScorerSource("bright", "function", function=brightness)
RULES: Mapping[str, Any] = {"image_format": "png", "most_tries": 2, "scorers": (SCORER,)}


def row(**values: Any) -> PlannedRow:
    full = {"guidance_interval": [0.2, 0.8], "solver": "ddim", "bar": 0.5, "num_steps": 4}
    return typed_row(1, **(full | values))


def key(planned: PlannedRow, render_class: str = RENDER_CLASS, **rules: Any) -> str:
    return plan_key(planned, render_class, SAMPLER, tries_rules(**(dict(RULES) | rules)))


def test_a_plan_key_is_of_the_row_and_not_of_where_it_is_rendered() -> None:
    elsewhere = "abcd/nvidia-h100/float32/16x16-32lanes-1decode/ddim/torch-3"
    other = row(id="other", shard="0003-000009", price=0.9, policy_version="p", note="x", seed_pinned=True)
    assert key(row()) == key(other) == key(row(), elsewhere)


@pytest.mark.parametrize(
    "change",
    [{"bar": 0.6}, {"bar": None}, {"solver": "dpmpp_2m"}, {"guidance_interval": [0.2, 0.9]}, {"seed": 5},
     {"guidance_interval": [0.0, 1.0]}, {"guidance_scale": 2.0}, {"num_steps": 5}, {"negative_prompt": ""}],
)  # fmt: skip
def test_a_plan_key_follows_whatever_changes_the_row(change: dict[str, Any]) -> None:
    assert key(row(**change)) != key(row())


@pytest.mark.parametrize(
    "change",
    [{"image_format": "jpeg"}, {"most_tries": 3}, {"scorers": ()}, {"scorers": (replace(SCORER, weight=2.0),)}],
)
def test_a_plan_key_follows_the_rules_of_tries(change: dict[str, Any]) -> None:
    assert key(row(), **change) != key(row())


def test_a_plan_key_follows_model_and_precision() -> None:
    assert key(row(), RENDER_CLASS.replace("abcd", "ef01")) != key(row())
    assert key(row(), RENDER_CLASS.replace("float32", "float16")) != key(row())


def test_rows_of_earlier_plans_have_the_keys_they_had() -> None:
    """Those plans leave solver and interval to the job; the keys are an earlier version's own."""
    sampler = SamplerConfig("", guidance_interval=(0.2, 0.8))
    for negative, known in KEYS_OF_EARLIER_VERSIONS.items():
        assert render_key(typed_row(1, negative_prompt=negative), RENDER_CLASS, sampler) == known
    plain = render_key(typed_row(1, solver="ddim", guidance_interval=[0.2, 0.8]), RENDER_CLASS, sampler)
    assert plain == KEYS_OF_EARLIER_VERSIONS[None]


KEYS_OF_EARLIER_VERSIONS = {None: "0902da54568d858b77b2", "": "3d65bfd12c339c7aae31", "blurry": "0033e2deeab7cd28543c"}
