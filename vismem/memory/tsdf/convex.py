"""Things in a depth picture that lie a little off from where the map knows them.

Surfaces of one solid thing meet at edges that point towards the camera; where a thing stands on
another, they meet in a corner. So a picture falls apart into things along corners and jumps of
depth, before anything is known of them. What moves slowly shifts only those of its faces that look
the way it goes, and by little; all pixels of a face together tell it all the same.

Source of the parts: Stein et al., "Object Partitioning using Local Convexity", CVPR 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

__all__ = ["Parts", "jumps", "shifted"]

REACH = 3  # pixels to either side that are compared
CORNER = -0.3  # how far the surfaces there turn towards each other, of 2
JUMP = (0.04, 0.01)  # metres between neighbouring pixels, and for the square of each metre of depth
LEAST_PART, LEAST_FACE = 25, 10  # pixels of half a picture
LEAST_KNOWN = 0.2  # of a face, for which the map has a surface
LEAST_SHARE = 0.1  # of a part, that faces which shifted are
SAME_WAY = 0.4  # of a face's pixels that lie on the side to which it shifted, and a quarter other
NEAR = 0.8  # of the shift, that counts as lying on a side


def jumps(depth: np.ndarray, limit: tuple[float, float] = JUMP) -> np.ndarray:
    """Pixels beside a jump in depth, ``(H, W)`` bool.

    Args:
        depth: ``(H, W)`` metres.
        limit: Metres between neighbours, and for the square of each metre of the nearer's depth.
    """
    edge = np.zeros(depth.shape, bool)
    most = limit[0] + limit[1] * depth**2
    for one, two in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        over = np.abs(depth[one] - depth[two]) > np.minimum(most[one], most[two])
        edge[one] |= over
        edge[two] |= over
    return edge


@dataclass(frozen=True, eq=False)
class Parts:
    """A depth picture, split into parts that bulge outwards.

    Args:
        number: ``(H, W)`` int32 of each pixel's part, 0 at its border and where depth is unknown.
        normal: ``(H, W, 3)`` float32 in the camera's axes.
        depth: ``(H, W)`` float32 metres, 0 where unknown.
        camera: ``(4,)``, focal lengths and principal point in its pixels.
    """

    number: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    camera: np.ndarray

    @classmethod
    def of(cls, depth: np.ndarray, camera: np.ndarray) -> Parts:
        """Split a depth picture, some 160 pixels wide."""
        height, width = depth.shape
        fx, fy, cx, cy = camera
        v, u = np.mgrid[:height, :width].astype(np.float32)
        edge = jumps(depth)
        inner = ((depth > 0) & ~edge).astype(np.float32)
        weight = cv2.blur(inner, (5, 5))
        smooth = np.where(weight > 0.2, cv2.blur(depth * inner, (5, 5)) / (weight + 1e-6), depth)
        points = np.stack([(u - cx) / fx * smooth, (v - cy) / fy * smooth, smooth], -1)
        across, down = np.zeros_like(points), np.zeros_like(points)
        across[:, 2:-2] = points[:, 4:] - points[:, :-4]
        down[2:-2] = points[4:] - points[:-4]
        normal = np.cross(across, down)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
        normal *= np.where((normal * points).sum(-1, keepdims=True) > 0, -1, 1)
        wall, r = edge, REACH
        for right, left, here in (
            (np.s_[:, 2 * r :], np.s_[:, : -2 * r], np.s_[:, r:-r]),
            (np.s_[2 * r :, :], np.s_[: -2 * r, :], np.s_[r:-r, :]),
        ):
            way = points[right] - points[left]
            turn = ((normal[right] - normal[left]) * way).sum(-1)
            wall[here] |= turn < CORNER * np.linalg.norm(way, axis=-1)
        wall[:r] = wall[-r:] = wall[:, :r] = wall[:, -r:] = True  # where no corner can be seen
        inside = (~wall & (depth > 0)).astype(np.uint8)
        number = cv2.connectedComponents(inside, connectivity=4)[1]
        return cls(number, normal.astype(np.float32), depth, camera)

    @cached_property
    def area(self) -> np.ndarray:
        """Pixels of each part, ``(P,)``."""
        return np.bincount(self.number.ravel())

    def things(self, largest: float) -> np.ndarray:
        """Whether each part is neither tiny nor larger than so many square metres, ``(P,)``."""
        size = np.bincount(self.number.ravel(), self.depth.ravel() ** 2)
        own = (self.area > LEAST_PART) & (size < largest * self.camera[0] * self.camera[1])
        own[0] = False
        return own

    def whole(self, chosen: np.ndarray) -> np.ndarray:
        """Pixels of chosen parts ``(P,)`` with their rims, ``(H, W)`` bool."""
        own = chosen[self.number]
        if not own.any():
            return own
        square = np.ones((2 * REACH + 1,) * 2, np.uint8)
        far = cv2.dilate(np.where(own, self.depth, np.float32(0)), square)
        near = cv2.erode(np.where(own, self.depth, np.float32(np.inf)), square)
        margin = JUMP[0] + JUMP[1]
        between = (self.depth > near - margin) & (self.depth < far + margin)
        return np.asarray(own | ((self.number == 0) & between))


def shifted(
    parts: Parts,
    pose: np.ndarray,
    distance: np.ndarray,
    rested: np.ndarray,
    *,
    shift: float,
    resting: float,
) -> np.ndarray:
    """Find the parts one face of which lies before or behind where the map has it.

    Args:
        parts: Of a depth picture.
        pose: ``(4, 4)`` camera-to-map.
        distance: ``(H, W)`` metres from the map's surface, infinite where it has none.
        rested: ``(H, W)`` bool, what has lain in its place for long.
        shift: Metres, as the mean of a face.
        resting: Share of a part that may have rested.

    Returns:
        ``(P,)`` bool.
    """
    part, count = parts.number.ravel(), len(parts.area)
    still = np.bincount(part, rested.ravel(), count) / np.maximum(parts.area, 1)
    # A face of a part: its pixels that look most along one axis of the map, this way or that.
    facing = parts.normal.reshape(-1, 3) @ pose[:3, :3].T.astype(np.float32)
    axis = np.abs(facing).argmax(1)
    face = 6 * part + 2 * axis + (np.take_along_axis(facing, axis[:, None], 1)[:, 0] > 0)
    off = distance.ravel()
    known = np.isfinite(off)
    seen, off = face[known], off[known]
    number = np.maximum(np.bincount(seen, minlength=6 * count), 1)
    mean = np.bincount(seen, off, 6 * count) / number
    before = np.bincount(seen, off < -NEAR * shift, 6 * count) / number
    behind = np.bincount(seen, off > NEAR * shift, 6 * count) / number
    moved = (np.abs(mean) > shift) & (number > LEAST_FACE)
    moved &= number > LEAST_KNOWN * np.bincount(face, minlength=6 * count)
    moved &= (np.maximum(before, behind) > SAME_WAY) & (np.minimum(before, behind) < SAME_WAY / 4)
    share = (moved * number).reshape(count, 6).sum(1) > LEAST_SHARE * parts.area
    return share & (still < resting)
