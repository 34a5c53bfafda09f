"""What Ray would trip over is one line with the remedy, before it is started."""

import errno
import http.server
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.job_file.positions import ConfigError
from jobs.terminal.surroundings import check_address, check_temporary_folder, upload_fault, uploaded_files

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("jobs.terminal.surroundings.TIMEOUT_S", 1.0)


def said(error: pytest.ExceptionInfo[ConfigError]) -> str:
    (fault,) = error.value.faults
    assert "\n" not in fault.message
    return str(fault)


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("folder", ["/tmp/" + "a" * 60, "/tmp/" + "ü" * 25, "/scratch/users/" + "b" * 30])
def test_a_temporary_folder_too_long_for_sockets(name: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, folder)
    with pytest.raises(ConfigError) as error:
        check_temporary_folder()
    assert f"{name}: {folder} is too long" in said(error)
    assert "RAY_TMPDIR=/tmp" in said(error)


@pytest.mark.parametrize("folder", ["/proc/ray", "/dev/null", "/sys"])
def test_a_temporary_folder_that_cannot_be_written(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "a" * 60)  # the first one counts
    with pytest.raises(ConfigError) as error:
        check_temporary_folder()
    assert f"RAY_TMPDIR: {folder}/ray cannot be written" in said(error)


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("folder", ["", "tmp", "./ray", "~/tmp"])
def test_a_temporary_folder_that_is_no_absolute_path(
    name: str, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, folder)
    with pytest.raises(ConfigError) as error:
        check_temporary_folder()
    assert f"{name}: {folder!r} is no absolute path" in said(error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_user_left_where_ray_puts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set in the environment: it is /tmp/ray, or here what stands for /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "ray").write_text("no folder")
        monkeypatch.setattr("jobs.terminal.surroundings.get_default_system_temp_dir", lambda: folder)
        with pytest.raises(ConfigError) as error:
            check_temporary_folder()
    assert f"Ray's folder: {folder}/ray cannot be written (File exists); set RAY_TMPDIR" in said(error)


def test_a_folder_on_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(dir: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr("jobs.terminal.surroundings.tempfile.TemporaryFile", full)
    with pytest.raises(ConfigError) as error:
        check_temporary_folder()
    assert "/tmp/ray cannot be written (No space left on device)" in said(error)


def test_a_good_temporary_folder_or_none_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp")
    check_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp/" + "a" * 60)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_temporary_folder()


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://head:8265", "head"),
        ("https://ray.example.com:443/", "ray.example.com"),
        ("http://10.0.0.1:8265/jobs", "10.0.0.1"),
        ("http://head", "head"),
        ("https://user@head/ray/#/jobs", "head"),
        ("http://[fe80::1]:8265", "[fe80::1]"),
        ("http://", "host"),
    ],
)
def test_the_address_of_a_dashboard(address: str, host: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert "that is the address of a dashboard" in said(error)
    assert f"give {host}:6379, ray://{host}:10001 or auto" in said(error)


@pytest.mark.parametrize("address", ["redis://head:6379", "tcp://head:6379", "grpc://head:10001"])
def test_an_address_of_another_protocol(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert "no address of Ray's; give head:6379, ray://head:10001 or auto" in said(error)


@pytest.mark.parametrize(
    "address", ["head", "ray://head", ":6379", "head:", "head:port", "ray://", "10.0.0.1:-1", "LOCAL"]
)
def test_an_address_without_host_or_port(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert "no address of Ray's; give host:port, ray://host:port or auto" in said(error)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of one who accepts and says nothing."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def web() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("other", ["silent", "web"])
def test_a_port_where_something_else_listens(other: str, scheme: str, request: pytest.FixtureRequest) -> None:
    port = request.getfixturevalue(other)
    with pytest.raises(ConfigError) as error:
        check_address(f"{scheme}127.0.0.1:{port}")
    assert "is no Ray cluster, or hangs" in said(error)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "no.such.host.invalid:6379"),
        *("127.0.0.1:99999", "a..b:6379", f"{'x' * 70}.invalid:6379", "two words:6379"),
    ],
)
def test_a_port_where_nobody_listens(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert "no Ray cluster answers" in said(error)


@pytest.mark.parametrize("left", [b"127.0.0.1:1\n", b" 127.0.0.1:1 ", "folder", b"\xff\xfe", b""])
def test_what_ray_start_left_behind(left: bytes | str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`auto` is read where Ray reads it, in the folder that the environment names; what cannot be read is Ray's."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    place = tmp_path / "ray" / "ray_current_cluster"
    place.parent.mkdir()
    place.mkdir() if isinstance(left, str) else place.write_bytes(left)
    if isinstance(left, bytes) and b"1" in left:
        with pytest.raises(ConfigError) as error:
            check_address("auto")
        assert "--address auto: no Ray cluster answers: 127.0.0.1:1" in said(error)
    else:
        check_address("auto")


def test_auto_means_the_environments_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(ConfigError) as error:
        check_address("auto")
    assert "--address auto: that is the address of a dashboard" in said(error)


@pytest.mark.ray
def test_a_real_cluster_passes(ray_cluster) -> None:
    check_address(ray_cluster.get_runtime_context().gcs_address)


def test_the_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na red circle\n")
    job = tmp_path / "job.yaml"
    job.write_text(f"input: {{path: {tmp_path}/p.csv}}\nsteps: {{selector: words}}\noutput: {{path: {tmp_path}/out}}\n")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert main(["validate", str(job)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: --address http://head:8265: that is the address of a dashboard")
    assert captured.err.count("\n") == 1


UPLOAD = """
import sys
from pathlib import Path
import ray._private.runtime_env.packaging as packaging
import jobs.terminal.connect_ray
from jobs.job_file.positions import ConfigError

packaging.GCS_STORAGE_MAX_SIZE = 1_000_000
jobs.terminal.connect_ray.ROOT = Path(sys.argv[2])
try:
    jobs.terminal.connect_ray.start_ray(sys.argv[1])
except ConfigError as error:
    print(error.faults[0])
"""


@pytest.mark.ray
def test_ray_refuses_a_working_directory_that_is_too_large(ray_cluster, tmp_path: Path) -> None:
    """The real upload to a real cluster, with a limit of a megabyte in place of Ray's half a gigabyte."""
    (tmp_path / "weights.bin").write_bytes(os.urandom(2_000_000))
    address = ray_cluster.get_runtime_context().gcs_address
    command = [sys.executable, "-c", UPLOAD, address, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith(f"{tmp_path}: Ray could not bring the working directory to the cluster"), done.stderr
    assert "It holds 2 MB, and 1 MB may be uploaded, packed; the largest: weights.bin 2 MB" in done.stdout
    assert done.stdout.count("\n") == 1


def test_what_is_too_large_to_be_uploaded_is_named(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("runs/\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "picture.png").write_bytes(b"0" * 9_000_000)
    (tmp_path / "weights.bin").write_bytes(b"0" * 5_000_000)
    (tmp_path / "job.yaml").write_text("x")
    assert [path.name for _, path in uploaded_files(tmp_path)][:1] == ["weights.bin"]
    (fault,) = upload_fault(tmp_path, "Failed to set up runtime environment.").faults
    assert "It holds 5 MB" in fault.message
    assert "weights.bin 5 MB" in fault.message
    assert "picture.png" not in fault.message
