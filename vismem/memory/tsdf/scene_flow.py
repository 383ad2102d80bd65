"""How far the parts of a picture have come since a picture a little before, in three directions.

What moves along its own face leaves depth as it was but takes its texture with it. Colour and depth
of all pixels of a part say together how the part has moved as a whole; what the parts that stand
have in common is the error of the poses.

Source: the linear constraints of Vedula et al., "Three-Dimensional Scene Flow", ICCV 1999, and of
Harville et al., "3D Pose Tracking with Linear Depth and Brightness Constraints", ICCV 1999.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numba import njit
from torch import Tensor

from vismem.geometry import depth_sigma
from vismem.memory.tsdf.convex import LEAST_PART, Parts, jumps
from vismem.memory.tsdf.fuse import View

__all__ = ["Glance", "Glances", "part_motion", "slid_and_stood"]

LEVELS = 2.0  # of 255, that a pixel's colour is wrong by
# What noise of one pixel in four channels adds to the squares of slopes, over its own variance: a
# blur and a slope of 3 by 3 leave a sixth of it, a colour is the mean of four pixels before.
NOISE = 3 / 12**2 + 1 / 6**2
CLOSE = (0.03, 0.02)  # metres, and for each metre of depth: beyond it is another surface
ALIKE = 4.0  # pixels that are worth one, as neighbours share their errors
OUT = 3.0  # standard deviations beyond which a pixel has less say about the camera
STEPS = 3
TURN, SHIFT = np.radians(1.0), 0.03  # that the camera may be wrong by between two pictures
APART = 0.4  # seconds between what is compared
WAY, GAIN = 0.2, 0.1  # metres that a part may have gone, and of its brightness that may differ
SURELY = 2  # standard deviations within which a part has stood still
DEPTH = 3  # the channel after red, green and blue


@dataclass(frozen=True)
class Glance:
    """Half a picture, kept to compare later ones with.

    Args:
        time: Seconds.
        color: ``(h, w, 3)`` uint8.
        depth: ``(h, w)`` float32 metres, smoothed, 0 where unknown and beside jumps.
        pose: ``(4, 4)`` camera-to-map.
    """

    time: float
    color: np.ndarray
    depth: np.ndarray
    pose: np.ndarray

    @classmethod
    def of(cls, time: float, view: View) -> Glance:
        """Of a whole picture with colour."""
        size = tuple(2 * (side // 2) for side in view.depth.shape)
        depth = np.ascontiguousarray(view.depth[: size[0] : 2, : size[1] : 2])
        half = cv2.resize(view.color, depth.shape[::-1], interpolation=cv2.INTER_AREA)
        inner = ((depth > 0) & ~jumps(depth)).astype(np.float32)
        weight = cv2.blur(inner, (3, 3))
        smooth = cv2.blur(depth * inner, (3, 3)) / np.maximum(weight, np.float32(1e-6))
        smooth[weight < 0.5] = 0
        return cls(time, cv2.blur(half, (3, 3)), smooth, view.pose)


class Glances:
    """The pictures of the last half second, a few of them."""

    def __init__(self) -> None:
        self._kept: list[Glance] = []

    def before(self, now: Glance) -> Glance | None:
        """The newest that is old enough to be compared with another, None where there is none."""
        old = [g for g in self._kept if 2 * APART > now.time - g.time > APART - 1e-6]
        return old[-1] if old and old[-1].depth.shape == now.depth.shape else None

    def add(self, now: Glance) -> None:
        """Keep a glance if the last is not too new, and forget those that are too old."""
        if not self._kept or now.time - self._kept[-1].time > APART / 2 - 1e-6:
            old = [g for g in self._kept if now.time - g.time > APART - 1e-6]
            self._kept = [*old[-1:], *self._kept[len(old) :], now]

    def state_dict(self) -> dict[str, Tensor]:
        """All of them as tensors."""
        state = {}
        for n, glance in enumerate(self._kept):
            state[f"{n}.time"] = torch.tensor(glance.time, dtype=torch.float64)
            for name in ("color", "depth", "pose"):
                state[f"{n}.{name}"] = torch.from_numpy(getattr(glance, name).copy())
        return state

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Glances:
        """Those whose `state_dict` it is.

        Raises:
            ValueError: If it is incomplete.
        """
        glances = cls()
        for n in sorted({int(name.partition(".")[0]) for name in state}):
            try:
                time, *parts = (state[f"{n}.{part}"] for part in ("time", "color", "depth", "pose"))
            except KeyError as error:
                raise ValueError(
                    f"the state's glances hold no {error}; it is incomplete"
                ) from error
            glances._kept.append(Glance(float(time), *(part.numpy().copy() for part in parts)))
        return glances


def part_motion(
    now: Glance, then: Glance, camera: np.ndarray, parts: np.ndarray, moving: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate how each part has moved between two glances, beside the camera.

    Args:
        now: The later one.
        then: The one before.
        camera: ``(4,)``, focal lengths and principal point in their pixels.
        parts: ``(h, w)`` int32 number of each pixel's part now, 0 for none.
        moving: ``(h, w)`` bool, what tells nothing about the camera.

    Returns:
        ``(P, 3)`` metres in the camera's axes, their covariance ``(P, 3, 3)``, and the pixels that
        they rest on, ``(P,)``.
    """
    relative = np.linalg.inv(then.pose) @ now.pose
    value = np.concatenate([now.color.astype(np.float32), now.depth[..., None]], -1)
    change = _changes(value, camera, relative, then.color, then.depth)
    across, down = (cv2.Sobel(value, cv2.CV_32F, *way, scale=1 / 8) for way in ((1, 0), (0, 1)))
    known = cv2.erode((now.depth > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    known &= ~np.isnan(change[..., DEPTH])
    weight = np.full(value.shape, np.float32(1 / LEVELS**2))
    weight[..., DEPTH] = depth_sigma(now.depth) ** -2.0
    weight *= known[..., None]
    scale = known * (camera[0] / np.maximum(now.depth, 0.05)) ** 2
    given = value, across, down, camera, change, weight
    error = np.zeros(7)
    prior = np.diag(np.array([TURN] * 3 + [SHIFT] * 3 + [GAIN]) ** -2.0)
    for _ in range(STEPS):
        matrix, right = _of_camera(*given, moving, error)
        error = np.linalg.solve(matrix / ALIKE + prior, right / ALIKE)
    count = int(parts.max()) + 1
    matrix, right, squares = _of_parts(*given, parts, count, error)
    prior = np.array([WAY] * 3 + [GAIN]) ** -2.0
    way = np.linalg.solve(matrix / ALIKE + np.diag(prior), right[..., None] / ALIKE)[..., 0]
    left = squares - 2 * (way * right).sum(1) + np.einsum("pi,pij,pj->p", way, matrix, way)
    number, scales = (np.bincount(parts.ravel(), per.ravel(), count) for per in (known, scale))
    # What is flat still has the slopes of its noise, which say nothing.
    matrix[:, (0, 1), (0, 1)] -= NOISE * scales[:, None]
    values, vectors = np.linalg.eigh(matrix / ALIKE + np.diag(prior))
    inverse = (vectors / np.maximum(values, prior.min())[:, None]) @ vectors.transpose(0, 2, 1)
    worse = np.maximum(left / (4 * np.maximum(number, 1)), 1)  # than noise alone
    return way[:, :3], inverse[:, :3, :3] * worse[:, None, None], number


def slid_and_stood(
    now: Glance, then: Glance, parts: Parts, moving: np.ndarray, *, least: float, deviations: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find the parts that went another way than the room between two glances, and that stood.

    Args:
        now: The later one.
        then: The one before.
        parts: Of the later one.
        moving: ``(h, w)`` bool, what tells nothing about the camera.
        least: Metres that a part must have come; one that surely came less far has stood.
        deviations: Standard deviations that this must be.

    Returns:
        ``(P,)`` bool each.
    """
    way, covariance, number = part_motion(now, then, parts.camera, parts.number, moving)
    far = np.linalg.norm(way, axis=1)
    sure = np.sqrt(np.einsum("pi,pij,pj->p", way, np.linalg.inv(covariance), way))
    widest = np.sqrt(np.linalg.eigvalsh(covariance)[:, -1])
    seen = number > LEAST_PART
    seen[0] = False
    return seen & (far > least) & (sure > deviations), seen & (far + SURELY * widest < least)


@njit(cache=True)
def _changes(
    value: np.ndarray,
    camera: np.ndarray,
    relative: np.ndarray,
    color: np.ndarray,
    depth: np.ndarray,
) -> np.ndarray:
    """What each point looked like before, less what it does now, ``(h, w, 4)``, NaN if unknown."""
    height, width = depth.shape
    change = np.full((height, width, 4), np.float32(np.nan))
    fx, fy, cx, cy = camera
    m = relative
    for v in range(height):
        for u in range(width):
            d = value[v, u, DEPTH]
            if d == 0:
                continue
            x, y = d * (u - cx) / fx, d * (v - cy) / fy
            z = m[2, 0] * x + m[2, 1] * y + m[2, 2] * d + m[2, 3]
            if z < 0.05:
                continue
            s = fx * (m[0, 0] * x + m[0, 1] * y + m[0, 2] * d + m[0, 3]) / z + cx
            t = fy * (m[1, 0] * x + m[1, 1] * y + m[1, 2] * d + m[1, 3]) / z + cy
            if not (0 <= s < width - 1 and 0 <= t < height - 1):
                continue
            i, j = int(s), int(t)
            if min(depth[j, i], depth[j, i + 1], depth[j + 1, i], depth[j + 1, i + 1]) == 0:
                continue
            a, b = s - i, t - j
            upper = (1 - a) * depth[j, i] + a * depth[j, i + 1]
            lower = (1 - a) * depth[j + 1, i] + a * depth[j + 1, i + 1]
            farther = (1 - b) * upper + b * lower - z
            if abs(farther) > CLOSE[0] + CLOSE[1] * z:
                continue
            change[v, u, DEPTH] = farther
            for k in range(3):
                upper = (1 - a) * color[j, i, k] + a * color[j, i + 1, k]
                lower = (1 - a) * color[j + 1, i, k] + a * color[j + 1, i + 1, k]
                change[v, u, k] = (1 - b) * upper + b * lower - value[v, u, k]
    return change


@njit(cache=True)
def _row(k: int, across: float, down: float, value: float, place: tuple, row: np.ndarray) -> None:
    """By what a channel changes with a turn, a shift and a gain of what is seen, ``(7,)``."""
    x, y, z, fx, fy = place
    row[3], row[4] = across * fx / z, down * fy / z
    row[5] = -(row[3] * x + row[4] * y) / z
    row[6] = value
    if k == DEPTH:
        row[5] -= 1
        row[6] = 0
    row[0] = y * row[5] - z * row[4]
    row[1] = z * row[3] - x * row[5]
    row[2] = x * row[4] - y * row[3]


@njit(cache=True)
def _of_camera(
    value: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    camera: np.ndarray,
    change: np.ndarray,
    weight: np.ndarray,
    moving: np.ndarray,
    guess: np.ndarray,
) -> tuple:
    """Normal equations of turn, shift and gain that all share, about a guess.

    Beyond `OUT` deviations from it a pixel counts by the inverse square: what moves by itself.
    """
    matrix, right, row = np.zeros((7, 7)), np.zeros(7), np.zeros(7)
    fx, fy, cx, cy = camera
    for v in range(1, value.shape[0], 2):
        for u in range(1, value.shape[1], 2):
            if moving[v, u] or weight[v, u, DEPTH] == 0:
                continue
            z = value[v, u, DEPTH]
            place = (z * (u - cx) / fx, z * (v - cy) / fy, z, fx, fy)
            for k in range(4):
                _row(k, across[v, u, k], down[v, u, k], value[v, u, k], place, row)
                w, r = weight[v, u, k], change[v, u, k]
                beyond = np.abs(r - (row * guess).sum()) * np.sqrt(w) / OUT
                if beyond > 1:
                    w /= beyond**2
                for i in range(7):
                    right[i] += w * row[i] * r
                    for j in range(7):
                        matrix[i, j] += w * row[i] * row[j]
    return matrix, right


@njit(cache=True)
def _of_parts(
    value: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    camera: np.ndarray,
    change: np.ndarray,
    weight: np.ndarray,
    parts: np.ndarray,
    count: int,
    error: np.ndarray,
) -> tuple:
    """Normal equations of each part's shift and gain, and what is to be explained by them."""
    matrix, right, squares = np.zeros((count, 4, 4)), np.zeros((count, 4)), np.zeros(count)
    row = np.zeros(7)
    fx, fy, cx, cy = camera
    for v in range(value.shape[0]):
        for u in range(value.shape[1]):
            p = parts[v, u]
            if p == 0 or weight[v, u, DEPTH] == 0:
                continue
            z = value[v, u, DEPTH]
            place = (z * (u - cx) / fx, z * (v - cy) / fy, z, fx, fy)
            for k in range(4):
                _row(k, across[v, u, k], down[v, u, k], value[v, u, k], place, row)
                w, r = weight[v, u, k], change[v, u, k] - (row * error).sum()
                squares[p] += w * r * r
                for i in range(4):
                    right[p, i] += w * row[3 + i] * r
                    for j in range(4):
                        matrix[p, i, j] += w * row[3 + i] * row[3 + j]
    return matrix, right, squares
