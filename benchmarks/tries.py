"""What tries cost the lanes: a job of twenty shards or more with and without them, as processes, in turns.

    python -m benchmarks.tries [--rows 1000] [--actors 1] [--repeats 1] [--write]

Every picture is scored in both jobs, by the CLIP of the embedded world; with tries in a call of its own, and below the
bar its row comes again while other rows fill the lanes. The same prompts, budgets and seeds. Busy: time in UNet and VAE
of the actors' time between their first and their last row; scoring goes on beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, alternate, arguments, machine, markdown, report
from pipelines.run.layout import RunFolder
from training.scenes.captions import write

JOB = """\
model: {{device: cpu}}
input: {{path: {prompts}}}
steps: {{selector: words, choices: [3, 4, 6, 8, 10]}}
sampling: {{guidance_scale: 1.5}}
quality: [{{scorer: clip, path: {scorer}}}]
tries: {tries}
pools: [{{name: default, actors: {actors}, num_gpus: 0}}]
output: {{path: {run}}}
"""
SIDES = {"one picture a row": "{max: 1}", "up to three": "{max: 3, bar: BAR}", "up to eight": "{max: 8, bar: BAR}"}
FIGURES = ("lane_fill", "unet_share", "busy_share", "score_share")
COLUMNS = (
    *("tries", "shards", "pictures a row", "UNet calls", "lanes used", "UNet", "UNet + VAE busy", "scoring beside it"),
    *("ms a score", "rows/s of the actors"),
)


def our_job(folder: Path, given: argparse.Namespace, tries: str) -> dict[str, Any]:
    """The summary of a new run, and its number of shards."""
    output = Path(tempfile.mkdtemp(dir=folder))
    scorer = ROOT / "training/scenes/scorer"
    values = {"prompts": folder / "prompts.csv", "scorer": scorer, "actors": given.actors, "run": output / "run"}
    (output / "job.yaml").write_text(JOB.format(tries=tries.replace("BAR", str(given.bar)), **values))
    command = [sys.executable, "-m", "jobs", "run", str(output / "job.yaml"), "--json", "--address", "local"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the job ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout) | {"shards": len(RunFolder(str(output / "run")).done_shards())}


def line(name: str, found: dict[str, Any], actors: int) -> list[Any]:
    """Of the table."""
    shares = [f"{found[figure]:.1%}" for figure in FIGURES]
    rate = found["rows"] * actors / found["actor_seconds"]
    counts = [found["shards"], found["mean_tries"], found["unet_calls"]]
    return [name, *counts, *shares, 1e3 * found["seconds_per_score"], rate]


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--bar", type=float, default=0.8, help="of the CLIP score")
    given = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory(prefix="tries-") as name:
        folder = Path(name)
        write(folder / "prompts.csv", given.rows, seed=0, for_judging=True)
        sides = {side: lambda tries=tries: our_job(folder, given, tries) for side, tries in SIDES.items()}
        turns = alternate(sides, given.repeats)
    rows = [line(name, found, given.actors) for name, side in turns.items() for found in side.values]
    table = f"{given.rows:,} rows, {given.actors} actors of one thread.\n\n{markdown(COLUMNS, rows)}"
    report("tries", table, {"options": vars(given), "rows": rows}, where, given.write)


if __name__ == "__main__":
    main()
