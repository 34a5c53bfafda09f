"""Draws a contact sheet as one PNG.

It draws what it is given and reads no folder. The page in HTML is `jobs.pages.html`.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, GREY, PAPER, CARD, EDGE = "#1c1f23", "#6a7078", "#f4f3ef", "#ffffff", "#dddbd4"
SCALE_COLOURS = ((0x2A, 0x8D, 0x80), (0x3A, 0x6E, 0xA5), (0x4B, 0x45, 0x8C))  # few steps, some, many; none alarms
GAP_PX, MARGIN_PX, PAD_PX = 16, 32, 10
SHOWN_PX, BLOCKY_PX = 160, 64  # of a picture on the sheet; up to where its pixels are shown as they are
HEADER_PX = 96  # title, verdict and what is shown; the heads stand beneath
MOST_LINES, PROMPT_SIZE_PX, TITLE_SIZE_PX, LINE_PX, BADGE_PX = 6, 14, 26, 18, 20


@dataclass(frozen=True)
class Grid:
    """The sheet's measures in px: cards of pictures and their text, in columns. lines: of each row's longest text.

    picture: the room of one; a card has `abreast` of them.
    """

    columns: int
    picture: int
    abreast: int
    lines: tuple[int, ...]

    @property
    def width(self) -> int:
        """Of a card."""
        return self.abreast * (self.picture + PAD_PX) + PAD_PX

    def height(self, row: int) -> int:
        """Of the cards of a row."""
        return self.picture + 4 * PAD_PX + BADGE_PX + self.lines[row] * LINE_PX

    @property
    def size(self) -> tuple[int, int]:
        """Of the sheet."""
        width = 2 * MARGIN_PX + self.columns * (self.width + GAP_PX) - GAP_PX
        return width, self.top(len(self.lines)) - GAP_PX + MARGIN_PX

    def top(self, row: int) -> int:
        """Where a row of cards begins; the first lies beneath the header."""
        return MARGIN_PX + HEADER_PX + sum(self.height(above) + GAP_PX for above in range(row))

    def corner(self, index: int) -> tuple[int, int]:
        """Upper left of a card."""
        row, column = divmod(index, self.columns)
        return MARGIN_PX + column * (self.width + GAP_PX), self.top(row)


def contact_sheet(
    rows: Sequence[dict[str, Any]], title: str, subtitle: str = "", verdict: str = "", heads: Sequence[str] = ()
) -> bytes:
    """PNG bytes of a grid of rows (image bytes, prompt, num_steps), each with its prompt and its steps.

    A row with `beside`, other rows, shows their pictures to the right of its own. heads: what stands over each of
    them in every column; steps that a head names are not said again at each picture.
    """
    groups = [[row, *row.get("beside", ())] for row in rows]
    pictures = [[_enlarged(shown["image"]) for shown in group] for group in groups]
    abreast = max(map(len, groups), default=1)
    columns = max(3, min(8, math.ceil(math.sqrt(1.6 * max(1, len(rows)) / abreast))))
    side = max((max(picture.size) for group in pictures for picture in group), default=128)
    font, room = _font(PROMPT_SIZE_PX), abreast * (side + PAD_PX) - PAD_PX
    prompts = [wrapped(str(row["prompt"]), lambda text: font.getlength(text) <= room, MOST_LINES) for row in rows]
    longest = [max(map(len, prompts[at : at + columns])) for at in range(0, len(prompts), columns)]
    grid = Grid(columns, side, abreast, tuple(longest))
    sheet = Image.new("RGB", grid.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, MARGIN_PX - 6), title, INK, _font(TITLE_SIZE_PX))
    draw.text((MARGIN_PX, MARGIN_PX + 28), verdict, INK, _font(PROMPT_SIZE_PX + 2))
    draw.text((MARGIN_PX, MARGIN_PX + 50), subtitle, GREY, _font(PROMPT_SIZE_PX))
    for column in range(min(columns, len(rows))):
        _heads(draw, grid, column, heads)
    budgets = [shown["num_steps"] for group in groups for shown in group if shown.get("num_steps")]
    bounds = (min(budgets, default=1), max(budgets, default=1))
    for index, (group, some, lines) in enumerate(zip(groups, pictures, prompts, strict=True)):
        text_top = _card(sheet, draw, grid, index, some)
        left = grid.corner(index)[0] + PAD_PX
        for at, shown in enumerate(group):
            if shown.get("num_steps") and steps_text(shown["num_steps"]) not in heads:
                _badge(draw, (left + at * (side + PAD_PX), text_top), shown, bounds)
        draw.text((left, text_top + BADGE_PX + 6), "\n".join(lines), INK, font, spacing=4)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _heads(draw: ImageDraw.ImageDraw, grid: Grid, column: int, heads: Sequence[str]) -> None:
    left, top = grid.corner(column)
    for at, head in enumerate(heads):
        middle = left + PAD_PX + at * (grid.picture + PAD_PX) + grid.picture / 2
        draw.text((middle, top - 6), head, INK, _font(PROMPT_SIZE_PX + 1), anchor="ms")


def _enlarged(data: bytes) -> Image.Image:
    """About SHOWN_PX on a side: small pictures by a whole factor, tiny ones pixel by pixel, so that none is blurred."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    longest = max(picture.size)
    factor = max(1, round(SHOWN_PX / longest)) if longest < SHOWN_PX else SHOWN_PX / longest
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.NEAREST if longest <= BLOCKY_PX else Image.Resampling.LANCZOS)


