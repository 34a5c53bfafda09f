"""The progress line and how it is drawn; Ctrl-C in the middle of it."""

import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jobs.terminal.console import Console
from jobs.terminal.interrupts import Interrupted, Interrupts
from jobs.terminal.progress import ProgressLine, duration, progress_line, rate
from pipelines.render.driver import RowRate

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class State:
    """As `pipelines.render.driver.Progress`."""

    total: int = 1632
    done: int = 0
    failed: int = 0
    filtered: int = 0
    mean_steps: float | None = None
    images_per_second: float | None = None
    waiting: str | None = None
    starting_s: float | None = None
    eta_s: float | None = None


def test_filtered_rows_are_counted_where_there_are_any() -> None:
    assert "0 failed · 3 filtered" in progress_line(State(done=9, filtered=3), None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain() -> Console:
    return Console(io.StringIO())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm")
    return Console(Terminal())


def written(console: Console) -> str:
    assert isinstance(console.stream, io.StringIO)
    return console.stream.getvalue()


def test_the_whole_line() -> None:
    state = State(done=412, failed=2, mean_steps=21.34, images_per_second=3.4249, eta_s=356.2)
    assert progress_line(state, 50) == "412/1,632 images · 3.42 images/s · 21.3 steps, 57 % saved · 2 failed · ETA 5:56"


def test_at_the_start_nothing_is_made_up() -> None:
    assert progress_line(State(), 50) == "0/1,632 images · 0 failed"


def test_what_it_waits_for_takes_the_place_of_the_eta() -> None:
    line = progress_line(State(done=3, waiting="waiting for an actor of pool gpu (1 GPU)", eta_s=9.0), None)
    assert line.endswith("0 failed · waiting for an actor of pool gpu (1 GPU)")
    assert "ETA" not in line


def test_no_saving_is_claimed_where_there_is_none() -> None:
    assert "20.0 steps ·" in progress_line(State(done=1, mean_steps=20.0), 20)
    assert "60.0 steps ·" in progress_line(State(done=1, mean_steps=60.0), 50)
    assert "60.0 steps ·" in progress_line(State(done=1, mean_steps=60.0), None)


def test_the_last_line_has_no_eta() -> None:
    assert "ETA" not in progress_line(State(total=5, done=5, eta_s=0.0), None)


def test_a_start_is_called_a_start() -> None:
    line = progress_line(State(total=6, starting_s=7.6, waiting="waiting for a worker: loading the model"), 20)
    assert line == "6 images to make · starting, 0:08 so far: waiting for a worker: loading the model"
    assert progress_line(State(total=6, done=2, starting_s=7.6), 20).startswith("2/6 images")


def test_the_rate_leaves_the_start_out_and_the_end_is_told_once_it_means_something() -> None:
    now = 0.0
    rate_of = RowRate(lambda: now)
    told = []
    for now, done in ((0, 100), (30, 100), (31, 108), (33, 112), (40, 128), (41, 128)):  # noqa: B007
        rate = rate_of.of(done)
        told.append((rate, rate_of.left(200 - done, rate)))
    assert told == [(None, None)] * 3 + [(2.0, None), (20 / 9, None), (2.0, 36.0)]


def test_times_and_rates() -> None:
    assert [duration(s) for s in (0.2, 59.6, 61, 3599, 3725)] == ["0:00", "1:00", "1:01", "59:59", "1:02:05"]
    assert [rate(r) for r in (0.01234, 1.5, 123.4, 12345.6)] == ["0.0123", "1.5", "123", "12,346"]


def test_off_a_terminal_a_line_in_ten_seconds_and_the_last(plain: Console) -> None:
    now = 0.0
    line = ProgressLine(plain, 50, clock=lambda: now)
    for done in range(25):
        now = float(done)
        line(State(total=24, done=done))
    assert [text.split(" ")[0] for text in written(plain).splitlines()] == ["0/24", "10/24", "20/24", "24/24"]
    assert "\r" not in written(plain)


def test_off_a_terminal_what_it_waits_for_is_said_at_once(plain: Console) -> None:
    now = 0.0
    line = ProgressLine(plain, 50, clock=lambda: now)
    for second, waiting in enumerate([None, None, "waiting for a node", "waiting for a node", None]):
        now = float(second)
        line(State(done=second, waiting=waiting))
    assert [text.split(" ")[0] for text in written(plain).splitlines()] == ["0/1,632", "2/1,632"]
    assert "waiting for a node" in written(plain)


def test_the_same_state_is_not_said_twice(plain: Console) -> None:
    now = 0.0
    line = ProgressLine(plain, 50, clock=lambda: now)
    for _ in range(5):
        now += 60
        line(State(done=1))
    assert len(written(plain).splitlines()) == 1


def test_on_a_terminal_one_line_is_redrawn_and_fits(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    now = 0.0
    line = ProgressLine(terminal, 50, clock=lambda: now)
    for done in range(3):
        now += 1
        line(State(done=done, mean_steps=20.0, images_per_second=1.0, eta_s=100.0))
    drawn = written(terminal).split("\r\x1b[2K")[1:]
    assert len(drawn) == 3
    assert all(len(text) < 40 and text.endswith("…") for text in drawn)
    assert "\n" not in written(terminal)


def test_whatever_is_drawn_fits_one_line(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its first half stays on the screen when the next line is drawn."""
    monkeypatch.setenv("COLUMNS", "40")
    terminal.draw("reading s3://bucket/" + "a" * 40)
    assert written(terminal) == "\r\x1b[2Kreading s3://bucket/" + "a" * 18 + "…"


def test_with_the_first_state_pictures_are_being_made(plain: Console) -> None:
    line = ProgressLine(plain, 50)
    assert not plain.started
    line(State())
    assert plain.started


def test_a_message_stays_above_the_line(terminal: Console) -> None:
    terminal.draw("1/2 images")
    terminal.say("a note")
    assert written(terminal) == "\r\x1b[2K1/2 images\r\x1b[2Ka note\n\r\x1b[2K1/2 images"


def test_a_signal_where_nothing_is_in_flight_ends_at_once(plain: Console) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, Interrupts(plain, "python -m jobs run x") as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == interrupts.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_signal_of_a_render_asks_and_says_how_to_go_on(plain: Console) -> None:
    with Interrupts(plain, "python -m jobs run x.yaml") as interrupts:
        interrupts.graceful = True
        assert not interrupts.stop.is_set()
        assert interrupts.exit_code is None
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.stop.is_set()
        assert interrupts.exit_code == 130
    assert "go on later with: python -m jobs run x.yaml" in written(plain)
    assert "again to stop at once" in written(plain)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_the_process(number: int, code: int) -> None:
    script = (
        "import os, time; from jobs.terminal.console import Console; from jobs.terminal.interrupts import Interrupts\n"
        "with Interrupts(Console(), 'again') as interrupts:\n"
        "    interrupts.graceful = True\n"
        f"    os.kill(os.getpid(), {int(number)}); os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code
    assert "stopped at once" in done.stderr


def test_a_state_is_the_protocols() -> None:
    assert progress_line(replace(State(), done=1), None).startswith("1/1,632")
