"""Bring a depth picture onto a map: point to signed distance, a few Gauss-Newton steps.

Source: the tracking of Bylow et al., "Real-Time Camera Tracking and 3D Reconstruction Using Signed
Distance Functions", 2013, with the pose that was given as a prior and Tukey's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from vismem.memory.tsdf.blocks import Voxels, find, pack
from vismem.memory.tsdf.fuse import ONE, FuseConfig, View

__all__ = ["LEAST", "Fit", "PoseNoise", "distance_at", "moved", "register", "stride"]

STEPS = 6
SAMPLES = 2500  # pixels
REACH = (0.9, 0.6)  # of the truncation, beyond which a pixel has no say: at first, later
ALIKE = 16  # samples that are worth one, as neighbours share the errors of the map
STEADY, QUICK = 30, 10  # frames over which the mean and the variance are taken
LEAST = 150  # of them on the map, or nothing can be said
FIRST = (np.radians(0.2), 0.005)  # radians and metres that poses are taken to be wrong by, at first
FLOOR = (np.radians(0.02), 0.0005)  # and at the least


@dataclass(frozen=True)
class Fit:
    """How a picture lies on a map.

    Args:
        motion: ``(6,)`` what the camera must move by: rotation vector about its own centre in
            radians, and metres, both in the world's axes.
        variance: ``(6,)`` of it.
        known: Pixels that were compared.
        agree: Share of them that lie on the map's surface.
        off: Median distance of all of them from the surface, metres.
    """

    motion: np.ndarray
    variance: np.ndarray
    known: int
    agree: float
    off: float


@njit(cache=True)
def _corner(voxels: Voxels, x: int, y: int, z: int, least: int, memo: np.ndarray) -> float:
    """Signed distance of a voxel over the truncation, 2 where it is unknown or free air."""
    key = pack(x >> 3, y >> 3, z >> 3)
    if memo[0] != key:
        memo[0] = key
        memo[1] = find(voxels.keys, voxels.slots, key)
    if memo[1] < 0:
        return 2.0
    place = ((x & 7) << 6) | ((y & 7) << 3) | (z & 7)
    if voxels.weight[memo[1], place] < least:
        return 2.0
    return voxels.tsdf[memo[1], place] / ONE


@njit(cache=True)
def distance_at(
    voxels: Voxels, x: float, y: float, z: float, least: int, memo: np.ndarray, slope: np.ndarray
) -> float:
    """Trilinear signed distance at a point, in truncations; 2 where a corner is unknown.

    Args:
        voxels: Of the pool.
        x: Of the point, in voxels; as ``y`` and ``z``.
        y: Likewise.
        z: Likewise.
        least: Looks that each corner must be the mean of.
        memo: ``(2,)`` int64, the block last looked up and its row.
        slope: ``(3,)``, filled with the gradient, per voxel.
    """
    x, y, z = x - 0.5, y - 0.5, z - 0.5
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    a, b, c = x - i, y - j, z - k
    total = 0.0
    slope[:] = 0.0
    for di in range(2):
        wx = a if di else 1 - a
        for dj in range(2):
            wy = b if dj else 1 - b
            for dk in range(2):
                wz = c if dk else 1 - c
                value = _corner(voxels, i + di, j + dj, k + dk, least, memo)
                if value > 1.5:
                    return 2.0
                total += wx * wy * wz * value
                slope[0] += (2 * di - 1) * wy * wz * value
                slope[1] += wx * (2 * dj - 1) * wz * value
                slope[2] += wx * wy * (2 * dk - 1) * value
    return total


@njit(cache=True)
def _normal_equations(
    voxels: Voxels,
    depth: np.ndarray,
    step: int,
    camera: np.ndarray,
    pose: np.ndarray,
    voxel: float,
    truncation: float,
    width: float,
) -> tuple:
    """Weighted normal equations of a small motion of the camera about itself, world axes."""
    form, pull = np.zeros((6, 6)), np.zeros(6)
    fx, fy, cx, cy = camera
    memo = np.array([-2, -1], np.int64)
    slope, row = np.zeros(3), np.zeros(6)
    off = np.empty((depth.shape[0] // step + 1) * (depth.shape[1] // step + 1))
    known, agree = 0, 0
    for v in range(step // 2, depth.shape[0], step):
        for u in range(step // 2, depth.shape[1], step):
            d = depth[v, u]
            if d == 0:
                continue
            cx_, cy_ = d * (u - cx) / fx, d * (v - cy) / fy
            x = pose[0, 0] * cx_ + pose[0, 1] * cy_ + pose[0, 2] * d
            y = pose[1, 0] * cx_ + pose[1, 1] * cy_ + pose[1, 2] * d
            z = pose[2, 0] * cx_ + pose[2, 1] * cy_ + pose[2, 2] * d
            value = distance_at(
                voxels,
                (x + pose[0, 3]) / voxel,
                (y + pose[1, 3]) / voxel,
                (z + pose[2, 3]) / voxel,
                1,
                memo,
                slope,
            )
            if value > 1.5:
                continue
            r = value * truncation
            off[known] = abs(r)
            known += 1
            sigma = 0.0012 + 0.0019 * (d - 0.4) ** 2 + 0.004
            if abs(r) < 3 * sigma + 0.25 * voxel:
                agree += 1
            reach = min(width * truncation, width * (0.01 + 5 * sigma))
            if abs(r) >= reach or abs(value) > 0.98:
                continue
            scale = truncation / voxel
            nx, ny, nz = slope[0] * scale, slope[1] * scale, slope[2] * scale
            row[0] = y * nz - z * ny
            row[1] = z * nx - x * nz
            row[2] = x * ny - y * nx
            row[3], row[4], row[5] = nx, ny, nz
            weight = (1 - (r / reach) ** 2) ** 2 / sigma**2
            for i in range(6):
                pull[i] -= weight * row[i] * r
                for j in range(6):
                    form[i, j] += weight * row[i] * row[j]
    return form, pull, off[:known], agree


def moved(pose: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A pose ``(4, 4)``, turned about its own centre and shifted, in the world's axes.

    Args:
        pose: Camera-to-world.
        turn: ``(3,)`` rotation vector in radians.
        shift: ``(3,)`` metres.
    """
    out = pose.copy()
    out[:3, :3] = cv2.Rodrigues(turn)[0] @ pose[:3, :3]
    out[:3, 3] += shift
    return out


