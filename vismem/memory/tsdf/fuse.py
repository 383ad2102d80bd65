"""Fuse a depth picture into voxels: what is there, and what was seen through.

Signed distances are averaged as in Curless and Levoy, "A Volumetric Method for Building Complex
Models from Range Images", 1996. Beside them each voxel counts the looks that went through it, and
how long something has been in it: what tells a moving thing from the room.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from vismem.geometry import depth_sigma
from vismem.memory.tsdf.blocks import SIDE, Voxels, pack

__all__ = ["MOVING", "RESTING", "STILL", "FuseConfig", "View", "fuse", "in_view"]

ONE = 32767  # of the stored distance: the truncation
TILE = 16  # pixels
STILL, MOVING, RESTING = 0, 1, 2  # what a pixel shows


@dataclass(frozen=True)
class FuseConfig:
    """How depth becomes voxels.

    Args:
        voxel: Side of a voxel, metres.
        truncation: Distance at which the signed distance ends, metres.
        most_weight: Looks after which older ones begin to fade.
        carved_weight: Looks that a surface counts for once something was seen behind it.
        rest: Seconds after which what lies still is part of the room.
        farthest: Depth beyond is not used, metres.
        deviations: Standard deviations of the depth, that a ray must go beyond a voxel to clear it.
    """

    voxel: float = 0.04
    truncation: float = 0.12
    most_weight: int = 60
    carved_weight: int = 8
    rest: float = 3.0
    farthest: float = 6.0
    deviations: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.voxel <= self.truncation:
            raise ValueError(f"a voxel of {self.voxel} m in a truncation of {self.truncation} m")
        if not 1 <= self.carved_weight <= self.most_weight <= 255:
            raise ValueError("weights are 1 to 255, and a carved one is the smaller")
        if not 0 < self.rest <= 25:
            raise ValueError(f"rest is up to 25 seconds, not {self.rest}")


@dataclass(frozen=True)
class View:
    """A depth picture and where it was taken.

    Args:
        depth: ``(H, W)`` float32 metres, 0 where it is unknown.
        least: ``(H, W)`` float32, the smallest known depth of 3 by 3 pixels.
        camera: ``(4,)`` float64 ``fx fy cx cy`` in pixels.
        pose: ``(4, 4)`` float64 camera-to-world.
        color: ``(H, W, 3)`` uint8, or empty.
    """

    depth: np.ndarray
    least: np.ndarray
    camera: np.ndarray
    pose: np.ndarray
    color: np.ndarray

    @classmethod
    def of(
        cls,
        depth: np.ndarray,
        intrinsics: np.ndarray,
        pose: np.ndarray,
        color: np.ndarray | None = None,
        farthest: float = 6.0,
    ) -> View:
        """From depth as a camera gives it: 0, NaN and what is too far is unknown."""
        depth = np.asarray(depth, np.float32)
        with np.errstate(invalid="ignore"):
            depth = np.where((depth > 0) & (depth <= farthest), depth, np.float32(0))
        far = np.where(depth > 0, depth, np.float32(1e3))
        least = cv2.erode(far, np.ones((3, 3), np.uint8))
        camera = np.array([intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]])
        if color is None:
            color = np.zeros((0, 0, 3), np.uint8)
        return cls(depth, least, camera, np.asarray(pose, np.float64), np.ascontiguousarray(color))


@njit(cache=True)
def _blocks_in_view(
    tiles: np.ndarray,
    camera: np.ndarray,
    pose: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    edge: float,
    beyond: float,
    size: tuple,
) -> tuple:
    """Blocks between the camera and what it sees, and how far each is."""
    most = (high[0] - low[0]) * (high[1] - low[1]) * (high[2] - low[2])
    keys, ranges = np.empty(most, np.int64), np.empty(most)
    count = 0
    radius = edge * np.sqrt(3.0) / 2
    fx, fy, cx, cy = camera
    for bx in range(low[0], high[0]):
        for by in range(low[1], high[1]):
            for bz in range(low[2], high[2]):
                x = (bx + 0.5) * edge - pose[0, 3]
                y = (by + 0.5) * edge - pose[1, 3]
                z = (bz + 0.5) * edge - pose[2, 3]
                depth = x * pose[0, 2] + y * pose[1, 2] + z * pose[2, 2]
                near = max(depth - radius, 0.05)
                if depth + radius <= 0.05:
                    continue
                right = x * pose[0, 0] + y * pose[1, 0] + z * pose[2, 0]
                down = x * pose[0, 1] + y * pose[1, 1] + z * pose[2, 1]
                far = depth + radius
                left_end = min((right - radius) / near, (right - radius) / far)
                right_end = max((right + radius) / near, (right + radius) / far)
                upper = min((down - radius) / near, (down - radius) / far)
                lower = max((down + radius) / near, (down + radius) / far)
                u0, u1 = fx * left_end + cx, fx * right_end + cx
                v0, v1 = fy * upper + cy, fy * lower + cy
                if u1 < 0 or v1 < 0 or u0 >= size[1] or v0 >= size[0]:
                    continue
                seen = False
                for row in range(int(max(v0, 0)) // TILE, int(min(v1, size[0] - 1)) // TILE + 1):
                    for column in range(
                        int(max(u0, 0)) // TILE, int(min(u1, size[1] - 1)) // TILE + 1
                    ):
                        if tiles[row, column] > 0 and tiles[row, column] + beyond > near:
                            seen = True
                            break
                    if seen:
                        break
                if seen:
                    keys[count] = pack(bx, by, bz)
                    ranges[count] = depth
                    count += 1
    return keys[:count], ranges[:count]


def in_view(view: View, config: FuseConfig) -> np.ndarray:
    """Keys ``(N,)`` int64 of the blocks that a view tells something of, the nearest first."""
    height, width = view.depth.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.zeros((rows * TILE, columns * TILE), np.float32)
    padded[:height, :width] = view.depth
    tiles = padded.reshape(rows, TILE, columns, TILE).max((1, 3))
    reach = float(tiles.max())
    if reach == 0:
        return np.empty(0, np.int64)
    reach += config.truncation
    fx, fy, cx, cy = view.camera
    ends = np.array([[(u - cx) / fx, (v - cy) / fy, 1] for u in (0, width) for v in (0, height)])
    corners = np.concatenate([np.zeros((1, 3)), ends * reach])
    corners = corners @ view.pose[:3, :3].T + view.pose[:3, 3]
    edge = SIDE * config.voxel
    low = np.floor(corners.min(0) / edge).astype(np.int64)
    high = np.floor(corners.max(0) / edge).astype(np.int64) + 1
    keys, ranges = _blocks_in_view(
        tiles, view.camera, view.pose, low, high, edge, config.truncation, view.depth.shape
    )
    return keys[np.argsort(ranges, kind="stable")]


@njit(cache=True)
def _fuse(
    voxels: Voxels,
    rows: np.ndarray,
    corners: np.ndarray,
    depth: np.ndarray,
    least: np.ndarray,
    margin: np.ndarray,
    label: np.ndarray,
    color: np.ndarray,
    camera: np.ndarray,
    pose: np.ndarray,
    voxel: float,
    truncation: float,
    most_weight: int,
    carved_weight: int,
    ticks: int,
    rest: int,
) -> None:
    height, width = depth.shape
    fx, fy, cx, cy = camera
    colored = color.shape[0] == height
    for n in range(rows.size):
        row = rows[n]
        for place in range(SIDE * SIDE * SIDE):
            x = (corners[n, 0] + (place >> 6) + 0.5) * voxel - pose[0, 3]
            y = (corners[n, 1] + ((place >> 3) & 7) + 0.5) * voxel - pose[1, 3]
            z = (corners[n, 2] + (place & 7) + 0.5) * voxel - pose[2, 3]
            away = x * pose[0, 2] + y * pose[1, 2] + z * pose[2, 2]
            if away < 0.05:
                continue
            u = fx * (x * pose[0, 0] + y * pose[1, 0] + z * pose[2, 0]) / away + cx + 0.5
            v = fy * (x * pose[0, 1] + y * pose[1, 1] + z * pose[2, 1]) / away + cy + 0.5
            if u < 0 or v < 0 or u >= width or v >= height:
                continue
            i, j = int(v), int(u)
            if depth[i, j] == 0:
                continue
            s = depth[i, j] - away
            if s < -truncation:
                continue
            weight = voxels.weight[row, place]
            if s > truncation:
                if least[i, j] - away <= max(truncation, margin[i, j]):
                    continue  # grazes something, or may be noise
                if voxels.free[row, place] < 250:
                    voxels.free[row, place] += 1
                voxels.occupied[row, place] = 0
                if weight > 0:
                    kept = min(weight, carved_weight)
                    mean = (voxels.tsdf[row, place] * kept + ONE) / (kept + 1.0)
                    voxels.tsdf[row, place] = int(round(mean))
                    voxels.weight[row, place] = kept
                continue
            if abs(s) < 0.67 * truncation:
                there = min(voxels.occupied[row, place] + ticks, 250)
                voxels.occupied[row, place] = there
                if label[i, j] == RESTING or (label[i, j] == STILL and there >= rest):
                    voxels.free[row, place] = 0
            if label[i, j] == MOVING:
                continue
            if s < 0.5 * truncation:
                # Slowly: what comes near slowly must not rub out the free space that it enters.
                voxels.free[row, place] = max(voxels.free[row, place], 1) - 1
            mean = (voxels.tsdf[row, place] * float(weight) + s / truncation * ONE) / (weight + 1.0)
            voxels.tsdf[row, place] = int(round(mean))
            voxels.weight[row, place] = min(weight + 1, most_weight)
            if colored:
                kept = min(weight, 8)
                for channel in range(3):
                    old = float(voxels.color[row, place, channel])
                    mixed = (old * kept + color[i, j, channel]) / (kept + 1.0)
                    voxels.color[row, place, channel] = int(round(mixed))


def fuse(
    voxels: Voxels,
    rows: np.ndarray,
    corners: np.ndarray,
    view: View,
    label: np.ndarray,
    ticks: int,
    config: FuseConfig,
) -> None:
    """Fuse a view into blocks.

    Args:
        voxels: Of the pool.
        rows: ``(N,)`` int64 of the blocks in view.
        corners: ``(N, 3)`` int64 first voxel of each, in voxels.
        view: What is seen.
        label: ``(H, W)`` uint8 of what each pixel shows: `MOVING` pixels clear what is ahead of
            them and leave no surface, `RESTING` ones become part of the room.
        ticks: Tenths of a second since the last view.
        config: Sizes.
    """
    margin = (config.deviations * depth_sigma(view.depth)).astype(np.float32)
    _fuse(
        voxels,
        rows,
        corners,
        view.depth,
        view.least,
        margin,
        label,
        view.color,
        view.camera,
        view.pose,
        config.voxel,
        config.truncation,
        config.most_weight,
        config.carved_weight,
        ticks,
        int(round(config.rest * 10)),
    )
