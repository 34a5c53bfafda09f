"""The benchmarks as commands: their help, their page, their arithmetic. What they measure is theirs to say."""

import importlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure
from benchmarks.engine import BUDGETS, by_budget, in_order, make_rows, mixed_steps
from benchmarks.measure import Turns, alternate, cpu_ratio, markdown, ratio, report, with_section
from benchmarks.scale import Line, fit, ledger_costs
from benchmarks.solvers import VARIANTS, Point, advice, gain, picture

ROOT = Path(__file__).parent.parent
SECTIONS = ("weak",)  # beside those named as their benchmark
NAMES = ("limit", "engine", "job", "scale", "solvers", "encode", "select", "sinks", "protocol", "gpu", "tries")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_a_command_with_help(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--repeats" in shown
    assert "--write" in shown
    assert f"python -m benchmarks.{name}" in shown


@pytest.mark.parametrize("name", [*NAMES, *SECTIONS])
def test_the_page_has_a_section_for_each(name):
    page = (ROOT / "docs/performance.md").read_text("utf-8")
    assert "\nnew text\n" in with_section(page, name, "new text")


def test_a_section_is_replaced_and_nothing_else():
    page = "top\n<!-- a -->\nold\n<!-- /a -->\nmiddle\n<!-- b -->\n<!-- /b -->\n"
    assert with_section(page, "a", "new") == page.replace("old", "new")
    assert with_section(with_section(page, "b", "x"), "b", "y") == page.replace("<!-- b -->", "<!-- b -->\ny")
    with pytest.raises(ValueError, match="no section"):
        with_section(page, "c", "new")


def test_sides_take_turns():
    order = []
    turns = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == list("ababab")
    assert [len(side.seconds) for side in turns.values()] == [3, 3]


def test_a_ratio_is_of_neighbours_in_time():
    ours, theirs = Turns([1.0, 20.0, 3.0], [1.0, 1.0, 1.0]), Turns([2.0, 10.0, 6.0], [4.0, 2.0, 1.0])
    assert (ratio(ours, theirs), cpu_ratio(ours, theirs)) == (0.5, 0.5)


def test_a_report_is_a_table_a_json_line_and_a_section(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(measure, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("<!-- x -->\n<!-- /x -->\n")
    where = measure.machine()
    table = markdown(("name", "number"), [["a", 1234], ["b", 0.12345], ["c", None], ["d", 12345.6]])
    assert table.splitlines()[2:] == ["| a | 1,234 |", "| b | 0.123 |", "| c |  |", "| d | 12,346 |"]
    for _ in range(2):
        report("x", table, {"rows": [1]}, where, write=True)
    lines = [json.loads(line) for line in (tmp_path / "results/x.jsonl").read_text().splitlines()]
    assert [line["rows"] for line in lines] == [[1], [1]]
    assert lines[0]["machine"]["torch"] == where["torch"]
    assert (tmp_path / "page.md").read_text().count("| a | 1,234 |") == 1
    assert "cores of" in capsys.readouterr().out


def test_rivals_batches_hold_every_row_once():
    rows = make_rows(100, mixed_steps(100), 32)
    assert sorted(row.num_steps for row in rows) == sorted(BUDGETS * 10)
    for cut in (in_order, by_budget):
        batches = list(cut(rows, 8))
        assert sorted(row.id for batch in batches for row in batch) == sorted(row.id for row in rows)
        assert max(map(len, batches)) == 8
    assert all(len({row.num_steps for row in batch}) == 1 for batch in by_budget(rows, 8))


def test_advice_takes_the_best_that_is_affordable():
    draw = random.Random(0)
    found = [
        Point(variant, budget, 2.0, 2.0 * budget, (draw.random(), draw.random()))
        for variant in VARIANTS
        for budget in (2, 4, 8)
    ]
    text = advice(found, (3, 8))
    assert "at most 3" not in text
    able = [p for p in found if p.lane_steps <= 8]
    for judge in range(2):
        assert f"({max(p.quality[judge] for p in able):.3f})" in text
    assert "stays the default" in text
    better = [Point(p.variant, p.budget, 2, p.lane_steps, (float(p.variant == "dpmpp_2m"),) * 2) for p in found]
    assert "2M wins on every judge" in advice(better, (8,))
    assert picture(found).count("<polyline") == 2 * len(VARIANTS)


def test_a_gain_has_its_interval():
    ones, parts = np.ones(40), np.linspace(0, 1, 40)
    plain = Point("ddim", 4, 2, 8, (0.5, 0.5), (parts, parts), (ones, 2 * ones))
    better = Point("dpmpp_2m", 4, 2, 8, (0.6, 0.6), (parts + 0.1, parts + 0.1 * np.arange(40) % 2), (ones, 2 * ones))
    assert gain(better, plain, 0) == ", +0.100 [+0.100, +0.100] over DDIM"
    low, high = (float(x) for x in gain(better, plain, 1).split("[")[1].split("]")[0].split(", "))
    assert low < (better.parts[1] - plain.parts[1]).sum() / 80 < high
    assert gain(plain, plain, 0) == ""


def test_straight_lines_lead_to_a_billion_rows():
    def line(rows: int) -> Line:
        shards = rows // 500
        memory = {"plan_mib": 8 + rows / 2**20, "driver_mib": 1.0, "ledger_mib": 100 + shards * 400 / 2**20}
        rest = {"plan_s": 1, "render_s": 1, "busy": 1, "overhead_ms": 1, "lanes_used": 1, "actor_seconds": 1}
        return Line(rows, shards, 2, resume_s=1e-6 * shards, **memory, **rest)

    assert fit([line(1000)]) == "One size: no line can be fitted."
    words = fit([line(10_000), line(100_000), line(1_000_000)])
    assert "plan_mib: 8 MiB + 1 bytes a row, 962 MiB at 1e9 rows" in words
    assert "ledger_mib: 100 MiB + 400 bytes a shard, 863 MiB at 1e9 rows" in words
    assert "1 us a shard, 2 s at 1e9 rows" in words


def test_what_a_ledger_costs_is_measured():
    _, size = ledger_costs(1000)
    assert 100 < size < 2000
