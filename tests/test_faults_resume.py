"""What a resume asks of the store before its first lease: names of manifests, never objects of images."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from pipelines.cluster.pools import PoolSpec
from pipelines.render.ledger import Ledger
from pipelines.render.pool import planned_shards
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.storage.folder import StorageOptions
from tests.fault_proxy import FaultProxy
from tests.plans import planned_row, write_plan
from tests.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.slow]
SHARDS, ROWS, LEFT = 1004, 2, 3  # rows of a shard cost no request: images are never looked at
PAGE = 1000  # names in one answer of the store


def test_finished_shards_are_a_few_listings(s3: S3Server) -> None:
    calm = RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(s3.endpoint_url))
    write_plan(calm, [planned_row(i) for i in range(SHARDS * ROWS)], ROWS)
    names = calm.shard_index(1)["shard"].to_pylist()

    def finish(shard: str) -> None:
        calm.begin_attempt(shard)
        calm.commit_manifest(shard, pa.table({"id": ["a"]}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(finish, names[LEFT:]))
    with FaultProxy(s3.s3_port) as proxy:
        run = RunFolder(calm.url, StorageOptions(proxy.endpoint_url))
        ledger = Ledger(planned_shards(read_plan(run), (PoolSpec(),)), run.done_shards(), run.attempts())
        assert ledger.snapshot().shards_done == SHARDS - LEFT
        pages = -(-(SHARDS - LEFT) // PAGE)
        assert proxy.counts == Counter(
            {
                ("LIST", "manifest"): pages,
                ("LIST", "attempts"): pages,
                ("LIST", "plan"): 1,
                ("HEAD", "plan"): 1,  # is the generation complete?
                ("GET", "plan"): 1,  # its index of shards
            }
        )
