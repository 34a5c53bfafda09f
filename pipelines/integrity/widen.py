"""Gives the manifests of earlier generations the columns of the newest one: a run grows, and stays one table."""

from concurrent.futures import ThreadPoolExecutor

from pipelines.render.manifest_rows import widened
from pipelines.render.repaired_shard import replace_manifest
from pipelines.run.drivers import EpochId
from pipelines.run.layout import READERS, UNREADABLE
from pipelines.run.plan import Plan


def widen_manifests(plan: Plan, epoch: EpochId) -> int:
    """Give earlier manifests the columns and types of the newest generation; -> those that were replaced.

    None is read where all plans have one schema. Rows stay as they are, their revision too; what is damaged stays.
    """
    run, newest = plan.run, plan.manifest_schema
    old = {f"{each.number:04d}" for each in plan.generations if not each.manifest_schema.equals(newest)}
    shards = [shard for shard in sorted(run.done_shards()) if shard.partition("-")[0] in old] if old else []

    def widen(shard: str) -> bool:
        try:
            table = run.read_manifest(shard)
        except UNREADABLE:
            return False
        if not table.schema.equals(newest):
            replace_manifest(run, epoch, shard, widened(table, newest))
        return not table.schema.equals(newest)

    with ThreadPoolExecutor(READERS) as pool:
        return sum(pool.map(widen, shards))
