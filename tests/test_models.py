"""Where a checkpoint's folder comes from: this disk, an object store, the hub; and what never comes along."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.checkpoint import inspect_checkpoint
from pipelines.storage.checkpoints import fetch_model
from pipelines.storage.folder import Folder, StorageError, StorageOptions
from tests.inputs import MemoryFolder

COMPONENTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A small checkpoint of made-up weights in a store, and a cache of this test's own."""
    monkeypatch.setenv("STEPTHRIFT_CACHE", str(tmp_path / "cache"))
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        folder = Folder(f"s3://{server.bucket()}/models/tiny", StorageOptions(server.endpoint_url))
    else:
        folder = MemoryFolder(f"memory://{tmp_path.name}/models/tiny")
    folder.write("model_index.json", json.dumps({"_class_name": "StableDiffusionPipeline"}).encode())
    folder.write("scheduler/scheduler_config.json", b'{"prediction_type": "epsilon"}')
    folder.write("tokenizer/merges.txt", b"#version: 0.2\n")
    for number, (component, stem) in enumerate(COMPONENTS.items()):
        folder.write(f"{component}/config.json", b'{"sample_size": 8, "block_out_channels": [8, 8]}')
        folder.write(f"{component}/{stem}.safetensors", bytes(range(256)) * (1000 * number + 1500))
        folder.write(f"{component}/{stem}.fp16.safetensors", b"half " + component.encode())
        folder.write(f"{component}/{stem}.bin", b"a pickle")
    folder.write("v1-5-pruned.safetensors", b"a whole checkpoint in one file")
    return folder


def fetched(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_only_what_is_safe_and_wanted(remote: Folder) -> None:
    files = fetched(fetch_model(remote.url, options=remote.options))
    assert files["unet/diffusion_pytorch_model.safetensors"] == bytes(range(256)) * 1500
    assert files["tokenizer/merges.txt"] == b"#version: 0.2\n"
    assert files["unet/diffusion_pytorch_model.bin"] == b""
    assert files["unet/diffusion_pytorch_model.fp16.safetensors"] == b""
    assert files["v1-5-pruned.safetensors"] == b""


def test_a_variant(remote: Folder) -> None:
    files = fetched(fetch_model(remote.url, variant="fp16", options=remote.options))
    assert files["vae/diffusion_pytorch_model.fp16.safetensors"] == b"half vae"
    assert files["vae/diffusion_pytorch_model.safetensors"] == b""


def test_a_driver_without_weights_sees_the_same_checkpoint(remote: Folder) -> None:
    whole = fetch_model(remote.url, options=remote.options)
    bare = fetch_model(remote.url, options=remote.options, metadata_only=True)
    assert whole != bare
    assert inspect_checkpoint(bare).fingerprint == inspect_checkpoint(whole).fingerprint


def test_once_a_node(remote: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = Folder.read_range
    lock = threading.Lock()

    def count(self: Folder, key: str, start: int, end: int) -> bytes:
        with lock:
            reads.append(key)
        return real(self, key, start, end)

    monkeypatch.setattr(Folder, "read_range", count)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch_model(remote.url, options=remote.options), range(4)))
    assert len(set(folders)) == 1
    assert len(reads) == len(set(reads)) == 9
    reads.clear()
    assert fetch_model(remote.url, options=remote.options) == folders[0]
    assert reads == []
    remote.write("unet/diffusion_pytorch_model.safetensors", bytes(reversed(range(256))) * 1500)  # of the same size
    again = fetch_model(remote.url, options=remote.options)
    assert again != folders[0]
    assert fetched(again)["unet/diffusion_pytorch_model.safetensors"][0] == 255


def test_a_fetch_that_fails_leaves_nothing(remote: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "read_range", lambda self, key, start, end: b"short")
    with pytest.raises(StorageError, match="changed while it was read"):
        fetch_model(remote.url, options=remote.options)
    assert [file.suffix for file in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_no_model_there(remote: Folder) -> None:
    with pytest.raises(StorageError, match=r"there is no model at .*nothing"):
        fetch_model(remote.url + "/nothing", options=remote.options)


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fetch_model("model") == fetch_model(f"file://{tmp_path}/model") == str(tmp_path / "model")
    with pytest.raises(StorageError, match=r"no model at \./nothing"):
        fetch_model("./nothing")


def test_a_hub_id_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="not in the local cache"):
        fetch_model("nobody/no-such-model")


def test_a_hub_id_asks_for_safe_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[str, object] = {}

    def download(path: str, **options: object) -> str:
        asked.update(options, path=path)
        return "/snapshot"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch_model("owner/name", revision="abc", variant="fp16") == "/snapshot"
    assert (asked["path"], asked["revision"]) == ("owner/name", "abc")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert set(patterns) == {"*.json", "*.txt", "*.fp16.safetensors", "*.fp16-*.safetensors"}
