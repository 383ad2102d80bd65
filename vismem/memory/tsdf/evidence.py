"""What single pixels say about motion, beside a map and beside the frame before."""

from __future__ import annotations

import numpy as np
from numba import njit

from vismem.memory.tsdf.blocks import Voxels, find, pack
from vismem.memory.tsdf.register import distance_at

__all__ = ["carried", "distances", "hits"]


@njit(cache=True)
def _row_of(voxels: Voxels, x: int, y: int, z: int, memo: np.ndarray) -> int:
    key = pack(x >> 3, y >> 3, z >> 3)
    if memo[0] != key:
        memo[0] = key
        memo[1] = find(voxels.keys, voxels.slots, key)
    return memo[1]


@njit(cache=True)
def _empty(voxels: Voxels, row: int, x: int, y: int, z: int, seen_through: int, least: int) -> bool:
    """Whether at least so many of the 27 voxels about one in a row were seen through."""
    known, beside = -2, -1  # the block last looked up, and its row
    count, misses = 0, 0
    for i in range(x - 1, x + 2):
        for j in range(y - 1, y + 2):
            for k in range(z - 1, z + 2):
                here = row
                if (i >> 3 != x >> 3) or (j >> 3 != y >> 3) or (k >> 3 != z >> 3):
                    key = pack(i >> 3, j >> 3, k >> 3)
                    if key != known:
                        known, beside = key, find(voxels.keys, voxels.slots, key)
                    here = beside
                place = ((i & 7) << 6) | ((j & 7) << 3) | (k & 7)
                if here >= 0 and voxels.free[here, place] >= seen_through:
                    count += 1
                    if count == least:
                        return True
                else:
                    misses += 1
                    if misses > 27 - least:
                        return False
    return count >= least


@njit(cache=True)
def hits(
    voxels: Voxels,
    depth: np.ndarray,
    camera: np.ndarray,
    pose: np.ndarray,
    voxel: float,
    seen_through: int,
    least: int,
    rest: int,
) -> tuple:
    """What is known of each pixel's voxel, ``(H, W)`` uint8 each.

    Returns:
        1 where it is empty, 2 at even pixels where as many of the 27 about it are as well; and
        whether something has been in it for long enough to rest.
    """
    height, width = depth.shape
    around = np.zeros((height, width), np.uint8)
    rested = np.zeros((height, width), np.uint8)
    fx, fy, cx, cy = camera
    memo = np.array([-2, -1], np.int64)
    for v in range(height):
        for u in range(width):
            d = depth[v, u]
            if d == 0:
                continue
            x, y, z = _in_world(d * (u - cx) / fx, d * (v - cy) / fy, d, pose)
            i, j, k = int(np.floor(x / voxel)), int(np.floor(y / voxel)), int(np.floor(z / voxel))
            row = _row_of(voxels, i, j, k, memo)
            if row < 0:
                continue
            place = ((i & 7) << 6) | ((j & 7) << 3) | (k & 7)
            rested[v, u] = voxels.occupied[row, place] >= rest
            if voxels.free[row, place] < seen_through:
                continue
            sure = v % 2 == 0 and u % 2 == 0 and _empty(voxels, row, i, j, k, seen_through, least)
            around[v, u] = 2 if sure else 1
    return around, rested


@njit(cache=True)
def _in_world(x: float, y: float, z: float, pose: np.ndarray) -> tuple:
    return (
        pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3],
        pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3],
        pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3],
    )


@njit(cache=True)
def distances(
    voxels: Voxels,
    depth: np.ndarray,
    camera: np.ndarray,
    pose: np.ndarray,
    voxel: float,
    least: int,
) -> np.ndarray:
    """Signed distance in truncations at each second pixel of each second row; 2 is unknown."""
    out = np.full((depth.shape[0] // 2, depth.shape[1] // 2), np.float32(2))
    fx, fy, cx, cy = camera
    memo, slope = np.array([-2, -1], np.int64), np.zeros(3)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            d = depth[2 * i, 2 * j]
            if d > 0:
                x, y, z = _in_world(d * (2 * j - cx) / fx, d * (2 * i - cy) / fy, d, pose)
                out[i, j] = distance_at(voxels, x / voxel, y / voxel, z / voxel, least, memo, slope)
    return out


@njit(cache=True)
def carried(
    depth: np.ndarray,
    camera: np.ndarray,
    relative: np.ndarray,
    before: np.ndarray,
    belief: np.ndarray,
    apart: float,
) -> np.ndarray:
    """What the last frame believed of each pixel's point, 0 where it saw another surface."""
    height, width = depth.shape
    out = np.zeros((height, width), np.float32)
    fx, fy, cx, cy = camera
    for v in range(height):
        for u in range(width):
            d = depth[v, u]
            if d == 0:
                continue
            x, y, z = _in_world(d * (u - cx) / fx, d * (v - cy) / fy, d, relative)
            if z < 0.05:
                continue
            a, b = int(np.floor(fx * x / z + cx + 0.5)), int(np.floor(fy * y / z + cy + 0.5))
            if 0 <= a < width and 0 <= b < height and abs(before[b, a] - z) < apart:
                out[v, u] = belief[b, a]
    return out
