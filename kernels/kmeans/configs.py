"""Tile sizes of k-means."""

from __future__ import annotations

import torch

from ..tuning import Config, config_for

BOUNDS = {
    "half": [
        Config({"BLOCK_N": 128, "BLOCK_K": 64, "BLOCK_D": 64}, warps=4, stages=3),
        Config({"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_D": 64}, warps=4, stages=3),
        Config({"BLOCK_N": 128, "BLOCK_K": 128, "BLOCK_D": 64}, warps=8, stages=3),
    ],
    "full": [
        Config({"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_D": 32}, warps=8, stages=3),
        Config({"BLOCK_N": 64, "BLOCK_K": 32, "BLOCK_D": 32}, warps=4, stages=3),
        Config({"BLOCK_N": 128, "BLOCK_K": 32, "BLOCK_D": 32}, warps=8, stages=3),
    ],
}
SETTLE = [
    Config({"BLOCK_K": 256, "BLOCK_D": 512}, warps=2, stages=1),
    Config({"BLOCK_K": 256, "BLOCK_D": 1024}, warps=4, stages=1),
]
MEANS = [
    Config({"BLOCK_N": 16, "BLOCK_D": 128}, warps=4, stages=2),
    Config({"BLOCK_N": 32, "BLOCK_D": 64}, warps=4, stages=2),
]


def bounds(dtype: torch.dtype) -> Config:
    """Sizes for the products of all rows with all centroids."""
    kind = "full" if dtype == torch.float32 else "half"
    return config_for("kmeans_assign", kind, BOUNDS[kind])


def settle() -> Config:
    """Sizes for the differences to the centroids that are near."""
    return config_for("kmeans_assign", "settle", SETTLE)


def means() -> Config:
    """Sizes for the sum over the rows of a cluster."""
    return config_for("kmeans_update", "means", MEANS)
