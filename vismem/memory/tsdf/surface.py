"""The surface in a map of signed distances: points with normals and colours, and a mesh of quads.

Source: the naive surface nets of Gibson, "Constrained Elastic Surface Nets", 1998: each cell that
the surface passes has one vertex, the mean of where it crosses the cell's edges, and each edge that
it crosses has a face between the four cells around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from vismem.memory.tsdf.blocks import SIDE, BlockPool, Voxels, find, pack, unpack
from vismem.memory.tsdf.fuse import ONE, FuseConfig

__all__ = ["AIR", "SOLID", "UNSEEN", "Surface", "extract", "occupancy"]

LEAST = 3  # looks that a voxel must be the mean of
UNSEEN, AIR, SOLID = -1, 0, 1  # what is at a point


@dataclass(frozen=True)
class Surface:
    """Points on surfaces, and the faces between them.

    Args:
        points: ``(N, 3)`` float32 metres.
        normals: ``(N, 3)`` float32 unit vectors, towards where it was seen from.
        colors: ``(N, 3)`` uint8 RGB.
        faces: ``(F, 4)`` int32 points of each quad, anticlockwise from outside.
    """

    points: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    faces: np.ndarray


@njit(cache=True)
def _local(x: int, y: int, z: int) -> int:
    return ((x & 7) << 6) | ((y & 7) << 3) | (z & 7)


@njit(cache=True)
def _vertices(
    voxels: Voxels, corners: np.ndarray, index: np.ndarray, least: int, points: np.ndarray
) -> int:
    """Number each cell that the surface passes, and its vertex and slope; gives how many."""
    count = 0
    value, known = np.zeros(8), np.zeros(8, np.bool_)
    slope = np.zeros(3)
    near = np.zeros(8, np.int64)
    for row in range(len(corners)):
        if not (voxels.weight[row] >= least).any():
            continue
        bx, by, bz = corners[row, 0], corners[row, 1], corners[row, 2]
        for n in range(8):  # the blocks that cells at its far side reach into
            near[n] = row
            if n:
                key = pack((bx >> 3) + (n >> 2), (by >> 3) + (n >> 1 & 1), (bz >> 3) + (n & 1))
                near[n] = find(voxels.keys, voxels.slots, key)
        for place in range(SIDE * SIDE * SIDE):
            x, y, z = place >> 6, place >> 3 & 7, place & 7
            below = above = False
            for n in range(8):
                i, j, k = x + (n >> 2), y + (n >> 1 & 1), z + (n & 1)
                other = near[(i >> 3) << 2 | (j >> 3) << 1 | (k >> 3)]
                at = _local(i, j, k)
                known[n] = other >= 0 and voxels.weight[other, at] >= least
                if known[n]:
                    value[n] = voxels.tsdf[other, at]
                    below = below or value[n] < 0
                    above = above or value[n] >= 0
            if not (below and above):
                continue
            crossings = 0
            px = py = pz = 0.0
            slope[:] = 0
            for n in range(8):
                for axis in range(3):
                    bit = 4 >> axis
                    if n & bit or not (known[n] and known[n | bit]):
                        continue
                    a, b = value[n], value[n | bit]
                    slope[axis] += b - a
                    if (a < 0) == (b < 0):
                        continue
                    share = a / (a - b)
                    px += (n >> 2) + (share if axis == 0 else 0.0)
                    py += (n >> 1 & 1) + (share if axis == 1 else 0.0)
                    pz += (n & 1) + (share if axis == 2 else 0.0)
                    crossings += 1
            if crossings == 0:
                continue
            if count < len(points):
                points[count, 0] = bx + x + px / crossings + 0.5
                points[count, 1] = by + y + py / crossings + 0.5
                points[count, 2] = bz + z + pz / crossings + 0.5
                points[count, 3:6] = slope
                nearest = 1e9
                for n in range(8):
                    if known[n] and abs(value[n]) < nearest:
                        i, j, k = x + (n >> 2), y + (n >> 1 & 1), z + (n & 1)
                        other = near[(i >> 3) << 2 | (j >> 3) << 1 | (k >> 3)]
                        nearest = abs(value[n])
                        points[count, 6] = other * 512 + _local(i, j, k)
                index[row, place] = count
            count += 1
    return count


@njit(cache=True)
def _faces(
    voxels: Voxels, corners: np.ndarray, index: np.ndarray, least: int, faces: np.ndarray
) -> int:
    count = 0
    for row in range(len(corners)):
        for place in range(SIDE * SIDE * SIDE):
            if index[row, place] < 0:
                continue
            x = corners[row, 0] + (place >> 6)
            y = corners[row, 1] + (place >> 3 & 7)
            z = corners[row, 2] + (place & 7)
            if voxels.weight[row, place] < least:
                continue
            for axis in range(3):
                i, j, k = x + (axis == 0), y + (axis == 1), z + (axis == 2)
                other = find(voxels.keys, voxels.slots, pack(i >> 3, j >> 3, k >> 3))
                if other < 0 or voxels.weight[other, _local(i, j, k)] < least:
                    continue
                inside = voxels.tsdf[row, place] < 0
                if inside == (voxels.tsdf[other, _local(i, j, k)] < 0):
                    continue
                whole = True
                for n in range(4):
                    # Around the edge, so that the face looks along the axis.
                    one, two = -(n == 1 or n == 2), -(n >= 2)
                    i = x + (one if axis == 1 else two if axis == 2 else 0)
                    j = y + (one if axis == 2 else two if axis == 0 else 0)
                    k = z + (one if axis == 0 else two if axis == 1 else 0)
                    cell = find(voxels.keys, voxels.slots, pack(i >> 3, j >> 3, k >> 3))
                    vertex = -1 if cell < 0 else index[cell, _local(i, j, k)]
                    whole = whole and vertex >= 0
                    faces[count, n if not inside else 3 - n] = vertex
                count += whole
    return count


def extract(pool: BlockPool, config: FuseConfig, least: int = LEAST) -> Surface:
    """Find the surface of all blocks.

    Args:
        pool: The map.
        config: Its sizes.
        least: Looks that a voxel must be the mean of.
    """
    corners = unpack(pool.key[: len(pool)]) * SIDE
    index = np.full((len(pool), SIDE**3), -1, np.int32)
    count = _vertices(pool.voxels, corners, index, least, np.empty((0, 7)))
    vertices = np.empty((count, 7))
    _vertices(pool.voxels, corners, index, least, vertices)
    faces = np.empty((3 * count + 1, 4), np.int32)
    faces = faces[: _faces(pool.voxels, corners, index, least, faces)].copy()
    length = np.linalg.norm(vertices[:, 3:6], axis=1, keepdims=True)
    normals = vertices[:, 3:6] / np.maximum(length, 1e-9)
    colors = pool.voxels.color.reshape(-1, 3)[vertices[:, 6].astype(np.int64)]
    points = (vertices[:, :3] * config.voxel).astype(np.float32)
    return Surface(points, normals.astype(np.float32), colors, faces)


@njit(cache=True)
def _states(voxels: Voxels, places: np.ndarray, least: int, solid: float) -> np.ndarray:
    states = np.full(len(places), UNSEEN, np.int8)
    for n in range(len(places)):
        x, y, z = places[n]
        row = find(voxels.keys, voxels.slots, pack(x >> 3, y >> 3, z >> 3))
        if row < 0:
            continue
        at = _local(x, y, z)
        if voxels.weight[row, at] >= least:
            states[n] = SOLID if voxels.tsdf[row, at] < solid else AIR
        elif voxels.free[row, at] > 0:
            states[n] = AIR
    return states


def occupancy(
    pool: BlockPool, points: np.ndarray, config: FuseConfig, least: int = LEAST
) -> np.ndarray:
    """What is at points: `SOLID`, `AIR`, or `UNSEEN` where no camera looked, ``(N,)`` int8.

    Args:
        pool: The map.
        points: ``(N, 3)`` metres.
        config: Its sizes.
        least: Looks that a voxel must be the mean of, to be solid.
    """
    places = np.floor(np.asarray(points, np.float64) / config.voxel).astype(np.int64)
    # Distances are along the ray: up to here the surface may pass the voxel.
    solid = config.voxel / config.truncation * ONE
    return _states(pool.voxels, places, least, solid)
