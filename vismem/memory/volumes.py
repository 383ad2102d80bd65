"""Boxes in the world: how far two share their volume, and whether a frame saw through one.

The rules are after `world_belief` and `inventory` of dimos (github.com/dimensionalOS/dimos), with
margins that follow from the size of a thing, so that a small one on a table counts as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vismem.sightings import Sightings

__all__ = ["OCCLUDED", "OUT_OF_VIEW", "PRESENT", "SEEN", "THROUGH", "UNKNOWN", "inside", "overlap"]
__all__ += ["relations"]

# What a frame says about a place.
SEEN, PRESENT, OCCLUDED, OUT_OF_VIEW, UNKNOWN, THROUGH = range(6)

BEHIND = (0.005, 0.03)  # metres behind a thing's centre that its place must be seen through to
BEFORE = 0.03  # metres before a thing that something else must be to hide it
LEAST_DEPTH = 0.1  # metres
EDGE = 0.02  # of the picture; too near to it, nothing is said
LEAST_SAMPLES = 5  # of nine with a depth


def _shared(one: Tensor, one_size: Tensor, other: Tensor, other_size: Tensor) -> Tensor:
    """Volume that boxes around centres share, ``(N, M)`` cubic metres."""
    low = torch.maximum((one - one_size / 2)[:, None], (other - other_size / 2)[None])
    high = torch.minimum((one + one_size / 2)[:, None], (other + other_size / 2)[None])
    return (high - low).clamp_min(0).prod(-1)


def overlap(
    one: Tensor, one_size: Tensor, other: Tensor, other_size: Tensor, pad: float = 0.0
) -> Tensor:
    """Share of the smaller of two boxes that lies in the other.

    Args:
        one: Centres, ``(N, 3)``.
        one_size: Whole sides, ``(N, 3)``.
        other: ``(M, 3)``.
        other_size: ``(M, 3)``.
        pad: Metres that each box is larger by on every side.

    Returns:
        ``(N, M)``.

    Example:
        >>> one, side = torch.zeros(1, 3), torch.ones(1, 3)
        >>> overlap(one, side, torch.tensor([[0.5, 0.0, 0.0]]), side)
        tensor([[0.5000]])
    """
    one_size, other_size = one_size + 2 * pad, other_size + 2 * pad
    least = torch.minimum(one_size.prod(-1)[:, None], other_size.prod(-1)[None])
    return _shared(one, one_size, other, other_size) / least.clamp_min(1e-12)


def inside(one: Tensor, one_size: Tensor, other: Tensor, other_size: Tensor) -> Tensor:
    """Share of each first box that lies in each second one, ``(N, M)``; see `overlap`."""
    own = one_size.prod(-1)[:, None].clamp_min(1e-12)
    return _shared(one, one_size, other, other_size) / own


def relations(centre: Tensor, extent: Tensor, sigma: Tensor, seen: Sightings) -> Tensor:
    """Tell what a frame's depth says about places where things are remembered.

    Args:
        centre: ``(M, 3)`` float64 world.
        extent: ``(M, 3)``.
        sigma: ``(M,)`` metres.
        seen: Whose coarse depth, pose and intrinsics are used.

    Returns:
        ``(M,)`` int8: `THROUGH` where every known depth lies behind the thing, `OCCLUDED` where
        something stands well before it, `PRESENT` where the depth is about its own, `OUT_OF_VIEW`,
        or `UNKNOWN` where there is no depth.
    """
    pose, camera = seen.pose.double(), seen.intrinsics.double()
    local = (centre - pose[:3, 3]) @ pose[:3, :3]
    depth = local[:, 2]
    ahead = depth.clamp_min(LEAST_DEPTH)[:, None]
    middle = ((local / ahead) @ camera.T)[:, :2]  # fractions of the picture
    height, width = seen.near.shape
    # Nine samples within the inner half of what is seen of the thing.
    reach = extent.double().amin(1)[:, None] / 4 / ahead * camera.diagonal()[:2]
    steps = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).reshape(9, 2)
    spots = middle[:, None] + reach[:, None] * grid
    cells = (spots * torch.tensor([width, height])).floor().long()
    column, row = cells[..., 0].clamp(0, width - 1), cells[..., 1].clamp(0, height - 1)
    within = ((spots >= 0) & (spots < 1)).all(-1)
    near = seen.near.double()[row, column] / 1000
    known = within & (near > 0)
    doubt = (sigma.double() ** 2 + (0.0012 + 0.0019 * (depth - 0.4) ** 2) ** 2).sqrt()
    behind = depth + (extent.double().amin(1) / 4).clamp(*BEHIND) + doubt
    before = depth - 0.6 * extent.double().amax(1) - BEFORE
    through = ((near > behind[:, None]) | ~known).all(1)
    hidden = ((near < before[:, None]) & known).sum(1) >= LEAST_SAMPLES
    out = (depth < LEAST_DEPTH) | ~((middle > EDGE) & (middle < 1 - EDGE)).all(1)
    answer = torch.full(depth.shape, PRESENT, dtype=torch.int8)
    answer[hidden] = OCCLUDED
    answer[through] = THROUGH
    answer[known.sum(1) < LEAST_SAMPLES] = UNKNOWN
    answer[out] = OUT_OF_VIEW
    return answer
