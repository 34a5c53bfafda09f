"""pi(b | prompt, price): its algebra, its bounds, and the policy's file."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.policy import (
    Network,
    PolicyCard,
    PolicyError,
    Setting,
    check_policy,
    choose_steps,
    read_card,
    uncalibrated,
)
from actors.policy_network import StepPolicy, load_policy, save_policy, weights_fingerprint
from actors.recipe import menu_of

CHOICES = menu_of((5, 10, 20, 50))
COSTS = np.array([0.13, 0.22, 0.41, 1.0])
NETWORK = Network(hidden_size=12, num_choices=4, width=16, num_layers=2, num_heads=2)
CARD = PolicyCard(
    choices=CHOICES,
    costs=tuple(COSTS.tolist()),
    temperature=0.05,
    text_encoder="cafe",
    network=NETWORK,
    setting=Setting(unet="beef", solver="ddim", guidance_scale=7.5, width=64, height=64),
    training_data="f00d",
    calibration=({"price": 0.3, "mean_cost": 0.4, "quality": 0.8},),
)


def scores(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 4))


# choosing


def test_probabilities_are_the_softmax() -> None:
    table, price, temperature = scores(200), 0.7, 0.3
    uniforms = np.random.default_rng(1).random(200)
    index, probability = choose_steps(table, COSTS, price, temperature, "sample", None, uniforms)
    expected = torch.softmax(torch.tensor((table - price * COSTS) / temperature), dim=1).numpy()
    np.testing.assert_allclose(probability, expected[np.arange(200), index], rtol=1e-12)


def test_samples_come_as_often_as_the_policy_says() -> None:
    table = np.tile(scores(1), (40_000, 1))
    index, probability = choose_steps(table, COSTS, 0.2, 0.8, "sample", None, np.random.default_rng(2).random(40_000))
    counts = np.bincount(index, minlength=4) / 40_000
    for budget in np.unique(index):
        assert counts[budget] == pytest.approx(probability[index == budget][0], abs=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_mean_cost_never_rises_with_the_price(seed: int) -> None:
    """For any scores, costs and temperature, by expectation, by sample of common uniforms, and by argmax."""
    rng = np.random.default_rng(seed)
    budgets = int(rng.integers(2, 12))
    costs = np.sort(rng.uniform(0.01, 1.0, budgets))
    table = rng.normal(scale=10.0 ** rng.uniform(-3, 3), size=(60, budgets))
    temperature = 10.0 ** rng.uniform(-3, 2)
    uniforms, allowed = rng.random(60), rng.random(budgets) < 0.7
    allowed[rng.integers(budgets)] = True
    before: dict[str, np.ndarray] = {}
    for price in np.linspace(-5.0, 50.0, 60):
        for decision in ("argmax", "sample"):
            index, _ = choose_steps(table, costs, float(price), temperature, decision, allowed, uniforms)
            assert allowed[index].all()
            if decision in before:
                assert (costs[index] <= before[decision]).all()
            before[decision] = costs[index]


def test_extremes() -> None:
    table = scores(50)
    cheapest, _ = choose_steps(table, COSTS, 1e9, 0.1)
    dearest, _ = choose_steps(table, COSTS, -1e9, 0.1)
    assert (cheapest == 0).all()
    assert (dearest == 3).all()
    free, probability = choose_steps(table, COSTS, 0.0, 0.1)
    assert (free == table.argmax(axis=1)).all()
    assert (probability == 1).all()
    huge = choose_steps(table * 1e300, COSTS, 0.3, 1e-6, "sample", None, np.full(50, 0.999))
    assert np.isfinite(huge[1]).all()


def test_of_equals_the_cheapest() -> None:
    index, _ = choose_steps(np.zeros((3, 4)), COSTS, 0.0, 1.0)
    assert (index == 0).all()


def test_a_row_without_sound_scores_is_decided_by_the_price() -> None:
    table = np.array([[np.nan, 1, 2, 3], [np.inf, 0, 0, 0], [0, 0, 0, 9.0]])
    index, _ = choose_steps(table, COSTS, 0.3, 0.1)
    assert index.tolist() == [0, 0, 3]
    _, probability = choose_steps(table, COSTS, 0.3, 0.1, "sample", None, np.full(3, 0.5))
    assert np.isfinite(probability).all()


def test_a_clamp_renormalises() -> None:
    table, allowed = scores(500, 3), np.array([False, True, True, False])
    uniforms = np.linspace(0, 1, 500, endpoint=False)
    index, probability = choose_steps(table, COSTS, 0.1, 0.7, "sample", allowed, uniforms)
    assert set(index) == {1, 2}
    pair = np.exp((table[:, 1:3] - 0.1 * COSTS[1:3]) / 0.7)
    np.testing.assert_allclose(probability, (pair / pair.sum(1, keepdims=True))[np.arange(500), index - 1], rtol=1e-9)
    by_row = np.ones((500, 4), bool)
    by_row[::2] = [True, False, False, False]
    assert (choose_steps(table, COSTS, 0.1, 0.7, allowed=by_row)[0][::2] == 0).all()


def test_the_ends_of_the_uniform() -> None:
    allowed = np.array([True, True, True, False])
    for value in (0.0, np.nextafter(1.0, 0.0), 1.0):
        index, probability = choose_steps(scores(300), COSTS, 0.3, 0.05, "sample", allowed, np.full(300, value))
        assert (index < 3).all()
        assert (probability > 0).all()


def test_what_cannot_be_chosen_from() -> None:
    with pytest.raises(ValueError, match="temperature 0"):
        choose_steps(scores(1), COSTS, 0.3, 0.0)
    with pytest.raises(ValueError, match="finite"):
        choose_steps(scores(1), COSTS, float("nan"), 1.0)
    with pytest.raises(ValueError, match="no recipe"):
        choose_steps(scores(1), COSTS, 0.3, 1.0, allowed=np.zeros(4, bool))
    with pytest.raises(ValueError, match="needs uniforms"):
        choose_steps(scores(1), COSTS, 0.3, 1.0, "sample")
    with pytest.raises(ValueError, match="guess"):
        choose_steps(scores(1), COSTS, 0.3, 1.0, "guess")


# the network


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    policy = StepPolicy(NETWORK).eval()
    embeds, mask = torch.randn(3, 9, 12), torch.ones(3, 9, dtype=torch.long)
    mask[1, 4:] = 0
    noisy = embeds.clone()
    noisy[1, 4:] = 1e3
    with torch.no_grad():
        first, second = policy(embeds, mask), policy(noisy, mask)
        alone = policy(embeds[1:2, :4], mask[1:2, :4])
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(first.scores[1:2], alone.scores, rtol=1e-5, atol=1e-6)
    assert all(part.shape == (3, 4) for part in first)


def test_the_network_learns_which_token_matters() -> None:
    """The scores can follow one token among others, which a mean over tokens could not see so sharply."""
    torch.manual_seed(0)
    policy = StepPolicy(NETWORK)
    embeds, mask = torch.randn(64, 6, 12), torch.ones(64, 6)
    wanted = (embeds[:, :, 0].amax(dim=1) > 1.2).long() * 3
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(policy(embeds, mask).scores, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (policy(embeds, mask).scores.argmax(dim=1) == wanted).float().mean() > 0.95


def test_the_papers_size() -> None:
    """AdaDiff gives 25.7 M parameters at SD 2.1's width of 1,024; two of our layers come to about as many."""
    policy = StepPolicy(Network(hidden_size=1024, num_choices=10, width=1024, num_layers=2, num_heads=16))
    assert 25e6 < sum(parameter.numel() for parameter in policy.parameters()) < 30e6


