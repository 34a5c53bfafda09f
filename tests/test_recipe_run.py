"""Jobs with a menu of recipes, as a user types them: planned, rendered, resumed, repaired, rolled out and learned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.policy import read_card
from actors.recipe import Recipe
from actors.solver import lane_steps
from jobs.__main__ import main
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from training.reward_table import read_table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
SOLVER, HALF = "{num_steps: 3, solver: dpmpp_2m}", "{num_steps: 4, guidance_scale: 3, guidance_interval: [0.25, 1]}"
ORDERS = (f"[2, {SOLVER}, {HALF}]", f"[{HALF}, 2, {SOLVER}]")
JOB = """\
model: {device: cpu}
input: {path: prompts.jsonl}
steps: {selector: words, choices: MENU}
sampling: {guidance_scale: 2.0}
quality: [{scorer: "training.scenes.checker:agreement"}]
tries: {max: 2, bar: 0.7}
pools: [{name: default, lanes: 4}]
output: {path: RUN}
"""
TEXTS = ("a red star", "a red star above a blue ring on a grey one", "two yellow circles " + "below a ring " * 9)


def prompt(number: int) -> dict[str, Any]:
    """Texts of three lengths; a row of each pins its steps, its guidance or has a negative prompt."""
    own = (
        {},
        {"num_inference_steps": 4},
        {"num_inference_steps": 7},
        {"guidance_scale": 1.5},
        {"negative_prompt": "x"},
    )
    return {"id": f"r{number:02}", "prompt": TEXTS[number % 3], "note": number, **own[number % 5]}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps(prompt(number)) + "\n" for number in range(30)))

    def write(run: str = "run", menu: str = ORDERS[0]) -> RunFolder:
        Path("job.yaml").write_text(JOB.replace("MENU", menu).replace("RUN", run))
        return RunFolder(run)

    return write


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def rows(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for table in run.manifests() for row in table.to_pylist()}


def planned(run: RunFolder) -> list[dict[str, Any]]:
    entries = run.shard_index(1).to_pylist()
    return [row for entry in entries for row in run.read_shard(entry["part"], entry["row_group"]).to_pylist()]


def expected(number: int) -> tuple[str, int, str, float, list[float]]:
    """recipe_name, num_steps, solver, guidance_scale and guidance_interval of a prompt."""
    given = prompt(number)
    pins = {4: ("4-g3-0.25to1", 4, "ddim", 3.0, [0.25, 1.0]), 7: ("7", 7, "ddim", 2.0, [0.0, 1.0])}
    by_words = (
        ("2", 2, "ddim", 2.0, [0.0, 1.0]),
        ("3-dpmpp_2m", 3, "dpmpp_2m", 2.0, [0.0, 1.0]),
        ("4-g3-0.25to1", 4, "ddim", 3.0, [0.25, 1.0]),
    )
    name, steps, solver, scale, interval = pins.get(given.get("num_inference_steps", 0), by_words[number % 3])
    return (
        name,
        steps,
        solver,
        given.get("guidance_scale", scale),
        [0.0, 1.0] if "negative_prompt" in given else interval,
    )


NAMES = ("recipe_name", "num_steps", "solver", "guidance_scale", "guidance_interval")


def test_rows_say_their_recipe_and_a_menu_in_another_order_goes_on(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = job()
    done = typed(capsys, "run", "job.yaml")
    assert (done["rows"], done["ok"]) == (30, 30)
    first = rows(run)
    for number in range(30):
        row = first[f"r{number:02}"]
        assert tuple(row[name] for name in NAMES) == expected(number)
        cost = lane_steps(row["num_steps"], row["guidance_scale"], tuple(row["guidance_interval"]))
        assert row["lane_steps"] == cost * len(row["tries"])
        assert row["render_class"].split("/")[4] == row["solver"]
    document = read_plan(run).newest.document
    half = {"num_steps": 4, "guidance_scale": 3.0, "guidance_interval": [0.25, 1.0]}
    assert document["choices"] == [2, {"num_steps": 3, "solver": "dpmpp_2m"}, half]
    assert sum(document["recipe_histogram"].values()) == 30

    run.delete([f"manifest/{min(run.done_shards())}.parquet"])
    job(menu=ORDERS[1])
    assert typed(capsys, "run", "job.yaml")["ok"] == 30
    again = rows(run)
    for name in ("sha256", "render_key", "plan_key", "recipe_name"):
        assert {id: row[name] for id, row in again.items()} == {id: row[name] for id, row in first.items()}
    assert len(run.generations()) == 1

    other = job("other", ORDERS[1])
    typed(capsys, "plan", "job.yaml")
    assert planned(other) == planned(run)


def test_a_plan_key_is_the_same_in_another_run_whatever_its_pools(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pools = "pools=[{name: few, lanes: 8, budgets: [2, 3]}, {name: rest, lanes: 6, budgets: [4, 7]}]"
    runs = [job("one"), RunFolder("two")]
    typed(capsys, "run", "job.yaml")
    typed(capsys, "run", "job.yaml", "-s", "output.path=two", "-s", pools)
    one, two = map(rows, runs)
    assert {id: row["plan_key"] for id, row in one.items()} == {id: row["plan_key"] for id, row in two.items()}
    assert len({row["plan_key"] for row in one.values()}) == 30
    served = {(*entry["pools"], *entry["budgets"]) for entry in runs[1].shard_index(1).to_pylist()}
    assert {pool for pool, *_ in served} == {"few", "rest"}
    assert all(set(steps) <= ({2, 3} if pool == "few" else {4, 7}) for pool, *steps in served)
    changed = typed(capsys, "run", "job.yaml", "-s", "output.path=three", "-s", "tries.bar=0.6")
    assert changed["ok"] == 30
    assert not {row["plan_key"] for row in rows(RunFolder("three")).values()} & {
        row["plan_key"] for row in one.values()
    }


def test_a_repair_renders_recipes_to_equal_bytes_and_keeps_what_was_planned(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = job()
    typed(capsys, "run", "job.yaml")
    before = rows(run)
    assert {len(row["tries"]) for row in before.values()} == {1, 2}
    lost = list(before)[::2]
    bytes_before = {id: run.read(before[id]["uri"]) for id in lost}
    run.delete([before[id]["uri"] for id in lost])
    assert typed(capsys, "repair", "run", "--full")["repaired"]["rows"] == len(lost)
    after = rows(run)
    same = ("plan_key", "render_key", "bar", "sha256", "lane_steps", "seed", *NAMES)
    for id, row in before.items():
        assert {name: after[id][name] for name in same} == {name: row[name] for name in same}
        assert len(after[id]["tries"]) == len(row["tries"])
    assert {id: run.read(after[id]["uri"]) for id in lost} == bytes_before
    assert main(["verify", "run", "--full"]) == 0


ROLLOUT = (
    "tries={}",
    "output.layout=none",
    "input.images_per_prompt=2",
    "train={width: 16, epochs: 2, batch_size: 8, held_out: 0.3}",
)


def test_a_mixed_menu_is_rolled_out_and_learned(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = job()
    sets = [part for each in ROLLOUT for part in ("-s", each)]
    words = [
        f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("star", "ring", "circle", "square")
    ]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in words))
    done = typed(capsys, "rollout", "job.yaml", *sets)
    assert (done["rows"], done["ok"]) == (72, 72)
    menu = (Recipe(2), Recipe(3, "dpmpp_2m"), Recipe(4, None, 3.0, (0.25, 1.0)))
    table = read_table(run.manifests())
    assert table.choices == menu
    assert table.quality.shape == (12, 3, 2)
    assert table.lane_steps is not None
    assert table.lane_steps.tolist() == [4, 6, 7]
    assert (np.diff(table.costs) > 0).all()

    card = typed(capsys, "train", "job.yaml", *sets)
    assert card["choices"] == [recipe.plain() for recipe in menu]
    assert read_card(card["policy"]).choices == menu
    told = typed(capsys, "run", "job.yaml", "-s", "output.path=spring", "-s", f"steps.policy={card['policy']}",
                 "-s", "steps.selector=policy", "-s", f"steps.choices={ORDERS[1]}")  # fmt: skip
    assert (told["rows"], told["ok"]) == (12, 12)
    assert {row["recipe_name"] for row in rows(RunFolder("spring")).values()} <= {recipe.name for recipe in menu}
