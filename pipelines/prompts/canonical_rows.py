"""Makes canonical rows of a raw batch: reads values, names faults, derives ids and seeds, expands samples.

Pure, one batch at a time. A bad row stays a row, with its reason in error_type and error_message.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.run.schema import CANONICAL_FIELDS

KEY_BYTES = 16
MAX_SEED = 2**64 - 1  # of torch.Generator.manual_seed
EXACT = 2**53  # from here on a float is no longer every whole number
MAX_CHARACTERS = 100_000  # of a text; no encoder reads more than a hundred words, and a tokenizer reads them all
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,999})")  # Python reads no number of 4,301 digits
_TENTHS = re.compile(r"[+-]?(0|[1-9][0-9]*)\.[0-9]*")  # 42.0, as a column of floats is written
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
NUMBERS = ("seed", "guidance_scale", "width", "height", "num_inference_steps")


@dataclass(frozen=True)
class RowDefaults:
    """The values of a row that does not give its own, and which values it may give. Sizes in pixels."""

    guidance_scale: float
    width: int
    height: int
    allowed_steps: frozenset[int]
    size_multiple: int = 8
    max_size_px: int = 4096
    guidance_interval: tuple[float, float] | None = None  # of rows without a negative prompt


class RowFault(NamedTuple):
    """Why a row cannot be rendered."""

    type: str
    message: str


@dataclass
class RawBatch:
    """One batch as the user gave it. A number is an int, a float, or text that is no number; None: not given."""

    rows: int
    prompt: Sequence[str | None]
    negative_prompt: Sequence[str | None]
    category: Sequence[str | None]
    id: Sequence[str | None]
    seed: Sequence[Any]
    guidance_scale: Sequence[Any]
    width: Sequence[Any]
    height: Sequence[Any]
    num_inference_steps: Sequence[Any]
    faults: dict[int, RowFault] = field(default_factory=dict)  # by row; the first of each


@dataclass(frozen=True)
class Rules:
    """How the rows of one format are read. blank_is_null: an empty cell is no value, as in CSV."""

    defaults: RowDefaults
    samples: int  # images per prompt
    blank_is_null: bool = False


def read_raw(columns: Mapping[str, Any], rows: int, rules: Rules) -> RawBatch:
    """The canonical columns of a batch, checked."""
    faults: dict[int, RowFault] = {}

    def texts(name: str) -> Sequence[str | None]:
        if name not in columns:
            return [None] * rows
        found = [_text(value, name, row, faults) for row, value in enumerate(values_of(columns[name]))]
        return [value or None for value in found] if rules.blank_is_null and name != "prompt" else found

    def numbers(name: str) -> Sequence[Any]:
        if name not in columns:
            return [None] * rows
        exact, whole = _exact_below(columns[name]), name != "guidance_scale"
        return [_number(value, exact, whole) for value in values_of(columns[name])]

    given = RawBatch(
        rows=rows,
        prompt=texts("prompt"),
        negative_prompt=texts("negative_prompt"),
        category=texts("category"),
        id=[value or None for value in texts("id")],
        **{name: numbers(name) for name in NUMBERS},
        faults=faults,
    )
    _find_faults(given, rules)
    return given


def content_id(given: RawBatch, row: int, ordinal: int) -> str:
    """The id of a row that has none: a hash of its content as given and of how many equal rows came before it."""
    prompt, negative = given.prompt[row], given.negative_prompt[row]
    numbers = [column[row] for column in (given.seed, given.guidance_scale, given.width, given.height)]
    lengths = [None if text is None else len(text) for text in (negative, prompt)]
    content = f"{ordinal}|{numbers!r}|{lengths}|{negative or ''}{prompt or ''}"
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def content_hashes(given: RawBatch) -> list[int]:
    """(rows,) 63-bit hashes of all that a row gives about its picture, steps included; the highest bit is 0."""
    nothing = (None,) * len(NUMBERS)
    said_nothing = repr(nothing)
    hashes = []
    rows = zip(given.negative_prompt, given.prompt, *(getattr(given, name) for name in NUMBERS), strict=True)
    for negative, prompt, *numbers in rows:
        said = said_nothing if (row := tuple(numbers)) == nothing else repr(row)
        lengths = f"{'-' if negative is None else len(negative)}|{'-' if prompt is None else len(prompt)}"
        content = f"{said}|{lengths}|{negative or ''}{prompt or ''}".encode("utf-8", "surrogatepass")
        hashes.append(int.from_bytes(blake2b(content, digest_size=8, person=b"content").digest()) >> 1)
    return hashes


def id_key(row_id: str) -> bytes:
    """16 bytes that stand for an id."""
    return blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def derived_seed(row_id: str) -> int:
    """The seed of a row that has none: 32 bits of a hash of its id."""
    return int.from_bytes(blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=4, person=b"seed").digest())


def canonical_table(given: RawBatch, equal_rows: Mapping[int, int], rules: Rules, carried: pa.Table) -> pa.Table:
    """CANONICAL_FIELDS and the carried columns; each prompt becomes `samples` rows with ids and seeds of their own."""
    defaults = rules.defaults
    pinned = _usable(given, "seed", rules, None)
    scales = _usable(given, "guidance_scale", rules, None)
    faults = [given.faults.get(row, RowFault("", "")) for row in range(given.rows)]
    once = {
        "prompt_id": [name or content_id(given, row, equal_rows.get(row, 0)) for row, name in enumerate(given.id)],
        "prompt": given.prompt,
        "negative_prompt": given.negative_prompt,
        "category": given.category,
        "seed": pinned,
        "seed_pinned": [seed is not None for seed in pinned],
        "width": _usable(given, "width", rules, defaults.width),
        "height": _usable(given, "height", rules, defaults.height),
        "guidance_scale": [float(defaults.guidance_scale if scale is None else scale) for scale in scales],
        "guidance_pinned": [scale is not None for scale in scales],
        "num_inference_steps": _usable(given, "num_inference_steps", rules, None),
        "content_hash": content_hashes(given),
        "error_type": [fault.type for fault in faults],
        "error_message": [fault.message for fault in faults],
    }
    types = {column.name: column.type for column in CANONICAL_FIELDS}
    own = {name: carried[name] for name in carried.column_names}
    table = pa.table({name: pa.array(values, types[name]) for name, values in once.items()} | own)
    return _expanded(table, rules.samples)


def _expanded(table: pa.Table, samples: int) -> pa.Table:
    """prompt_id, seed or null -> id, sample, seed; a given seed counts up with the sample."""
    numbers = np.tile(np.arange(samples, dtype=np.int32), table.num_rows)
    if samples > 1:
        table = table.take(pa.array(np.repeat(np.arange(table.num_rows), samples)))
    prompt_ids, given_seeds = table["prompt_id"].to_pylist(), table["seed"].to_pylist()
    ids = prompt_ids if samples == 1 else [f"{name}-{number}" for name, number in zip(prompt_ids, numbers, strict=True)]
    seeds = [
        derived_seed(row_id) if seed is None else seed + int(number)
        for row_id, seed, number in zip(ids, given_seeds, numbers, strict=True)
    ]
    table = table.append_column("id", pa.array(ids, pa.string())).append_column("sample", pa.array(numbers))
    table = table.set_column(table.column_names.index("seed"), "seed", pa.array(seeds, pa.uint64()))
    names = [column.name for column in CANONICAL_FIELDS]
    return table.select(names + [name for name in table.column_names if name not in names])


def _usable(given: RawBatch, name: str, rules: Rules, default: Any) -> list[Any]:
    """The given numbers, with the default in place of those that cannot be used; the row's message names them."""
    return [
        default if value is None or (row in given.faults and number_fault(name, value, rules)) else value
        for row, value in enumerate(getattr(given, name))
    ]


