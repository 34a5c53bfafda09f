"""The console is no single point of failure: streams closed, full or without a reader, a terminal that goes."""

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.steps import demo_run
from jobs.terminal.console import Console, LastingStream
from jobs.terminal.interrupts import Interrupted, Interrupts, leave_on_signals
from jobs.terminal.progress import ProgressLine
from tests.test_progress import State

ROOT = Path(__file__).parent.parent


class Failing(io.StringIO):
    """A stream whose every write fails."""

    def __init__(self, error: Exception, at: str) -> None:
        super().__init__()
        self.error, self.at = error, at

    def write(self, text: str) -> int:
        if self.at == "write":
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.at == "flush":
            raise self.error


LOSSES = [
    OSError(28, "No space left on device"),
    BrokenPipeError(32, "Broken pipe"),
    OSError(5, "Input/output error"),
    OSError(9, "Bad file descriptor"),
    ValueError("I/O operation on closed file."),
]


@pytest.mark.parametrize("at", ["write", "flush"])
@pytest.mark.parametrize("error", LOSSES)
def test_nothing_that_is_said_ends_a_run(error: Exception, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = LastingStream(Failing(error, at))
    monkeypatch.setattr(sys, "stdout", held)
    console = Console(held)  # type: ignore[arg-type]
    console.is_terminal = True
    console.say("a note")
    console.draw("a line")
    ProgressLine(console, 50)(State(total=3, done=3))
    logging.getLogger("jobs.test").handle(logging.LogRecord("jobs", 30, "", 0, "a record", (), None))
    console.result({"status": "done"}, "done")
    console.clear()
    print("as Ray prints", file=held)
    assert held.lost


def test_a_stream_that_lasts_says_all_of_it() -> None:
    stream = io.StringIO()
    held = LastingStream(stream)
    assert (held.write("abc"), held.lost, stream.getvalue()) == (3, False, "abc")
    assert held.isatty() is False
    assert held.encoding == stream.encoding


def run(command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    whole = f"exec {sys.executable} -m jobs {command}"
    return subprocess.run(["/bin/sh", "-c", whole], cwd=ROOT, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("schema >/dev/full", 0),
        ("schema --json >/dev/full", 1),
        ("schema >&-", 0),
        ("schema --json >&- 2>&- <&-", 0),
        ("nonsense 2>/dev/full", 2),
        ("nonsense 2>&-", 2),
        ("validate none.yaml 2>/dev/full >/dev/full", 2),
    ],
)
def test_exit_codes_without_streams(command: str, code: int) -> None:
    found = run(command)
    assert (found.returncode, "Traceback" in found.stderr, "Exception" in found.stderr) == (code, False, False)


def test_a_closed_descriptor_is_not_given_to_the_next_file() -> None:
    script = (
        "from jobs.terminal.console import hold_streams; import os, tempfile\n"
        "hold_streams(); print('lost'); file = tempfile.TemporaryFile()\n"
        "assert file.fileno() > 2 and os.path.samestat(os.fstat(1), os.stat(os.devnull))"
    )
    command = ["/bin/sh", "-c", f'exec {sys.executable} -c "$0" >&- <&-', script]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m jobs schema --json 2>&1 | head -c 1; true"
    found = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("{", "")


@pytest.fixture
def own_handlers() -> Any:
    """Signal handlers as they were."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_terminal_that_closes_ends_what_has_not_begun(own_handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    leave_on_signals()
    with pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signal.SIGHUP)
    assert caught.value.exit_code == 129


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_terminal_that_closes_asks_a_run_to_finish_however_often_it_says_so(times: int, own_handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Interrupts(Console(io.StringIO()), "again") as interrupts:
        interrupts.graceful = True
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGHUP)
        assert (interrupts.stop.is_set(), interrupts.exit_code) == (True, 129)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_after_ctrl_c_a_closing_terminal_does_not_end_it_at_once(own_handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Interrupts(Console(io.StringIO()), "again") as interrupts:
        interrupts.graceful = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.exit_code == 130


@pytest.mark.parametrize("install", [leave_on_signals, lambda: Interrupts(Console(io.StringIO()), "").__enter__()])
def test_under_nohup_a_closing_terminal_stays_ignored(install: Callable[[], Any], own_handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    install()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize("numbers", [(signal.SIGHUP, signal.SIGTERM), (signal.SIGHUP, signal.SIGINT)])
def test_who_asks_again_is_obeyed_at_once_without_a_terminal(numbers: tuple[int, int]) -> None:
    script = (
        "import os, signal, time\n"
        "from jobs.terminal.console import Console, hold_streams\n"
        "from jobs.terminal.interrupts import Interrupts\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # whoever started the tests may have it ignored
        "hold_streams()\n"
        "with Interrupts(Console(), 'again') as interrupts:\n"
        "    interrupts.graceful = True\n"
        f"    os.kill(os.getpid(), {int(numbers[0])}); os.kill(os.getpid(), {int(numbers[1])}); time.sleep(60)"
    )
    command = ["/bin/sh", "-c", f'exec {sys.executable} -c "$0" 2>/dev/full', script]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 128 + numbers[1]


def test_rays_processes_do_not_hear_a_terminal_that_closes() -> None:
    from jobs.terminal.connect_ray import _deaf_children

    with _deaf_children():
        child = subprocess.Popen(["/bin/sleep", "30"])
    child.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.kill()
    assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("code", [129, 130, 143])
def test_a_demo_that_was_interrupted_begins_no_second_run(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(demo_run, "run_job", lambda *given: runs.append(given) or code)
    assert demo_run.run_demo(Console(io.StringIO()), (), 1, False) == code
    assert len(runs) == 1
