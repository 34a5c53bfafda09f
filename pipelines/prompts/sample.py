"""Draws a sample of canonical rows, each category in its share; it does not depend on the rows' order.

Pure, one pass. `pipelines.prompts.two_passes` reads the rows; a pilot uses the sample.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

COLUMNS = ("prompt_id", "prompt", "negative_prompt", "category", "width", "height", "guidance_scale")
MOST_CATEGORIES = 64  # more of them are no strata


def stratified(tables: Iterable[pa.Table], count: int) -> pa.Table:
    """`count` prompts, or all where there are fewer: COLUMNS, prompt_id as id, by rising hash of it.

    Bad rows and the second and later pictures of a prompt are left out.
    """
    strata: dict[str | None, list[tuple[int, str, dict[str, Any]]]] = {}
    sizes: Counter[str | None] = Counter()
    for table in tables:
        for row in table.select([*COLUMNS, "sample", "error_type"]).to_pylist():
            if row.pop("sample") or row.pop("error_type"):
                continue
            category = row["category"]
            sizes[category] += 1
            kept = strata.setdefault(category, [])
            entry = (-_place(row["prompt_id"]), row["prompt_id"], row)
            (heapq.heappush if len(kept) < count else heapq.heappushpop)(kept, entry)
            if len(strata) > MOST_CATEGORIES:
                strata, sizes = {None: _lowest(strata, count)}, Counter({None: sizes.total()})
    shares = _shares(sizes, count)
    picked = [entry for category, kept in strata.items() for entry in heapq.nlargest(shares[category], kept)]
    rows = [row for _, _, row in sorted(picked, reverse=True)]
    fields = [
        pa.field(
            name, pa.string() if name in COLUMNS[:4] else pa.int32() if name in ("width", "height") else pa.float64()
        )
        for name in COLUMNS
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields)).rename_columns(["id", *COLUMNS[1:]])


def _lowest(strata: dict[str | None, list[Any]], count: int) -> list[Any]:
    """Merges all strata into one heap."""
    kept = heapq.nlargest(count, (entry for entries in strata.values() for entry in entries))
    heapq.heapify(kept)
    return kept


def _shares(sizes: Counter[str | None], count: int) -> dict[str | None, int]:
    """How many of each stratum, by largest remainder; in all `count`, or as many as there are."""
    total = sizes.total()
    exact = {category: min(count, total) * size / total for category, size in sizes.items()}
    shares = {category: int(share) for category, share in exact.items()}
    left = min(count, total) - sum(shares.values())
    rest = sorted(exact, key=lambda category: (shares[category] - exact[category], str(category)))
    return shares | {category: shares[category] + 1 for category in rest[:left]}


def _place(prompt_id: str) -> int:
    digest = hashlib.blake2b(prompt_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"sample").digest()
    return int.from_bytes(digest, "big")
