"""Chooses the demo's prompts: held-out captions, eight for each number of objects, that use most of the grammar.

Deterministic; it looks at words only, never at pictures.
"""

import csv
import io
from collections import Counter
from pathlib import Path

from training.scenes.training_files import held_out_scenes, write_atomically
from training.scenes.world import MAX_RICHNESS, Scene

PROMPTS_FILE = Path(__file__).parent / "prompts.csv"
EACH, POOL = 8, 160


def _varied(scenes: list[Scene], used: Counter[str]) -> list[Scene]:
    """EACH of the scenes, each time the one whose words were used least so far."""
    chosen: list[Scene] = []
    for _ in range(EACH):
        left = [scene for scene in scenes if scene not in chosen and scene.tone]
        best = min(left, key=lambda scene: sum(used[word] for word in _words(scene)) / len(_words(scene)))
        used.update(_words(best))
        chosen.append(best)
    return chosen


def _words(scene: Scene) -> list[str]:
    groups = [word for g in scene.groups for word in (g.colour, g.shape, g.size or "any size", f"number {g.number}")]
    return [*groups, scene.relation or "no relation", scene.texture or "", scene.tone or ""]


def choose() -> list[tuple[str, str, str]]:
    """(id, prompt, category), the simplest first."""
    rows, used = [], Counter[str]()
    for richness in range(1, MAX_RICHNESS + 1):
        pool = [scene for scene, _ in held_out_scenes(POOL, seed=1, richness=richness)]
        category = "1 object" if richness == 1 else f"{richness} objects"
        for number, scene in enumerate(_varied(pool, used), 1):
            rows.append((f"scene-{richness}-{number}", scene.caption(), category))
    return rows


def write(path: Path = PROMPTS_FILE) -> None:
    """prompts.csv: id, prompt, category."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([("id", "prompt", "category"), *choose()])
    write_atomically(path, out.getvalue().encode())