def values_of(column: Any) -> list[Any]:
    """The column's Python values; bytes that are not UTF-8 become U+FFFD: some writers of Parquet do not check."""
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [
            None if value is None else value.decode("utf-8", "replace")
            for value in column.cast(pa.binary()).to_pylist()
        ]


def _text(value: Any, name: str, row: int, faults: dict[int, RowFault]) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= MAX_CHARACTERS):
        return value
    if value != value:  # NaN stands for no value
        return None
    if isinstance(value, str):
        rule = f"at most {MAX_CHARACTERS:,} characters long, not {len(value):,}"
        faults.setdefault(row, RowFault(f"Invalid{_TITLES[name]}", f"{name} must be {rule}"))
        return None
    if name in ("id", "category") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    faults.setdefault(row, RowFault(f"Invalid{_TITLES[name]}", f"{name} must be text, not {_shown(value)}"))
    return None


def _exact_below(column: Any) -> int:
    """The first whole number that floats of a column's type may confuse with its neighbours."""
    kind = column.type if isinstance(column, pa.Array | pa.ChunkedArray) else None
    kind = kind.value_type if kind is not None and pa.types.is_dictionary(kind) else kind
    if kind is not None and pa.types.is_float32(kind):
        return 2**24
    return 2**11 if kind is not None and pa.types.is_float16(kind) else EXACT


