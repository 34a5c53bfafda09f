"""StepSelector: pins, clamps, the word count, the policy over a real text encoder, and prompts made to break it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from actors.policy import Network, PolicyCard, PolicyError, Setting
from actors.policy_network import StepPolicy, load_policy, save_policy
from actors.prompt_encoder import BATCH, PromptEncoder, encoder_folder
from actors.recipe import Recipe, menu_of, step_counts
from actors.selector import ADDED, PAPER_CHOICES, SelectorConfig, StepSelector, uniform

WORDS = SelectorConfig("words")
HOSTILE = [
    "",
    " \t\n ",
    "word " * 5000,
    "x" * 100_000,
    "🦊🌈👩‍👩‍👧‍👦" * 50,
    "\x00\x01\x02\x1b[31m\x7f",
    "\ud800 lone \udfff surrogates",
    "<|endoftext|><|startoftext|>" * 40,
    "العربية ไทย 漢字 नमस्ते",
    "a\u0301\u0302\u0303" * 3000,
    "\u202e reversed \u2066",
    None,
    float("nan"),
    7,
    b"bytes",
]


def batch(prompts: list[Any], **columns: list[Any]) -> dict[str, np.ndarray]:
    made = {"prompt": prompts, "id": [f"row-{number}" for number in range(len(prompts))]} | columns
    arrays = {}
    for name, values in made.items():
        arrays[name] = np.empty(len(values), object)
        arrays[name][:] = values
    return arrays


def steps(selector: StepSelector, prompts: list[Any]) -> list[int | None]:
    return list(selector(batch(prompts))["num_steps"])


# fixed and words


def test_fixed() -> None:
    selector = StepSelector(SelectorConfig("fixed", fixed=Recipe(20)))
    out = selector(batch(["a", "b"]))
    assert list(out["num_steps"]) == [20, 20]
    assert list(out["action_probability"]) == [1.0, 1.0]
    assert list(out["budget_scores"]) == list(out["policy_version"]) == list(out["price"]) == [None, None]
    assert selector.choices == (Recipe(20),)
    assert selector.policy_version is None


def test_words_follow_a_line_over_the_menu() -> None:
    selector = StepSelector(WORDS)
    assert selector.choices == PAPER_CHOICES == menu_of((5, 10, 15, 20, 25, 30, 35, 40, 45, 50))
    given = steps(selector, ["w " * count for count in range(40)])
    assert given[:9] == [5, 5, 5, 5, 10, 10, 10, 15, 15]
    assert given[28:] == [50] * 12
    assert given == sorted(given)
    menu = StepSelector(replace(WORDS, choices=menu_of((2, 4, 8))))
    assert menu.choices == menu_of((2, 4, 8))
    assert steps(menu, ["w " * count for count in (1, 10, 11, 20, 21, 30)]) == [2, 2, 4, 4, 8, 8]


def test_clamps() -> None:
    selector = StepSelector(replace(WORDS, min=12, max=33))
    assert steps(selector, ["w", "w " * 15, "w " * 99]) == [15, 25, 30]
    assert selector.choices == PAPER_CHOICES
    with pytest.raises(ValueError, match="leave no recipe"):
        StepSelector(replace(WORDS, min=21, max=24))
    with pytest.raises(ValueError, match="leave no recipe"):
        StepSelector(SelectorConfig("fixed", fixed=Recipe(20), max=10))


def test_pins_and_bad_rows() -> None:
    out = StepSelector(replace(WORDS, max=10))(
        batch(
            ["w " * 30] * 5,
            num_inference_steps=[None, float("nan"), 37.0, np.int32(7), 9],
            error_type=["", "", "", "", "BadSeed"],
        )
    )
    assert list(out["num_steps"]) == [10, 10, 37, 7, None]
    assert list(out["action_probability"]) == [1.0, 1.0, None, None, None]


def test_columns_are_kept_and_empty_batches_pass() -> None:
    given = batch(["a"], colour=["red"])
    out = StepSelector(WORDS)(given)
    assert out["colour"] is given["colour"]
    assert set(out) == {*given, *ADDED}
    assert len(StepSelector(WORDS)(batch([]))["num_steps"]) == 0


@pytest.mark.parametrize(
    "config",
    [
        SelectorConfig("guess"),
        SelectorConfig("fixed"),
        SelectorConfig("words", decision="maybe"),
        SelectorConfig("words", choices=menu_of((0, 5))),
        SelectorConfig("words", choices=menu_of((5, 2000))),
        SelectorConfig("policy"),
    ],
)
def test_configs_that_cannot_be(config: SelectorConfig) -> None:
    with pytest.raises(ValueError, match=r"steps\.|needs a policy"):
        StepSelector(config)


def test_no_torch_for_words() -> None:
    code = (
        "import sys, numpy as np; from actors.selector import SelectorConfig, StepSelector\n"
        "s = StepSelector(SelectorConfig('words'))\n"
        "print(s({'prompt': np.array(['a b']), 'id': np.array(['1'])})['num_steps'][0])\n"
        "assert 'torch' not in sys.modules"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr


# the policy


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SelectorConfig:
    """A policy of random weights over a tiny checkpoint of each family."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_checkpoint(request.param, folder / "model")
    encoder = PromptEncoder(str(checkpoint))
    network = Network(encoder.hidden_size, num_choices=4, width=16, num_layers=2, num_heads=2)
    torch.manual_seed(3)
    card = PolicyCard(
        choices=menu_of((2, 4, 8, 20)),
        costs=(0.15, 0.24, 0.43, 1.0),
        temperature=0.02,
        text_encoder=encoder.fingerprint,
        network=network,
        setting=Setting(),
    )
    save_policy(str(folder / "policy"), StepPolicy(network), card)
    return SelectorConfig(
        "policy", policy_path=str(folder / "policy"), text_encoder_path=str(checkpoint), price=0.01, num_threads=1
    )


