"""Draws a comparison as one SVG: quality against mean cost. It draws what it is given."""

from collections.abc import Sequence
from html import escape

from training.judge.compare import Evaluation
from training.judge.frontier import Interval, Point, Rule
from training.judge.spending import POLICY, Spending
from training.judge.tries import SINGLE

WIDTH_PX, HEIGHT_PX, LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 860, 520, 76, 214, 46, 56
INK, GREY, GRID, PAPER = "#1c1f23", "#6a7078", "#dddbd4", "#ffffff"
COLOURS = ("#d1495b", "#7a5195", "#3d7ea6", "#8a8d29", "#e08e2b", "#e377a2", "#5b8e7d", "#444b6e", "#9a7b5b")
POLICY_COLOUR, FIXED_COLOUR = "#0f7b6c", "#1c1f23"
LETTER_PX, LINE_PX = 6.5, 14
NUM_TICKS, FARTHEST = 5, 2.0  # costs beyond it are not drawn, unless one picture costs more


class _Frame:
    """Maps cost and quality to px."""

    def __init__(self, points: Sequence[Point]) -> None:
        costs, quality = [p.mean_cost for p in points], [p.mean_quality for p in points]
        self.low, self.high = (0.0, min(quality)), (max(costs) * 1.04, max(quality))
        room = 0.06 * (self.high[1] - self.low[1]) or 1.0
        self.low, self.high = (self.low[0], self.low[1] - room), (self.high[0], self.high[1] + room)

    def x(self, cost: float) -> float:
        share = (cost - self.low[0]) / (self.high[0] - self.low[0])
        return round(LEFT_PX + share * (WIDTH_PX - LEFT_PX - RIGHT_PX), 1)

    def y(self, quality: float) -> float:
        share = (quality - self.low[1]) / (self.high[1] - self.low[1])
        return round(HEIGHT_PX - BOTTOM_PX - share * (HEIGHT_PX - TOP_PX - BOTTOM_PX), 1)


def frontier_svg(found: Evaluation, title: str = "Quality against cost, held-out prompts") -> str:
    """Fixed budgets in black with their steps, the policy with its intervals, every other rule in a colour."""
    shown = [rule for rule in found.rules if rule.points]
    limit = max(point.mean_cost for point in found.fixed.points) * 1.02
    frame = _Frame([p for rule in (found.fixed, found.policy, *shown) for p in rule.points if p.mean_cost <= limit])
    parts = [_axes(frame, title)]
    for rule, colour in zip(shown, _cycle(len(shown)), strict=True):
        parts.append(_rule(frame, rule, colour, limit))
    parts.append(_path(frame, found.curve.corners, FIXED_COLOUR, 2))
    for point in found.fixed.points:
        parts.append(_dot(frame, point, FIXED_COLOUR, 4))
        parts.append(_text(frame.x(point.mean_cost) + 6, frame.y(point.mean_quality) + 14, f"{point.setting:.0f}", INK))
    parts.append(_path(frame, found.policy.points, POLICY_COLOUR, 2.5))
    for point, gain in zip(found.policy.points, found.gains["policy"], strict=True):
        parts += [_whisker(frame, point, gain), _dot(frame, point, POLICY_COLOUR, 3.5)]
    entries = [("fixed budgets, mixed", FIXED_COLOUR), ("policy, 95 %", POLICY_COLOUR)]
    entries += [(rule.name, colour) for rule, colour in zip(shown, _cycle(len(shown)), strict=True)]
    parts.append(_legend(entries))
    return _svg(parts)


def spending_svg(found: Spending, title: str = "Quality against cost, another try included") -> str:
    """The policy with tries in bold, what a user would take instead as named dots, the other ways as thin lines."""
    single, others = found.rules[SINGLE], [r for name, r in found.rules.items() if name not in (SINGLE, POLICY)]
    limit = max(FARTHEST, max(point.mean_cost for point in single.points)) * 1.02
    every = [p for rule in found.rules.values() for p in rule.points if p.mean_cost <= limit]
    frame, unit = _Frame(every), found.references[0].point.name
    parts = [_axes(frame, title, f"mean cost of a row with all its tries (1: one picture of {unit})")]
    for rule, colour in zip(others, _cycle(len(others)), strict=True):
        parts.append(_rule(frame, rule, colour, limit))
    if POLICY in found.rules:
        ours = [point for point in found.rules[POLICY].points if point.mean_cost <= limit]
        parts += [_path(frame, ours, POLICY_COLOUR, 3), *(_dot(frame, point, POLICY_COLOUR, 3.5) for point in ours)]
    parts += [_dot(frame, point, FIXED_COLOUR, 4) for point in single.points] + _labels(frame, single.points)
    entries = [(POLICY, POLICY_COLOUR)] if POLICY in found.rules else []
    entries += [(SINGLE, FIXED_COLOUR), *zip((rule.name for rule in others), _cycle(len(others)), strict=True)]
    parts.append(_legend(entries))
    return _svg(parts)


