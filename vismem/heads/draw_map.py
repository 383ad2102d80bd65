"""Draw a moving map: what stands still in its colours, what moves in bright ones, with its way."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from vismem.heads.reconstruct import MapMoment, Path4D

__all__ = ["BRIGHT", "draw_map"]

BRIGHT = np.array(
    [[230, 60, 40], [20, 120, 230], [240, 160, 0], [150, 50, 200], [0, 150, 110], [220, 30, 140]],
    np.uint8,
)
PAPER = 255
WAY = 4.0  # seconds of a thing's way that are drawn


def draw_map(
    moment: MapMoment,
    paths: Sequence[Path4D] = (),
    *,
    size: int = 480,
    tilt: float = 35.0,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Look at a map from above, with the walls and the ceiling that would hide it cut away.

    Args:
        moment: The scene; its z axis is up.
        paths: Ways of what moved; of those that were followed within `WAY` seconds that part.
        size: Pixels of the picture's longer side.
        tilt: Degrees away from straight down.
        bounds: Lowest and highest corner ``(3,)`` of what is drawn; all of it by default.

    Returns:
        ``(H, W, 3)`` uint8 RGB.
    """
    surface = moment.surface
    lean = np.radians(tilt)
    right = np.array([1.0, 0, 0])
    up = np.array([0, np.cos(lean), np.sin(lean)])
    towards = np.array([0, -np.sin(lean), np.cos(lean)])  # the eye
    frame = np.stack([right, up, towards], 1)
    facing = surface.normals @ towards > 0.05
    still, normals = surface.points[facing], surface.normals[facing]
    light = 0.65 + 0.35 * np.clip(normals @ np.array([0.3, -0.4, 0.87]), 0, 1)
    own = surface.colors[facing]
    gray = 0.25 * own + 0.75 * own.mean(1, keepdims=True)  # what moves is to stand out
    shaded = (gray * light[:, None] * 0.6 + 255 * 0.4).clip(0, 255)
    if bounds is None:
        every = np.concatenate([still, moment.points]) if len(still) else np.zeros((1, 3))
        bounds = np.quantile(every, 0.002, axis=0), np.quantile(every, 0.998, axis=0)
    box = np.array(np.meshgrid(*zip(*bounds, strict=True))).reshape(3, -1).T @ frame
    low, high = box.min(0), box.max(0)
    scale = (size - 1) / max(*(high - low)[:2], 1e-6)
    width, height = (np.ceil((high - low)[:2] * scale).astype(int) + 1).tolist()
    picture = np.full((height, width, 3), PAPER, np.uint8)
    points = np.concatenate([still, moment.points])
    colors = np.concatenate([shaded.astype(np.uint8), BRIGHT[moment.ids % len(BRIGHT)]])
    seen = points @ frame
    order = np.argsort(seen[:, 2], kind="stable")
    u, v = _pixels(seen, low, high, scale)
    reach = max(1, int(np.ceil(0.035 * scale / 2)))
    u, v, colors = u[order], v[order], colors[order]
    spread = [(a, b) for a in range(-reach, reach + 1) for b in range(-reach, reach + 1)]
    # Each point is a square; one after another from the farthest, so that the nearest stays.
    across = np.concatenate([u[:, None] + np.array([a for a, _ in spread])], 1).ravel()
    down = np.concatenate([v[:, None] + np.array([b for _, b in spread])], 1).ravel()
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    picture[down[inside], across[inside]] = np.repeat(colors, len(spread), 0)[inside]
    for path in paths:
        times = path.waypoints[:, 0]
        way = path.waypoints[(times <= moment.time) & (times >= moment.time - WAY), 1:]
        if len(way) > 1 and path.id in moment.tracks:
            u, v = _pixels(way @ frame, low, high, scale)
            color = tuple(int(c * 0.7) for c in BRIGHT[path.id % len(BRIGHT)])
            line = np.stack([u, v], 1).astype(np.int32)
            cv2.polylines(picture, [line], False, color, max(1, size // 240), cv2.LINE_AA)
    return picture


def _pixels(
    seen: np.ndarray, low: np.ndarray, high: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    u = np.round((seen[:, 0] - low[0]) * scale).astype(np.int64)
    v = np.round((high[1] - seen[:, 1]) * scale).astype(np.int64)
    return u, v
