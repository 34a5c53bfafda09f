"""What a picture's file says of itself: read back by other tools, exact for any prompt, and no pixel changed by it."""

import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager

from actors.rows import SamplerConfig
from actors.schedulers import SOLVERS
from actors.scorer import QualityScorer, ScorerConfig, ScorerSpec
from jobs.pages.html import thumbnail
from jobs.pages.totals import totals, with_images
from pipelines.integrity.verification import verify
from pipelines.render import sink as sinks
from pipelines.render.attempt import BusySpan, InlineExecutor, ShardAttempt, settled
from pipelines.render.manifest_rows import manifest_table
from pipelines.render.marks import MADE_BY_AI, SAMPLERS, VERSION, Marks, public_name
from pipelines.render.provenance import Provenance
from pipelines.render.quality import ShardScores
from pipelines.render.sink import FORMATS, LAYOUTS, Sink, encode_image
from pipelines.render.tries import TryRules
from pipelines.run.layout import RunFolder
from pipelines.run.plan import read_plan
from pipelines.run.schema import manifest_schema
from tests.finished import picture
from tests.marked import (
    MARKED,
    MARKS,
    exiftool,
    made_from,
    manifest,
    marked_run,
    parameters,
    rendered,
    stored,
    unpacked,
    xmp,
)
from tests.plans import CARRIED, typed_row
from tests.test_row_tries import BAR, brightness, painted

PROMPTS = {
    "quotes": "a \"fox\" in 'quotes' and `ticks`, \\back\\slashes\\",
    "newlines": "a fox\nand a hen\r\n\n  and an owl",
    "emoji": "a 🦊 and 日本語, é, ‮rtl",
    "latin": "ein Fuchs, müde",
    "long": "word " * 1000,
    "NULs": "a\0fox\0",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85\x9f\ufffe\uffff",
    "markup": "<fox a=\"1\">&amp; ]]> <?xpacket end='r'?> {braces} %s",
    "its own syntax": "a fox\nNegative prompt: none\nSteps: 3, Sampler: X, CFG scale: 1, Seed: 2, Size: 8x8",
    "blank": " ",
    "parameters": "parameters\0\0\0",
}


@pytest.mark.parametrize("layout", ["files", "webdataset"])
@pytest.mark.parametrize("image_format", FORMATS)
def test_exiftool_reads_both_marks(tmp_path: Path, layout: str, image_format: str) -> None:
    run = marked_run(tmp_path / "run", MARKED, layout, image_format)
    files = unpacked(run, layout, tmp_path / "out")
    assert len(files) == 3
    for row in manifest(run):
        found = exiftool(files[row["id"]])
        assert found["XMP-iptcExt:DigitalSourceType"] == MADE_BY_AI
        assert found["XMP-xmp:CreatorTool"] == f"stepthrift {VERSION}"
        assert found["XMP-iptcExt:AISystemUsed"] == "stepthrift"
        assert str(found["XMP-iptcExt:AISystemVersionUsed"]) == VERSION
        text = found["PNG:Parameters" if image_format == "png" else "ExifIFD:UserComment"]
        assert text == parameters(files[row["id"]].read_bytes())
        assert text.startswith(row["prompt"])


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("kind", ["quotes", "emoji", "latin", "long", "newlines"])
def test_another_projects_parser_gets_the_fields_back(tmp_path: Path, image_format: str, kind: str) -> None:
    """sd-parsers, which reads what the Stable Diffusion web UI writes."""
    run = marked_run(tmp_path / "run", MARKED, "files", image_format, ("a hen", PROMPTS[kind]))
    row = manifest(run)[1]  # the one with a negative prompt
    found = ParserManager().parse(str(tmp_path / "run" / row["uri"]))
    assert found is not None
    (sampler,) = found.samplers
    assert sampler.name == "DDIM"
    assert {name: float(sampler.parameters[name]) for name in ("steps", "cfg_scale", "seed")} == {
        "steps": row["num_steps"],
        "cfg_scale": row["guidance_scale"],
        "seed": row["seed"],
    }
    assert (sampler.model.name, sampler.model.hash) == ("sd15", "0123456789abcdef")
    assert [prompt.value for prompt in sampler.prompts] == [row["prompt"].strip()]
    assert [prompt.value for prompt in sampler.negative_prompts] == ["blurred, grey"]
    assert found.metadata["Size"] == "16x16"


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("kind", PROMPTS)
def test_any_prompt_comes_back_exactly(image_format: str, kind: str) -> None:
    row = typed_row(1, prompt=PROMPTS[kind], negative_prompt=PROMPTS[kind][::-1])
    data = encode_image(picture(row).image, image_format, MARKS.of(row))
    assert made_from(data) == {
        "prompt": row.prompt,
        "negative_prompt": row.negative_prompt,
        "steps": row.num_steps,
        "sampler": "DDIM",
        "guidance_scale": row.guidance_scale,
        "seed": row.seed,
        "width": 16,
        "height": 16,
        "model": "sd15",
        "model_hash": "0123456789abcdef",
    }
    text = parameters(
        data
    )  # where a reader would stop or refuse, a replacement character stands: nothing is lost after it
    assert len(text.rpartition("\nSteps: ")[0]) == len(f"{row.prompt}\nNegative prompt: {row.negative_prompt}")
    assert "\0" not in text
    if kind not in ("NULs", "controls", "parameters"):
        assert text.startswith(f"{row.prompt}\nNegative prompt: {row.negative_prompt}\nSteps: 2, Sampler: DDIM, ")


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_prompt_that_no_segment_takes_is_cut_and_says_so(tmp_path: Path, image_format: str) -> None:
    """The longest that a table may hold; a JPEG's segment takes 64 KB."""
    prompt = "🦊" * 100_000
    run = marked_run(tmp_path / "run", MARKED, "files", image_format, (prompt,))
    ((_, data),) = stored(run).items()
    found = made_from(data)
    if image_format != "jpeg":
        assert (found["prompt"], "cut" in found) == (prompt, False)
        return
    kept = len(found["prompt"])
    assert 10_000 < kept < 100_000
    assert found["prompt"] == prompt[:kept]
    assert found["cut"] == f"{kept} of 100000 characters"
    assert f"Prompt cut: {kept} of 100000 characters" in parameters(data)
    assert manifest(run)[0]["prompt"] == prompt


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("image_format", FORMATS)
def test_marks_change_no_pixel(image_format: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(sinks, "isal_zlib", None)
    row = typed_row(1, prompt=PROMPTS["emoji"])
    image = picture(row).image
    marked, plain = (encode_image(image, image_format, marks) for marks in (MARKS.of(row), None))
    assert marked != plain
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (marked, plain)]
    np.testing.assert_array_equal(*pixels)
    with Image.open(io.BytesIO(marked)) as opened:
        opened.verify()


