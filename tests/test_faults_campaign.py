"""The campaigns' judge sees what it must: negative controls, a lost row, another picture. And two short campaigns."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import S3Server

from pipelines.folder import StorageOptions
from pipelines.store import RunFolder, manifest_key, parquet_bytes
from tests.campaign import Campaigns, Outcome, campaigns, hashes, judge, line_of
from tests.campaign_table import BEGIN, END, read, write_table
from tests.finished import finished_run, store

SHARD = "0001-000001"
Break = Callable[[RunFolder], None]


@pytest.fixture
def run(s3: S3Server) -> RunFolder:
    return finished_run(RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(s3.endpoint_url)))


def manifest_before_images(run: RunFolder) -> None:
    """The worker commits first, and dies in the middle of its images."""
    run.delete([uri for uri in run.read_manifest(SHARD)["uri"].to_pylist() if uri][2:])


def manifest_named_by_attempt(run: RunFolder) -> None:
    """Two workers on one shard: both commit."""
    attempt, table, _ = store(run, SHARD)
    run.create(f"manifest/{SHARD}-{attempt.name}.parquet", parquet_bytes([table]))


def shard_split_in_two(run: RunFolder) -> None:
    """A worker gives half of its rows away, and the whole shard is rendered again, too."""
    run.write(f"manifest/{SHARD}b.parquet", parquet_bytes([run.read_manifest(SHARD).slice(2)]))


def row_lost(run: RunFolder) -> None:
    run.write(manifest_key(SHARD), parquet_bytes([run.read_manifest(SHARD).slice(1)]))


def attempt_left(run: RunFolder) -> None:
    store(run, SHARD)


@pytest.mark.s3
@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (manifest_before_images, {"damaged": 2}),
        (manifest_named_by_attempt, {"doubled": 5, "damaged": 1}),
        (shard_split_in_two, {"doubled": 3, "damaged": 1}),
        (row_lost, {"lost": 1, "damaged": 1}),
        (attempt_left, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_judge_sees(run: RunFolder, damage: Break, seen: dict[str, int]) -> None:
    wanted = {id: found[0] for id, found in hashes(run).items()}
    whole = judge(run, wanted, Outcome(0, "radosgw", "files", 20, exits=[0]))
    assert (whole.good, whole.orphans) == (True, 0)
    damage(run)
    outcome = judge(run, wanted, Outcome(0, "radosgw", "files", 20, exits=[0]))
    assert outcome.good == (not seen)
    found = {name: getattr(outcome, name) for name in ("lost", "doubled", "different", "unexplained")}
    assert {name: count for name, count in found.items() if count} == {
        name: count for name, count in seen.items() if name != "damaged"
    }
    assert outcome.damaged >= seen.get("damaged", 0)
    assert outcome.orphans >= (damage is attempt_left)


@pytest.mark.s3
def test_the_judge_sees_another_picture(run: RunFolder) -> None:
    wanted = {id: found[0] for id, found in hashes(run).items()}
    outcome = judge(run, wanted | {"r0001": "0" * 64}, Outcome(0, "radosgw", "files", 20, exits=[0]))
    assert (outcome.different, outcome.good) == (1, False)


@pytest.mark.parametrize("exits", [[], [1], [0, None]])
def test_a_campaign_that_did_not_end_well_is_not_good(exits: list[int | None]) -> None:
    assert not Outcome(0, "radosgw", "files", 20, exits=exits).good


def test_the_table_replaces_what_was_between_its_marks(tmp_path: Path) -> None:
    page, results = tmp_path / "faults.md", tmp_path / "faults.jsonl"
    page.write_text(f"# before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    said = {"exits": [137, 0], "acts": {"actor": 2}, "faults": {"lost": 3}, "requests": 200}
    lines = [Outcome(seed, "radosgw", "files", 60, **said) for seed in (2, 1, 1)]
    results.write_text("".join(json.dumps(vars(line) | {"good": line.good}) + "\n" for line in lines))
    write_table(page, read(results))
    text = page.read_text()
    assert text.startswith("# before\n\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "2 campaigns, 2 of them good: 120 rows, 4 drivers, 400 requests" in text
    assert "| actor | 4 |" in text
    assert text.index("\n| 1 | radosgw") < text.index("\n| 2 | radosgw")


@pytest.fixture(scope="module")
def every(s3: S3Server) -> Iterator[Campaigns]:
    with campaigns(s3) as running:
        yield running


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.parametrize("seed", [3, 10])
def test_a_campaign(every: Campaigns, seed: int) -> None:
    """One loses the whole server, the other a raylet."""
    outcome = every.run(seed)
    assert outcome.good, line_of(outcome)
