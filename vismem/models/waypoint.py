"""From heat maps of several views to a waypoint in space, and what such heat maps are taught.

The scene lies in a cube from -1 to 1. Pixels are counted from the top left corner of a picture, so
that the middle of the first one is at (0.5, 0.5).

Source: Goyal et al., "RVT: Robotic View Transformer for 3D Object Manipulation",
https://arxiv.org/abs/2306.14896, as in SAM2Act, https://arxiv.org/abs/2501.18564.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cube_points", "heat_loss", "heat_target", "orthographic_pixels", "waypoint"]


def cube_points(side: int, *, device: torch.device | str | None = None) -> Tensor:
    """Points evenly over the cube, ``(side ** 3, 3)``, at the middles of its cells.

    Example:
        >>> cube_points(1)
        tensor([[0., 0., 0.]])
    """
    middle = (torch.arange(side, device=device) + 0.5) * 2 / side - 1
    return torch.cartesian_prod(middle, middle, middle).view(-1, 3)


def orthographic_pixels(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Where points are seen in the three renders of the cube.

    Args:
        points: ``(..., 3)`` ``x y z`` in the cube, z up.
        size: Height and width of the pictures.

    Returns:
        ``(3, ..., 2)`` pixels ``x y``: from the top (x to the right, y up), from the front (x to
        the right, z up) and from the right (y to the right, z up).

    Example:
        >>> orthographic_pixels(torch.tensor([1.0, 0.0, -1.0]), (8, 8)).tolist()
        [[8.0, 4.0], [8.0, 8.0], [4.0, 8.0]]
    """
    x, y, z = points.unbind(-1)
    seen = torch.stack([torch.stack(pair, -1) for pair in ((x, -y), (x, -z), (y, -z))])
    return (seen + 1) / 2 * seen.new_tensor([size[1], size[0]])


def waypoint(heat: Tensor, points: Tensor, pixels: Tensor) -> Tensor:
    """Choose the point that the views together find hottest.

    Args:
        heat: ``(B, V, H, W)`` probabilities of the waypoint in each view.
        points: ``(P, 3)`` to choose from.
        pixels: ``(V, P, 2)`` where each view sees them. Between the middles of pixels heat is
            interpolated; outside of the picture it is zero.

    Returns:
        ``(B, 3)``: for each entry the point with the largest mean over views, the first of a tie.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> heat = torch.zeros(1, 3, 4, 4)
        >>> heat[0, 0, 0, 3] = heat[0, 1, 3, 3] = heat[0, 2, 3, 3] = 1
        >>> points = cube_points(4)
        >>> waypoint(heat, points, orthographic_pixels(points, (4, 4)))
        tensor([[ 0.7500,  0.7500, -0.7500]])
    """
    if heat.ndim != 4 or points.ndim != 2 or pixels.shape != (heat.shape[1], len(points), 2):
        raise ValueError(
            f"heat (B, V, H, W), points (P, 3) and pixels (V, P, 2) do not fit: "
            f"{tuple(heat.shape)}, {tuple(points.shape)}, {tuple(pixels.shape)}"
        )
    batch, _, height, width = heat.shape
    place = pixels / pixels.new_tensor([width, height]) * 2 - 1
    # Views are the batch of the sampling, and entries its channels: all share the places.
    found = F.grid_sample(heat.transpose(0, 1), place[:, None].to(heat), align_corners=False)
    return points[found.mean(0).view(batch, -1).argmax(1)]


def heat_target(pixels: Tensor, size: tuple[int, int], sigma: float = 1.5) -> Tensor:
    """What a heat map should be: a bell around a pixel, cut at three deviations, of sum one.

    Args:
        pixels: ``(..., 2)`` ``x y``.
        size: Height and width.
        sigma: Pixels of a standard deviation.

    Returns:
        ``(..., H, W)``; zeros where the pixel is far outside.
    """
    rows = torch.arange(size[0], device=pixels.device) + 0.5
    columns = torch.arange(size[1], device=pixels.device) + 0.5
    across = (columns - pixels[..., :1]) ** 2
    down = (rows - pixels[..., 1:]) ** 2
    squares = down[..., :, None] + across[..., None, :]
    bell = (-squares / (2 * sigma**2)).exp() * (squares <= (3 * sigma) ** 2)
    return bell / bell.sum((-2, -1), keepdim=True).clamp(min=1e-12)


def heat_loss(heat: Tensor, pixels: Tensor, sigma: float = 1.5) -> Tensor:
    """Cross-entropy of heat maps and bells around the pixels that are right.

    Args:
        heat: ``(..., H, W)`` logits.
        pixels: ``(..., 2)`` ``x y``.
        sigma: Of the bells, in pixels.

    Returns:
        The mean over all maps, a scalar.
    """
    target = heat_target(pixels, (heat.shape[-2], heat.shape[-1]), sigma).flatten(-2)
    return -(target * heat.flatten(-2).log_softmax(-1)).sum(-1).mean()
