"""Prints what a verb says: messages and one redrawn line on stderr, results on stdout. It sets up logging.

Under `--json` stdout carries one document and nothing else.
"""

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from typing import Any, TextIO

from jobs.job_file.errors import OURS


class LastingStream:
    """A standard stream that may fail without ending the run: a closed terminal, a full disk, a reader that left.

    lost: something was not written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = False

    def write(self, text: str) -> int:
        """As the stream's own."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As the stream's own."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, call: Callable[..., Any], *text: str) -> None:
        try:
            call(*text)
        except (OSError, ValueError):
            self.lost = True


def hold_streams() -> LastingStream:
    """Makes the standard streams of this process last; -> stdout.

    What is closed becomes the null device: else the next file or socket would have its number, and get what is said.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    out, err = (
        getattr(sys, name) or os.fdopen(number, "w", closefd=False) for number, name in ((1, "stdout"), (2, "stderr"))
    )
    held = LastingStream(out)
    sys.stdout, sys.stderr = held, LastingStream(err)  # type: ignore[assignment]
    return held


class Console(logging.Handler):
    """json: one document on stdout. debug: tracebacks and debug records. started: pictures are being made."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self.stream = stream or sys.stderr
        self.out = sys.stdout
        self.is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.json = self.debug = self.started = False
        self._line = ""
        self._lock = threading.RLock()

    def say(self, text: str) -> None:
        """Prints a message that stays, above the redrawn line."""
        with self._lock:
            line = self._line
            self.clear()
            self.stream.write(text + "\n")
            self.draw(line)

    def draw(self, line: str) -> None:
        """Replace the redrawn line, which is cut to the width; on a terminal only."""
        with self._lock:
            if self.is_terminal and line:
                width = shutil.get_terminal_size().columns
                self.stream.write(f"\r\x1b[2K{line if len(line) < width else line[: width - 2] + '…'}")
            self._line = line
            self.stream.flush()

    def clear(self) -> None:
        """Take the redrawn line away."""
        with self._lock:
            if self.is_terminal and self._line:
                self.stream.write("\r\x1b[2K")
            self._line = ""

    def result(self, document: dict[str, Any], text: str) -> None:
        """The verb's outcome on stdout: the document under `--json`, else the text."""
        self.clear()
        self.stream.flush()
        print(json.dumps(document, ensure_ascii=False) if self.json else text, file=self.out, flush=True)

    def alone_on_stdout(self) -> "redirect_stdout[TextIO]":
        """Whatever else prints in here, as Ray does, goes to stderr."""
        return redirect_stdout(self.stream)

    def log(self) -> None:
        """Send log records through this console: ours from INFO on, others' from WARNING on."""
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if self.debug else "%(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[self], force=True)
        for name in OURS:
            logging.getLogger(name).setLevel(logging.DEBUG if self.debug else logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """A log record as a message; a terminal that is gone must not end what it was told of."""
        with suppress(OSError, ValueError):
            self.say(self.format(record))
