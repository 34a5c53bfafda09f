"""How fast a plan is made and how much memory it takes: `python -m benchmarks.plan --rows 1000000 --selector words`.

Prompts are generated into a temporary folder as Parquet; the plan goes beside them. Memory is sampled from this process
and from Ray's workers below it (private memory, since they share the object store).
`policy` is a policy of the paper's three layers with random weights, over a checkpoint's text encoder.
"""

import argparse
import logging
import os
import resource
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from actors.recipe import menu_of
from actors.selector import SelectorConfig
from pipelines.cluster.pools import PoolSpec
from pipelines.plan.make import PlanConfig, PlanSummary, make_plan
from pipelines.prompts.canonical_rows import RowDefaults
from pipelines.prompts.inspection import PromptSource
from pipelines.run.layout import RunFolder
from pipelines.run.plan import Plan

WORDS = (
    "red",
    "green",
    "small",
    "large",
    "two",
    "cat",
    "dog",
    "house",
    "river",
    "over",
    "under",
    "beside",
    "old",
    "sky",
)
CHOICES = tuple(range(5, 51, 5))
ROW_GROUP, FILE_ROWS = 20_000, 100_000
MIB = 1 << 20


@dataclass
class Peaks:
    """Samples memory until `stop`: peak bytes of this process, of all its workers together, of the ledger."""

    driver: int = 0
    workers: int = 0
    ledger: int = 0

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._stopped.set()
        self._thread.join()

    @staticmethod
    def now() -> int:
        """Private bytes of this process."""
        return _private(psutil.Process())

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stopped.wait(0.25):
            self.driver = max(self.driver, _private(me))
            sizes = {worker: _private(worker) for worker in _workers(me)}
            self.workers = max(self.workers, sum(sizes.values()))
            ledgers = [size for worker, size in sizes.items() if "Ledger" in _name(worker)]
            self.ledger = max(self.ledger, *ledgers, 0)


def _workers(me: psutil.Process) -> list[psutil.Process]:
    return [child for child in me.children(recursive=True) if _name(child).startswith("ray::")]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _private(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return memory.rss - memory.shared


def write_prompts(folder: Path, rows: int) -> None:
    """Prompts of 4 to 40 words, one in a hundred of them there before, in files of FILE_ROWS."""
    draw = np.random.default_rng(0)
    for first in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - first)
        texts = [" ".join(draw.choice(WORDS, size)) for size in draw.integers(4, 40, count)]
        numbers = np.arange(first, first + count)
        numbers[draw.random(count) < 0.01] = 0
        prompts = [f"{text} {number}" for text, number in zip(texts, numbers, strict=True)]
        table = pa.table({"prompt": prompts, "category": [f"c{number % 7}" for number in numbers]})
        pq.write_table(table, folder / f"prompts-{first:09d}.parquet", row_group_size=ROW_GROUP)


def write_random_policy(folder: str, checkpoint: str) -> None:
    """A policy that chooses by chance, at its full cost; in a worker, since it brings torch."""
    from actors.policy import Network, PolicyCard, Setting
    from actors.policy_network import StepPolicy, save_policy
    from actors.prompt_encoder import PromptEncoder

    encoder = PromptEncoder(checkpoint)
    network = Network(
        hidden_size=encoder.hidden_size, num_choices=len(CHOICES), width=encoder.hidden_size, num_layers=3, num_heads=4
    )
    costs = tuple(count / CHOICES[-1] for count in CHOICES)
    setting = Setting(unet="", solver="ddim", guidance_scale=7.5, width=512, height=512)
    save_policy(
        folder, StepPolicy(network), PolicyCard(menu_of(CHOICES), costs, 0.05, encoder.fingerprint, network, setting)
    )


def plan_once(folder: Path, selector: SelectorConfig, actors: int) -> PlanSummary:
    """One plan of the folder's prompts beside them."""
    defaults = RowDefaults(7.5, 512, 512, frozenset(range(1, 1000)))
    source = PromptSource(str(folder / "prompts"), defaults=defaults)
    config = PlanConfig(source, selector, (PoolSpec("default"),), selector_actors=actors)
    return make_plan(Plan(RunFolder(str(folder / "run"))), config)


def main() -> None:
    """Print one line of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--selector", choices=("words", "policy"), default="words")
    parser.add_argument(
        "--text-encoder", default="training/scenes/model", help="diffusers folder of the policy's encoder"
    )
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name)
        (folder / "prompts").mkdir()
        write_prompts(folder / "prompts", given.rows)
        ray.init(address="local", num_cpus=given.cpus, include_dashboard=False, log_to_driver=False)
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        policy, checkpoint = str(folder / "policy"), os.path.abspath(given.text_encoder)
        selector = SelectorConfig(given.selector, menu_of(CHOICES))
        if given.selector == "policy":
            ray.get(ray.remote(write_random_policy).remote(policy, checkpoint))
            selector = SelectorConfig("policy", policy_path=policy, text_encoder_path=checkpoint, num_threads=1)
        peaks = Peaks()
        started = time.monotonic()
        summary = plan_once(folder, selector, given.actors)
        seconds = time.monotonic() - started
        peaks.stop()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("| selector | rows | seconds | rows/s | driver peak RSS MiB | of it private | workers peak MiB | shards |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {given.selector} | {summary.rows:,} | {seconds:.1f} | {summary.rows / seconds:,.0f} "
        f"| {peak_mib:.0f} | {peaks.driver / MIB:.0f} | {peaks.workers / MIB:.0f} | {summary.shards:,} |"
    )


if __name__ == "__main__":
    main()
