"""Plots as SVG text, by hand: lines with confidence bands, a heat map, a pie. They follow the page's colours.

An SVG drawn here stands inside a page (and takes its colours for dark and light) or alone as a file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from seedstory_jax.report.page import escape

COLORS = ("#5a67c8", "#c2562f", "#17877d", "#b08a12", "#8d4d9a", "#5c6470")
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 34, 40


@dataclass(frozen=True)
class Line:
    """One line: y over x, and a band from low to high. NaN or None breaks the line."""

    name: str
    x: Sequence[Real]
    y: Sequence[Real | None]
    low: Sequence[Real | None] | None = None
    high: Sequence[Real | None] | None = None


def color(place: int) -> str:
    """The colour of the series at a place, as a page knows it."""
    return f"var(--series-{place % len(COLORS) + 1}, {COLORS[place % len(COLORS)]})"


def line_plot(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    y_range: tuple[Real, Real] | None = None,
    log_y: bool = False,
    width: int = 440,
    height: int = 260,
) -> str:
    """An SVG of some lines. `y_range` fixes the axis; `log_y` leaves out what is not positive."""
    values = [v for line in lines for row in (line.y, line.low or (), line.high or ()) for v in row if _drawn(v, log_y)]
    xs = [x for line in lines for x in line.x]
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high = y_range or _padded(values, log_y)
    scale = math.log10 if log_y else float

    legend, extra = _legend([line.name for line in lines], width) if len(lines) > 1 else ([], -10)
    top, height = TOP + extra, height + extra

    def at_x(x: Real) -> Real:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT), 1)

    def at_y(y: Real) -> Real:
        share = (scale(min(max(y, y_low), y_high)) - scale(y_low)) / (scale(y_high) - scale(y_low))
        return round(height - BOTTOM - share * (height - top - BOTTOM), 1)

    parts = [*_frame(title, width, height), *legend]
    for tick in _log_ticks(y_low, y_high) if log_y else ticks(y_low, y_high):
        y = at_y(tick)
        parts.append(f'<path d="M{LEFT} {y}H{width - RIGHT}" stroke="currentColor" stroke-opacity=".14"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(x_low, x_high, 7):
        parts.append(f'<text x="{at_x(tick)}" y="{height - BOTTOM + 17}" text-anchor="middle">{number(tick)}</text>')
    middle = (LEFT + width - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 5}" text-anchor="middle" opacity=".75">{escape(x_label)}</text>')
    turned = f'transform="rotate(-90)" x="{-(top + height - BOTTOM) / 2}" y="13"'
    parts.append(f'<text {turned} text-anchor="middle" opacity=".75">{escape(y_label)}</text>')
    for place, line in enumerate(lines):
        if line.low is not None and line.high is not None:
            for run in _runs(zip(line.x, line.low, line.high, strict=True), log_y):
                edge = [f"{at_x(x)} {at_y(low)}" for x, low, _ in run]
                edge += [f"{at_x(x)} {at_y(high)}" for x, _, high in reversed(run)]
                parts.append(f'<path d="M{"L".join(edge)}Z" style="fill:{color(place)}" fill-opacity=".15"/>')
    for place, line in enumerate(lines):
        style = f'style="stroke:{color(place)};fill:none" stroke-width="2" stroke-linejoin="round"'
        for run in _runs(zip(line.x, line.y, strict=True), log_y):
            points = "L".join(f"{at_x(x)} {at_y(y)}" for x, y in run)
            if len(run) > 1:
                parts.append(f'<path d="M{points}" {style}/>')
            else:
                x, y = points.split()
                parts.append(f'<circle cx="{x}" cy="{y}" r="3" style="fill:{color(place)}"/>')
    return "".join(parts) + "</svg>"


def heat_map(
    values: Sequence[Sequence[Real]],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    marks: Mapping[int, str] | None = None,
    width: int = 560,
) -> str:
    """An SVG of a matrix, row 0 at the top: the larger the value, the fuller the colour; `marks` name columns."""
    rows, columns = len(values), max((len(row) for row in values), default=0)
    if not rows or not columns:
        raise ValueError("a heat map needs at least one value")
    side = (width - LEFT - RIGHT) / columns
    tall = min(side, 420 / rows)
    height = round(TOP + tall * rows + BOTTOM)
    top = max((v for row in values for v in row if _drawn(v, False)), default=0) or 1.0
    parts = _frame(title, width, height)
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            if not _drawn(value, False) or value <= 0:
                continue
            place = f'x="{LEFT + c * side:.2f}" y="{TOP + r * tall:.2f}" width="{side:.2f}" height="{tall:.2f}"'
            parts.append(f'<rect {place} style="fill:{color(0)}" fill-opacity="{(value / top) ** 0.5:.3f}"/>')
    box = f'x="{LEFT}" y="{TOP}" width="{side * columns:.2f}" height="{tall * rows:.2f}"'
    parts.append(f'<rect {box} fill="none" stroke="currentColor" stroke-opacity=".25"/>')
    for column, name in (marks or {}).items():
        x, y = LEFT + (column + 0.5) * side, TOP + tall * rows + 14
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(name)}</text>')
    parts.append(
        f'<text x="{(LEFT + width) / 2}" y="{height - 5}" text-anchor="middle" opacity=".75">{escape(x_label)}</text>'
    )
    turned = f'transform="rotate(-90)" x="{-(TOP + tall * rows / 2)}" y="{LEFT - 12}"'
    parts.append(f'<text {turned} text-anchor="middle" opacity=".75">{escape(y_label)}</text>')
    return "".join(parts) + "</svg>"


def pie(shares: Mapping[str, Real], *, title: str, width: int = 300) -> str:
    """An SVG pie of counts or shares, each piece named with its percentage."""
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise ValueError(f"a pie needs counts of which some are positive and none negative, got {dict(shares)}")
    radius, x0, y0 = width * 0.3, width / 2, TOP + width * 0.32
    height = round(TOP + width * 0.66 + 20 * len(shares) + 10)
    parts, turn = _frame(title, width, height), 0.0
    for place, (name, count) in enumerate(shares.items()):
        share = count / total
        fill = f'style="fill:{color(place)}" stroke="Canvas" stroke-width="1.5"'
        if share >= 1:
            parts.append(f'<circle cx="{x0}" cy="{y0}" r="{radius}" {fill}/>')
        elif share > 0:
            ends = [
                (x0 + radius * math.sin(2 * math.pi * t), y0 - radius * math.cos(2 * math.pi * t))
                for t in (turn, turn + share)
            ]
            (ax, ay), (bx, by) = ends
            arc = f"A{radius} {radius} 0 {int(share > 0.5)} 1 {bx:.2f} {by:.2f}"
            parts.append(f'<path d="M{x0} {y0}L{ax:.2f} {ay:.2f}{arc}Z" {fill}/>')
        turn += share
        y = TOP + width * 0.66 + 20 * place + 12
        parts.append(f'<rect x="{width * 0.2}" y="{y - 9}" width="11" height="11" rx="2" style="fill:{color(place)}"/>')
        parts.append(f'<text x="{width * 0.2 + 18}" y="{y}">{escape(name)} {100 * share:.1f} %</text>')
    return "".join(parts) + "</svg>"


def _frame(title: str, width: int, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="plot" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">',
        f'<text x="{LEFT}" y="14" font-weight="600" font-size="13">{escape(title)}</text>',
    ]


def _legend(names: Sequence[str], width: int) -> tuple[list[str], int]:
    """The lines' names under the title, and how much higher they are than one row."""
    parts, x, y = [], float(LEFT), 27
    for place, name in enumerate(names):
        wide = 30 + 6.3 * len(name)
        if place and x + wide > width:
            x, y = float(LEFT), y + 15
        parts.append(f'<rect x="{x:.1f}" y="{y - 6}" width="14" height="3" rx="1" style="fill:{color(place)}"/>')
        parts.append(f'<text x="{x + 18:.1f}" y="{y}" font-size="11">{escape(name)}</text>')
        x += wide
    return parts, y - 27


def _drawn(value: Real | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def _runs(points, log: bool) -> list[list[tuple]]:
    """Stretches of points of which every coordinate can be drawn."""
    runs: list[list[tuple]] = [[]]
    for point in points:
        if all(_drawn(value, log) for value in point[1:]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _padded(values: Sequence[Real], log: bool) -> tuple[Real, Real]:
    if not values:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        return low / 1.1, high * 1.1
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.4 * high else low - pad), high + pad


def ticks(low: Real, high: Real, most: int = 6) -> list[Real]:
    """Round numbers between low and high, at most `most` of them."""
    raw = (high - low) / max(most - 1, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: Real, high: Real) -> list[Real]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    tens = [10.0**p for p in powers if low <= 10.0**p <= high]
    return tens if len(found) > 7 and len(tens) > 1 else found


def number(value: Real) -> str:
    """A tick's label."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}"
