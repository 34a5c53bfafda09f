"""Writes captions for a policy to learn from and be judged on: CSV prompt tables with the number of objects.

Deterministic, words only. What is judged on is held out from the policy and from the model's own training, both.
"""

import argparse
import csv
import io
import random
from pathlib import Path

from training.scenes.training_files import write_atomically
from training.scenes.world import MAX_RICHNESS, held_out, random_scene

MOST_DRAWS = 1000  # for each caption found: those of one object are few


def captions(count: int, seed: int, for_judging: bool) -> list[tuple[str, str]]:
    """(caption, category) of `count` different captions, as many of each number of objects; the same in any order."""
    rng, found, drawn = random.Random(f"captions-{seed}-{for_judging}"), dict[str, str](), 0
    while len(found) < count:
        if (drawn := drawn + 1) > MOST_DRAWS * (len(found) + 1):
            raise ValueError(f"there are not {count} different captions of this kind; about {len(found)} can be had")
        richness = len(found) % MAX_RICHNESS + 1
        caption = random_scene(rng, richness).caption()
        if held_out(caption) is for_judging and caption not in found:
            found[caption] = "1 object" if richness == 1 else f"{richness} objects"
    return list(found.items())


def write(path: Path, count: int, seed: int, for_judging: bool) -> None:
    """id, prompt, category; the first rows of a longer table are those of a shorter one."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("id", "prompt", "category"))
    kind = "judge" if for_judging else "learn"
    for number, (caption, category) in enumerate(captions(count, seed, for_judging)):
        writer.writerow((f"{kind}-{seed}-{number:05d}", caption, category))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, out.getvalue().encode())


def main() -> None:
    """`python -m training.scenes.captions FILE --count N [--for-judging]`."""
    parser = argparse.ArgumentParser(description="Write a table of captions of the scenes world.")
    parser.add_argument("path", type=Path, metavar="FILE", help="the CSV to write")
    parser.add_argument("--count", type=int, default=1500, help="captions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other captions (default: %(default)s)")
    parser.add_argument("--for-judging", action="store_true", help="held-out captions, which nothing is trained on")
    given = parser.parse_args()
    try:
        write(given.path, given.count, given.seed, given.for_judging)
    except ValueError as error:
        parser.error(f"--count: {error}")


if __name__ == "__main__":
    main()
