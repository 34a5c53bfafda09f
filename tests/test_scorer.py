"""Scorers: a tiny CLIP, a linear head, likeness by hand, and what one row may not do to another."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from actors.clip import Clip, ClipError
from actors.scorer import QualityScorer, ScorerConfig, ScorerError, ScorerSpec
from actors.ssim import ssim

PROMPTS = ["a fox", "two yellow stars", "", "w " * 500, "🦊\x00\ud800", None]


def pictures(count: int = 6, size: tuple[int, int] = (20, 16), seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = layers | {"vocab_size": 190, "max_position_embeddings": 24, "bos_token_id": 188, "eos_token_id": 189}
    vision = layers | {"image_size": 16, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.half().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size=side, crop_size=side).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def head(clip_folder: str) -> str:
    path = str(Path(clip_folder) / "head.safetensors")
    save_file({"weight": torch.linspace(-1, 1, 24)[None], "bias": torch.tensor([5.0])}, path)
    return path


def brightness(images: list[np.ndarray], prompts: list[str]) -> list[float]:
    return [math.nan if prompt == "" else float(image.mean()) for image, prompt in zip(images, prompts, strict=True)]


def test_the_clip_score_is_the_cosine_of_the_models_own_features(clip_folder: str) -> None:
    scorer = QualityScorer(ScorerConfig((ScorerSpec("clip", "clip", path=clip_folder),)))
    images = pictures()
    scores, quality = scorer.score(images, PROMPTS)
    np.testing.assert_array_equal(scores["clip"], quality)
    clip = scorer.clips[clip_folder]
    pixels = clip.processor(images[:2], return_tensors="pt")["pixel_values"]
    tokens = clip.tokenizer(PROMPTS[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip.model(pixel_values=pixels, **tokens).logits_per_image / clip.model.logit_scale.exp()
    np.testing.assert_allclose(quality[:2], logits.diagonal().numpy(), atol=1e-5)
    assert np.isfinite(quality).all()
    assert (abs(quality) <= 1).all()


def test_a_score_does_not_depend_on_its_neighbours(clip_folder: str, head: str) -> None:
    specs = (
        ScorerSpec("clip", "clip", path=clip_folder),
        ScorerSpec("looks", "aesthetic", path=clip_folder, head=head),
    )
    scorer = QualityScorer(ScorerConfig(specs))
    images = [*pictures(20), *pictures(3, (40, 64), seed=1)]
    prompts = [f"{PROMPTS[n % 4]} {n}" for n in range(23)]
    together, _ = scorer.score(images, prompts)
    for row in (0, 17, 22):
        alone, _ = scorer.score([images[row]], [prompts[row]])
        for name, values in together.items():
            assert alone[name][0] == pytest.approx(values[row], abs=1e-5)


def test_the_aesthetic_head_is_linear_on_unit_embeddings(clip_folder: str, head: str) -> None:
    specs = (
        ScorerSpec("looks", "aesthetic", weight=0.5, path=clip_folder, head=head),
        ScorerSpec("clip", "clip", weight=0.0, path=clip_folder),
    )
    scorer = QualityScorer(ScorerConfig(specs))
    assert len(scorer.clips) == 1
    scores, quality = scorer.score(pictures(), PROMPTS)
    embeds = Clip(clip_folder).images(pictures())
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(scores["looks"], embeds @ torch.linspace(-1, 1, 24) + 5, atol=1e-5)
    np.testing.assert_allclose(quality, scores["looks"] / 2)


def test_columns(clip_folder: str) -> None:
    specs = (
        ScorerSpec("light", "function", weight=2.0, function=brightness),
        ScorerSpec("same", "fidelity", weight=1.0),
    )
    config = ScorerConfig(specs)
    assert config.needs_reference
    images, references = pictures(4), [*pictures(3), None]
    out: dict[str, Any] = QualityScorer(config)(
        {"image": images, "prompt": ["a", "", "c", "d"], "reference": references, "id": [1, 2, 3, 4]}
    )
    assert out["id"] == [1, 2, 3, 4]
    assert [sorted(scores) for scores in out["scores"]] == [["light", "same"], ["same"], ["light", "same"], ["light"]]
    assert out["quality"][0] == pytest.approx(2 * images[0].mean() + 1)
    assert [value is None for value in out["quality"]] == [False, True, False, True]
    empty = QualityScorer(config)({"image": [], "prompt": []})
    assert len(empty["quality"]) == 0
    ScorerConfig((ScorerSpec("light", "function", function=brightness),))


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al., window by window, in float64."""
    at = np.arange(11) - 5
    line = np.exp(-(at**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for channel in range(3):
        a, b = x[..., channel] / 255.0, y[..., channel] / 255.0
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                p, q = (each[top : top + 11, left : left + 11] for each in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                first = (2 * mp * mq + 0.01**2) / (mp**2 + mq**2 + 0.01**2)
                values.append(first * (2 * cov + 0.03**2) / (vp + vq + 0.03**2))
    return float(np.mean(values))


def test_likeness_by_hand() -> None:
    rng = np.random.default_rng(3)
    base = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    noisy = np.clip(base + rng.normal(0, 25, base.shape), 0, 255).astype(np.uint8)
    pairs = [(base, noisy), (base, 255 - base), (base, base), (np.zeros_like(base), noisy)]
    first, second = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
    found = ssim(first, second)
    np.testing.assert_allclose(found, [by_hand(x, y) for x, y in pairs], atol=2e-5)
    assert found[2] == pytest.approx(1, abs=1e-6)
    assert found[1] < 0 < found[0] < 1


def test_likeness_of_small_pictures_and_of_unlike_sizes() -> None:
    tiny = torch.from_numpy(np.stack(pictures(2, (4, 7))))
    assert ssim(tiny, tiny).tolist() == pytest.approx([1, 1])
    assert ssim(tiny, tiny.flip(0)).max() < 0.9
    with pytest.raises(ValueError, match="reference of"):
        ssim(tiny, torch.zeros(2, 8, 7, 3, dtype=torch.uint8))


def test_what_is_no_scorer(tmp_path: Path, clip_folder: str) -> None:
    for values, message in (
        ({"kind": "magic"}, "clip, aesthetic, fidelity, function"),
        ({"kind": "clip"}, "needs path"),
        ({"kind": "aesthetic"}, "needs path and head"),
        ({"kind": "function"}, "needs function"),
        ({"kind": "fidelity", "weight": math.inf}, "finite"),
    ):
        with pytest.raises(ScorerError, match=message):
            ScorerSpec("x", **values)  # type: ignore[arg-type]
    with pytest.raises(ScorerError, match="two scorers are named x"):
        ScorerConfig((ScorerSpec("x", "fidelity"), ScorerSpec("x", "fidelity")))
    with pytest.raises(ScorerError, match="no scorer has a weight"):
        ScorerConfig((ScorerSpec("x", "fidelity", weight=0.0),))
    with pytest.raises(ClipError, match="no CLIPModel"):
        Clip(str(tmp_path))
    with pytest.raises(ScorerError, match="must be safetensors"):
        QualityScorer(ScorerConfig((ScorerSpec("x", "aesthetic", path=clip_folder, head=str(tmp_path / "none")),)))
    short = ScorerConfig((ScorerSpec("x", "function", function=lambda images, prompts: [1.0]),))
    with pytest.raises(ScorerError, match="gave 1 values for 2"):
        QualityScorer(short).score(pictures(2), ["a", "b"])