@pytest.mark.parametrize("image_format", FORMATS)
def test_bytes_are_the_rows_whatever_the_company_the_order_the_layout_and_the_run(
    tmp_path: Path, image_format: str
) -> None:
    rows = [typed_row(i, prompt=PROMPTS["emoji"] + str(i)) for i in range(12)]
    sides: list[tuple[str, list[Any], Any]] = [
        ("files", rows, None),
        ("webdataset", rows[::-1], None),
        ("parquet", rows[3:], ThreadPoolExecutor(4)),
        ("files", rows[5:6], None),
    ]
    found = []
    for number, (layout, some, writers) in enumerate(sides):
        run = RunFolder(str(tmp_path / f"run{number}"))
        run.begin_attempt("0001-000000")  # one that died: the next has another number
        made = rendered(run, some, MARKED, layout, image_format, writers)
        found.append({row["id"]: row["sha256"] for row in made})
    assert len(found[0]) == len(set(found[0].values())) == 12
    for each in found[1:]:
        assert each == {id: found[0][id] for id in each}


def test_no_time_run_or_host_is_in_a_file(tmp_path: Path) -> None:
    run = marked_run(tmp_path / "secret-run")
    for data in stored(run).values():
        assert socket.gethostname().encode() not in data
        assert b"secret-run" not in data
        assert b"20" + b"26" not in data  # no date of any form