def _labels(frame: _Frame, points: Sequence[Point]) -> list[str]:
    """The points' names, below each or, where another name stands there, above."""
    placed: list[tuple[float, float, float]] = []  # from, to, height
    found = []
    for point in sorted(points, key=lambda point: point.mean_cost):
        left, y = frame.x(point.mean_cost) + 7, frame.y(point.mean_quality)
        right = left + LETTER_PX * len(point.name)

        def is_free(top: float, left: float = left, right: float = right) -> bool:
            return all(right < a or b < left or abs(top - other) > LINE_PX for a, b, other in placed)

        top = next((top for top in (y + 14, y - 8, y + 30) if is_free(top)), y + 14)
        placed.append((left, right, top))
        found.append(_text(left, top, point.name, INK))
    return found


def _svg(parts: list[str]) -> str:
    size = f'width="{WIDTH_PX}" height="{HEIGHT_PX}" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}"'
    style = 'font-family="system-ui, sans-serif" font-size="12"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img">\n{body}\n</svg>\n'


def _axes(frame: _Frame, title: str, label: str = "mean cost of a picture (the largest budget is 1)") -> str:
    parts = [
        f'<rect width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="{PAPER}"/>',
        f'<text x="{LEFT_PX}" y="26" font-size="16" fill="{INK}">{escape(title)}</text>',
    ]
    right, bottom = WIDTH_PX - RIGHT_PX, HEIGHT_PX - BOTTOM_PX
    for at in range(NUM_TICKS + 1):
        share = at / NUM_TICKS
        quality = frame.low[1] + share * (frame.high[1] - frame.low[1])
        cost = frame.low[0] + share * (frame.high[0] - frame.low[0])
        x, y = frame.x(cost), frame.y(quality)
        parts.append(f'<path d="M{LEFT_PX} {y}H{right}M{x} {TOP_PX}V{bottom}" stroke="{GRID}" fill="none"/>')
        parts.append(_text(LEFT_PX - 8, y + 4, f"{quality:.3f}", GREY, "end"))
        parts.append(_text(x, bottom + 18, f"{cost:.2f}", GREY, "middle"))
    parts.append(_text((LEFT_PX + right) / 2, HEIGHT_PX - 14, label, INK, "middle"))
    return "\n".join(parts)


def _rule(frame: _Frame, rule: Rule, colour: str, limit: float) -> str:
    points = sorted((p for p in rule.points if p.mean_cost <= limit), key=lambda point: point.mean_cost)
    return _path(frame, points, colour, 1.2) + "".join(_dot(frame, point, colour, 2.2) for point in points)


def _path(frame: _Frame, points: Sequence[Point], colour: str, width: float) -> str:
    places = [f"{frame.x(p.mean_cost)},{frame.y(p.mean_quality)}" for p in sorted(points, key=lambda p: p.mean_cost)]
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _whisker(frame: _Frame, point: Point, gain: Interval) -> str:
    """The interval of the gain over the fixed curve, drawn about the point."""
    base = point.mean_quality - gain.value
    x, low, high = frame.x(point.mean_cost), frame.y(base + gain.low), frame.y(base + gain.high)
    return f'<path d="M{x} {low}V{high}" stroke="{POLICY_COLOUR}" opacity="0.55"/>'


def _dot(frame: _Frame, point: Point, colour: str, radius: float) -> str:
    return f'<circle cx="{frame.x(point.mean_cost)}" cy="{frame.y(point.mean_quality)}" r="{radius}" fill="{colour}"/>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    parts = []
    for row, (name, colour) in enumerate(entries):
        x, y = WIDTH_PX - RIGHT_PX + 18, TOP_PX + 10 + 22 * row
        parts.append(f'<rect x="{x}" y="{y - 6}" width="18" height="4" fill="{colour}"/>')
        parts.append(_text(x + 26, y, name, INK))
    return "\n".join(parts)


def _text(x: float, y: float, words: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'


def _cycle(count: int) -> list[str]:
    return [COLOURS[at % len(COLOURS)] for at in range(count)]
