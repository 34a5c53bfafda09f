"""Defines the scenes world: captions and the drawings they describe, deterministic by a `random.Random`.

Not a model: a small world whose truth is known, so that code can judge a picture (checker.py). Everything lies on a
lattice of CELL px, the side of one latent cell of the small model: an object fills a block of 2 x 2, 3 x 3 or 4 x 4
cells that it shares with no other, and textures repeat with the cells. H = W = SIZE pixels.
"""

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIZE, CELL = 32, 4
MAX_RICHNESS = 6
COLOURS = {
    "red": (214, 40, 44),
    "orange": (247, 140, 28),
    "yellow": (245, 222, 48),
    "green": (46, 164, 72),
    "blue": (44, 92, 220),
    "purple": (140, 56, 190),
    "pink": (246, 132, 196),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
RADIUS_PX = {"small": 3.6, "medium": 5.4, "large": 7.2}
BLOCK_CELLS = {"small": 2, "medium": 3, "large": 4}
TONES = {"white": 244, "grey": 178, "dark": 88, "black": 26}  # backgrounds are grey: saturation tells objects from them
TEXTURES = ("plain", "striped", "checkered", "dotted", "gradient")
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
GAP_PX, RELATION_PX, TONE_STEP = 1.2, 6.0, 44.0
_HELD_OUT_SHARE = 16  # one caption text in 16 is never trained on

Image = npt.NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class Group:
    """Equal objects that the caption names together; size None: the caption does not say."""

    number: int
    size: str | None
    colour: str
    shape: str

    def phrase(self) -> str:
        """`two small red crosses`, `an orange star`."""
        plural = "crosses" if self.shape == "cross" else self.shape + "s"
        article = "an" if self.number == 1 and not self.size and self.colour == "orange" else NUMBERS[self.number]
        noun = self.shape if self.number == 1 else plural
        return " ".join(word for word in (article, self.size, self.colour, noun) if word)


@dataclass(frozen=True)
class Scene:
    """What a caption says; None: it does not say, and the drawing chooses."""

    groups: tuple[Group, ...]
    relation: str | None = None  # each object of the first group to each of the second
    texture: str | None = None
    tone: str | None = None

    @property
    def richness(self) -> int:
        """Number of objects."""
        return sum(group.number for group in self.groups)

    def caption(self) -> str:
        """The scene in words; `parse` is its inverse."""
        parts = [group.phrase() for group in self.groups]
        if self.relation:
            parts = [f"{parts[0]} {self.relation} {parts[1]}", *parts[2:]]
        text = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
        return f"{text} on a {self.texture} {self.tone} background" if self.tone else text


@dataclass(frozen=True)
class Spot:
    """Where one object of group `group` stands; x, y: its centre in px."""

    group: int
    x: float
    y: float
    size: str

    @property
    def radius(self) -> float:
        """In px."""
        return RADIUS_PX[self.size]


def held_out(caption: str) -> bool:
    """Whether the caption belongs to the share of all texts that no training drawing carries."""
    return hashlib.sha256(caption.encode()).digest()[0] % _HELD_OUT_SHARE == 0


def random_scene(rng: random.Random, richness: int | None = None) -> Scene:
    """A scene of `richness` objects, 1 to 6."""
    left = richness or rng.choices(range(1, MAX_RICHNESS + 1), (15, 18, 19, 18, 16, 14))[0]
    groups: list[Group] = []
    while left:
        number = min(left, rng.choices((1, 2, 3, 4), (70, 18, 8, 4))[0])
        size = rng.choice(list(RADIUS_PX)) if rng.random() < 0.4 else None
        group = Group(number, size, rng.choice(list(COLOURS)), rng.choice(SHAPES))
        if all((g.colour, g.shape) != (group.colour, group.shape) for g in groups):
            groups.append(group)
            left -= number
    related = len(groups) > 1 and groups[0].number <= 2 and groups[1].number <= 2 and rng.random() < 0.5
    relation = rng.choice(list(RELATIONS)) if related else None
    spoken = rng.random() < 0.6
    return Scene(
        tuple(groups),
        relation,
        rng.choice(TEXTURES) if spoken else None,
        rng.choice(list(TONES)) if spoken else None,
    )


def _one_of(words: Iterable[str]) -> str:
    return "|".join(words)


_BACKGROUND = re.compile(rf"^(.*) on a ({_one_of(TEXTURES)}) ({_one_of(TONES)}) background$")
_GROUP = re.compile(
    rf"^(an|{_one_of(NUMBERS.values())})(?: ({_one_of(RADIUS_PX)}))? ({_one_of(COLOURS)}) ({_one_of(SHAPES)})(?:e?s)?$"
)
_RELATION = re.compile(rf" ({_one_of(RELATIONS)}) ")
_COUNT = {**{word: number for number, word in NUMBERS.items()}, "an": 1}


def parse(caption: str) -> Scene:
    """The scene that a caption describes; ValueError where the caption is not one of the grammar."""
    texture = tone = relation = None
    text = caption
    if match := _BACKGROUND.match(caption):
        text, texture, tone = match.groups()
    first, *others = re.split(", | and ", text)
    if match := _RELATION.search(first):
        relation = match[1]
        first, second = first.split(match[0], 1)
        others = [second, *others]
    scene = Scene(tuple(_parse_group(part, caption) for part in (first, *others)), relation, texture, tone)
    if scene.caption() != caption:
        raise ValueError(f"not a caption of the scenes world: {caption!r}")
    return scene


def _parse_group(part: str, caption: str) -> Group:
    match = _GROUP.match(part)
    if match is None:
        raise ValueError(f"not a caption of the scenes world: {caption!r} (at {part!r})")
    number, size, colour, shape = match.groups()
    return Group(_COUNT[number], size, colour, shape)
