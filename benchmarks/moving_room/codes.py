"""Tokens of a shot that need no network: a code of each place on the instance that it lies on.

The feature of a 16-pixel patch is a random Fourier code of where on its instance it lies, with a
code of the instance and noise. The code of a wall stays where the wall is, that of a mover rides
with it: what a perfect encoder would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from moving_room.scene import Shot

from vismem.geometry import transform, unproject

__all__ = ["PATCH", "Tokens", "patch_samples", "patch_tokens"]

PATCH = 16  # pixels
DIM = 80
PITCH = 0.3  # metres over which a code changes
NOISE = 0.05  # length, where that of a feature is 1
STEP = 4  # pixels between those of a patch that are looked at
LEAST = 3  # of them with a depth


@dataclass(frozen=True)
class Tokens:
    """Patches of a shot that show a surface at a known depth.

    Args:
        features: ``(N, D)`` float32.
        positions: ``(N, 3)`` float32 metres in the world, by the depth and pose handed out.
        moving: ``(N,)`` bool: the patch shows mostly something that moves.
        hidden: ``(N,)`` bool: not written, but asked for.
        patch: ``(N,)`` int64: number of the patch in the picture, row by row.
        time: Seconds.
    """

    features: np.ndarray
    positions: np.ndarray
    moving: np.ndarray
    hidden: np.ndarray
    patch: np.ndarray
    time: float


def patch_samples(values: np.ndarray) -> np.ndarray:
    """The pixels of each patch that are looked at, ``(P, S, ...)`` of a picture ``(H, W, ...)``."""
    rows, columns = values.shape[0] // PATCH, values.shape[1] // PATCH
    cut = values[: rows * PATCH, : columns * PATCH][STEP // 2 :: STEP, STEP // 2 :: STEP]
    side = PATCH // STEP
    cells = cut.reshape(rows, side, columns, side, *values.shape[2:])
    return np.moveaxis(cells, 2, 1).reshape(rows * columns, side * side, *values.shape[2:])


def patch_tokens(
    shot: Shot, *, seed: int = 0, hidden: float = 0.35, noise: float = NOISE
) -> Tokens:
    """Give the tokens of a shot.

    Args:
        shot: Of a `MovingRoom`.
        seed: Of the codes, the noise and what is hidden.
        hidden: Share of the patches that are.
        noise: Its length, where that of a feature is 1.

    Example:
        >>> from moving_room.scene import MovingRoom
        >>> patch_tokens(MovingRoom(0).frame(0)).features.shape[1]
        80
    """
    frame = shot.frame
    assert frame.depth is not None and frame.intrinsics is not None and frame.pose is not None
    points = patch_samples(transform(unproject(frame.depth, frame.intrinsics), frame.pose))
    instance, local = patch_samples(shot.instance), patch_samples(shot.local)
    known = np.isfinite(points[..., 2])
    # A patch across an edge is one of the surface that fills most of it.
    votes = ((instance[..., None] == np.arange(64)) & known[..., None]).sum(1)
    most = votes.argmax(1)
    own = known & (instance == most[:, None])
    kept = np.flatnonzero(own.sum(1) >= LEAST)
    own, most, share = own[kept], most[kept], own[kept] / own[kept].sum(1, keepdims=True)
    draws = np.random.default_rng([seed, 5])
    waves, shift = draws.normal(0, 1 / PITCH, (3, DIM)), draws.uniform(0, 2 * np.pi, DIM)
    of_instance = draws.normal(0, DIM**-0.5, (64, DIM))
    codes = np.cos(local[kept] @ waves + shift) * (2 / DIM) ** 0.5
    features = np.einsum("psd,ps->pd", codes, share) + of_instance[most]
    chance = np.random.default_rng([seed, 6, frame.index])
    features += noise * DIM**-0.5 * chance.normal(size=features.shape) * 2**0.5
    return Tokens(
        features.astype(np.float32),
        np.einsum("psd,ps->pd", np.nan_to_num(points[kept]), share).astype(np.float32),
        (patch_samples(shot.moving)[kept] & own).any(1),
        chance.random(len(kept)) < hidden,
        kept,
        frame.timestamp,
    )