def stride(depth: np.ndarray) -> int:
    """Pixels from one sample to the next, in rows and columns."""
    return max(1, int(np.sqrt(depth.size / SAMPLES)))


def register(
    voxels: Voxels, view: View, depth: np.ndarray, config: FuseConfig, poses: PoseNoise
) -> Fit:
    """Find the motion that brings a view's points onto the map's surface.

    Args:
        voxels: Of the pool.
        view: With the pose to start from.
        depth: ``(H, W)`` of the view, 0 at pixels that should have no say.
        config: Sizes.
        poses: How wrong poses were until now: what the motion is drawn to.

    Returns:
        What fits, and how well; the expected motion where the map says too little.
    """
    step = stride(depth)
    expected, belief = poses.mean, np.diag(1 / np.repeat(poses.variance, 3))
    total = expected.copy()
    for turn in range(STEPS + 1):
        pose = moved(view.pose, total[:3], total[3:])
        reach = REACH[0] if turn < 2 else REACH[1]
        form, pull, off, agree = _normal_equations(
            voxels, depth, step, view.camera, pose, config.voxel, config.truncation, reach
        )
        if len(off) < LEAST:
            return Fit(expected, np.diag(belief) ** -1, 0, 0.0, np.inf)
        if turn == STEPS:
            break
        known = form / ALIKE + belief
        change = np.linalg.solve(known, pull / ALIKE - belief @ (total - expected))
        total = total + change
        if np.abs(change).max() < 1e-4:
            break
    variance = np.diag(np.linalg.inv(form / ALIKE + belief))
    return Fit(total, variance, len(off), agree / len(off), float(np.median(off)))


class PoseNoise:
    """How wrong the poses of a stream are: a slow part, and one that each frame has for itself.

    The first is the running mean of the motions that brought frames onto the map. The other is
    their variance about it by expectation and maximisation: what a frame says nothing of stays as
    uncertain as it was, so that exact poses are soon trusted, and noisy ones as soon no more.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.mean = np.zeros(6)
        self.variance = np.square(FIRST)

    def learn(self, fit: Fit) -> None:
        """Take up how a frame fitted.

        Less the mean its motion is what its pose needs: with the mean the map would drift by its
        own errors, where the poses that are given do not.
        """
        self.frames += 1
        own = fit.motion - self.mean
        fresh = (np.square(own) + fit.variance).reshape(2, 3).mean(1)
        share = max(1 / (self.frames + 4), 1 / QUICK)
        self.variance = self.variance + share * (fresh - self.variance)
        self.variance = np.maximum(self.variance, np.square(FLOOR))
        self.mean = self.mean + max(1 / (self.frames + 1), 1 / STEADY) * own
