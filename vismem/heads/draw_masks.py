"""Masks drawn into pictures."""

from __future__ import annotations

import cv2
import numpy as np

from vismem.heads.draw_boxes import color_of
from vismem.masks import Masks

__all__ = ["draw_masks"]


def draw_masks(image: np.ndarray, found: Masks) -> np.ndarray:
    """Tint every object in the colour of its id, with its outline, id and score.

    Args:
        image: Picture, ``(H, W, 3)`` uint8 RGB; it is not changed.
        found: Masks of the same size.

    Returns:
        A picture of the same size.

    Example:
        >>> found = Masks(np.ones((1, 40, 40), bool), np.array([0.9]), np.array([1]))
        >>> draw_masks(np.zeros((40, 40, 3), np.uint8), found).shape
        (40, 40, 3)
    """
    drawn = np.ascontiguousarray(image).copy()
    thick = max(1, round(max(image.shape[:2]) / 400))
    shown = np.flatnonzero(found.seen)
    boxes = found.boxes()
    for row in shown.tolist():
        color, mask = color_of(int(found.ids[row])), found.masks[row]
        drawn[mask] = (drawn[mask].astype(np.uint16) + np.array(color, np.uint16)) // 2
        kind, rule = cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        outlines, _ = cv2.findContours(mask.astype(np.uint8), kind, rule)
        cv2.drawContours(drawn, outlines, -1, color, thick)
        text = f"{found.ids[row]}: {found.scores[row]:.2f}"
        place = (int(boxes[row, 0]) + 2 * thick, int(boxes[row, 1]) + 14 * thick)
        cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thick, color, thick)
    return drawn
