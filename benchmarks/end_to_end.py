"""The whole job on real prompts, to a real S3 server and back, and every picture checked.

    python -m benchmarks.end_to_end --prompts PartiPrompts.tsv [--rows 1632] [--actors 2] [--json]

The table is turned into Parquet first (columns carried); `python -m jobs run` renders it with the embedded model into
a bucket of the S3 server that the tests use, and the manifest, the objects and their hashes are read back.
Prints what was counted; a count that is wrong ends it with exit code 1.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.run.layout import RunFolder
from pipelines.storage.folder import StorageOptions
from tests.s3_server import S3Server

ROOT = Path(__file__).resolve().parent.parent
JOB = """\
input: {{path: {prompts}, storage: {{}}}}
steps: {{selector: words, choices: [3, 4, 5, 6, 8, 10, 15, 20]}}
sampling: {{guidance_scale: 3.0}}
pools: [{{name: default, actors: {actors}}}]
output: {{path: {output}}}
storage: {{endpoint_url: {endpoint}}}
"""


def main() -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", required=True, help="a TSV with a Prompt and a Category column")
    parser.add_argument("--rows", type=int, help="only the first rows")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keys = (secrets.token_hex(8), secrets.token_hex(20))
    os.environ.update(S3Server.env(*keys))
    with tempfile.TemporaryDirectory() as folder, S3Server(*keys) as server:
        table = read_tsv(options.prompts, options.rows)
        prompts = Path(folder) / "prompts.parquet"
        pq.write_table(table, prompts)
        output = f"s3://{server.bucket()}/runs/prompts"
        job = Path(folder) / "job.yaml"
        names = {"prompts": prompts, "actors": options.actors, "output": output, "endpoint": server.endpoint_url}
        job.write_text(JOB.format(**names))
        started = time.monotonic()
        summary = run(job)
        seconds = time.monotonic() - started
        found = check(RunFolder(output, StorageOptions(endpoint_url=server.endpoint_url)), table)
    report = {"wall_seconds": seconds} | found | {k: summary[k] for k in SHOWN}
    print(json.dumps(report) if options.json else "\n".join(f"{k:>24}  {_text(v)}" for k, v in report.items()))
    return 0 if found["wrong"] == 0 else 1


SHOWN = ("seconds", "images_per_second", "mean_steps", "unet_calls", "lane_fill", "unet_share", "busy_share")


def read_tsv(path: str, rows: int | None) -> pa.Table:
    """prompt, category, challenge, note: as strings."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:rows]
    return pa.table({name.lower(): [row[name] for row in table] for name in table[0]})


def run(job: Path) -> dict[str, Any]:
    """The summary of `python -m jobs run JOB --json`."""
    command = [sys.executable, "-m", "jobs", "run", str(job), "--json", "--address", "local"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def check(folder: RunFolder, planned: pa.Table) -> dict[str, Any]:
    """Manifest against prompts, objects against manifest. wrong: rows that are not exactly what they should be."""
    rows = [row for table in folder.manifests() for row in table.to_pylist()]
    wanted = sorted(zip(planned["prompt"].to_pylist(), planned["category"].to_pylist(), strict=True))
    missing = len(rows) - len(wanted) or sum(
        a != b for a, b in zip(sorted((r["prompt"], r["category"]) for r in rows), wanted, strict=True)
    )
    with ThreadPoolExecutor(8) as pool:
        good = sum(pool.map(lambda row: _is_whole(folder, row), rows))
    return {
        "prompts": len(wanted),
        "manifest_rows": len(rows),
        "distinct_ids": len({row["id"] for row in rows}),
        "pictures_that_open_and_match_sha256": good,
        "categories": len({row["category"] for row in rows}),
        "truncated": sum(bool(row["truncated"]) for row in rows),
        "wrong": abs(missing) + len(rows) - good + len(rows) - len({row["id"] for row in rows}),
    }


def _is_whole(folder: RunFolder, row: dict[str, Any]) -> bool:
    if row["status"] != "ok":
        return False
    data = folder.read(row["uri"])
    image = Image.open(io.BytesIO(data))
    image.load()
    return hashlib.sha256(data).hexdigest() == row["sha256"] and image.size == (row["width"], row["height"])


def _text(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
