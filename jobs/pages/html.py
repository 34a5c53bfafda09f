"""Writes report.html of a run: one self-contained page that escapes everything from outside."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from jobs.pages.contact_sheet import budget_colour
from pipelines.integrity.images import UNDECODABLE

THUMBNAIL_PX = 128
CHART_WIDTH_PX, CHART_HEIGHT_PX, LABEL_PX = 720, 180, 22
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1f23; background: #f4f3ef; max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem } .grey { color: #6a7078 }
table { border-collapse: collapse } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px }
.card { background: #fff; border: 1px solid #dddbd4; border-radius: 8px; padding: 8px; font-size: 13px;
  line-height: 1.35; overflow-wrap: anywhere }
.card img { width: 100%; display: block; border-radius: 4px; margin-bottom: 6px }
.others { color: #6a7078; margin-top: 6px } .card .others img { width: 40px; display: inline-block; margin: 0 3px 0 0 }
.badge { color: #fff; border-radius: 10px; padding: 1px 8px; font-size: 12px }
"""


def report_html(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The page: the summary's numbers, its `budget_histogram` as bars, its `failures`, and the rows' pictures."""
    histogram = {int(steps): int(count) for steps, count in (summary.get("budget_histogram") or {}).items()}
    shown = {key: value for key, value in summary.items() if not isinstance(value, Mapping | list | tuple)}
    parts = [
        f"<h1>{escape(str(summary.get('run', 'run')))}</h1>",
        f"<p class=grey>{escape(str(summary.get('status', '')))}</p>",
        _table((key.replace("_", " "), _number(value)) for key, value in shown.items() if key not in ("run", "status")),
    ]
    if histogram:
        parts += ["<h2>Steps</h2>", histogram_svg(histogram)]
    if summary.get("failures"):
        parts += ["<h2>Failed rows</h2>", _table((row["id"], _reason(row)) for row in summary["failures"])]
    if rows:
        bounds = (min(histogram, default=1), max(histogram, default=1))
        parts += ["<h2>Pictures</h2>", f"<div class=grid>{''.join(_card(row, bounds) for row in rows)}</div>"]
    head = f"<meta charset=utf-8><title>{escape(str(summary.get('run', 'run')))}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def histogram_svg(histogram: Mapping[int, int]) -> str:
    """Bars: rows by budget, in steps."""
    most, slot = max([*histogram.values(), 1]), CHART_WIDTH_PX / len(histogram)
    bounds, room = (min(histogram), max(histogram)), CHART_HEIGHT_PX - 2 * LABEL_PX
    bars = []
    for index, (steps, count) in enumerate(sorted(histogram.items())):
        height, middle = room * count / most, (index + 0.5) * slot
        top, width = LABEL_PX + room - height, min(48.0, 0.7 * slot)
        bars.append(
            f'<rect x="{middle - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" '
            f'fill="{budget_colour(steps, bounds)}"/>'
            f'<text x="{middle:.1f}" y="{top - 5:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text x="{middle:.1f}" y="{CHART_HEIGHT_PX - 6}" text-anchor="middle" fill="#6a7078">{steps}</text>'
        )
    view = f"0 0 {CHART_WIDTH_PX} {CHART_HEIGHT_PX}"
    return (
        f'<svg viewBox="{view}" width="100%" font-size="12" role="img" aria-label="rows by steps">{"".join(bars)}</svg>'
    )


def thumbnail(data: bytes) -> str | None:
    """A data URI of at most 128 px, small pictures enlarged; None where the bytes are no picture."""
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except UNDECODABLE:
        return None
    factor = THUMBNAIL_PX / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _card(row: Mapping[str, Any], bounds: tuple[int, int]) -> str:
    steps, image = int(row["num_steps"]), row["image"] and thumbnail(row["image"])
    shown = f'<img src="{image}" alt="">' if image else "<p class=grey>no picture is there: run repair</p>"
    tries = len(row.get("tries") or ())
    also = f", {tries} tries" if tries > 1 else ""
    badge = f'<span class=badge style="background:{budget_colour(steps, bounds)}">{steps} steps{also}</span>'
    return f"<div class=card>{shown}{badge} {escape(str(row['prompt'])[:500])}{_others(row)}</div>"


def _others(row: Mapping[str, Any]) -> str:
    """Small: the tries that were not chosen, where they are stored, each with its scores on hover."""
    shown = [
        f'<img src="{image}" alt="not chosen: {escape(scores)}" title="not chosen: {escape(scores)}">'
        for data, scores in row.get("others") or ()
        if (image := thumbnail(data))
    ]
    return f"<div class=others>not chosen: {''.join(shown)}</div>" if shown else ""


def _table(rows: Any) -> str:
    cells = (f"<tr><td class=grey>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _reason(row: Mapping[str, Any]) -> str:
    return f"{row.get('error_type')}: {row.get('error_message')}"[:500]


def _number(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return "–" if value is None else f"{value:,}"