PROMPTS = ["a red cat", "two dogs", "a long prompt " * 9, "", "a b c d e f g h i j k", "x"] * 20


def test_a_batch(config: SelectorConfig) -> None:
    selector = StepSelector(config)
    assert selector.choices == menu_of((2, 4, 8, 20))
    assert len(selector.policy_version or "") == 16
    out = selector(batch(PROMPTS, num_inference_steps=[3, *[None] * (len(PROMPTS) - 1)]))
    assert (out["num_steps"][0], out["action_probability"][0], out["budget_scores"][0]) == (3, None, None)
    scores = np.stack(out["budget_scores"][1:])
    assert (scores.dtype, scores.shape) == (np.float32, (len(PROMPTS) - 1, 4))
    value = scores - 0.01 * np.array([0.15, 0.24, 0.43, 1.0])
    assert list(out["num_steps"][1:]) == [(2, 4, 8, 20)[best] for best in value.argmax(axis=1)]
    assert set(out["action_probability"][1:]) == {1.0}
    assert set(out["policy_version"][1:]) == {selector.policy_version}
    assert set(out["price"][1:]) == {0.01}
    assert len(set(map(tuple, scores.tolist()))) == 6  # equal prompts, equal scores; unlike ones, unlike


def test_a_rows_scores_do_not_depend_on_its_neighbours(config: SelectorConfig) -> None:
    selector = StepSelector(config)
    together = selector.score(PROMPTS)
    np.testing.assert_array_equal(together, np.concatenate([selector.score([prompt]) for prompt in PROMPTS]))
    np.testing.assert_array_equal(together[::-1], selector.score(PROMPTS[::-1]))
    assert len(PROMPTS) > 2 * BATCH


def test_it_reads_the_last_hidden_state(config: SelectorConfig) -> None:
    """SDXL: the second encoder's, which is the larger."""
    selector = StepSelector(config)
    folder = encoder_folder(config.text_encoder_path or "")
    kind = CLIPTextModelWithProjection if folder.name == "text_encoder_2" else CLIPTextModel
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = selector.encoder.tokenizer(["a red cat"], padding="max_length", return_tensors="pt", max_length=16)
    rows, embeds, mask = next(selector.encoder.batches(["a red cat"]))
    assert rows.tolist() == [0]
    real = int(mask[0].sum())
    with torch.no_grad():
        expected = model(tokens["input_ids"]).last_hidden_state[0, :real]
    torch.testing.assert_close(embeds[0, :real].cpu(), expected, rtol=1e-5, atol=1e-5)


