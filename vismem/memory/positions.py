"""Position ids of recalled tokens for language models with multimodal rotary positions (M-RoPE).

Each token has three ids: time, row and column. As Qwen2-VL counts them, all three begin where the
text before has stopped, and the text behind goes on after the largest. The times of a memory are
far apart and uneven; what counts is their order, so that an hour takes no more ids than a second.

Source: Wang et al., "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any
Resolution", 2024 (https://arxiv.org/abs/2409.12191). Flash-VStream's ids for a memory, AM-RoPE
(`vismem.memory.published.positions`), count seconds from the first memory token, which for a long
video lets them pass those of the question behind it; here none ever does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vismem.memory.base import Recall

__all__ = ["mrope_positions"]


def mrope_positions(recall: Recall, start: int = 0) -> tuple[Tensor, int]:
    """Give recalled tokens their ids, as one block of a prompt.

    The id of time is the rank of a token's time among those recalled. Row and column are ranks
    within the observation, so that coarse and sharp ones both begin at the upper left.

    Args:
        recall: ``N`` tokens in time order, with their positions.
        start: The first id: one more than the largest before.

    Returns:
        Ids ``(3, N)`` int64 of time, row and column, and the id that the text behind begins with,
        one more than the largest.

    Raises:
        ValueError: If the recall has no positions.

    Example:
        >>> cells = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).repeat(2, 1)
        >>> times = torch.tensor([3.0, 3.0, 3600.0, 3600.0], dtype=torch.float64)
        >>> one = torch.ones(4, dtype=torch.int64)
        >>> recall = Recall(torch.ones(4, 8), times, one, torch.zeros(4), times.long(), cells)
        >>> ids, after = mrope_positions(recall, start=5)
        >>> ids.tolist(), after
        ([[5, 5, 6, 6], [5, 5, 5, 5], [5, 6, 5, 6]], 7)
    """
    if recall.positions is None:
        raise ValueError("rows and columns are unknown: the recall has no positions")
    if not len(recall.times):
        return torch.empty(3, 0, dtype=torch.int64), start
    _, times = torch.unique(recall.times, return_inverse=True)
    _, groups = torch.unique_consecutive(recall.sources, return_inverse=True)
    columns, rows = (_rank_within(groups, values) for values in recall.positions.T)
    ids = torch.stack([times, rows, columns]) + start
    return ids, int(ids.max()) + 1


def _rank_within(groups: Tensor, values: Tensor) -> Tensor:
    """The rank of each value among the distinct values of its group; groups count from 0."""
    pairs = torch.stack([groups.double(), values.double()])
    distinct, ranks = torch.unique(pairs, dim=1, return_inverse=True)
    begins = torch.searchsorted(distinct[0].contiguous(), pairs[0])
    return ranks - begins
