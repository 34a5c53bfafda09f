"""Splits CSV text into fields, and refuses text that shows another dialect than was configured (CsvFault).

Pure: lines in, fields out. It does not know where lines come from or what a column means.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

MOST_LINES = 50  # of a row that are looked at
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LONE_BACKSLASH = re.compile(r'\\(["\\])|\\')
_EXCEL = re.compile(r"sep=(.)\r?\n?")


@dataclass(frozen=True)
class Dialect:
    """How CSV is written. quotes, skip_spaces None: not configured, so text that needs them is refused.

    quotes: `doubled` ("a ""b"" c") or `backslash` ("a \"b\" c"). skip_spaces: spaces after a delimiter are no text.
    """

    delimiter: str = ","
    quotes: str | None = None
    skip_spaces: bool | None = None


class CsvFault(ValueError):
    """What is wrong at a line, and the remedy."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


def records(lines: Iterable[str], dialect: Dialect, longest_field: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each row that is not blank. CsvFault."""
    csv.field_size_limit(longest_field)
    watch = _DialectWatch(dialect)
    backslash = dialect.quotes == "backslash"
    reader = csv.reader(
        watch.lines(lines),
        delimiter=dialect.delimiter,
        skipinitialspace=bool(dialect.skip_spaces),
        escapechar="\\" if backslash else None,
        strict=True,
    )
    line, raw = 1, watch.raw
    try:
        for fields in reader:
            if watch.odd:
                watch.check(line, fields)
            if raw:
                raw.clear()
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise CsvFault(line, watch.reason(str(error))) from error


class _DialectWatch:
    """Checks the raw lines of each row for a dialect that was not configured."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        mark = re.escape(dialect.delimiter)
        self._spaced = re.compile(rf'{mark}[ ]+"')
        self._escaped = re.compile(rf'\\"(?!"|{mark}|\r?\n|$)')
        self.raw: list[str] = []  # of this row, those with quotes
        self.odd = False  # whether one of them may be of another dialect

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines for the reader, without a first line `sep=;`, which Excel reads."""
        lines, raw, backslash = iter(lines), self.raw, self.dialect.quotes == "backslash"
        first = next(lines, "")  # no line is "": it has its end
        if (said := _EXCEL.fullmatch(first)) and said[1] == self.dialect.delimiter:
            first = "\n"
        for line in chain([first] if first else [], lines):
            if '"' in line and len(raw) < MOST_LINES:
                raw.append(line)
                if ' "' in line or '\\"' in line:
                    self.odd = True
            if backslash and "\\" in line:
                line = _LONE_BACKSLASH.sub(lambda found: found[0] if found[1] else "\\\\", line)
            yield line

    def check(self, line: int, fields: Sequence[str]) -> None:
        """CsvFault where a row that could be read may mean something else."""
        self.odd = False
        if self._is_spaced() and any(_opens_after_spaces(field) for field in fields):
            raise CsvFault(line, _SPACED)
        if self._is_escaped():
            raise CsvFault(line, _ESCAPED)

    def reason(self, error: str) -> str:
        """The likely reason why a row could not be read."""
        if self._is_escaped() or (self.dialect.quotes is None and any('\\"' in raw for raw in self.raw)):
            return _ESCAPED
        if self._is_spaced():
            return _SPACED
        for mark, name in SEPARATORS.items():
            if mark != self.dialect.delimiter and any(re.search(rf'"{re.escape(mark)}"?', raw) for raw in self.raw):
                return separated_by(mark, name)
        return f"{error}. Its quotes do not match, or the file is torn"

    def _is_spaced(self) -> bool:
        return self.dialect.skip_spaces is None and any(self._spaced.search(line) for line in self.raw)

    def _is_escaped(self) -> bool:
        return self.dialect.quotes is None and any(self._escaped.search(line) for line in self.raw)


def _opens_after_spaces(field: str) -> bool:
    return field[:1] == " " and field.lstrip(" ")[:1] == '"'


def separated_by(mark: str, name: str) -> str:
    """Says which delimiter the text seems to have, and the key that sets it."""
    return f"it looks like {name} separate the columns. If so, set input.csv.delimiter: {mark!r}"


_SPACED = (
    "it looks like spaces stand between a comma and a quote, so that the quotes would be text. "
    "Set input.csv.skip_spaces: true, or false where they are text"
)
_ESCAPED = (
    "it looks like quotes inside a field are written with a backslash. "
    "Set input.csv.quotes: backslash, or doubled where the backslashes are text"
)
