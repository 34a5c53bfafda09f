"""The contact sheet and the page: what is on them, and that nothing from outside gets through as markup."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.pages.contact_sheet import budget_colour, contact_sheet, wrapped
from jobs.pages.html import histogram_svg, report_html
from jobs.pages.totals import Totals, image_bytes, totals, with_images
from jobs.steps.rendering import write_report
from jobs.terminal.console import Console
from pipelines.render.sink import Sink
from pipelines.run.layout import Attempt, RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.schema import manifest_schema, planned_row
from pipelines.storage.folder import Folder


def png(seed: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def row(index: int, **others: Any) -> dict[str, Any]:
    return {"id": f"r{index}", "prompt": f"prompt {index}", "num_steps": 5 + index, "image": png(index)} | others


def test_a_sheet_holds_every_picture_enlarged_by_a_whole_factor() -> None:
    flat = Image.new("RGB", (32, 32), (200, 30, 90))
    buffer = io.BytesIO()
    flat.save(buffer, "PNG")
    rows = [row(i, image=buffer.getvalue()) for i in range(7)]
    sheet = Image.open(io.BytesIO(contact_sheet(rows, "title", "subtitle")))
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    colour = (np.abs(pixels - (200, 30, 90)).max(axis=2) < 3).sum()
    assert colour == 7 * 160 * 160


def test_tiny_pictures_are_shown_pixel_by_pixel() -> None:
    squares = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((2, 2)))[..., None] * (250, 0, 250)
    buffer = io.BytesIO()
    Image.fromarray(squares.astype(np.uint8)).save(buffer, "PNG")
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([row(0, image=buffer.getvalue())], ""))).convert("RGB"))
    assert (sheet == (250, 0, 250)).all(axis=2).sum() == 160 * 160 / 2


def test_heads_stand_over_both_pictures_and_what_they_say_is_not_said_again() -> None:
    pairs = [row(0, beside=[row(1, num_steps=20)])]
    plain, headed = (
        np.asarray(Image.open(io.BytesIO(contact_sheet(pairs, "", heads=heads))).convert("RGB"))
        for heads in ((), ("chosen", "20 steps"))
    )
    assert plain.shape == headed.shape
    differ = np.flatnonzero((plain != headed).any(axis=(1, 2)))
    picture = int(np.flatnonzero((plain == (255, 255, 255)).all(axis=2).any(axis=1))[0])
    assert differ.min() < picture  # the heads, over the first card
    assert differ.max() > picture + 160  # the steps of the right picture, under it


@pytest.mark.parametrize("count", [0, 1, 5, 48])
def test_a_sheet_of_any_number(count: int) -> None:
    sheet = Image.open(io.BytesIO(contact_sheet([row(i) for i in range(count)], "t")))
    assert sheet.format == "PNG"
    assert max(sheet.size) < 2600


def test_pictures_of_unlike_size_and_no_steps_fit() -> None:
    rows = [row(0, image=png(0, (64, 32))), row(1, image=png(1, (1024, 768))), row(2, num_steps=None)]
    assert Image.open(io.BytesIO(contact_sheet(rows, "t"))).width < 1000


def test_more_steps_look_deeper() -> None:
    assert budget_colour(2, (2, 20)) == "#2a8d80"
    assert budget_colour(20, (2, 20)) == "#4b458c"
    assert budget_colour(5, (5, 5)) == "#2a8d80"
    assert len({budget_colour(steps, (2, 20)) for steps in range(2, 21)}) == 19


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("one two three four five six", ["one two", "three", "four fi…"]),
        ("", []),
        ("a\nb\tc\x00d", ["a b c d"]),
        ("x" * 50, ["xxxxxxx…"]),
        ("ok " + "x" * 50, ["ok", "xxxxxxx…"]),
    ],
)
def test_prompts_wrap(text: str, lines: list[str]) -> None:
    assert wrapped(text, lambda line: len(line) <= 8, 3) == lines


class Tags(HTMLParser):
    """Every tag and attribute name of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs


