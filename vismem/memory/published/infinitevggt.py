"""The rolling key cache of InfiniteVGGT as published, to the number.

A cache of keys and values, head by head, that keeps the first frame for good and, of all that came
later, the keys that are least like the others: each head ranks its candidates by the cosine to the
mean of their unit keys and keeps the lowest. Layers whose keys differ more get more of the common
budget.

Source: Yuan et al., "InfiniteVGGT: Visual Geometry Grounded Transformer for Endless Streams", 2026
(https://arxiv.org/abs/2601.02281); ``Attention`` and ``_calculate_dynamic_budgets`` of
AutoLab-SAI-SJTU/InfiniteVGGT.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PublishedInfiniteVGGT", "layer_budgets", "least_alike"]

_TEMPERATURE = 0.5  # of the softmax that shares the budget out


def least_alike(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose the keys that are least like the mean of all.

    Args:
        keys: ``(B, H, N, D)``.
        count: How many each head keeps, at most N.

    Returns:
        Their numbers in ascending order, ``(B, H, count)`` int64, and the mean over all keys of
        the dot product of the unit key with the mean unit key, a scalar.

    Example:
        >>> keys = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
        >>> least_alike(keys[None, None], 1)[0].tolist()
        [[[2]]]
    """
    unit = F.normalize(keys, dim=3)
    alike = (unit * unit.mean(2, keepdim=True)).sum(3)
    return alike.topk(count, 2, largest=False).indices.sort(2).values, alike.mean()


def layer_budgets(scores: Tensor, total: int = 1_200_000) -> Tensor:
    """Share a budget between layers: the less alike the keys of a layer, the more it gets.

    Args:
        scores: The last mean score of each layer, ``(L,)``; see `least_alike`.
        total: Tokens of all layers.

    Returns:
        Whole tokens of each layer, ``(L,)`` int64, rounded down.

    Example:
        >>> layer_budgets(torch.tensor([0.5, 0.5]), 9).tolist()
        [4, 4]
    """
    return (torch.softmax((1 - scores) / _TEMPERATURE, 0) * total).long()


class PublishedInfiniteVGGT:
    """Keys and values of one layer; see the module.

    Attributes:
        keys: ``(B, H, n, D)``, in the order of writing.
        values: ``(B, H, n, E)``.
        anchors: Tokens of the first frame, which are never given up.

    Example:
        >>> cache = PublishedInfiniteVGGT()
        >>> for _ in range(3):
        ...     score = cache.write(torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8), 10)
        >>> cache.keys.shape
        torch.Size([1, 2, 10, 8])
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        self.anchors = 0

    def write(self, keys: Tensor, values: Tensor, budget: int) -> float | None:
        """Add a frame, and give up what is over the budget; what is left is attended to.

        Args:
            keys: ``(B, H, P, D)``, after their norm and rotation.
            values: ``(B, H, P, E)``.
            budget: Tokens that may stay.

        Returns:
            The mean score of the candidates, or nothing if all could stay.

        Raises:
            ValueError: If the first frame alone is over the budget.
        """
        anchors = self.anchors or keys.shape[2]
        if budget < anchors:
            raise ValueError(f"a budget of {budget} has no room for the first frame's {anchors}")
        if not self.anchors:
            self.anchors, self.keys, self.values = anchors, keys, values
            return None
        self.keys = torch.cat([self.keys, keys], 2)
        self.values = torch.cat([self.values, values], 2)
        if self.keys.shape[2] <= budget:
            return None
        kept, score = least_alike(self.keys[:, :, anchors:], budget - anchors)
        first = torch.arange(anchors, device=keys.device).expand(*kept.shape[:2], -1)
        index = torch.cat([first, kept + anchors], 2)[..., None]
        self.keys = self.keys.take_along_dim(index, 2)
        self.values = self.values.take_along_dim(index, 2)
        return float(score)
