"""Quality against lane-steps on the embedded world: solvers, and guidance in a part of the schedule only.

    python -m benchmarks.solvers [--captions 24] [--budgets 2 3 4 6 8 10 15 20] [--guidances 1.5 2 3 5] [--write]

Judges: the checker that knows each caption's truth (share of objects right), and the shipped CLIP (cosine). Guidance is
tuned for each variant and budget on one half of the captions, the figures are of the other half. One picture,
docs/solvers.svg; and which variant is best for each number of lane-steps, with its gain over plain DDIM at no more
lane-steps, by a bootstrap over captions.
"""

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from actors.clip import Clip
from actors.rows import Row, SamplerConfig
from actors.sampler import DDIMSampler
from benchmarks.measure import ROOT, arguments, machine, markdown, report
from training.scenes.checker import check
from training.scenes.export import MODEL_FOLDER, SCORER_FOLDER
from training.scenes.training_files import held_out_scenes
from training.scenes.world import MAX_RICHNESS, SIZE, Scene

VARIANTS: dict[str, tuple[str, tuple[float, float] | None]] = {
    "ddim": ("ddim", None),
    "dpmpp_2m": ("dpmpp_2m", None),
    "ddim, guided 0 to 0.6": ("ddim", (0.0, 0.6)),
    "ddim, guided 0.2 to 0.8": ("ddim", (0.2, 0.8)),
    "ddim, guided 0.4 to 1": ("ddim", (0.4, 1.0)),
}
JUDGES = ("objects right", "CLIP")
RESAMPLES = 2000
COLOURS = ("#1c1f23", "#d1495b", "#3d7ea6", "#0f7b6c", "#e08e2b")
WIDTH_PX, HEIGHT_PX, MARGIN_PX = 760, 420, 60


@dataclass(frozen=True)
class Point:
    """One variant at one budget with its best guidance, on the held-out half. quality: by judge.

    parts: of each judge what each caption adds, (captions,): their sums over `weights` are the quality.
    """

    variant: str
    budget: int
    guidance: float
    lane_steps: float
    quality: tuple[float, float]
    parts: tuple[np.ndarray, ...] = field(default=(), compare=False)
    weights: tuple[np.ndarray, ...] = field(default=(), compare=False)


def rendered(variant: str, scenes: list[Scene], given: argparse.Namespace) -> dict[tuple[int, float], list]:
    """{(budget, guidance): a picture of each scene}, all through one engine; seed = the scene's index."""
    solver, interval = VARIANTS[variant]
    sampler = DDIMSampler(
        SamplerConfig(str(MODEL_FOLDER), solver=solver, guidance_interval=interval, num_threads=given.threads)
    )
    cells = [(budget, scale) for budget in sorted(given.budgets, reverse=True) for scale in given.guidances]
    futures = {
        (budget, scale): [
            sampler.submit(Row(f"{budget}-{scale}-{i}", scene.caption(), None, i, scale, SIZE, SIZE, budget))
            for i, scene in enumerate(scenes)
        ]
        for budget, scale in cells
    }
    found = {cell: [future.result() for future in each] for cell, each in futures.items()}
    sampler.close()
    return found


