"""Tile sizes of top-k search."""

from __future__ import annotations

import torch

from ..tuning import Config, config_for

GROUP = 64  # rows, of which the first pass keeps the best score
MAXIMA = {
    "half few": [
        Config({"BLOCK_Q": 16, "BLOCK_M": 128, "BLOCK_D": 128}, warps=4, stages=3),
        Config({"BLOCK_Q": 16, "BLOCK_M": 256, "BLOCK_D": 64}, warps=4, stages=3),
    ],
    "half many": [
        Config({"BLOCK_Q": 64, "BLOCK_M": 128, "BLOCK_D": 64}, warps=4, stages=3),
        Config({"BLOCK_Q": 64, "BLOCK_M": 256, "BLOCK_D": 64}, warps=8, stages=3),
    ],
    "full few": [
        Config({"BLOCK_Q": 16, "BLOCK_M": 64, "BLOCK_D": 32}, warps=4, stages=3),
        Config({"BLOCK_Q": 16, "BLOCK_M": 128, "BLOCK_D": 32}, warps=8, stages=3),
    ],
    "full many": [
        Config({"BLOCK_Q": 32, "BLOCK_M": 64, "BLOCK_D": 32}, warps=8, stages=3),
        Config({"BLOCK_Q": 64, "BLOCK_M": 64, "BLOCK_D": 32}, warps=8, stages=3),
    ],
}
SCORES = [Config({"BLOCK_D": 64}, warps=4, stages=2), Config({"BLOCK_D": 128}, warps=4, stages=1)]


def maxima(products: torch.dtype, queries: int) -> Config:
    """Sizes for the best score of every group.

    Args:
        products: What type is multiplied.
        queries: How many.
    """
    kind = "full" if products == torch.float32 else "half"
    case = f"{kind} {'few' if queries <= 16 else 'many'}"
    return config_for("topk_search", case, MAXIMA[case])


def scores() -> Config:
    """Sizes for the scores of the rows of the best groups."""
    return config_for("topk_search", "scores", SCORES)
