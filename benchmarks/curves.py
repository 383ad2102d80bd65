"""Small multiples of curves as an SVG, for READMEs: no plotting library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

# Told apart by the colour-blind (Okabe and Ito).
COLORS = ("#0072b2", "#009e73", "#56b4e9", "#d55e00", "#cc79a7", "#e69f00", "#000000", "#999999")
WIDTH, HEIGHT = 150, 96  # of a panel's axes, in pixels
LEFT, TOP, GAP_X, GAP_Y = 64, 56, 16, 20
FONT = 'font-family="sans-serif" font-size="11"'


def draw(
    panels: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
    ticks: Sequence[str],
    title: str,
) -> str:
    """Draw curves between 0 and 1, a panel for each row and column.

    Args:
        panels: ``{(row, column): {curve: values}}``; NaN leaves a gap.
        ticks: Names of the places along x, one a value.
        title: Of the whole.

    Returns:
        The text of an SVG file.
    """
    rows = list(dict.fromkeys(row for row, _ in panels))
    columns = list(dict.fromkeys(column for _, column in panels))
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    color = {name: COLORS[n % len(COLORS)] for n, name in enumerate(names)}
    across = LEFT + len(columns) * (WIDTH + GAP_X)
    down = TOP + len(rows) * (HEIGHT + GAP_Y) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" {FONT}>',
        f'<rect width="{across}" height="{down}" fill="white"/>',
        _text(8, 16, title, "start", "bold"),
    ]
    for n, name in enumerate(names):
        x = 8 + n * 140
        parts.append(f'<path d="M{x} 30h18" stroke="{color[name]}" stroke-width="2"/>')
        parts.append(_text(x + 22, 34, name, "start"))
    for n, column in enumerate(columns):
        parts.append(_text(LEFT + n * (WIDTH + GAP_X) + WIDTH / 2, TOP - 5, column))
    step = WIDTH / max(1, len(ticks) - 1)
    for number, row in enumerate(rows):
        top = TOP + number * (HEIGHT + GAP_Y)
        parts.append(_text(LEFT - 34, top + HEIGHT / 2, row, "end"))
        for value in (0, 1):
            parts.append(_text(LEFT - 5, top + HEIGHT * (1 - value) + 4, f"{value:.0%}", "end"))
        for place, column in enumerate(columns):
            left = LEFT + place * (WIDTH + GAP_X)
            parts.append(
                f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
                'stroke="#bbbbbb"/>'
            )
            for name, values in panels.get((row, column), {}).items():
                path = _path(values, left, top, step)
                parts.append(f'<path d="{path}" fill="none" stroke="{color[name]}"/>')
    for place in range(len(columns)):
        for n, tick in enumerate(ticks):
            x = LEFT + place * (WIDTH + GAP_X) + n * step
            y = TOP + len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 8
            turned = f'transform="rotate(40 {x:.0f} {y})"'
            parts.append(f'<text x="{x:.0f}" y="{y}" font-size="8" {turned}>{escape(tick)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "middle", weight: str = "normal") -> str:
    where = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {where}>{escape(text)}</text>"


def _path(values: Sequence[float], left: float, top: float, step: float) -> str:
    """Dots joined by lines, broken where a value is NaN."""
    path, pen = "", "M"
    for n, value in enumerate(values):
        if math.isnan(value):
            pen = "M"
            continue
        x, y = left + n * step, top + HEIGHT * (1 - value)
        path += f"{pen}{x:.1f} {y:.1f}m-2 0a2 2 0 1 0 4 0a2 2 0 1 0 -4 0m2 0"
        pen = "L"
    return path
