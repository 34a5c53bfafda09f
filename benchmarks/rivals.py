"""What a user would run instead of a job: Ray's documented way, and a plain loop. Started by benchmarks.job.

    python -m benchmarks.rivals ray|loop --prompts p.csv --out folder --steps 50 --actors 2

`ray` is the pattern of Ray Data's batch inference pages: map_batches over a class that holds the pipeline, in a pool of
actors. `loop` is diffusers without Ray, on as many threads as there would be actors. Both write one PNG a row.
"""

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

GUIDANCE = 3.0


class Pipeline:
    """prompt, id -> id; the picture goes to a file."""

    def __init__(self, model: str, out: str, steps: int, threads: int):
        import torch
        from diffusers import DiffusionPipeline

        torch.set_num_threads(threads)
        self.out, self.steps = Path(out), steps
        self.pipe = DiffusionPipeline.from_pretrained(model, safety_checker=None, torch_dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One call of the pipeline."""
        import torch

        ids = [int(number) for number in batch["id"]]
        images = self.pipe(
            [str(prompt) for prompt in batch["prompt"]],
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(number) for number in ids],
        ).images
        for number, image in zip(ids, images, strict=True):
            image.save(self.out / f"{number}.png")
        return {"id": np.array(ids)}


def with_ray(given: argparse.Namespace) -> None:
    """map_batches over the class."""
    import ray
    from ray.data import ActorPoolStrategy

    ray.init(address="local", num_cpus=max(os.cpu_count() or 1, given.actors + 1), include_dashboard=False)
    dataset = ray.data.read_csv(given.prompts).repartition(target_num_rows_per_block=4 * given.batch)
    dataset = dataset.map_batches(
        Pipeline,
        fn_constructor_args=(given.model, given.out, given.steps, 1),
        batch_size=given.batch,
        compute=ActorPoolStrategy(size=given.actors),
        num_cpus=1,
    )
    for _ in dataset.iter_batches(batch_size=None):
        pass


def in_a_loop(given: argparse.Namespace) -> None:
    """No Ray."""
    pipeline = Pipeline(given.model, given.out, given.steps, given.actors)
    with Path(given.prompts).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for start in range(0, len(rows), given.batch):
        batch = rows[start : start + given.batch]
        pipeline({name: [row[name] for row in batch] for name in ("id", "prompt")})


def main() -> None:
    """Render all prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("ray", "loop"))
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--actors", type=int, default=1)
    given = parser.parse_args()
    given.model, given.out = os.path.abspath(given.model), os.path.abspath(given.out)
    Path(given.out).mkdir(parents=True)
    (with_ray if given.way == "ray" else in_a_loop)(given)


if __name__ == "__main__":
    main()
