"""The scenes world: captions and drawings."""

import random

import numpy as np
import pytest

from training.scenes import drawing, world
from training.scenes.drawing import draw, lattice, obeys, place
from training.scenes.training_files import held_out_scenes, training_scenes
from training.scenes.world import BLOCK_CELLS, CELL, RADIUS_PX, SIZE, Group, Scene, held_out, parse, random_scene


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def test_parse_is_the_inverse_of_caption():
    for scene in scenes(4000):
        assert parse(scene.caption()) == scene


def test_captions_read_as_written():
    groups = (Group(2, None, "yellow", "star"), Group(1, None, "purple", "ring"))
    scene = Scene(groups, "above", "striped", "grey")
    assert scene.caption() == "two yellow stars above a purple ring on a striped grey background"
    assert Scene((Group(1, None, "orange", "cross"),)).caption() == "an orange cross"
    assert Scene((Group(3, "small", "red", "cross"),)).caption() == "three small red crosses"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a red circles",
        "an red circle",
        "two red circle",
        "a red circle and",
        "a red circle on a grey floor",
    ],
)
def test_parse_refuses_what_the_grammar_does_not_say(text):
    with pytest.raises(ValueError, match="not a caption"):
        parse(text)


def test_equal_seeds_give_equal_scenes_and_drawings():
    assert scenes(50, seed=7) == scenes(50, seed=7) != scenes(50, seed=8)
    first, second = training_scenes("a", 20), training_scenes("a", 20)
    assert first[1] == second[1]
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize("richness", range(1, 7))
def test_richness_is_the_number_of_objects(richness):
    rng = random.Random(richness)
    assert {random_scene(rng, richness).richness for _ in range(100)} == {richness}


def test_objects_stand_on_the_lattice_share_no_cell_and_obey_the_relation():
    rng = random.Random(3)
    placed = 0
    for scene in scenes(400, seed=3):
        spots = place(rng, scene)
        if spots is None:
            continue
        placed += 1
        cells = np.zeros((SIZE // CELL, SIZE // CELL), int)
        for spot in spots:
            assert spot.x in lattice(spot.size)
            assert spot.y in lattice(spot.size)
            left, top = (int(c / CELL - BLOCK_CELLS[spot.size] / 2) for c in (spot.x, spot.y))
            cells[top : top + BLOCK_CELLS[spot.size], left : left + BLOCK_CELLS[spot.size]] += 1
        assert cells.max() == 1
        if scene.relation:
            firsts, seconds = ([s for s in spots if s.group == index] for index in (0, 1))
            assert all(obeys(scene.relation, a, b) for a in firsts for b in seconds)
    assert placed > 370


def test_an_object_stays_inside_its_block():
    for size, radius in RADIUS_PX.items():
        assert 1.1 * radius <= CELL * BLOCK_CELLS[size] / 2  # a star's tips are the furthest out


def test_most_scenes_can_be_drawn():
    rng = random.Random(5)
    drawn = [draw(rng, scene) for scene in scenes(300, seed=5)]
    assert sum(image is None for image in drawn) < 20
    image = next(image for image in drawn if image is not None)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("texture", world.TEXTURES)
@pytest.mark.parametrize("tone", world.TONES)
def test_backgrounds_are_grey(texture, tone):
    image = drawing._background(texture, tone, 1)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.min() >= 0
    assert image.max() <= 255
    assert np.ptp(image, axis=-1).max() == 0


def test_held_out_texts_are_never_trained_on():
    _, captions = training_scenes("scenes-train-0", 400)
    tested = [scene.caption() for scene, _ in held_out_scenes(60)]
    assert not any(map(held_out, captions))
    assert all(map(held_out, tested))
    assert len(set(tested)) == 60
    assert {parse(text).richness for text in tested} == {1, 2, 3, 4, 5, 6}
