"""What marks and signatures cost a picture, beside encoding alone: `python -m benchmarks.marks [--size 512] [--write]`.

As a worker does it: the marks are worded, the picture is encoded with them, and signed with a key of P-256, without a
time stamp. One thread; the prompt has 300 characters. Pixels of all sides are compared.
"""

import functools
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.encode import photo_like
from benchmarks.measure import alternate, arguments, machine, markdown, report
from pipelines.render.marks import Marks
from pipelines.render.signing import Signer, SigningConfig, read_credentials
from pipelines.render.sink import FORMATS, JPEG_MARK, encode_image
from tests.certificates import write_chain
from tests.plans import typed_row

MARKS = Marks(True, True, "stable-diffusion-v1-5", "0123456789abcdef")
CALLS = 10  # a turn


def sides(image: np.ndarray, image_format: str, signer: Signer) -> dict[str, Callable[[], bytes]]:
    """By name: encoding alone, with marks, with marks and a signature."""
    row = typed_row(1, prompt="a fox in the snow at dawn, " * 11, negative_prompt="blurred, low quality")

    def marked() -> bytes:
        return encode_image(image, image_format, MARKS.of(row, JPEG_MARK if image_format == "jpeg" else None))

    return {
        "encoded": functools.partial(encode_image, image, image_format),
        "and marked": marked,
        "and signed": lambda: signer.sign(marked(), FORMATS[image_format]),
    }


def pixels(data: bytes) -> np.ndarray:
    """As a reader sees them."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def _often(call: Callable[[], bytes]) -> bytes:
    for _ in range(CALLS):
        data = call()
    return data


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("--size", type=int, default=512, help="px")
    given = parser.parse_args()
    where, rows, image = machine(), [], photo_like(given.size)
    with tempfile.TemporaryDirectory() as folder:
        signer = Signer(read_credentials(SigningConfig(**write_chain(Path(folder)))))
    for image_format in FORMATS:
        turns = alternate(
            {name: functools.partial(_often, call) for name, call in sides(image, image_format, signer).items()},
            given.repeats,
        )
        alone = turns["encoded"]
        for name, side in turns.items():
            assert np.array_equal(pixels(side.values[0]), pixels(alone.values[0])), name
            more = statistics.median(a - b for a, b in zip(side.cpu_seconds, alone.cpu_seconds, strict=True))
            low, each, high = (1e3 * at / CALLS for at in (min(side.seconds), side.median, max(side.seconds)))
            size = len(side.values[0])
            cells = [1e3 * statistics.median(side.cpu_seconds) / CALLS, f"{1e3 * more / CALLS:+.2f}"]
            cells += [f"{each:.3g} ({low:.3g} to {high:.3g})", f"{size:,}", f"{size - len(alone.values[0]):+,}"]
            rows.append([image_format, name, *cells])
    columns = ("format", "what is done", "CPU ms a picture", "more", "ms, median (spread)", "bytes", "more bytes")
    what = f"Pictures of {given.size} px, one thread, {given.repeats} turns of {CALLS}; all sides have equal pixels."
    table = f"{what}\n\n{markdown(columns, rows)}"
    report("marks", table, {"options": vars(given), "rows": rows}, where, given.write)


if __name__ == "__main__":
    main()
