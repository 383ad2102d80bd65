"""Small feature memories, and frames of detections to write into them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vismem.memory.feature import FeatureConfig, FeatureMemory


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory_of(rows: int, dim: int = 6, **settings: Any) -> FeatureMemory:
    config = FeatureConfig(**{"dim": dim, "max_tokens": 50} | settings)
    return FeatureMemory(config, rows * config.row_bytes)


def axes(*numbers: int, dim: int = 6) -> Tensor:
    return torch.eye(dim)[list(numbers)]


def write(memory: FeatureMemory, time: float, scores: list[float], seed: int | None = None) -> None:
    """One frame of rows that have nothing in common, each at its own place."""
    count, dim = len(scores), memory.config.dim
    looks = noise(count, dim, seed=int(1000 * time) if seed is None else seed)
    low = torch.arange(count)[:, None] / count
    memory.write(
        looks,
        time,
        scores=torch.tensor(scores),
        boxes=torch.cat([low, low, low + 0.5 / count, low + 0.5 / count], 1),
    )


def scores_of(memory: FeatureMemory) -> list[float]:
    return [round(score, 3) for score in memory.snapshot().scores.tolist()]