EVIL = "</td></div><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def page() -> str:
    summary = {
        "run": EVIL,
        "status": EVIL,
        "rows": 1632,
        "mean_steps": 21.3456,
        "lane_fill": None,
        "budget_histogram": {"5": 3, "20": 1},
        "failures": [{"id": EVIL, "error_type": EVIL, "error_message": EVIL}],
    }
    return report_html(summary, [row(0, prompt=EVIL), row(1)])


def test_nothing_from_outside_is_markup() -> None:
    tags = Tags(page())
    assert "script" not in tags.seen
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    sources = [value or "" for name, value in tags.attributes if name in ("src", "href")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert page().count("&lt;script&gt;") == 7


def test_the_page_holds_the_numbers_and_thumbnails() -> None:
    text = page()
    assert ">1,632<" in text
    assert ">21.346<" in text
    thumbnail = re.search(r"base64,([^\"]+)", text)
    assert thumbnail
    assert Image.open(io.BytesIO(base64.b64decode(thumbnail.group(1)))).size == (128, 128)


def test_the_histogram_draws_bars_in_order_and_to_scale() -> None:
    svg = histogram_svg({20: 1, 5: 4, 10: 2})
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([\d.]+)"', svg)]
    assert heights[0] == pytest.approx(2 * heights[1])
    assert heights[1] == pytest.approx(2 * heights[2])
    assert re.findall(r">(\d+)</text>", svg) == ["4", "5", "2", "10", "1", "20"]


def manifest(*rows: dict[str, Any]) -> pa.Table:
    schema = manifest_schema(pa.schema([]))
    empty = dict.fromkeys(schema.names)
    return pa.Table.from_pylist([empty | row for row in rows], schema=schema)


def test_totals_over_all_manifests(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    ok = [{"id": f"a{i}", "status": "ok", "num_steps": 5 * (1 + i % 2), "truncated": i == 0} for i in range(10)]
    bad = [{"id": f"b{i}", "status": "failed", "error_type": "E", "error_message": "m"} for i in range(8)]
    assert run.commit_manifest("0001-000000", manifest(*ok))
    assert run.commit_manifest("0001-000001", manifest(*bad, {"id": "c", "status": "filtered", "num_steps": 50}))
    found = totals(read_plan(run), most_pictures=4)
    assert (found.rows, found.truncated, dict(found.status)) == (19, 1, {"ok": 10, "failed": 8, "filtered": 1})
    assert found.mean_steps == 7.5
    assert found.budgets == {5: 5, 10: 5}
    assert [row["id"] for row in found.failures] == ["b0", "b1", "b2", "b3", "b4"]
    assert len(found.pictures) == 4


def test_which_pictures_are_shown_does_not_depend_on_the_order_of_shards() -> None:
    tables = [manifest({"id": f"a{i}", "status": "ok", "num_steps": 5}) for i in range(40)]
    one, other = Totals(5), Totals(5)
    for table in tables:
        one.add(table)
    for table in reversed(tables):
        other.add(table)
    assert one.pictures == other.pictures


def test_nothing_done_has_no_mean() -> None:
    assert Totals().mean_steps is None


def test_a_picture_is_read_from_every_layout(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    run.write("images/s/1-x/a.png", b"plain")
    run.write("data/s-1-x.tar", b"....packed....")
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["a", "b"], "image": [b"first", b"second"]}), sink)
    run.write("data/s-1-x.parquet", sink.getvalue())
    read = [
        image_bytes(run, {"id": "a", "uri": "images/s/1-x/a.png", "offset": None}),
        image_bytes(run, {"id": "a", "uri": "data/s-1-x.tar#a.png", "offset": 4, "bytes": 6}),
        image_bytes(run, {"id": "b", "uri": "data/s-1-x.parquet#b.png", "offset": None}),
    ]
    assert read == [b"plain", b"packed", b"second"]


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_picture_of_a_packed_layout_is_read_by_its_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Twelve pictures of half a megabyte; what is read for the first one is counted."""
    run, attempt = RunFolder(str(tmp_path)), Attempt("0001-000000", 1, "0123abcd")
    sink = Sink(run, attempt.shard, attempt, layout, "png")
    pictures = np.random.default_rng(0).integers(0, 256, (12, 400, 400, 3), dtype=np.uint8)
    stored = [
        sink.put(planned_row({"id": f"r{i:02}", "prompt": "a fox"}), picture) for i, picture in enumerate(pictures)
    ]
    uri, offset = sink.close()["r00"]
    size = run.stat(uri.partition("#")[0])
    asked: list[int] = []
    ranged = Folder.read_range

    def count(folder: Folder, key: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return ranged(folder, key, start, end)

    monkeypatch.setattr(Folder, "read_range", count)
    monkeypatch.setattr(Folder, "read", lambda *_: pytest.fail("a whole object was read"))
    data = image_bytes(run, {"id": "r00", "uri": uri, "offset": offset, "bytes": stored[0].num_bytes})
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pictures[0])
    assert size is not None
    assert sum(asked) <= (size[0] // 12 if layout == "webdataset" else size[0] // 2)


def test_a_manifest_that_cannot_be_read_is_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    assert run.commit_manifest("0001-000000", manifest({"id": "a", "status": "ok", "num_steps": 5}))
    run.write("manifest/0001-000001.parquet", b"PAR1 torn")
    found = totals(read_plan(run))
    assert (found.rows, len(found.damaged)) == (1, 1)
    assert "manifest/0001-000001.parquet cannot be read" in str(found.damaged[0])
    assert "`repair` renders" in str(found.damaged[0])


def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    run, console = RunFolder(str(tmp_path)), Console(io.StringIO())
    run.write("summary.json/notes.txt", b"a folder where a file should be")
    write_report(console, run, {"run": "spring", "rows": 1}, Totals())
    assert console.stream.getvalue().startswith("warning: cannot write ")  # type: ignore[attr-defined]
    assert run.stat("report.html") is not None


@pytest.mark.parametrize(
    "row",
    [
        {"uri": "images/s/1-x/folder.png"},
        {"uri": "images/file/1-x/a.png"},
        {"uri": "data/s-1-x.parquet#a.png"},
        {"uri": "data/torn.parquet#a.png"},
        {"uri": "data/s-1-x.tar#a.png", "offset": 4},
        {"uri": "images/../../etc/passwd"},
        {"uri": "images/s/1-x/huge.png"},
    ],
    ids=lambda row: row["uri"],
)
def test_whatever_is_wrong_with_a_picture_is_a_placeholder(tmp_path: Path, row: dict[str, Any]) -> None:
    run = RunFolder(str(tmp_path))
    run.write("images/s/1-x/folder.png/x", b"x")
    run.write("images/file", b"x")
    run.write("data/torn.parquet", b"PAR1")
    run.write("data/s-1-x.tar", b"....")
    run.write("images/s/1-x/huge.png", png(0, (8, 8))[:16] + (60000).to_bytes(4) * 2 + png(0, (8, 8))[24:])
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["b"], "other": [1]}), sink)
    run.write("data/s-1-x.parquet", sink.getvalue())
    whole = {"id": "a", "prompt": "a", "num_steps": 5, "offset": None, "bytes": None} | row
    assert "no picture is there: run repair" in report_html({"run": "r"}, with_images(run, [whole]))


def test_a_picture_that_is_gone_is_a_placeholder_and_breaks_no_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    run.write("images/s/1-x/good.png", png(0))
    run.write("images/s/1-x/torn.png", png(0)[:40])
    rows = [
        {"id": name, "prompt": name, "num_steps": 5, "uri": f"images/s/1-x/{name}.png", "offset": None}
        for name in ("good", "torn", "gone")
    ]
    rows.append({"id": "packed", "prompt": "packed", "num_steps": 5, "uri": "data/s-1-x.parquet#a.png", "offset": None})
    shown = with_images(run, rows)
    assert [row["image"] is None for row in shown] == [False, False, True, True]
    page = report_html({"run": "spring"}, shown)
    assert page.count("data:image/jpeg;base64,") == 1
    assert page.count("no picture is there: run repair") == 3
    assert "gone: its picture cannot be shown" in caplog.text
