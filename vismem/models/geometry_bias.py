"""What a box says of one seen earlier: a bias of attention by place, size and age.

Relation networks (https://arxiv.org/abs/1711.11575) learn such a bias for the boxes of one frame,
by sines of the same logarithms; here age counts too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["GeometryBias", "cell_boxes", "pair_features"]

PAIRS = 1 << 14  # of a query and a key that are looked at at a time: what fits a core's cache


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
        self.hidden, self.bias = nn.Linear(6, 24), nn.Linear(24, heads)

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
        pairs = PAIRS if boxes.device.type == "cpu" else PAIRS << 8
        rows = max(1, pairs // max(1, len(boxes) * ages.shape[-1]))
        parts = [
            self._network(pair_features(some, key_boxes, ages)) for some in boxes.split(rows, dim=1)
        ]
        return torch.cat(parts, dim=2)

    def _network(self, x: Tensor) -> Tensor:
        """Biases of ``(B, 6, Q, K)``; pairs last is three times as fast as channels last."""
        flat = _linear(self.hidden, x.flatten(2)).relu()
        return _linear(self.bias, flat).unflatten(2, x.shape[2:])


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over the channels of ``(B, C, N)``."""
    return torch.baddbmm(layer.bias[None, :, None], layer.weight.expand(len(x), -1, -1), x)


def pair_features(boxes: Tensor, key_boxes: Tensor, ages: Tensor) -> Tensor:
    """How a query's box and a key's box lie to each other, and how old the key is.

    Differences count in sizes of the query's box, so moving and scaling both changes nothing.

    Args:
        boxes: ``(B, Q, 4)`` corners ``x0 y0 x1 y1``.
        key_boxes: ``(B, K, 4)``.
        ages: ``(B, K)``, not negative.

    Returns:
        ``(B, 6, Q, K)``: horizontal and vertical distance of the centres, ratios of width and of
        height, distance, age; all as logarithms.

    Example:
        >>> box = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]])
        >>> pair_features(box, box, torch.zeros(1, 1)).flatten().tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    (centre, size), (key_centre, key_size) = map(_centre_size, (boxes, key_boxes))
    apart = (centre[..., None] - key_centre[:, :, None]).abs()
    distance = apart.norm(dim=1) / size.prod(1).sqrt()[..., None]
    near = (4 * apart / size[..., None]).log1p()
    ratio = size.log()[..., None] - key_size.log()[:, :, None]
    age = ages.log1p()[:, None].expand_as(distance)
    return torch.cat([near, ratio, torch.stack([(4 * distance).log1p(), age], 1)], 1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """``(B, 2, N)`` each."""
    low, high = boxes.transpose(1, 2).split(2, 1)
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
