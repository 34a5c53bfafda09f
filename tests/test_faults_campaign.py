"""The campaigns' judge sees what it must: negative controls, a lost row, another picture. And two short campaigns."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from diffusers import UNet2DConditionModel
from s3_server import S3Server

from actors.diffusion import Diffusion
from actors.rows import SamplerConfig
from actors.sampler import DDIMSampler
from pipelines.integrity.verification import verify
from pipelines.render.attempt import engine_row
from pipelines.render.sink import encode_image
from pipelines.run.layout import RunFolder, manifest_key, parquet_bytes
from pipelines.run.schema import planned_row as typed
from pipelines.storage.folder import StorageOptions
from tests.breaking_engine import FOLDER_ENV, HOOK, Tokens, break_engine
from tests.campaign import Campaigns, campaigns
from tests.campaign_judge import Outcome, hashes, judge, line_of, of_other_classes, verified
from tests.campaign_kinds import KINDS, OLD
from tests.campaign_table import BEGIN, END, read, write_table
from tests.checkpoints import make_checkpoint
from tests.clusters import ROOT
from tests.connections import cut_connections
from tests.finished import finished_run, store
from tests.plans import planned_row

SHARD = "0001-000001"
Break = Callable[[RunFolder], None]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(RunFolder(str(tmp_path / "run")))


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


def pool_forgotten(run: RunFolder) -> None:
    """Half of the shards were never leased: no manifest, no picture, no attempt."""
    for shard in ("0001-000002", "0001-000003"):
        run.delete([key for room in ("images", "attempts") for key, _ in run.walk(room) if shard in key])
        run.delete([manifest_key(shard)])


def rows_of_a_drained_node_dropped(run: RunFolder) -> None:
    """The worker commits what it has when it must leave."""
    run.write(manifest_key(SHARD), parquet_bytes([run.read_manifest(SHARD).slice(0, 3)]))


def noise_committed(run: RunFolder) -> None:
    """The device broke after two rows; what came then was stored and signed as a picture."""
    rows = run.read_manifest(SHARD).to_pylist()
    for row in [row for row in rows if row["uri"]][2:]:
        image = encode_image(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), "png")
        signed(run, row, image)
    run.write(manifest_key(SHARD), parquet_bytes([pa.Table.from_pylist(rows, run.read_manifest(SHARD).schema)]))


def pictures_of_other_rows(run: RunFolder) -> None:
    rows = run.read_manifest(SHARD).to_pylist()
    first, second = [row for row in rows if row["uri"]][:2]
    images = run.read(first["uri"]), run.read(second["uri"])
    signed(run, first, images[1])
    signed(run, second, images[0])
    run.write(manifest_key(SHARD), parquet_bytes([pa.Table.from_pylist(rows, run.read_manifest(SHARD).schema)]))


def signed(run: RunFolder, row: dict[str, Any], image: bytes) -> None:
    """As the worker would: nothing but the pixels is wrong."""
    run.write(row["uri"], image)
    row |= {"sha256": hashlib.sha256(image).hexdigest(), "bytes": len(image)}


def nothing(run: RunFolder) -> None:
    """A run as it should be."""


def attempt_left(run: RunFolder) -> None:
    store(run, SHARD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (manifest_before_images, {"damaged": 2}),
        (manifest_named_by_attempt, {"doubled": 5, "damaged": 1}),
        (shard_split_in_two, {"doubled": 3, "damaged": 1}),
        (row_lost, {"lost": 1, "damaged": 1}),
        (pool_forgotten, {"lost": 10, "damaged": 2}),
        (rows_of_a_drained_node_dropped, {"lost": 2, "damaged": 1}),
        (noise_committed, {"different": 2}),
        (pictures_of_other_rows, {"different": 2}),
        (attempt_left, {}),
        (nothing, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_judge_sees(run: RunFolder, damage: Break, seen: dict[str, int]) -> None:
    wanted = {id: found[0] for id, found in hashes(run).items()}
    damage(run)
    findings = [vars(finding) for checked in verify(run, 1.0) for finding in checked.findings]
    outcome = judge(run, wanted, Outcome(0, "radosgw", "files", 20, exits=[0]), findings)
    assert outcome.good == (not seen)
    found = {name: getattr(outcome, name) for name in ("lost", "doubled", "different", "unexplained")}
    assert {name: count for name, count in found.items() if count} == {
        name: count for name, count in seen.items() if name != "damaged"
    }
    assert outcome.damaged >= seen.get("damaged", 0)
    assert outcome.orphans >= (damage is attempt_left)
    assert outcome.orphans == 0 or damage is not nothing


@pytest.mark.s3
def test_the_judge_sees_another_picture(s3: S3Server) -> None:
    """Through the verb, as a campaign asks it."""
    run = finished_run(RunFolder(f"s3://{s3.bucket()}/run", StorageOptions(s3.endpoint_url)))
    wanted = {id: found[0] for id, found in hashes(run).items()}
    attempt_left(run)
    outcome = judge(run, wanted | {"r0001": "0" * 64}, Outcome(0, "radosgw", "files", 20, exits=[0]), verified(run))
    assert (outcome.different, outcome.damaged, outcome.orphans > 0, outcome.good) == (1, 0, True, False)


@pytest.mark.parametrize("exits", [[], [1], [0, None]])
def test_a_campaign_that_did_not_end_well_is_not_good(exits: list[int | None]) -> None:
    assert not Outcome(0, "radosgw", "files", 20, exits=exits).good


def test_the_table_replaces_what_was_between_its_marks(tmp_path: Path) -> None:
    page, results = tmp_path / "faults.md", tmp_path / "faults.jsonl"
    page.write_text(f"# before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    said = {"exits": [137, 0], "acts": {"actor": 2}, "faults": {"lost": 3}, "requests": 200}
    lines = [vars(Outcome(seed, "radosgw", "files", 60, **said)) | {"good": True} for seed in (2, 1, 1)]
    lines += [vars(Outcome(0, "radosgw", "files", 60, kind="memory", exits=[1])) | {"good": False}]
    del lines[0]["kind"]  # as the oldest were written
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_table(page, read(results))
    text = page.read_text()
    assert text.startswith("# before\n\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "3 campaigns, 2 of them good: 180 rows, 5 drivers, 400 requests" in text
    assert "| actor | 4 |" in text
    assert (
        text.index("| one pool | 1 | radosgw") < text.index("| one pool | 2 | radosgw") < text.index("| memory | 0 |")
    )
    assert f"| memory | {KINDS['memory'].about} | 1 | 0 |" in text


def test_a_token_breaks_one_call_of_one_process(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    tokens.give("unet", 2)
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: tokens.take("unet"), range(40)))
    assert taken.count(True) == 2
    assert not tokens.take("decode")
    tokens.lose_device("n1", 0)
    tokens.lose_device("n2", 5)  # not lost yet
    assert tokens.done() == {"out of memory: unet": 2, "device lost": 1}
    tokens.give("kill", 1)
    tokens.mend()
    assert not tokens.take("kill")
    assert not tokens.device("n1").exists()


def test_a_process_with_the_hook_on_its_path_breaks_and_another_does_not(tmp_path: Path) -> None:
    code = """