@pytest.mark.parametrize("image_format", FORMATS)
def test_each_mark_can_be_switched_off(tmp_path: Path, image_format: str) -> None:
    row = typed_row(1, prompt="a confidential fox", negative_prompt="confidential")
    image = picture(row).image
    sides = {(iptc, of): replace(MARKS, iptc=iptc, parameters=of) for iptc in (True, False) for of in (True, False)}
    data = {key: encode_image(image, image_format, marks.of(row)) for key, marks in sides.items()}
    assert data[False, False] == encode_image(image, image_format)
    assert set(xmp(data[True, False])) == {
        "Iptc4xmpExt:DigitalSourceType",
        "Iptc4xmpExt:AISystemUsed",
        "Iptc4xmpExt:AISystemVersionUsed",
        "xmp:CreatorTool",
    }
    for text in ("confidential", "sd15", "0123456789abcdef"):
        assert text.encode() not in data[True, False]
        assert text.encode("utf-16-be") not in data[True, False]
    assert set(xmp(data[False, True])) == {"stepthrift:madeFrom"}
    assert b"trainedAlgorithmicMedia" not in data[False, True]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s3://private-bucket/models/sd15/", "sd15"),
        ("s3://private-bucket", ""),
        ("s3://private-bucket/", ""),
        ("https://user-host/models/sdxl?token=abc", "sdxl"),
        ("owner/name", "name"),
        ("/home/somebody/project/v2", "v2"),
        ("file:///home/somebody/v3", "v3"),
    ],
)
def test_of_a_models_place_only_the_last_name_is_public(path: str, name: str) -> None:
    assert public_name(path) == name
    text = Marks(True, True, public_name(path), "00ff").of(typed_row(1)).parameters
    assert (f"Model: {name}, " if name else "Model hash: 00ff, Version") in text
    for private in ("private-bucket", "somebody", "user-host", "token", "owner"):
        assert private not in text


def test_a_models_name_with_what_separates_values_is_quoted() -> None:
    assert 'Model: "a, b: c", Version' in replace(MARKS, model="a, b: c").of(typed_row(1)).parameters


def test_every_solver_of_the_job_file_has_a_name() -> None:
    assert set(SAMPLERS) == set(SOLVERS)


def test_a_row_with_a_negative_prompt_is_guided_throughout_and_says_no_interval() -> None:
    marks, row = replace(MARKS, guidance_interval=(0.2, 0.8)), typed_row(1)
    said = [marks.of(each).xmp for each in (row, replace(row, negative_prompt="grey"))]
    assert [b'"guidance_interval": [0.2, 0.8]' in text for text in said] == [True, False]


def test_a_rows_own_recipe_wins() -> None:
    row = replace(typed_row(1), solver="dpmpp_2m", guidance_interval=[0.0, 0.5], negative_prompt="grey")
    found = replace(MARKS, guidance_interval=(0.2, 0.8)).of(row)
    assert "Sampler: DPM++ 2M, " in found.parameters
    assert b'"guidance_interval": [0.0, 0.5]' in found.xmp
    throughout = replace(MARKS, guidance_interval=(0.2, 0.8)).of(replace(typed_row(1), guidance_interval=[0.0, 1.0]))
    assert b"guidance_interval" not in throughout.xmp


def test_pictures_that_were_not_chosen_are_marked_with_their_own_seed(tmp_path: Path) -> None:
    run, shard = RunFolder(str(tmp_path)), "0001-000000"
    rows = [typed_row(i, bar=BAR) for i in range(20)]
    scorer = QualityScorer(ScorerConfig((ScorerSpec("bright", "function", function=brightness),)))
    sink = Sink(run, shard, run.begin_attempt(shard), "files", "png", MARKED)
    scores = ShardScores(scorer, rows, threading.Lock())
    work = ShardAttempt(rows, sink, SamplerConfig(""), BusySpan(), scores, TryRules(3, True))
    found = work.render(lambda row: settled(painted(row)), InlineExecutor())
    kept = [each for row in found for each in row["tries"] if each["uri"]]
    assert len(kept) > 5
    assert [made_from(run.read(each["uri"]))["seed"] for each in kept] == [each["seed"] for each in kept]
    assert [made_from(run.read(row["uri"]))["seed"] for row in found] == [row["seed"] for row in found]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("image_format", FORMATS)
def test_a_marked_run_is_clean_and_its_page_shows_it(tmp_path: Path, layout: str, image_format: str) -> None:
    run = marked_run(tmp_path / "run", MARKED, layout, image_format)
    checked = list(verify(run, 1))
    assert [each.findings for each in checked if each.findings] == []
    assert sum(each.equal for each in checked) == (0 if layout == "none" else 3)
    shown = with_images(run, totals(read_plan(run)).pictures)
    assert len([row for row in shown if thumbnail(row["image"])]) == (0 if layout == "none" else 3)


def test_the_render_class_says_which_version_marked() -> None:
    assert MARKED.byte_class == f"/marks-stepthrift-{VERSION}"
    assert Provenance().byte_class == ""


def test_marked_rows_fit_the_schema(tmp_path: Path) -> None:
    made = rendered(RunFolder(str(tmp_path)), [typed_row(1)])
    (row,) = manifest_table(made, manifest_schema(CARRIED)).to_pylist()
    assert row["render_class"].endswith(MARKED.byte_class)
    assert (row["signed_bytes"], row["signed_sha256"]) == (None, None)
