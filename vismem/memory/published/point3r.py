"""The pointer memory of Point3R as published, to the number: how it grows, and how it is rotated.

A pointer is a position in the world and a feature. A new one that is far from all that are held is
added; those that are near become the new content of the pointer that is nearest to them, whose old
content is discarded. Nothing is ever given up, and what counts as near grows with the scene.

Source: Wu et al., "Point3R: Streaming 3D Reconstruction with Explicit Spatial Pointer Memory", 2025
(https://arxiv.org/abs/2507.02863); ``_forward_addmemory_merge`` and ``RoPE3DContinuous`` of
YkiWu/Point3R.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["merge_pointers", "patch_centres", "rotate_in_space"]

_PARTS = 20  # of the scene's extent along each axis, that near is
_BASES = (10.0, 100.0, 1000.0, 10000.0)


def patch_centres(points: Tensor, patch: int = 16) -> Tensor:
    """Mean position of each patch of a point map.

    Args:
        points: ``(B, H, W, 3)``; both sides multiples of the patch.
        patch: Side of a patch, in pixels.

    Returns:
        ``(B, H / patch * W / patch, 3)``, row by row.

    Example:
        >>> patch_centres(torch.ones(1, 32, 16, 3)).shape
        torch.Size([1, 2, 3])
    """
    cells = points.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))
    return cells.mean((2, 4)).flatten(1, 2)


def merge_pointers(
    positions: Tensor, features: Tensor, new_positions: Tensor, new_features: Tensor
) -> tuple[Tensor, Tensor]:
    """Add the pointers of a frame to those that are held.

    Args:
        positions: ``(M, 3)``; none for the first frame.
        features: ``(M, C)``.
        new_positions: ``(N, 3)``.
        new_features: ``(N, C)``.

    Returns:
        Positions ``(K, 3)`` and features ``(K, C)``: those held, in their order and with new
        content where a new one was near, then the others of the frame.

    Example:
        >>> held, new = torch.zeros(2, 3), torch.zeros(2, 3)
        >>> held[1, 0], new[0, 0], new[1, 0] = 8.0, 0.25, 5.0
        >>> merge_pointers(held, held, new, new)[0][:, 0].tolist()
        [0.25, 8.0, 5.0]
    """
    if not len(positions):
        return new_positions, new_features
    every = torch.cat([positions, new_positions])
    near = ((every.amax(0) - every.amin(0)) / _PARTS).norm()
    away, nearest = torch.cdist(new_positions, positions).min(1)
    far = away >= near
    hits = nearest[~far]
    counts = torch.bincount(hits, minlength=len(positions))[:, None]
    merged = []
    for held, new in ((positions, new_positions), (features, new_features)):
        sums = torch.zeros_like(held).index_add_(0, hits, new[~far])
        content = torch.where(counts > 0, sums / counts.clamp(min=1), held)
        merged.append(torch.cat([content, new[far]]))
    return merged[0], merged[1]


def rotate_in_space(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate the channels of heads by continuous positions: the mean of four rotations.

    A third of the channels turns with each axis. It is not a rotation (the mean of four is shorter
    than each), and for an odd third the halves that turn against each other do not match.

    Args:
        x: ``(B, H, N, D)``.
        positions: ``(B, N, 3)``.

    Returns:
        ``(B, H, N, D)``.

    Example:
        >>> x = torch.ones(1, 1, 2, 6)
        >>> torch.equal(rotate_in_space(x, torch.zeros(1, 2, 3)), x)
        True
    """
    third = x.shape[3] // 3
    parts = x.split([third, third, x.shape[3] - 2 * third], 3)
    return torch.cat(
        [
            torch.stack([_rotated(part, positions[..., axis], base) for base in _BASES]).mean(0)
            for axis, part in enumerate(parts)
        ],
        3,
    )


def _rotated(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turn ``(B, H, N, D)`` by ``(B, N)`` positions, half of the channels against the other."""
    width = x.shape[3]
    speed = base ** -(torch.arange(0, width, 2, dtype=x.dtype, device=x.device) / width)
    angle = (positions[..., None] * speed).repeat(1, 1, 2)[:, None, :, :width]
    one, two = x.tensor_split([(width + 1) // 2], 3)
    return x * angle.cos() + torch.cat([-two, one], 3) * angle.sin()