def steps_text(num_steps: int) -> str:
    """`1 step`, `20 steps`."""
    return f"{num_steps} step{'s' if num_steps > 1 else ''}"


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size_px)


def _card(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, grid: Grid, index: int, pictures: Sequence[Image.Image]
) -> int:
    """Draws frame and pictures; where the text begins, in px from above."""
    left, top = grid.corner(index)
    width, height = grid.width, grid.height(index // grid.columns)
    draw.rounded_rectangle((left, top, left + width - 1, top + height - 1), 8, CARD, EDGE)
    for at, picture in enumerate(pictures):
        x = left + PAD_PX + at * (grid.picture + PAD_PX) + (grid.picture - picture.width) // 2
        sheet.paste(picture, (x, top + PAD_PX + (grid.picture - picture.height) // 2))
    return top + 2 * PAD_PX + grid.picture - 2


def _badge(draw: ImageDraw.ImageDraw, corner: tuple[int, int], shown: dict[str, Any], bounds: tuple[int, int]) -> None:
    font, num_steps, tries = _font(PROMPT_SIZE_PX - 1), shown["num_steps"], len(shown.get("tries") or ())
    text = steps_text(num_steps) + (f", {tries} tries" if tries > 1 else "")
    (left, top), width = corner, font.getlength(text) + 16
    draw.rounded_rectangle((left, top, left + width, top + BADGE_PX), 10, budget_colour(num_steps, bounds))
    draw.text((left + width / 2, top + BADGE_PX / 2), text, "#ffffff", font, anchor="mm")


def budget_colour(num_steps: int, bounds: tuple[int, int]) -> str:
    """Green for the least steps, blue between, violet for the most; bounds: the least and the most, in steps."""
    share = 2 * (num_steps - bounds[0]) / max(1, bounds[1] - bounds[0])
    low = min(1, int(share))
    mix = [round(a + (b - a) * (share - low)) for a, b in zip(*SCALE_COLOURS[low : low + 2], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mix)


def wrapped(text: str, fits: Any, most_lines: int) -> list[str]:
    """Lines that fit; a word or a text that is too long ends in an ellipsis."""
    lines: list[str] = []
    words = "".join(c if c.isprintable() else " " for c in text[:2000]).split()
    for index, word in enumerate(words):
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
        elif len(lines) == most_lines:
            return [*lines[:-1], _shortened(" ".join([lines[-1], *words[index:]]), fits)]
        else:
            lines.append(word if fits(word) else _shortened(word, fits))
    return lines


def _shortened(text: str, fits: Any) -> str:
    while text and not fits(text + "…"):
        text = text[:-1]
    return text.rstrip() + "…"
