"""The memory map: what is held over time, as SVG that fits any width.

Moments are bars on a hatched ground: where the hatching shows, nothing is remembered any more.
Scenes of a visual bank are dots below, one lane a level, larger for more frames. The picture
holds numbers and names of levels alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from vismem.heads.answer import clock
from vismem.live import MomentView, SceneView

__all__ = ["memory_map"]

BARS = 300  # the most that are drawn one by one
DOTS = 400
JOINED = 1.6  # seconds between two moments that count as no gap: the memory looks twice a second
BAR, LANE = 34, 20  # heights in pixels
LEVELS = ("recent", "detail", "synopsis", "gist")  # from sharp to coarse
STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)

Scale = Callable[[float], float]  # from seconds to percent of the width


def memory_map(moments: Sequence[MomentView], scenes: Sequence[SceneView]) -> str:
    """Draw what is held.

    Args:
        moments: In time order.
        scenes: Of the bank of pictures, if there is one.

    Example:
        >>> moment = MomentView("m0.0", "camera", 0.0, 5.0, 2.0, 10, "cat", 0.9)
        >>> memory_map([moment], []).count("data-key")
        1
    """
    start = min([m.start for m in moments] + [s.first for s in scenes], default=0.0)
    end = max([m.end for m in moments] + [s.last for s in scenes], default=0.0)
    start = min(0.0, start) if start < 86400 else start
    length = max(end - start, 10.0)

    def x(time: float) -> float:
        return 100.0 * (time - start) / length

    lanes = _lanes(scenes)
    height = BAR + LANE * len(lanes) + (10 if lanes else 0)
    parts = [
        '<defs><pattern id="gone" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><line x1="0" y1="0" x2="0" y2="6"/></pattern></defs>',
        f'<rect class="ground" width="{x(end):.2f}%" height="{BAR}" rx="3" fill="url(#gone)"/>',
    ]
    parts += _bars(moments, x)
    for number, (level, scenes) in enumerate(lanes):
        parts += _dots(level, scenes, x, BAR + 10 + LANE * number + LANE / 2)
    ticks = _ticks(start, start + length)
    for tick in ticks:
        at = x(tick)
        anchor = "start" if at < 2 else "end" if at > 97 else "middle"
        parts.append(
            f'<text x="{at:.2f}%" y="{height + 18}" text-anchor="{anchor}">{clock(tick)}</text>'
        )
    legend = "".join(
        f'<span class="level l-{escape(level)}">{escape(level)} <b>{len(scenes)}</b></span>'
        for level, scenes in lanes
    )
    return (
        f'<svg class="map" role="img" aria-label="what is remembered over time" width="100%" '
        f'height="{height + 24}">{"".join(parts)}</svg><div class="levels">{legend}</div>'
    )


def _bars(moments: Sequence[MomentView], x: Scale) -> list[str]:
    """A bar a moment; the more frames it stands for, the stronger."""
    group = max(1, math.ceil(len(moments) / BARS))
    most = math.log1p(max((m.frames for m in moments), default=1))
    bars = []
    for place in range(0, len(moments), group):
        part = moments[place : place + group]
        first, last = part[0], part[-1]
        after = moments[place + group].start if place + group < len(moments) else last.end
        until = after if 0 <= after - last.end <= JOINED else last.end
        frames = sum(m.frames for m in part)
        strength = 0.35 + 0.65 * min(1.0, math.log1p(frames / group) / most)
        name = escape(first.label or "unnamed") if group == 1 else f"{len(part)} moments"
        told = f"{name}, {clock(first.start)}–{clock(last.end)}, {frames} frames"
        bars.append(
            f'<rect class="bar" data-key="{escape(first.id)}" x="{x(first.start):.3f}%" '
            f'width="{max(0.25, x(until) - x(first.start)):.3f}%" height="{BAR}" rx="3" '
            f'style="--s:{strength:.2f}"><title>{told}</title></rect>'
        )
    return bars


def _lanes(scenes: Sequence[SceneView]) -> list[tuple[str, list[SceneView]]]:
    """Scenes by level, the sharp ones first."""
    levels = {scene.level for scene in scenes}
    order = [level for level in LEVELS if level in levels] + sorted(levels - set(LEVELS))
    return [(level, [scene for scene in scenes if scene.level == level]) for level in order]


def _dots(level: str, scenes: Sequence[SceneView], x: Scale, y: float) -> list[str]:
    """A dot a scene when its picture was taken, and a line from its first to its last sight."""
    shown = sorted(scenes, key=lambda scene: -scene.weight)[:DOTS]
    most = math.log1p(max(scene.weight for scene in scenes))
    parts = []
    for scene in shown:
        radius = 2.0 + 5.5 * math.log1p(scene.weight) / most
        parts.append(
            f'<line class="run" x1="{x(scene.first):.2f}%" x2="{x(scene.last):.2f}%" y1="{y}" '
            f'y2="{y}"/><circle class="slot l-{escape(level)}" cx="{x(scene.time):.2f}%" cy="{y}" '
            f'r="{radius:.1f}"><title>{escape(level)}, {clock(scene.time)}, '
            f"{scene.weight} frames</title></circle>"
        )
    return parts


def _ticks(start: float, end: float) -> list[float]:
    """Round times to write below the axis, four to seven of them."""
    step = next((step for step in STEPS if (end - start) / step <= 6), (end - start) / 6)
    first = math.ceil(start / step)
    return [step * number for number in range(first, int(end // step) + 1)]