def _number(value: Any, exact_below: int = EXACT, whole: bool = False) -> Any:
    """int where it is whole, float where it is not, text where it is no number; None: not given, or NaN.

    A float from `exact_below` on stays one: which whole number it was is not known. whole: of a column of whole
    numbers, where text stays text that is not written as one, such as 007 and 1e3: it may have been something else.
    """
    if value is None or type(value) is int:
        return value
    if isinstance(value, str):
        return _number_in(value.strip(), whole)
    if isinstance(value, float):
        if value != value:
            return None
        return int(value) if value.is_integer() and abs(value) < exact_below else value
    return str(value)


def _number_in(text: str, whole: bool) -> Any:
    if not text or text.lower() == "nan":
        return None
    if _WHOLE.fullmatch(text):
        return int(text)
    if (_TENTHS if whole else _DECIMAL).fullmatch(text):
        return _number(float(text))
    return text


def _find_faults(given: RawBatch, rules: Rules) -> None:
    nothing = (None,) * len(NUMBERS)
    for row, prompt in enumerate(given.prompt):
        if not prompt or prompt.isspace():
            given.faults.setdefault(
                row, RowFault("InvalidPrompt", f"the prompt is {'null' if prompt is None else 'empty'}")
            )
    for row, numbers in enumerate(zip(*(getattr(given, name) for name in NUMBERS), strict=True)):
        if numbers != nothing:
            for name, value in zip(NUMBERS, numbers, strict=True):
                if value is not None and (fault := number_fault(name, value, rules)):
                    given.faults.setdefault(row, fault)


def number_fault(name: str, value: Any, rules: Rules) -> RowFault | None:
    """What is wrong with one given number, None where nothing is."""
    defaults, highest = rules.defaults, MAX_SEED - (rules.samples - 1)
    if name == "seed":
        good = isinstance(value, int) and 0 <= value <= highest
        kind, rule = "InvalidSeed", f"a whole number from 0 to {highest}"
        if not good and (why := _why_no_seed(value)):
            return RowFault(kind, f"seed must be {rule}, not {_shown(value)}: {why}")
    elif name == "guidance_scale":
        good = isinstance(value, int | float) and 0 <= value <= sys.float_info.max
        kind, rule = "InvalidGuidance", "a finite number of 0 or more"
    elif name == "num_inference_steps":
        good = value in defaults.allowed_steps
        kind, rule = "InvalidSteps", _steps_rule(defaults.allowed_steps)
    else:
        good = _is_size(value, defaults)
        step = defaults.size_multiple
        kind, rule = "InvalidSize", f"a multiple of {step} from {step} to {defaults.max_size_px}"
    return None if good else RowFault(kind, f"{name} must be {rule}, not {_shown(value)}")


def _why_no_seed(value: Any) -> str:
    """What an unusable seed most likely was, and what to write instead."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value)
        if abs(value) < EXACT:
            return "as it is written it may have been another number. Write plain digits"
    if isinstance(value, float) and value.is_integer():
        return "as a float it is no longer the number that was drawn. Write seeds as whole numbers"
    if value == -1:
        return "where any seed will do, leave it empty"
    return ""


def _steps_rule(allowed: frozenset[int]) -> str:
    if len(allowed) == max(allowed) - min(allowed) + 1:
        return f"a whole number from {min(allowed)} to {max(allowed)}"
    return f"one of the {len(allowed)} counts from {min(allowed)} to {max(allowed)} that this schedule has"


def _is_size(size: Any, defaults: RowDefaults) -> bool:
    whole = isinstance(size, int) and size % defaults.size_multiple == 0
    return whole and defaults.size_multiple <= size <= defaults.max_size_px


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_TITLES = {"prompt": "Prompt", "negative_prompt": "NegativePrompt", "category": "Category", "id": "Id"}