import pipelines.render.pool, actors.sampler, pipelines.render.worker
from pipelines.run.layout import RunFolder
from pipelines.render.sink import Sink
called = [Sink.close, RunFolder.commit_manifest, pipelines.render.pool.planned_shards]
called.append(actors.sampler.DDIMSampler.submit)
print([each.__module__ for each in called])
"""
    Tokens(tmp_path).give("forget", 1)
    broken = {"PYTHONPATH": f"{HOOK}{os.pathsep}{ROOT}", FOLDER_ENV: str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | env, cwd=ROOT, capture_output=True, text=True)
        for env in (broken, {})
    ]
    assert said[0].stdout == f"{['tests.breaking_engine'] * 4}\n", said[0].stderr
    assert "tests" not in said[1].stdout


def test_a_connection_of_another_process_is_cut_and_a_spared_one_is_not() -> None:
    talk = """
import socket, sys
for port in sys.argv[1:]:
    with socket.create_connection(("127.0.0.1", int(port))) as mine:
        print("up", flush=True)
        print(mine.recv(9), flush=True)
"""
    with socket.create_server(("127.0.0.1", 0)) as cut, socket.create_server(("127.0.0.1", 0)) as spared:
        ports = [cut.getsockname()[1], spared.getsockname()[1]]
        command = [sys.executable, "-c", talk, *map(str, ports)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            theirs, said = psutil.Process(process.pid), []
            for server, wanted in ((cut, 1), (spared, 0)):
                said.append(process.stdout.readline())
                other, _ = server.accept()
                assert cut_connections(theirs, ports[1:]) == wanted
                if not wanted:
                    other.sendall(b"here")
                said.append(process.stdout.readline())
                other.close()
    assert said == ["up\n", "b''\n", "up\n", "b'here'\n"]


def test_rows_that_ran_short_of_memory_have_the_bytes_of_rows_rendered_so_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, names in ((Diffusion, ("predict", "decode")), (DDIMSampler, ("submit", "close"))):
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # as it was, afterwards
    monkeypatch.setattr(UNet2DConditionModel, "forward", UNet2DConditionModel.forward)
    (tokens := Tokens(tmp_path / "tokens")).folder.mkdir()
    break_engine(tokens)
    rows = [planned_row(i, negative_prompt=None, num_steps=2 + i % 2) for i in range(24)]
    model = make_checkpoint("sd1", tmp_path / "model")
    sampler = DDIMSampler(SamplerConfig(str(model), dtype="float32", device="cpu", lanes=8, num_threads=1))
    for future in (first := [sampler.submit(engine_row(typed(row))) for row in rows[:8]]):
        future.result()
    tokens.give("close_unet", 1)
    tokens.give("close_decode", 1)
    futures = first + [sampler.submit(engine_row(typed(row))) for row in rows[8:]]
    sampler.close()
    assert tokens.done() == {"out of memory: close_unet": 1, "out of memory: close_decode": 1}
    pictures = [future.result() for future in futures]
    found = [row | {"render_class": made.render_class} for row, made in zip(rows, pictures, strict=True)]
    of_others = of_other_classes(model, found)
    assert len(of_others) == 16
    stored = {row["id"]: encode_image(made.image, "png") for row, made in zip(rows, pictures, strict=True)}
    assert of_others == {id: hashlib.sha256(stored[id]).hexdigest() for id in of_others}
    whole = [row["id"] for row in found if "-8lanes-8decode/" in row["render_class"]]
    assert of_others.keys() == stored.keys() - whole


@pytest.fixture(scope="module")
def every(s3: S3Server) -> Iterator[Campaigns]:
    with campaigns(s3) as running:
        yield running


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.parametrize(("kind", "seed"), [(OLD, 10), ("pools", 4), ("memory", 1)])
def test_a_campaign(every: Campaigns, kind: str, seed: int) -> None:
    """One loses a raylet, one has three pools of six actors, one has its workers killed until a shard is isolated."""
    outcome = replace(every, kind_name=kind, undisturbed={}).run(seed)
    assert outcome.good, line_of(outcome)
