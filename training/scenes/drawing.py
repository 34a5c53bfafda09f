"""Draws a scene of the world: finds each object a block of lattice cells, then paints with anti-aliased outlines.

Nothing here reads a caption; what the scene leaves open (sizes, places, background) the `random.Random` chooses.
H = W = SIZE pixels.
"""

import random

import numpy as np
import numpy.typing as npt

from training.scenes.world import (
    BLOCK_CELLS,
    CELL,
    COLOURS,
    GAP_PX,
    RADIUS_PX,
    RELATION_PX,
    RELATIONS,
    SIZE,
    TEXTURES,
    TONE_STEP,
    TONES,
    Image,
    Scene,
    Spot,
)

Array = npt.NDArray[np.float64]
_CENTRES = np.arange(SIZE) + 0.5


def distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance to the outline, about, in radii; negative inside; y points down."""
    rho = np.hypot(x, y)
    match shape:
        case "circle":
            return rho - 0.98
        case "square":
            return np.maximum(abs(x), abs(y)) - 0.86
        case "triangle":
            return np.maximum((abs(x) * 1.73 - y - 0.92) / 2, y - 0.72)
        case "ring":
            return abs(rho - 0.72) - 0.25
        case "cross":
            upright = np.maximum(abs(x) - 0.3, abs(y) - 0.98)
            return np.minimum(upright, np.maximum(abs(x) - 0.98, abs(y) - 0.3))
        case "star":
            angle = (np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5  # 0 at a tip
            px, py = rho * np.cos(angle), abs(rho * np.sin(angle))
            ny, nx = 1.1 - 0.44 * np.cos(np.pi / 5), 0.44 * np.sin(np.pi / 5)  # edge: tip (1.1, 0) to inner corner
            return ((px - 1.1) * nx + py * ny) / np.hypot(nx, ny)
    raise KeyError(shape)


def lattice(size: str) -> list[float]:
    """Centres, along one axis, at which a block of that size covers whole cells."""
    cells = BLOCK_CELLS[size]
    return [CELL * (first + cells / 2) for first in range(SIZE // CELL - cells + 1)]


def _clear(a: Spot, b: Spot) -> bool:
    half = CELL * (BLOCK_CELLS[a.size] + BLOCK_CELLS[b.size]) / 2
    apart = max(abs(a.x - b.x), abs(a.y - b.y)) >= half
    return apart and float(np.hypot(a.x - b.x, a.y - b.y)) >= a.radius + b.radius + GAP_PX


def obeys(relation: str, a: Spot, b: Spot) -> bool:
    """Whether `a` stands in the relation to `b`: far enough along it, and more along than across."""
    dx, dy = RELATIONS[relation]
    along = (a.x - b.x) * dx + (a.y - b.y) * dy
    across = abs((a.x - b.x) * dy) + abs((a.y - b.y) * dx)
    return along >= RELATION_PX and across <= along


def _fits(spot: Spot, placed: list[Spot], relation: str | None) -> bool:
    if not all(_clear(spot, other) for other in placed):
        return False
    if relation is None or spot.group > 1:
        return True
    pairs = [(other, spot) if spot.group else (spot, other) for other in placed if other.group == 1 - spot.group]
    return all(obeys(relation, a, b) for a, b in pairs)


def _sizes(rng: random.Random, scene: Scene) -> list[tuple[int, str]]:
    """(group, size) of each object, the largest first; crowded scenes get no large ones that were not asked for."""
    free = list(RADIUS_PX) if scene.richness < 4 else ["small", "small", "medium"]
    sizes = []
    for index, group in enumerate(scene.groups):
        size = group.size or rng.choice(free)
        sizes += [(index, size)] * group.number
    return sorted(sizes, key=lambda item: -RADIUS_PX[item[1]])


def place(rng: random.Random, scene: Scene) -> list[Spot] | None:
    """A spot for each object, obeying the relation; None where 30 tries found no room."""
    for _ in range(30):
        placed: list[Spot] = []
        for group, size in _sizes(rng, scene):
            spots = [Spot(group, x, y, size) for x in lattice(size) for y in lattice(size)]
            rng.shuffle(spots)
            spot = next((s for s in spots if _fits(s, placed, scene.relation)), None)
            if spot is None:
                break
            placed.append(spot)
        else:
            return placed
    return None


def _background(texture: str, tone: str, phase: int) -> Array:
    base = float(TONES[tone])
    other = base - TONE_STEP if base > 128 else base + TONE_STEP
    x, y = np.meshgrid(_CENTRES, _CENTRES)
    match texture:
        case "plain":
            mix = np.zeros((SIZE, SIZE))
        case "striped":
            mix = (y // CELL + phase) % 2
        case "checkered":
            mix = (x // CELL + y // CELL + phase) % 2
        case "dotted":
            mix = np.clip(1.7 - np.hypot(x % CELL - CELL / 2, y % CELL - CELL / 2), 0, 1)
        case "gradient":
            mix = y / SIZE * 1.5
        case _:
            raise KeyError(texture)
    return np.repeat((base + (other - base) * mix)[..., None], 3, -1)


def draw(rng: random.Random, scene: Scene) -> Image | None:
    """(H, W, 3) uint8; None where the scene finds no room."""
    spots = place(rng, scene)
    if spots is None:
        return None
    image = _background(scene.texture or rng.choice(TEXTURES), scene.tone or rng.choice(list(TONES)), rng.randrange(2))
    for spot in spots:
        group = scene.groups[spot.group]
        half = CELL * BLOCK_CELLS[spot.size] // 2
        rows, columns = (slice(int(c) - half, int(c) + half) for c in (spot.y, spot.x))
        x, y = np.meshgrid((_CENTRES[columns] - spot.x) / spot.radius, (_CENTRES[rows] - spot.y) / spot.radius)
        cover = np.clip(0.5 - distance(group.shape, x, y) * spot.radius, 0, 1)[..., None]
        image[rows, columns] = image[rows, columns] * (1 - cover) + np.array(COLOURS[group.colour]) * cover
    return image.round().astype(np.uint8)