def judged(clip: Clip, scenes: list[Scene], pictures: list) -> tuple[np.ndarray, np.ndarray]:
    """(N,) objects right and (N,) objects asked, by the checker; see `quality`."""
    verdicts = [check(picture.image, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    right = np.array([verdict.right * scene.richness for verdict, scene in zip(verdicts, scenes, strict=True)])
    embeds = clip.images([picture.image for picture in pictures])
    cosine = (embeds * clip.prompts([scene.caption() for scene in scenes])).sum(dim=1).double().numpy()
    return right, cosine


def points(variant: str, scenes: list[Scene], clip: Clip, given: argparse.Namespace) -> list[Point]:
    """The best guidance of each budget by the ranks of both judges on one half of the scenes, its figures on the other.

    Scenes come in sixes, of one to six objects; the halves are made of whole sixes.
    """
    tunes = np.arange(len(scenes)) // MAX_RICHNESS % 2 == 0
    pictures = rendered(variant, scenes, given)
    asked = np.array([scene.richness for scene in scenes])
    found = []
    for budget in sorted(given.budgets):
        tuned: list[tuple[float, float]] = []
        held: list[tuple[float, float]] = []
        parts = []
        for scale in given.guidances:
            right, cosine = judged(clip, scenes, pictures[budget, scale])
            for half, kept in ((tunes, tuned), (~tunes, held)):
                kept.append((float(right[half].sum() / asked[half].sum()), float(cosine[half].mean())))
            parts.append((right[~tunes], cosine[~tunes]))
        ranks = np.argsort(np.argsort(np.array(tuned), axis=0), axis=0).sum(1)
        best = int(np.argmax(ranks))
        lane_steps = float(np.mean([p.lane_steps for p in pictures[budget, given.guidances[best]]]))
        weights = (asked[~tunes], np.ones(int((~tunes).sum())))
        found.append(Point(variant, budget, given.guidances[best], lane_steps, held[best], parts[best], weights))
    return found


def gain(better: Point, plain: Point, judge: int) -> str:
    """Of one point over another on the same captions, with its 95 % interval; empty where it is no other or unknown."""
    if better is plain or not better.parts:
        return ""
    differences, weights = better.parts[judge] - plain.parts[judge], better.weights[judge]
    drawn = np.random.default_rng(0).integers(0, len(weights), (RESAMPLES, len(weights)))
    low, high = np.quantile(differences[drawn].sum(1) / weights[drawn].sum(1), (0.025, 0.975))
    return f", {differences.sum() / weights.sum():+.3f} [{low:+.3f}, {high:+.3f}] over DDIM"


def advice(found: list[Point], limits: Iterable[int]) -> str:
    """The best variant for each bound on lane-steps, by each judge; and whether 2M wins everywhere."""
    lines = []
    for limit in limits:
        able = [p for p in found if p.lane_steps <= limit]
        if not able:
            continue
        best = [max(able, key=lambda p, j=j: p.quality[j]) for j in range(len(JUDGES))]  # type: ignore[misc]
        plain = [
            max((p for p in able if p.variant == "ddim"), key=lambda p, j=j: p.quality[j], default=best[j])  # type: ignore[misc]
            for j in range(len(JUDGES))
        ]
        words = [
            f"{judge}: {p.variant}, {p.budget} steps, guidance {p.guidance:g} "
            f"({p.quality[j]:.3f}{gain(p, plain[j], j)})"
            for j, (judge, p) in enumerate(zip(JUDGES, best, strict=True))
        ]
        lines.append(f"- at most {limit} lane-steps: {'; '.join(words)}")
    of = {(p.variant, p.budget): p for p in found}
    budgets = sorted({p.budget for p in found})
    wins = [sum(of["dpmpp_2m", b].quality[j] > of["ddim", b].quality[j] for b in budgets) for j in range(len(JUDGES))]
    counts = ", ".join(f"{win} of {len(budgets)} budgets by {judge}" for win, judge in zip(wins, JUDGES, strict=True))
    stays = "DDIM stays the default" if min(wins) < len(budgets) else "2M wins on every judge at every budget"
    return "\n".join([*lines, f"- DPM-Solver++ 2M is better than DDIM at {counts}: {stays}."])


def svg(found: list[Point], judge: int) -> str:
    """Quality by lane-steps, a line a variant."""
    xs, ys = [p.lane_steps for p in found], [p.quality[judge] for p in found]
    low, high, most = min(ys), max(ys), max(xs)

    def place(point: Point) -> tuple[float, float]:
        x = MARGIN_PX + point.lane_steps / most * (WIDTH_PX - 240)
        y = HEIGHT_PX - MARGIN_PX - (point.quality[judge] - low) / (high - low or 1) * (HEIGHT_PX - 2 * MARGIN_PX)
        return round(x, 1), round(y, 1)

    parts = [f'<text x="{MARGIN_PX}" y="28" font-size="16">{JUDGES[judge]} by lane-steps, held-out captions</text>']
    for number, (variant, colour) in enumerate(zip(VARIANTS, COLOURS, strict=True)):
        line = [place(p) for p in found if p.variant == variant]
        parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in line)}" fill="none" stroke="{colour}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in line]
        parts.append(f'<text x="{WIDTH_PX - 170}" y="{60 + 18 * number}" fill="{colour}">{variant}</text>')
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT_PX - MARGIN_PX - share * (HEIGHT_PX - 2 * MARGIN_PX)
        parts.append(f'<text x="8" y="{y:.0f}">{low + share * (high - low):.2f}</text>')
        x = MARGIN_PX + share * (WIDTH_PX - 240)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT_PX - 24}">{share * most:.0f}</text>')
    return "\n".join(parts)


def picture(found: list[Point]) -> str:
    """Both judges, one above the other."""
    panels = "\n".join(f'<g transform="translate(0 {HEIGHT_PX * j})">{svg(found, j)}</g>' for j in range(len(JUDGES)))
    size = f'width="{WIDTH_PX}" height="{2 * HEIGHT_PX}"'
    ground = f'<rect width="{WIDTH_PX}" height="{2 * HEIGHT_PX}" fill="#ffffff"/>'
    style = 'font-family="system-ui, sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img">\n{ground}\n{panels}\n</svg>\n'


def main() -> None:
    """Print the table; draw the picture."""
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--captions", type=int, default=24, help="held-out ones, twelves; half of them tune")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 3, 4, 6, 8, 10, 15, 20])
    parser.add_argument("--guidances", type=float, nargs="+", default=[1.5, 2.0, 3.0, 5.0])
    parser.add_argument("--limits", type=int, nargs="+", default=[6, 8, 12, 16, 24, 40], help="lane-steps, for advice")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    where, started = machine(), time.monotonic()
    scenes, clip = [scene for scene, _ in held_out_scenes(given.captions)], Clip(str(SCORER_FOLDER), "cpu")
    found = [point for variant in VARIANTS for point in points(variant, scenes, clip, given)]
    rows = [[p.variant, p.budget, p.guidance, p.lane_steps, *p.quality] for p in found]
    table = markdown(("variant", "steps", "guidance", "lane-steps a picture", *JUDGES), rows)
    half = given.captions // 2
    seconds = time.monotonic() - started
    what = f"{half} held-out captions ({given.captions - half} others tuned the guidance), {seconds:.0f} s."
    text = f"{what}\n\n{advice(found, given.limits)}\n\n{table}"
    if given.write:
        (ROOT / "docs" / "solvers.svg").write_text(picture(found))
        text = f"![quality by lane-steps](solvers.svg)\n\n{text}"
    report("solvers", text, {"options": vars(given), "rows": rows}, where, given.write)


if __name__ == "__main__":
    main()
