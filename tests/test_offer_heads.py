"""Bars that a policy sets: their file, the selector that reads it, and the job file that asks for them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint

from actors.offer_heads import OFFERS, OfferHeads, heads_of, load_heads, save_heads
from actors.offers import bank_of
from actors.policy import Network, PolicyCard, PolicyError, Setting
from actors.policy_network import StepPolicy, save_policy
from actors.prompt_encoder import PromptEncoder
from actors.recipe import menu_of
from actors.selector import SelectorConfig, StepSelector
from jobs.job_file.policy import check_policy
from jobs.job_file.positions import ConfigError
from jobs.job_file.read import read_job
from jobs.job_file.settings import read_checkpoint
from tests.test_selector import batch
from training.learn.offers import fit_offers, reference_recipe
from training.reward_table import RewardTable

STEPS = (2, 4, 8)
MENU = menu_of(STEPS)
PROMPTS = ["a red cat", "two dogs", "a long prompt " * 9, "x", "a b c d e f"] * 8


def heads(width: int, policy: str = "", text_encoder: str = "") -> OfferHeads:
    rng = np.random.default_rng(0)
    return OfferHeads(
        weight=0.01 * rng.normal(size=(width, 3)),
        bias=np.array([0.6, 0.7, 0.75]),
        sigma=np.array([0.1, 0.08, 0.05]),
        share=np.array([0.6, 0.6, 0.6]),
        banks=tuple(bank_of(rng.normal(size=400), level) for level in (0.0, 0.5, 0.5)),
        costs=np.array([0.3, 0.5, 1.0]),
        unit=0.03,
        reference=2,
        choices=MENU,
        scorers=(("bright", 1.0), ("truth", 0.0)),
        text_encoder=text_encoder,
        policy=policy,
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SelectorConfig:
    folder = tmp_path_factory.mktemp("offers")
    checkpoint = make_checkpoint("sd1", folder / "model")
    encoder = PromptEncoder(str(checkpoint))
    network = Network(encoder.hidden_size, len(MENU), width=16, num_layers=1, num_heads=2)
    card = PolicyCard(MENU, (0.3, 0.5, 1.0), 0.02, encoder.fingerprint, network, Setting())
    card = save_policy(str(folder / "policy"), StepPolicy(network), card)
    made = heads(2 * encoder.hidden_size, card.version, encoder.fingerprint)
    (folder / "policy" / OFFERS).write_bytes(save_heads(made))
    where = {"policy_path": str(folder / "policy"), "text_encoder_path": str(checkpoint)}
    return SelectorConfig("policy", price=0.5, num_threads=1, max_tries=4, **where)


def test_a_file_gives_back_what_it_was_given(tmp_path: Path) -> None:
    made = heads(6, "v1", "abcd")
    (tmp_path / OFFERS).write_bytes(save_heads(made))
    found = load_heads(tmp_path)
    assert found is not None
    for name in ("weight", "bias", "sigma", "share", "costs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert found.banks == made.banks
    for name in ("unit", "reference", "choices", "scorers", "text_encoder", "policy"):
        assert getattr(found, name) == getattr(made, name)
    assert save_heads(found) == save_heads(made)
    assert load_heads(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no" + data, lambda data: b""])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage) -> None:
    (tmp_path / OFFERS).write_bytes(damage(save_heads(heads(6))))
    with pytest.raises(PolicyError, match=rf"{OFFERS}: not the scores of a policy"):
        load_heads(tmp_path)


def test_a_selector_sets_bars_and_forecasts_tries(config: SelectorConfig) -> None:
    selector = StepSelector(config)
    out = selector(batch(PROMPTS))
    bars = [bar for bar in out["bar"] if bar is not None]
    assert bars
    assert len(set(bars)) > 1  # the prompt sets it
    for bar, tries, count in zip(out["bar"], out["expected_tries"], out["num_steps"], strict=True):
        assert count in STEPS
        assert (bar is None) == (tries is None)
        assert tries is None or 1 < tries <= 4
    dear = StepSelector(replace(config, price=1000.0))(batch(PROMPTS))
    assert set(dear["bar"]) == {None}
    assert set(dear["num_steps"]) == {2}


def test_dearer_is_never_costlier(config: SelectorConfig) -> None:
    spent = []
    for price in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0):
        out = StepSelector(replace(config, price=price))(batch(PROMPTS))
        costs = dict(zip(STEPS, (0.3, 0.5, 1.0), strict=True))
        tries = [1.0 if each is None else each for each in out["expected_tries"]]
        spent.append(sum(costs[count] * each for count, each in zip(out["num_steps"], tries, strict=True)))
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > spent[-1]


def test_a_row_is_chosen_for_whatever_its_neighbours(config: SelectorConfig) -> None:
    selector = StepSelector(config)
    together = selector(batch(PROMPTS))
    for row in range(5):
        alone = selector(batch([PROMPTS[row]]))
        for name in ("num_steps", "bar", "expected_tries"):
            assert alone[name][0] == together[name][row]


def test_pinned_seeds_and_steps_have_one_try(config: SelectorConfig) -> None:
    count = len(PROMPTS)
    pinned = StepSelector(replace(config, price=0.1))(batch(PROMPTS, seed_pinned=[True] * count))
    assert set(pinned["bar"]) == {None}
    steps = StepSelector(replace(config, price=0.1))(batch(PROMPTS, num_inference_steps=[4] * count))
    assert (set(steps["bar"]), set(steps["num_steps"])) == ({None}, {4})


def test_one_try_is_the_policy_as_ever(config: SelectorConfig) -> None:
    one = StepSelector(replace(config, max_tries=1))
    out = one(batch(PROMPTS))
    assert set(out["bar"]) == {None}
    np.testing.assert_array_equal(np.stack(out["budget_scores"]), one.score(PROMPTS))


def test_a_policy_without_heads_or_with_anothers_is_refused(config: SelectorConfig, tmp_path: Path) -> None:
    network = Network(8, len(MENU), width=8, num_layers=1, num_heads=2)
    card = save_policy(
        str(tmp_path), StepPolicy(network), PolicyCard(MENU, (1.0, 2.0, 3.0), 1.0, "x", network, Setting())
    )
    with pytest.raises(PolicyError, match=r"sets no bar: train it on a rollout of two seeds"):
        heads_of(str(tmp_path), card)
    (tmp_path / OFFERS).write_bytes(save_heads(heads(16, "another")))
    with pytest.raises(PolicyError, match="is another policy's"):
        heads_of(str(tmp_path), card)


JOB = """\
model: {{path: {model}}}
input: {{path: p.csv}}
steps: {{policy: {policy}}}
quality: [{{scorer: "tests.plans:brightness", name: {name}, weight: {weight}}}]
tries: {{max: 3}}
"""


@pytest.mark.parametrize(("name", "weight", "fault"), [("bright", 1, ""), ("bright", 2, "bright x 1"), ("b", 1, "x 1")])
def test_the_jobs_scores_must_be_those_of_the_bars(config: SelectorConfig, name: str, weight: int, fault: str) -> None:
    places = {"model": config.text_encoder_path, "policy": config.policy_path}
    job = read_job(JOB.format(**places, name=name, weight=weight), "job.yaml")
    if not fault:
        check_policy(job, read_checkpoint(job))
        return
    with pytest.raises(ConfigError, match=rf"job\.yaml:4:.*the policy's bars are for the scores of .*{fault}"):
        check_policy(job, read_checkpoint(job))


@pytest.mark.parametrize(
    ("tries", "said"),
    [
        ("{max: 3}\nsteps: {selector: words}", "tries.bar: auto needs steps.selector: policy"),
        ("{max: 3, bar: {quantile: 0.4}}", "tries.bar: a quantile needs tries.scores"),
        ("{max: 3, bar: 0.5, keep: true}\noutput: {layout: parquet}", "tries.keep needs output.layout: files"),
    ],
)
def test_contradictions_name_the_keys(tries: str, said: str) -> None:
    quality = 'quality: [{scorer: "tests.plans:brightness"}]'
    with pytest.raises(ConfigError, match=said):
        read_job(f"input: {{path: p.csv}}\n{quality}\ntries: {tries}\n", "job.yaml")
    with pytest.raises(ConfigError, match=r"tries\.max needs a scorer that counts"):
        read_job("input: {path: p.csv}\ntries: {max: 2, bar: 0.5}", "job.yaml")


def table(prompts: int = 120, seeds: int = 4) -> tuple[RewardTable, np.ndarray]:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(prompts, 5))
    level = features @ np.array([0.03, 0.02, 0, 0, 0]) + rng.normal(0, 0.02, prompts)
    truth = np.clip(level[:, None, None] + np.array([0.6, 0.7, 0.72])[:, None], 0, 1)
    noise = rng.normal(0, 0.08, (prompts, 3, seeds))
    scores = {"clip": truth + noise, "truth": truth + 0.7 * noise + rng.normal(0, 0.05, noise.shape)}
    names = tuple(f"p{number}" for number in range(prompts))
    return RewardTable(
        names, names, (None,) * prompts, MENU, scores["clip"], np.array([0.3, 0.5, 1.0]), scores
    ), features


def test_heads_are_learned_from_a_table(tmp_path: Path) -> None:
    learned, features = table()
    found = fit_offers(learned, features, "truth", {"clip": 1.0, "truth": 0.0}, "abcd")
    assert found.reference in (1, 2)
    assert found.costs[found.reference] == 1.0
    np.testing.assert_allclose(found.sigma, 0.08, rtol=0.1)
    assert 0.4 < found.share.mean() < 1.2
    predicted, observed = found.mu(features), learned.quality.mean(axis=2)
    assert np.corrcoef(predicted[:, 1], observed[:, 1])[0, 1] > 0.6
    (tmp_path / OFFERS).write_bytes(save_heads(found))
    again = load_heads(tmp_path)
    assert again is not None
    menus = [each.menu(4) for each in (found, again)]
    np.testing.assert_array_equal(menus[0].tries, menus[1].tries)
    assert again.banks == found.banks
    assert len(found.banks[0].misses[0]) == learned.num_seeds
    assert again.num_prompts == len(learned.prompts)
    assert json.dumps(found.scorers) == '[["clip", 1.0], ["truth", 0.0]]'


def test_the_reference_is_the_smallest_budget_that_is_not_worse() -> None:
    rng = np.random.default_rng(0)
    quality = np.array([0.5, 0.7, 0.7, 0.7])[:, None] + rng.normal(0, 0.05, (200, 4, 3))
    assert reference_recipe(quality) == 1
    assert reference_recipe(quality[:, :1]) == 0
