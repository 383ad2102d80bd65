"""How likely each token moves: cues in units of the noise, and a filter over time.

A cue is never scaled by what else is in its frame: in a room where nothing moves nothing does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vismem.geometry import check_intrinsics, is_pose, project

__all__ = ["SURE", "View", "cue_of", "filtered", "hides_what_was_seen", "noise_of", "said_odds"]

SURE = 3.0  # log odds at which the filter stops: 0.95 to 0.05
_GIVEN = 2.2  # log odds that what the caller says is cut off at: 0.9 to 0.1
_KEPT = 0.7  # share of the log odds that stays for each tenth of a second
_PROVEN = 8.0  # weight from which on a voxel is taken for a part of the world
_RECENT = 2.0  # seconds for which free space is still believed in


@dataclass(frozen=True, eq=False)
class View:
    """Where a camera stood and how far it saw.

    Args:
        depth: ``(H, W)`` metres along the optical axis, 0 or NaN where unknown.
        intrinsics: ``(3, 3)`` pixels.
        pose: ``(4, 4)`` camera-to-world in metres, OpenCV axes.

    Raises:
        ValueError: If something is not of its shape, or no camera.
    """

    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray

    def __post_init__(self) -> None:
        for name in ("depth", "intrinsics", "pose"):
            object.__setattr__(self, name, np.array(getattr(self, name)))
        if self.depth.ndim != 2:
            raise ValueError(f"depth is (H, W), not {self.depth.shape}")
        check_intrinsics(self.intrinsics, self.depth.shape[1], self.depth.shape[0])
        if not is_pose(self.pose):
            raise ValueError("a pose is a rigid (4, 4) camera-to-world transform")


def noise_of(frames: Tensor) -> float:
    """Measure `StaticDynamicConfig.noise` on a stretch of a fixed camera's tokens.

    The median over all tokens, channels and pairs of frames, so that less than half of the picture
    may move.

    Args:
        frames: ``(T, N, D)``, ``T >= 2``: the same N patches T times.

    Returns:
        Standard deviation of a channel between two looks at the same thing.

    Raises:
        ValueError: If there are no two frames.

    Example:
        >>> frames = 0.1 * torch.randn(50, 30, 4, generator=torch.Generator().manual_seed(0))
        >>> round(noise_of(frames + torch.rand(30, 4)), 2)
        0.1
    """
    if frames.ndim != 3 or len(frames) < 2:
        raise ValueError(f"frames are (T, N, D) with T of 2 or more, not {tuple(frames.shape)}")
    return 1.4826 * float(frames.float().diff(dim=0).abs().median()) / math.sqrt(2)


def cue_of(explained: Tensor) -> Tensor:
    """Log odds of motion of what the static layer accounts for so well, 0 to 1."""
    return SURE * (1 - 2 * explained)


def said_odds(motion: Tensor) -> Tensor:
    """Log odds of what a caller says, ``(N,)`` in 0 to 1: no detector is surer than 0.1 to 0.9."""
    return torch.logit(motion.float(), 1e-6).clamp(-_GIVEN, _GIVEN)


def filtered(before: Tensor, cue: Tensor, passed: float) -> Tensor:
    """Smooth log odds over time.

    Args:
        before: Of the same thing in the write before, ``(N,)``; 0 where it is new.
        cue: Of this write alone.
        passed: Seconds between the two.

    Returns:
        ``(N,)`` log odds, within `SURE`.

    Example:
        >>> odds, steps = torch.tensor([0.0]), []
        >>> for said in (0.0, 0.0, 0.0, 1.0, 1.0):
        ...     odds = filtered(odds, said_odds(torch.tensor([said])), 0.1)
        ...     steps.append(round(float(odds.sigmoid()), 2))
        >>> steps
        [0.1, 0.05, 0.05, 0.52, 0.91]
    """
    return (_KEPT ** (10 * passed) * before + cue).clamp(-SURE, SURE)


def hides_what_was_seen(
    points: Tensor,
    static: Tensor,
    mass: Tensor,
    seen: Tensor,
    time: float,
    view: View,
    voxel: float,
) -> Tensor:
    """Which points stand where there was free space: they hide what was seen behind them just now.

    A point near to a proven static voxel is part of it. A part of the world that comes into view
    for the first time hides nothing that was seen from here, and is no motion.

    Args:
        points: ``(N, 3)`` metres.
        static: ``(n, 3)`` places of the static layer.
        mass: ``(n,)`` weight of each; what moved past has left little.
        seen: ``(n,)`` when each was last seen.
        time: Now.
        view: From where it is seen; its depth is not looked at.
        voxel: Side of the static layer's cells.

    Returns:
        ``(N,)`` bool.
    """
    static, seen = static[mass >= _PROVEN], seen[mass >= _PROVEN]
    if not len(static):
        return torch.zeros(len(points), dtype=torch.bool)
    near = torch.cdist(points, static).amin(1) < max(0.12, 0.75 * voxel)
    recent = static[time - seen <= _RECENT]
    pixel, depth = (torch.from_numpy(np.asarray(a)) for a in
                    project(points.double().numpy(), view.intrinsics, view.pose))  # fmt: skip
    behind, far = (torch.from_numpy(np.asarray(a)) for a in
                   project(recent.double().numpy(), view.intrinsics, view.pose))  # fmt: skip
    # Within the voxel's own size in the picture it is the same line of sight.
    radius = (float(view.intrinsics[0, 0]) * voxel / far.clamp_min(0.1)).clamp_min(4.0)
    apart = torch.cdist(pixel.nan_to_num(-1e6), behind.nan_to_num(1e6))
    margin = max(0.15, 1.5 * voxel)
    hidden = (apart <= radius) & (far > depth[:, None] + margin) & (depth[:, None] > 0)
    return hidden.any(1) & ~near
