"""Reads a drawing of the scenes world back: which objects are there, and how many of the caption's.

No model and nothing learned: colour by hue, one object a connected patch, shape by the overlap with each shape drawn at
the patch's own area and centre. It is the judge of pictures that no policy is trained on. H = W = 32 px, C colours.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from training.scenes.drawing import distance
from training.scenes.world import COLOURS, RELATIONS, SHAPES, SIZE, Group, Image, Scene, parse

MIN_AREA_PX, MIN_FIT, RELATION_MIN_PX = 9, 0.62, 3.0
Array = npt.NDArray[np.float64]
_NAMES, _RGB = list(COLOURS), np.array(list(COLOURS.values()), float)
_LOW, _SATURATION = _RGB.min(-1), _RGB.max(-1) - _RGB.min(-1)
_HUE = (_RGB - _LOW[:, None]) / _SATURATION[:, None]  # (C, 3)
_CENTRES = np.arange(SIZE) + 0.5


def _moments() -> dict[str, tuple[float, float, float]]:
    """{shape: (area, x, y)} at radius 1."""
    grid = np.linspace(-1.3, 1.3, 261)
    x, y = np.meshgrid(grid, grid)
    inside = {shape: distance(shape, x, y) < 0 for shape in SHAPES}
    cell = (grid[1] - grid[0]) ** 2
    return {shape: (float(m.sum() * cell), float(x[m].mean()), float(y[m].mean())) for shape, m in inside.items()}


_MOMENTS = _moments()


@dataclass(frozen=True)
class Seen:
    """One object found. x, y: its centre of mass in px; fit: intersection over union with the shape."""

    colour: str
    shape: str  # "?" where nothing fits
    x: float
    y: float
    fit: float


def see(image: Image) -> list[Seen]:
    """Backgrounds are grey, so saturation over the colour's own is the share of a pixel that an object covers."""
    rgb = image.astype(float)
    low = rgb.min(-1)
    saturation = rgb.max(-1) - low
    hue = (rgb - low[..., None]) / np.maximum(saturation, 1)[..., None]
    darkness = ((low[..., None] - _LOW) / 255) ** 2
    colour = np.argmin(((hue[:, :, None] - _HUE) ** 2).sum(-1) + 0.15 * darkness, -1)  # (H, W)
    found = []
    for c in range(len(_NAMES)):
        cover = np.clip(saturation / _SATURATION[c], 0, 1) * (colour == c)
        patches, _ = ndimage.label(cover > 0.5)
        for number, box in enumerate(ndimage.find_objects(patches), 1):
            seen = _read(cover, patches == number, box, _NAMES[c])
            found += [seen] if seen else []
    return found


def _read(cover: Array, mask: npt.NDArray[np.bool_], box: tuple[slice, slice], colour: str) -> Seen | None:
    rows, columns = (slice(max(0, s.start - 1), min(SIZE, s.stop + 1)) for s in box)
    patch = cover[rows, columns] * ndimage.binary_dilation(mask[rows, columns])
    area = float(patch.sum())
    if area < MIN_AREA_PX:
        return None
    x, y = np.meshgrid(_CENTRES[columns], _CENTRES[rows])
    centre_x, centre_y = float((patch * x).sum() / area), float((patch * y).sum() / area)
    fits = {shape: _fit(patch, shape, x - centre_x, y - centre_y, area) for shape in SHAPES}
    best = max(fits, key=fits.__getitem__)
    return Seen(colour, best if fits[best] > MIN_FIT else "?", centre_x, centre_y, fits[best])


def _fit(patch: Array, shape: str, x: Array, y: Array, area: float) -> float:
    unit_area, offset_x, offset_y = _MOMENTS[shape]
    r = math.sqrt(area / unit_area)
    drawn = np.clip(0.5 - distance(shape, x / r + offset_x, y / r + offset_y) * r, 0, 1)
    return float(np.minimum(patch, drawn).sum() / np.maximum(patch, drawn).sum())


@dataclass(frozen=True)
class Verdict:
    """right: share of the caption's objects seen; f: hits over the larger of asked and seen; exact: all and no more."""

    right: float
    f: float
    exact: bool
    relation: bool | None  # None where none is asked


def _matching(seen: list[Seen], group: Group) -> list[Seen]:
    return [s for s in seen if (s.colour, s.shape) == (group.colour, group.shape)]


def check(image: Image, scene: Scene) -> Verdict:
    """How much of the scene the picture shows.

    A relation holds where each object found of the first group has it to each one found of the second.
    """
    seen = see(image)
    hits = sum(min(group.number, len(_matching(seen, group))) for group in scene.groups)
    asked = scene.richness
    relation = _related(seen, scene) if scene.relation else None
    return Verdict(hits / asked, hits / max(asked, len(seen)), hits == asked == len(seen), relation)


def _related(seen: list[Seen], scene: Scene) -> bool:
    dx, dy = RELATIONS[scene.relation or ""]
    first, second = (_matching(seen, group) for group in scene.groups[:2])
    pairs = [(a, b) for a in first for b in second]
    return bool(pairs) and all((a.x - b.x) * dx + (a.y - b.y) * dy > RELATION_MIN_PX for a, b in pairs)


def score(images: list[Image], prompts: list[str]) -> list[float]:
    """Share of a prompt's objects that its picture shows, 0 to 1; nan where a prompt is no caption of the world."""
    return [verdict.right if verdict else math.nan for verdict in _verdicts(images, prompts)]


def agreement(images: list[Image], prompts: list[str]) -> list[float]:
    """As `score`, over the larger of asked and seen: an object too many counts as much as one that is missing."""
    return [verdict.f if verdict else math.nan for verdict in _verdicts(images, prompts)]


def exactness(images: list[Image], prompts: list[str]) -> list[float]:
    """1 where a picture shows a prompt's objects, all and no more, else 0; nan as in `score`."""
    return [float(verdict.exact) if verdict else math.nan for verdict in _verdicts(images, prompts)]


def _verdicts(images: list[Image], prompts: list[str]) -> list[Verdict | None]:
    return [_verdict(image, prompt) for image, prompt in zip(images, prompts, strict=True)]


def _verdict(image: Image, prompt: str) -> Verdict | None:
    try:
        scene = parse(prompt)
    except ValueError:
        return None
    return check(image, scene)
