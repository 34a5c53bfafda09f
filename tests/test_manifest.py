"""What a manifest says of a row."""

import numpy as np
import pyarrow as pa
import pytest

from actors.rows import Picture, SamplerConfig
from pipelines.render.keys import render_key
from pipelines.render.manifest_rows import failed_row, ok_row, with_place
from pipelines.render.sink import Sink, Stored, encoder_name
from pipelines.render.tries import RowTries, Try
from pipelines.run.layout import Attempt, RunFolder
from pipelines.run.schema import manifest_schema
from tests.plans import CARRIED, typed_row

ATTEMPT = Attempt("0002-000007", 3, "0badcafe")
RENDER_CLASS = "abcd/cpu-avx512-1t/float32/16x16-4lanes-8decode/ddim/torch-2"
SAMPLER = SamplerConfig("")
KEYS = {"render_key": "key", "plan_key": "other"}
SINK = Sink(RunFolder("run"), "0002-000007", ATTEMPT, "files", "png")


def full_row(**values):
    return typed_row(1, **values)


def ok():
    picture = Picture(np.zeros((16, 16, 3), np.uint8), 4, 0.25, RENDER_CLASS, truncated=True)
    stored = Stored("images/x.png", None, 10, "00ff")
    return ok_row(RowTries(full_row(), done=[Try(1001, picture)]), stored, KEYS, SINK)


def test_rows_fit_the_one_schema_and_keep_what_is_carried():
    table = pa.Table.from_pylist(
        [ok(), failed_row(full_row(), "0002-000007", ATTEMPT, "ValueError", "no")], schema=manifest_schema(CARRIED)
    )
    good, bad = table.to_pylist()
    assert (good["status"], good["lane_steps"], good["seconds"], good["truncated"]) == ("ok", 4, 0.25, True)
    assert (good["attempts"], good["plan_version"], good["revision"]) == (3, "0002.0", 0)
    assert good["tries"] == [{"seed": 1001, "num_steps": 2, "scores": [], "uri": None}]
    assert (good["render_key"], good["plan_key"]) == ("key", "other")
    assert good["note"] == bad["note"] == "note 1"
    assert (bad["status"], bad["error_type"], bad["error_message"], bad["uri"]) == ("failed", "ValueError", "no", None)


def test_the_render_class_of_stored_bytes_names_their_encoder():
    assert ok()["render_class"] == f"{RENDER_CLASS}/{encoder_name('png')}"
    picture = Picture(np.zeros((16, 16, 3), np.uint8), 4, 0.25, RENDER_CLASS, truncated=True)
    unstored = ok_row(RowTries(full_row(), done=[Try(1001, picture)]), Stored(), KEYS, SINK)
    assert unstored["render_class"] == RENDER_CLASS


def test_a_packed_row_gets_its_place():
    row = with_place(ok(), {"r0001": ("data/s.tar#r0001.png", 512)})
    assert (row["uri"], row["offset"]) == ("data/s.tar#r0001.png", 512)
    assert with_place(ok(), {})["uri"] == "images/x.png"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "other"},
        {"negative_prompt": ""},
        {"seed": 5},
        {"guidance_scale": 2.0},
        {"width": 24},
        {"num_steps": 9},
    ],
)
def test_the_key_follows_whatever_changes_the_picture(change):
    key = render_key(full_row(), RENDER_CLASS, SAMPLER)
    assert render_key(full_row(**change), RENDER_CLASS, SAMPLER) != key


def test_the_key_follows_model_and_solver_but_not_the_machine():
    key = render_key(full_row(), RENDER_CLASS, SAMPLER)
    elsewhere = "abcd/nvidia-h100/float32/16x16-32lanes-1decode/ddim/torch-3"
    assert render_key(full_row(id="other"), elsewhere, SAMPLER) == key
    assert render_key(full_row(), RENDER_CLASS.replace("abcd", "ef01"), SAMPLER) != key
    assert render_key(full_row(), RENDER_CLASS, SamplerConfig("", solver="dpmpp_2m")) != key
