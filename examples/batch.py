"""A batch job as the rooms see it: a Parquet table is planned, rendered and verified in one run folder."""

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from actors.recipe import Recipe
from actors.rows import SamplerConfig
from actors.selector import SelectorConfig
from pipelines.cluster.pools import PoolSpec
from pipelines.integrity.verification import verify
from pipelines.plan.make import PlanConfig, make_plan
from pipelines.prompts.canonical_rows import RowDefaults
from pipelines.prompts.inspection import PromptSource
from pipelines.render.driver import render
from pipelines.render.pool import RenderConfig
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.checkpoints import ModelSource

MODEL = "training/scenes/model"
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square", "triangle")]


def main(folder: str = "runs/batch") -> RunFolder:
    """The run folder, with every row in a manifest."""
    run = RunFolder(folder)
    pq.write_table(pa.table({"prompt": PROMPTS}), f"{folder}.parquet")
    defaults = RowDefaults(guidance_scale=1.5, width=32, height=32, allowed_steps=frozenset(range(1, 51)))
    prompts = PromptSource(f"{folder}.parquet", defaults=defaults)
    steps = SelectorConfig("words", choices=(Recipe(4), Recipe(8)))
    make_plan(read_plan(run), PlanConfig(prompts, steps, pools=(PoolSpec("default"),)))
    render(read_plan(run), RenderConfig(ModelSource(MODEL), SamplerConfig(MODEL), pools=(PoolSpec("default"),)))
    assert not [finding for checked in verify(run) for finding in checked.findings]
    return run


if __name__ == "__main__":
    ray.init()
    print(main().url)