def test_sampling_is_the_rows_own(config: SelectorConfig) -> None:
    sample = StepSelector(replace(config, decision="sample"))
    first, again = sample(batch(PROMPTS)), sample(batch(PROMPTS))
    assert list(first["num_steps"]) == list(again["num_steps"])
    backwards = sample({name: column[::-1] for name, column in batch(PROMPTS).items()})
    assert list(backwards["num_steps"][::-1]) == list(first["num_steps"])
    assert all(0 < probability <= 1 for probability in first["action_probability"])
    flat = StepSelector(replace(config, decision="sample", min=4, max=8))(batch(PROMPTS))
    assert set(flat["num_steps"]) <= {4, 8}
    for row in range(len(PROMPTS)):
        scores = flat["budget_scores"][row]
        pair = np.exp((scores[1:3] - 0.01 * np.array([0.24, 0.43]) - scores.max()) / 0.02)
        chosen = (4, 8).index(flat["num_steps"][row])
        assert flat["action_probability"][row] == pytest.approx(pair[chosen] / pair.sum(), rel=1e-4)


def test_mean_steps_fall_with_the_price(config: SelectorConfig) -> None:
    means = [np.mean(steps(StepSelector(replace(config, price=price)), PROMPTS)) for price in (-9, 0, 0.1, 1, 9)]
    assert means == sorted(means, reverse=True)
    assert (means[0], means[-1]) == (20, 2)


def test_uniforms() -> None:
    values = np.array([uniform(f"row-{number}") for number in range(20_000)])
    assert ((values >= 0) & (values < 1)).all()
    assert np.histogram(values, 10, (0, 1))[0].min() > 1_850
    assert uniform("a") == uniform("a") != uniform("b")
    assert 0 <= uniform("\ud800") < 1


def test_nothing_a_prompt_holds_breaks_it(config: SelectorConfig) -> None:
    for selector in (StepSelector(config), StepSelector(WORDS)):
        given = steps(selector, HOSTILE)
        assert all(count in step_counts(selector.choices) for count in given)


def test_another_checkpoint_or_menu_is_refused(config: SelectorConfig, tmp_path: Path) -> None:
    other = make_checkpoint("sd2", tmp_path / "other")
    encoder = CLIPTextModel.from_pretrained(other / "text_encoder")
    with torch.no_grad():
        next(encoder.parameters()).add_(1)
    encoder.save_pretrained(other / "text_encoder")
    with pytest.raises(PolicyError, match="reads text encoder"):
        StepSelector(replace(config, text_encoder_path=str(other)))
    with pytest.raises(PolicyError, match="not the policy's menu"):
        StepSelector(replace(config, choices=menu_of((5, 10))))
    with pytest.raises(PolicyError, match=r"cannot be loaded|no safetensors"):
        StepSelector(replace(config, text_encoder_path=str(tmp_path / "nothing")))


def test_no_prompt_gets_what_no_held_out_prompt_got(config: SelectorConfig, tmp_path: Path) -> None:
    """Between two points of the calibration the bounds of both hold; steps.min and max go first."""
    policy, card = load_policy(config.policy_path or "")
    points = [(0.0, 8.0, 20.0), (0.1, 4.0, 8.0), (1.0, 2.0, 4.0)]
    card = replace(card, calibration=tuple({"price": p, "least_steps": a, "most_steps": b} for p, a, b in points))
    save_policy(str(tmp_path), policy, card)
    bounded = replace(config, policy_path=str(tmp_path))
    wanted = {-1.0: (8, 20), 0.0: (8, 20), 0.05: (4, 20), 0.1: (4, 8), 0.5: (2, 8), 1.0: (2, 4), 9.0: (2, 4)}
    for price, (low, high) in wanted.items():
        selector = StepSelector(replace(bounded, price=price))
        assert [n.num_steps for n, is_open in zip(selector.choices, selector.allowed, strict=True) if is_open] == [
            n for n in (2, 4, 8, 20) if low <= n <= high
        ]
        assert all(low <= count <= high for count in steps(selector, [*PROMPTS, *HOSTILE]))
    assert set(steps(StepSelector(replace(bounded, price=1.0, min=8)), PROMPTS)) == {8}
    assert set(steps(StepSelector(replace(bounded, price=0.0, max=2)), PROMPTS)) == {2}
    by_price = np.array([steps(StepSelector(replace(bounded, price=price)), PROMPTS) for price in sorted(wanted)])
    assert (np.diff(by_price, axis=0) <= 0).all()
