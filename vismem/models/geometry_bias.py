"""What a box says of one seen earlier: a bias of attention by place, size and age.

Relation networks (https://arxiv.org/abs/1711.11575) learn such a bias for the boxes of one frame,
by sines of the same logarithms; here age counts too.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

__all__ = ["GeometryBias", "cell_boxes", "pair_features"]

PAIRS = 1 << 20  # of a query and a key that are looked at at a time


class GeometryBias(nn.Module):
    """A small network that gives every pair of a query and a key a bias for each head.

    Args:
        heads: Number of heads ``H``.
        horizon: Age from which on all keys are equally old, in the unit of the ages.

    Example:
        >>> bias = GeometryBias(heads=2)
        >>> bias(torch.rand(1, 5, 4), torch.rand(1, 3, 4), torch.zeros(1, 3)).shape
        torch.Size([1, 2, 5, 3])
    """

    def __init__(self, heads: int, horizon: float = 12.0) -> None:
        super().__init__()
        self.horizon = horizon
        self.network = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, heads))

    def forward(self, boxes: Tensor, key_boxes: Tensor, ages: Tensor) -> Tensor:
        """Look at all pairs, some queries at a time, so that the memory it takes is bounded.

        Args:
            boxes: ``(B, Q, 4)`` corners ``x0 y0 x1 y1``.
            key_boxes: ``(B, K, 4)``, in the same unit.
            ages: ``(B, K)``; what is not positive counts as now.

        Returns:
            ``(B, H, Q, K)``.
        """
        ages = ages.clamp(0, self.horizon).to(boxes.dtype)
        rows = max(1, PAIRS // max(1, len(boxes) * ages.shape[-1]))
        parts = [
            rearrange(self.network(pair_features(some, key_boxes, ages)), "b q k h -> b h q k")
            for some in boxes.split(rows, dim=1)
        ]
        return torch.cat(parts, dim=2)


def pair_features(boxes: Tensor, key_boxes: Tensor, ages: Tensor) -> Tensor:
    """How a query's box and a key's box lie to each other, and how old the key is.

    Differences count in sizes of the query's box, so moving and scaling both changes nothing.

    Args:
        boxes: ``(B, Q, 4)`` corners ``x0 y0 x1 y1``.
        key_boxes: ``(B, K, 4)``.
        ages: ``(B, K)``, not negative.

    Returns:
        ``(B, Q, K, 6)``: horizontal and vertical distance of the centres, ratios of width and of
        height, distance, age; all as logarithms. A batch of one serves the other's.

    Example:
        >>> box = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]])
        >>> pair_features(box, box, torch.zeros(1, 1)).tolist()
        [[[[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]]]
    """
    (centre, size), (key_centre, key_size) = map(_centre_size, (boxes, key_boxes))
    apart = (centre[:, :, None] - key_centre[:, None]).abs()
    ratio = size.log()[:, :, None] - key_size.log()[:, None]
    distance = apart.norm(dim=-1) / size.prod(-1).sqrt()[:, :, None]
    age = ages.log1p()[:, None].expand_as(distance)
    near = (4 * apart / size[:, :, None]).log1p()
    last = torch.stack([(4 * distance).log1p(), age], -1)
    return torch.cat([near, ratio.expand_as(near), last], -1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.split(2, -1)
    # A box may have no extent at all; its size is then as small as single precision tells apart.
    return (low + high) / 2, (high - low).clamp_min(torch.finfo(torch.float32).eps)


def cell_boxes(height: int, width: int) -> Tensor:
    """The boxes of a map's cells, row by row, ``(H * W, 4)`` ``x0 y0 x1 y1`` fractions.

    Example:
        >>> cell_boxes(1, 2).tolist()
        [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    corners = torch.stack([x, y, x + 1, y + 1], -1).view(-1, 4)
    return corners / torch.tensor([width, height, width, height])