# the file


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, PolicyCard]:
    torch.manual_seed(1)
    folder = tmp_path / "policy"
    return folder, save_policy(str(folder), StepPolicy(NETWORK), CARD)


def test_a_policy_comes_back(saved: tuple[Path, PolicyCard]) -> None:
    folder, card = saved
    embeds, mask = torch.randn(2, 5, 12), torch.ones(2, 5)
    torch.manual_seed(1)
    with torch.no_grad():
        expected = StepPolicy(NETWORK).eval()(embeds, mask)
    for path in (folder, folder / "policy.json", folder / "policy.safetensors"):
        policy, loaded = load_policy(str(path))
        assert loaded == card == read_card(str(path))
        torch.testing.assert_close(policy(embeds, mask).scores, expected.scores, rtol=0, atol=0)
        assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert sorted(file.name for file in folder.iterdir()) == ["policy.json", "policy.safetensors"]


def test_the_version_is_the_content(tmp_path: Path) -> None:
    torch.manual_seed(1)
    policy = StepPolicy(NETWORK)
    first = save_policy(str(tmp_path / "a"), policy, CARD).version
    assert len(first) == 16
    assert save_policy(str(tmp_path / "b"), policy, replace(CARD, version="old")).version == first
    assert save_policy(str(tmp_path / "c"), policy, replace(CARD, temperature=0.06)).version != first
    with torch.no_grad():
        policy.summary += 1
    assert save_policy(str(tmp_path / "d"), policy, CARD).version != first


def test_a_changed_file_is_refused(saved: tuple[Path, PolicyCard]) -> None:
    folder, _ = saved
    card = json.loads((folder / "policy.json").read_text())
    card["temperature"] = 0.5
    (folder / "policy.json").write_text(json.dumps(card))
    with pytest.raises(PolicyError, match="do not belong together"):
        load_policy(str(folder))


def forge(folder: Path, weights: dict[str, torch.Tensor] | bytes) -> None:
    """Other weights under a card that fits them."""
    from actors.policy import content_version

    if isinstance(weights, bytes):
        (folder / "policy.safetensors").write_bytes(weights)
    else:
        save_file(weights, folder / "policy.safetensors")
    card = read_card(str(folder))
    raw = json.loads((folder / "policy.json").read_text())
    raw["version"] = content_version(card, (folder / "policy.safetensors").read_bytes())
    (folder / "policy.json").write_text(json.dumps(raw))


