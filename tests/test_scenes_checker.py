"""The truth checker: it finds what was drawn, and little of what was not."""

import math
import random

import numpy as np
import pytest

from training.scenes.checker import agreement, check, exactness, score, see
from training.scenes.drawing import draw
from training.scenes.training_files import held_out_scenes
from training.scenes.world import COLOURS, SHAPES, SIZE, TEXTURES, TONES, Group, Scene, parse


@pytest.fixture(scope="module")
def pairs():
    return held_out_scenes(420, seed=2)


def test_every_object_and_relation_of_a_true_drawing_is_found(pairs):
    verdicts = [check(image, scene) for scene, image in pairs]
    assert sum(v.right == 1 for v in verdicts) >= 418
    assert sum(v.exact for v in verdicts) >= 418
    assert sum(v.relation is not None for v in verdicts) > 100
    assert all(v.relation for v in verdicts if v.relation is not None)


def test_little_of_another_caption_is_found(pairs):
    shifted = [check(image, scene) for (scene, _), (_, image) in zip(pairs, pairs[7:] + pairs[:7], strict=True)]
    assert np.mean([v.right for v in shifted]) < 0.1
    assert np.mean([v.exact for v in shifted]) < 0.01


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_colour_and_shape_is_read_on_every_background(colour, shape):
    rng = random.Random(f"{colour} {shape}")
    for texture in TEXTURES:
        for tone in TONES:
            image = draw(rng, Scene((Group(1, None, colour, shape),), None, texture, tone))
            assert [(s.colour, s.shape) for s in see(image)] == [(colour, shape)]


def test_a_mirrored_relation_does_not_hold():
    scene = parse("two red squares above a blue ring on a plain white background")
    image = draw(random.Random(1), scene)
    assert check(image, scene).relation is True
    assert check(image[::-1], scene).relation is False
    assert check(image[::-1], scene).right == 1


def test_missing_and_extra_objects_are_told_apart():
    drawn = draw(random.Random(2), parse("two red squares and a blue ring"))
    less = check(drawn, parse("a red square"))
    assert (less.right, less.exact) == (1, False)
    assert less.f == pytest.approx(1 / 3)
    more = check(drawn, parse("three red squares and a green star"))
    assert more.right == more.f == pytest.approx(2 / 4)


def test_an_empty_picture_shows_nothing():
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    assert see(grey) == []
    assert check(grey, parse("a red square above a blue ring")).right == 0
    assert check(grey, parse("a red square above a blue ring")).relation is False


def test_noise_is_not_read_as_shapes():
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    assert all(s.shape == "?" for s in see(noise))


def test_score_is_the_share_of_objects_and_nan_outside_the_grammar():
    image = draw(random.Random(3), parse("a pink star and a green cross"))
    prompts = ["a pink star and a green cross", "a pink star and a red cross", "a cat"]
    right, half, unknown = score([image] * 3, prompts)
    assert (right, half) == (1, 0.5)
    assert math.isnan(unknown)


def test_what_is_too_many_counts_in_the_agreement_and_ends_exactness():
    image = draw(random.Random(3), parse("a pink star and a green cross"))
    prompts = ["a pink star and a green cross", "a pink star", "a cat"]
    assert score([image] * 2, prompts[:2]) == [1, 1]
    assert agreement([image] * 2, prompts[:2]) == [1, 0.5]
    assert exactness([image] * 2, prompts[:2]) == [1, 0]
    assert math.isnan(agreement([image], prompts[2:])[0])
    assert math.isnan(exactness([image], prompts[2:])[0])
