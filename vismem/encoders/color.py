"""The eleven basic colour names of English, as regions of perceptual colour space.

Berlin and Kay's basic terms ("Basic Color Terms", 1969), each a range of hue, lightness and chroma
in CIE L*C*h°. One table of 32768 entries names any pixel.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

__all__ = ["COLORS", "color_shares", "name_colors"]

COLORS = (
    "black",
    "white",
    "gray",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
)
_INDEX = {name: number for number, name in enumerate(COLORS)}
# Upper end of the hue range in degrees, walking up from pink across zero.
_HUES = [(12, "pink"), (45, "red"), (74, "orange"), (108, "yellow"), (190, "green")]
_HUES += [(300, "blue"), (330, "purple"), (360, "pink")]


@cache
def _table() -> np.ndarray:
    """Colour number of every RGB value cut to five bits a channel, ``(32768,)`` uint8."""
    levels = (np.arange(32) * 8 + 4).astype(np.float32) / 255
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(1, -1, 3)
    light, a, b = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0].T
    chroma = np.hypot(a, b)
    hue = np.degrees(np.arctan2(b, a)) % 360
    names = np.full(len(light), _INDEX["pink"], np.uint8)
    for end, name in reversed(_HUES):
        names[hue < end] = _INDEX[name]
    # Hue is not even in CIELAB: the bluest of sRGB lies at 306, where pale colours are purple.
    names[(hue >= 300) & (hue < 307) & (chroma > 66)] = _INDEX["blue"]
    warm = (hue >= 12) & (hue < 95)
    names[warm & (light < 45) & (chroma < 60) & (hue >= 38)] = _INDEX["brown"]
    names[warm & (light < 58) & (chroma < 38)] = _INDEX["brown"]
    names[(hue < 38) & (light > 68)] = _INDEX["pink"]
    names[((hue >= 330) | (hue < 12)) & (light < 38)] = _INDEX["red"]
    faint = chroma < np.where(light > 75, 10, 14)
    names[faint & (light < 25)] = _INDEX["black"]
    names[faint & (light >= 25)] = _INDEX["gray"]
    names[faint & (light > 82)] = _INDEX["white"]
    names[light < 12] = _INDEX["black"]
    return names


def name_colors(image: np.ndarray) -> np.ndarray:
    """Name every pixel.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.

    Returns:
        Numbers into `COLORS`, ``(H, W)`` uint8.

    Example:
        >>> COLORS[name_colors(np.full((1, 1, 3), (250, 20, 20), np.uint8))[0, 0]]
        'red'
    """
    cut = (image >> 3).astype(np.int32)
    return _table()[(cut[..., 0] << 10) | (cut[..., 1] << 5) | cut[..., 2]]


def color_shares(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Share of every colour name in each cell of a grid.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, ``H`` a multiple of ``rows`` and ``W`` of ``columns``.
        rows: Cells from top to bottom.
        columns: Cells from left to right.

    Returns:
        ``(rows, columns, C)`` float32, summing to one over ``C``.
    """
    names = name_colors(image).reshape(rows, image.shape[0] // rows, columns, -1)
    cells = np.arange(rows * columns).reshape(rows, 1, columns, 1) * len(COLORS)
    counts = np.bincount((cells + names).ravel(), minlength=rows * columns * len(COLORS))
    shares = counts.reshape(rows, columns, len(COLORS)).astype(np.float32)
    return shares / shares.sum(-1, keepdims=True)