def test_weights_that_are_none(saved: tuple[Path, PolicyCard]) -> None:
    folder, _ = saved
    weights = load_file(folder / "policy.safetensors")
    forge(folder, {name: tensor for name, tensor in weights.items() if "score_head" not in name})
    with pytest.raises(PolicyError, match="not the weights of this policy"):
        load_policy(str(folder))
    forge(folder, weights | {"summary": torch.full_like(weights["summary"], float("nan"))})
    with pytest.raises(PolicyError, match="not finite"):
        load_policy(str(folder))
    forge(folder, b"torn")
    with pytest.raises(PolicyError, match="not the weights of this policy"):
        load_policy(str(folder))


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("/tmp/stepthrift-was-here", "w"))


def test_a_pickle_is_never_read(saved: tuple[Path, PolicyCard], tmp_path: Path) -> None:
    folder, _ = saved
    forge(folder, pickle.dumps(Bomb()))
    with pytest.raises(PolicyError):
        load_policy(str(folder))
    (folder / "policy.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(PolicyError, match="no other format is read"):
        load_policy(str(folder / "policy.pt"))
    assert not Path("/tmp/stepthrift-was-here").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"choices": [5, 5, 20, 50]},
        {"choices": [0, 5, 20, 50]},
        {"choices": [5, 10, 20, 5000]},
        {"choices": [5, 10, 20]},
        {"choices": "5"},
        {"costs": [0.1, 0.2, 0.3]},
        {"costs": [0.1, 0.2, 0.3, -1.0]},
        {"costs": [0.1, 0.2, 0.3, None]},
        {"temperature": 0},
        {"temperature": "warm"},
        {"network": {"width": 16}},
        {"network": {"hidden_size": 12, "num_choices": 9}},
        {"setting": {"oven": 3}},
        {"format": 99},
        {"surplus": 1},
        {"calibration": 3},
    ],
)
def test_bad_cards(saved: tuple[Path, PolicyCard], change: dict[str, object]) -> None:
    folder, _ = saved
    raw = json.loads((folder / "policy.json").read_text()) | change
    (folder / "policy.json").write_text(json.dumps(raw))
    with pytest.raises(PolicyError, match=r"policy\.json: ") as raised:
        read_card(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"format": 1}', "\x00", '{"format": 1, "choices": {}}'])
def test_cards_that_are_none(saved: tuple[Path, PolicyCard], text: str) -> None:
    folder, _ = saved
    (folder / "policy.json").write_text(text)
    with pytest.raises(PolicyError, match=r"policy\.json"):
        read_card(str(folder))


def test_no_policy_there(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"no policy there \(no policy.json and no policy.safetensors\)"):
        read_card(str(tmp_path))
    with pytest.raises(PolicyError, match="nowhere"):
        read_card(str(tmp_path / "nowhere"))


def test_where_it_may_be_used() -> None:
    check_policy(CARD, "cafe", menu_of((50, 5, 20, 10)))
    check_policy(CARD)
    with pytest.raises(PolicyError, match="reads text encoder cafe, the checkpoint has babe"):
        check_policy(CARD, "babe")
    with pytest.raises(PolicyError, match=r"is not the policy's menu \(5 steps; 10 steps; 20 steps; 50 steps\)"):
        check_policy(CARD, choices=menu_of((5, 10)))
    assert uncalibrated(CARD, CARD.setting) == []
    assert uncalibrated(CARD, Setting(unet="beef", timestep_spacing="trailing")) == []
    warnings = uncalibrated(CARD, replace(CARD.setting, solver="dpmpp_2m", width=128))
    assert len(warnings) == 2
    assert all("uncalibrated here: run pilot" in warning for warning in warnings)
    assert "solver ddim, here it is dpmpp_2m" in warnings[0]


def test_a_fingerprint_is_the_same_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    half = {"text_model.b": torch.randn(3, 4).half(), "text_model.a": torch.randn(5).half()}
    single = {name.removeprefix("text_model."): tensor.float() for name, tensor in half.items()}
    for name, weights in (("half", half), ("single", single), ("other", {**single, "a": single["a"] + 1})):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
    prints = {name: weights_fingerprint(str(tmp_path / name)) for name in ("half", "single", "other")}
    assert prints["half"] == prints["single"] != prints["other"]
    with pytest.raises(PolicyError, match="no safetensors"):
        weights_fingerprint(str(tmp_path))


def test_a_card_is_read_without_torch(saved: tuple[Path, PolicyCard]) -> None:
    folder, card = saved
    code = (
        "import sys; from actors.policy import read_card; from actors.selector import StepSelector, SelectorConfig\n"
        "print(read_card(sys.argv[1]).version); StepSelector(SelectorConfig('words'))\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=root, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (card.version, 0), done.stderr
