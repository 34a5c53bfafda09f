"""How fast a picture becomes bytes, and how many: `python -m benchmarks.encode [--sizes 32 512 1024] [--write]`.

png is what jobs write (ISA-L where its package is there); Pillow's PNG stands beside it at two levels. One thread. The
picture is a smooth one with a little noise, as photographs are. Every lossless encoding is decoded and compared.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.measure import alternate, arguments, machine, markdown, ratio, report
from pipelines.render.sink import FORMATS, encode_image, encoder_name

LOSSLESS = ("png", "webp", "png, Pillow level 1", "png, Pillow default")


def photo_like(size: int) -> np.ndarray:
    """(size, size, 3) uint8: large soft shapes, and noise of up to 3 levels."""
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + draw.integers(-3, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


def pillow_png(image: np.ndarray, level: int) -> bytes:
    """PNG as Pillow makes it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", compress_level=level)
    return buffer.getvalue()


def encoders() -> dict[str, Callable[[np.ndarray], bytes]]:
    """By name."""
    ours: dict[str, Callable] = {name: functools.partial(encode_image, image_format=name) for name in FORMATS}
    return ours | {
        "png, Pillow level 1": functools.partial(pillow_png, level=1),
        "png, Pillow default": functools.partial(pillow_png, level=6),
    }


def is_exact(data: bytes, image: np.ndarray) -> bool:
    """Whether it decodes to the very pixels."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.array_equal(np.asarray(opened.convert("RGB")), image)


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 512, 1024], help="px")
    given = parser.parse_args()
    where, rows = machine(), []
    for size in given.sizes:
        image = photo_like(size)
        calls = max(1, 2**18 // size**2)
        sides = {name: functools.partial(_often, encode, image, calls) for name, encode in encoders().items()}
        turns = alternate(sides, given.repeats)
        for name, side in turns.items():
            data = side.values[0]
            assert name not in LOSSLESS or is_exact(data, image), name
            low, high = (1e3 * at / calls for at in (min(side.seconds), max(side.seconds)))
            each = 1e3 * side.median / calls
            speed = image.nbytes / 1e3 / each
            cells = [f"{size} px", name, f"{each:.3g} ({low:.3g} to {high:.3g})", speed, len(data)]
            rows.append([*cells, ratio(side, turns["png, Pillow level 1"])])
    columns = ("picture", "format", "ms, median (spread)", "MB/s of pixels", "bytes", "time / Pillow's PNG level 1")
    names = ", ".join(encoder_name(name) for name in FORMATS)
    table = f"Encoders: {names}; one thread, {given.repeats} turns.\n\n{markdown(columns, rows)}"
    report("encode", table, {"options": vars(given), "rows": rows}, where, given.write)


def _often(encode: Callable[[np.ndarray], bytes], image: np.ndarray, calls: int) -> bytes:
    for _ in range(calls):
        data = encode(image)
    return data


if __name__ == "__main__":
    main()
