"""Pictures to bytes, and where each layout puts them."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.render import sink as sinks
from pipelines.render.sink import FORMATS, Sink, encode_image, encoder_name
from pipelines.run.layout import Attempt, RunFolder
from pipelines.run.schema import planned_row

ATTEMPT = Attempt("0001-000000", 2, "0badcafe")


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 16, 3), dtype=np.uint8)


def sink(tmp_path, layout: str, image_format: str = "png") -> Sink:
    return Sink(RunFolder(str(tmp_path)), "0001-000000", ATTEMPT, layout, image_format)


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_lossless_formats_keep_every_pixel(image_format):
    data = encode_image(picture(), image_format)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), picture())


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (5, 1, 3), (24, 16, 3), (65, 33, 3)])
@pytest.mark.parametrize("kind", ["noise", "flat", "layers turned"])
def test_the_fast_png_is_a_png_with_the_same_pixels(shape, kind):
    assert sinks.isal_zlib is not None, "the tests install what the project names"
    image = np.random.default_rng(shape[0]).integers(0, 256, shape, dtype=np.uint8)
    image = {"noise": image, "flat": np.full(shape, 255, np.uint8), "layers turned": image[::-1, ::-1, ::-1]}[kind]
    with Image.open(io.BytesIO(encode_image(image, "png"))) as opened:
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        opened.verify()  # checksums of all chunks
    with Image.open(io.BytesIO(encode_image(image, "png"))) as opened:
        assert np.array_equal(np.asarray(opened), image)


def test_without_isal_pillow_makes_the_png_and_the_render_class_says_so(monkeypatch):
    fast, name = encode_image(picture(), "png"), encoder_name("png")
    monkeypatch.setattr(sinks, "isal_zlib", None)
    slow = encode_image(picture(), "png")
    assert name.startswith("png-isal-")
    assert encoder_name("png").startswith("png-pillow-")
    assert fast != slow
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(data))) for data in (fast, slow)))


def test_jpeg_is_close_on_what_is_smooth():
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], 16, 1).repeat(3, 2)
    decoded = np.asarray(Image.open(io.BytesIO(encode_image(ramp, "jpeg")))).astype(int)
    assert np.abs(decoded - ramp).max() <= 4


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_same_picture_gives_the_same_bytes(image_format):
    assert encode_image(picture(), image_format) == encode_image(picture(), image_format)


def test_files_are_written_at_once_under_the_attempts_own_keys(tmp_path):
    target = sink(tmp_path, "files")
    stored = target.put(planned_row({"id": "Strange ID/.."}), picture())
    name = RunFolder.image_name("Strange ID/..")
    assert stored.uri == f"images/0001-000000/2-0badcafe/{name}.png"
    data = target.run.read(stored.uri)
    assert (stored.num_bytes, stored.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert target.close() == {}


def test_a_tar_is_a_webdataset_and_its_offsets_are_the_bytes(tmp_path):
    target = sink(tmp_path, "webdataset")
    rows = [planned_row({"id": i, "prompt": f"fox {i}", "seed": 4}) for i in "cab"]
    stored = {row.id: target.put(row, picture(n)) for n, row in enumerate(rows)}
    assert list(target.run.walk("data")) == []  # nothing before the shard is whole
    places = target.close()
    data = target.run.read("data/0001-000000-2-0badcafe.tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["a.png", "a.json", "b.png", "b.json", "c.png", "c.json"]
        assert json.loads(tar.extractfile("b.json").read()) == {"id": "b", "prompt": "fox b", "seed": 4}
    for i, (uri, offset) in places.items():
        assert uri == f"data/0001-000000-2-0badcafe.tar#{i}.png"
        assert hashlib.sha256(data[offset : offset + stored[i].num_bytes]).hexdigest() == stored[i].sha256


def test_parquet_holds_a_row_a_picture(tmp_path):
    target = sink(tmp_path, "parquet", "jpeg")
    stored = target.put(planned_row({"id": "a", "prompt": "fox"}), picture())
    assert target.close() == {"a": ("data/0001-000000-2-0badcafe.parquet#a.jpg", None)}
    (row,) = pq.read_table(tmp_path / "data/0001-000000-2-0badcafe.parquet").to_pylist()
    assert (row["id"], row["prompt"]) == ("a", "fox")
    assert hashlib.sha256(row["image"]).hexdigest() == stored.sha256


def test_none_stores_nothing(tmp_path):
    target = sink(tmp_path, "none")
    stored = target.put(planned_row({"id": "a"}), picture())
    assert (stored.uri, stored.num_bytes, stored.sha256) == (None, None, None)
    assert target.close() == {}
    assert list(target.run.walk()) == []


@pytest.mark.parametrize("layout", ["files", "webdataset"])
def test_a_loser_deletes_what_it_wrote_and_nothing_else(tmp_path, layout):
    winner = Sink(RunFolder(str(tmp_path)), "0001-000000", Attempt("0001-000000", 1, "feedface"), layout, "png")
    loser = sink(tmp_path, layout)
    for target in (winner, loser):
        target.put(planned_row({"id": "a", "prompt": "fox"}), picture())
        target.close()
    loser.discard()
    assert [key for key, _ in winner.run.walk() if "0badcafe" in key] == []
    assert sorted(key for key, _ in winner.run.walk()) == sorted(winner.keys)
