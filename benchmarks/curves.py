"""Small multiples of curves as an SVG, for READMEs: no plotting library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 190, 110  # of a panel's axes, in pixels
LEFT, TOP, GAP_X, GAP_Y, KEY = 44, 92, 34, 58, 190
FONT = 'font-family="sans-serif" font-size="12"'


@dataclass(frozen=True)
class Style:
    """How a curve is drawn.

    Args:
        color: Of the line.
        width: Of the line; the thinner lie on the wider, so that equal curves are all seen.
        dash: Lengths of dashes and gaps, as in SVG; empty for a whole line.
    """

    color: str
    width: float = 1.2
    dash: str = ""

    def __str__(self) -> str:
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'fill="none" stroke="{self.color}" stroke-width="{self.width}"{dash}'


def draw(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    ticks: Sequence[str],
    title: str,
    styles: Mapping[str, Style],
    columns: int = 4,
) -> str:
    """Draw curves between 0 and 1, some panels beside each other.

    Args:
        panels: ``{name: {curve: values}}``; NaN leaves a gap.
        ticks: Names of the places along x, one a value; those without any value are left out.
        title: Of the whole.
        styles: Of each curve, in the order of the key.
        columns: Panels in a row.

    Returns:
        The text of an SVG file.
    """
    rows = math.ceil(len(panels) / columns)
    across = LEFT + columns * (WIDTH + GAP_X)
    down = TOP + rows * (HEIGHT + GAP_Y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" {FONT}>',
        f'<rect width="{across}" height="{down}" fill="white"/>',
        _text(8, 18, title, "start", "bold"),
    ]
    per_row = max(1, (across - 16) // KEY)
    for n, (name, style) in enumerate(styles.items()):
        x, y = 8 + n % per_row * KEY, 38 + n // per_row * 17
        parts.append(f'<path class="key" d="M{x} {y}h26" {style}/>')
        parts.append(_text(x + 32, y + 4, name, "start"))
    top_of_all = TOP + (len(styles) - 1) // per_row * 17 - 17
    for number, (name, curves) in enumerate(panels.items()):
        left = LEFT + number % columns * (WIDTH + GAP_X)
        top = top_of_all + number // columns * (HEIGHT + GAP_Y)
        parts.append(_text(left + WIDTH / 2, top - 6, name))
        for value in (0, 1):
            y = top + HEIGHT * (1 - value)
            parts.append(f'<path class="axis" d="M{left} {y}h{WIDTH}" stroke="#cccccc"/>')
            if number % columns == 0:
                parts.append(_text(left - 6, y + 4, f"{value:.0%}", "end"))
        shown = [n for n in range(len(ticks)) if any(not math.isnan(c[n]) for c in curves.values())]
        step = WIDTH / max(1, len(shown) - 1)
        for place, n in enumerate(shown):
            anchor = "end" if place and n == shown[-1] else "middle"
            parts.append(_text(left + place * step, top + HEIGHT + 16, ticks[n], anchor, size=9))
        for curve in sorted(curves, key=lambda curve: -styles[curve].width):
            path = _path([curves[curve][n] for n in shown], left, top, step)
            parts.append(f'<path d="{path}" {styles[curve]}/>')
    return "\n".join([*parts, "</svg>", ""])


def _text(
    x: float, y: float, text: str, anchor: str = "middle", weight: str = "normal", size: int = 12
) -> str:
    where = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {where} font-size="{size}">{escape(text)}</text>'


def _path(values: Sequence[float], left: float, top: float, step: float) -> str:
    """Lines from value to value, broken where one is NaN."""
    path, pen = "", "M"
    for n, value in enumerate(values):
        if math.isnan(value):
            pen = "M"
            continue
        path += f"{pen}{left + n * step:.1f} {top + HEIGHT * (1 - value):.1f}"
        pen = "L"
    return path
