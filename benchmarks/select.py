"""Prompts a second of the selector, without Ray: `python -m benchmarks.select [--rows 2000] [--write]`.

words and fixed are Python; policy reads the prompt with the checkpoint's text encoder and a network of the paper's
three layers (random weights: speed does not depend on them).
"""

import functools
import random
import tempfile
from typing import Any

import numpy as np
import torch

from actors.recipe import Recipe, menu_of
from actors.selector import SelectorConfig, StepSelector
from benchmarks.measure import alternate, arguments, machine, markdown, report
from benchmarks.plan import CHOICES, WORDS, write_random_policy


def prompts(count: int) -> dict[str, np.ndarray]:
    """The columns a selector needs."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(4, 40))) for _ in range(count)]
    return {"id": np.array([str(i) for i in range(count)], object), "prompt": np.array(texts, object)}


def selected(selector: StepSelector, columns: dict[str, np.ndarray], rows: int) -> dict[str, Any]:
    """The first rows, in one call."""
    return selector({name: values[:rows] for name, values in columns.items()})


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="of the policy; the others get a hundred times as many")
    parser.add_argument("--text-encoder", default="training/scenes/model", help="diffusers folder")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    where, columns = machine(), prompts(100 * given.rows)
    with tempfile.TemporaryDirectory() as folder:
        write_random_policy(folder, given.text_encoder)
        policy = SelectorConfig(
            "policy", policy_path=folder, text_encoder_path=given.text_encoder, num_threads=given.threads
        )
        kinds = {
            "fixed": (SelectorConfig("fixed", fixed=Recipe(20)), 100 * given.rows),
            "words": (SelectorConfig("words", menu_of(CHOICES)), 100 * given.rows),
            "policy": (policy, given.rows),
        }
        calls = {
            name: functools.partial(selected, StepSelector(config), columns, rows)
            for name, (config, rows) in kinds.items()
        }
        turns = alternate(calls, given.repeats)
    rows = [[name, kinds[name][1], side.text, kinds[name][1] / side.median] for name, side in turns.items()]
    table = markdown(("selector", "rows", "s, median (spread)", "rows/s"), rows)
    what = f"Text encoder of {given.text_encoder}, {given.threads} thread."
    report("select", f"{what}\n\n{table}", {"options": vars(given), "rows": rows}, where, given.write)


if __name__ == "__main__":
    main()
