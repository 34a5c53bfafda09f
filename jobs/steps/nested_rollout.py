"""Runs a rollout within another verb: of a table's prompts under another sampling, or of a sample of an input.

Each is a run like any other, in a folder beside the run that asked for it, and goes on where it stopped.
"""

import io
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.recipe import Recipe
from jobs.job_file.errors import blaming
from jobs.job_file.keys import Input, Output, StepBudgets, Tries, Variant
from jobs.job_file.read import Job
from jobs.job_file.recipes import entry
from jobs.job_file.storage import run_folder
from jobs.steps.whole_job import run_job
from jobs.terminal.console import Console
from pipelines.run.layout import RunFolder, parquet_bytes
from training.reward_table import RewardTable

PROMPTS = "prompts.parquet"


class NestedConsole(Console):
    """The console of a verb within a verb: its result is a message, not the outcome."""

    def __init__(self, console: Console) -> None:
        super().__init__(console.stream)
        self.debug = console.debug

    def result(self, document: dict[str, Any], text: str) -> None:
        """Only its first line."""
        self.clear()
        self.say(text.splitlines()[0])


def roll_out(console: Console, job: Job, path: str, prompts: pa.Table, choices: tuple[Recipe, ...], seeds: int) -> int:
    """All prompts (columns of a prompt table) at every recipe, scored, without pictures; -> the exit code."""
    output = job.config.output
    storage = output.storage or job.config.storage
    rollout = replace(job, rollout=True).changed(
        input=Input(path=f"{path}/{PROMPTS}", images_per_prompt=seeds, storage=storage),
        steps=StepBudgets(selector="words", choices=[entry(recipe) for recipe in choices]),
        output=Output(path=path, layout="none", storage=output.storage),
        tries=Tries(),
    )
    put_prompts(rollout, prompts)
    return run_job(NestedConsole(console), rollout, None)


def put_prompts(rollout: Job, prompts: pa.Table) -> None:
    """The prompt table, written once. Raises ConfigError where other prompts are there: they were planned."""
    run = run_folder(rollout)
    if not run.create(PROMPTS, parquet_bytes([prompts])):
        with blaming(rollout, "output.path", f"{run.url_of(PROMPTS)}: "):
            there = pq.read_table(io.BytesIO(run.read(PROMPTS)))
        if there.to_pylist() != prompts.to_pylist():
            raise rollout.fault(
                "output.path", f"{run.url} holds a rollout of other prompts: remove it, or rename yours"
            )


def variant_path(run: RunFolder, variant: Variant) -> str:
    """Where a variant of a table's run is rolled out."""
    return f"{run.url.rstrip('/')}-variants/{variant.solver}-{variant.guidance_scale:g}"


def prompts_of(run: RunFolder, table: RewardTable) -> pa.Table:
    """The prompts of a table as a prompt table: with the same ids, so that they are rendered from the same noise."""
    columns = ["prompt_id", "prompt", "negative_prompt", "category", "width", "height"]
    wanted = set(table.prompt_ids)
    found: dict[str, dict[str, Any]] = {}
    for manifest in run.manifests():
        for row in manifest.select(columns).to_pylist():
            if row["prompt_id"] in wanted:
                found.setdefault(row["prompt_id"], row)
    rows = [{"id": id, **{name: found[id][name] for name in columns[1:]}} for id in table.prompt_ids]
    kinds = [pa.string()] * 4 + [pa.int32()] * 2
    fields = [pa.field(name, kind) for name, kind in zip(["id", *columns[1:]], kinds, strict=True)]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))
