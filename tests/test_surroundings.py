"""What Ray would trip over is one line with the remedy, before it is started."""

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.source import ConfigError
from jobs.surroundings import check_address, check_temporary_folder, upload_fault, uploaded_files


@pytest.fixture(autouse=True)
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("jobs.surroundings.TIMEOUT_S", 1.0)


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
    assert f"RAY_TMPDIR: {folder} cannot be written" in said(error)


def test_a_good_temporary_folder_or_none_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp")
    check_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp/" + "a" * 60)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_temporary_folder()


@pytest.mark.parametrize("address", ["http://head:8265", "https://ray.example.com:443/", "http://10.0.0.1:8265/jobs"])
def test_the_address_of_a_dashboard(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    host = address.partition("://")[2].partition(":")[0]
    assert f"give {host}:6379, ray://{host}:10001 or auto" in said(error)


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


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "no.such.host.invalid:6379"])
def test_a_port_where_nobody_listens(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert "no Ray cluster answers" in said(error)


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
