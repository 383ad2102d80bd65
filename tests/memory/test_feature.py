from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from contract import MemoryContract, Observation, copied, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.feature import FeatureConfig, FeatureMemory, Projections, stack
from vismem.memory.feature_rows import overlaps

SIZES: dict[str, Any] = {"dim": 6, "max_tokens": 5}
PLENTY = 10**7
POLICIES = ["score", "fifo", "random", "reservoir"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class FeatureContract(MemoryContract):
    small = 100 * FeatureConfig(**SIZES).row_bytes
    large = PLENTY
    max_tokens = 5
    evict: Any

    def make(self, budget: int) -> FeatureMemory:
        return FeatureMemory(FeatureConfig(**SIZES, evict=self.evict), budget)

    def make_other(self, budget: int) -> FeatureMemory:
        return FeatureMemory(FeatureConfig(**SIZES, evict=self.evict, quota=3), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        noise = torch.Generator().manual_seed(1000 * seed + number)
        corner = 0.5 * torch.rand(1, 2, generator=noise)
        return {
            # One row a write: `write_many` takes as many of each, `k` counts rows.
            "tokens": torch.randn(1, 6, generator=noise),
            "time": 7.0 + 0.5 * (number - number % 2),
            "scores": torch.rand(1, generator=noise),
            "boxes": torch.cat([corner, corner + 0.3], 1),
            "labels": torch.tensor([number % 4]),
        }

    def query(self) -> Tensor:
        return torch.ones(6)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        return {
            "scores: NaN": good | {"scores": torch.tensor([torch.nan])},
            "scores: logits": good | {"scores": torch.tensor([1.5])},
            "scores: negative": good | {"scores": torch.tensor([-0.1])},
            "scores: too many": good | {"scores": torch.ones(2)},
            "boxes: NaN": good | {"boxes": torch.full((1, 4), torch.nan)},
            "boxes: pixels": good | {"boxes": torch.tensor([[4.0, 4.0, 99.0, 80.0]])},
            "boxes: corners swapped": good | {"boxes": torch.tensor([[0.5, 0.0, 0.4, 1.0]])},
            "boxes: one dimension": good | {"boxes": torch.zeros(4)},
            "labels: fractions": good | {"labels": torch.tensor([1.0])},
            "labels: too many": good | {"labels": torch.tensor([1, 2])},
            "nothing at all": {"tokens": torch.empty(0, 6), "time": good["time"]},
        }


class TestScore(FeatureContract):
    evict = "score"


class TestFifo(FeatureContract):
    evict = "fifo"


class TestRandom(FeatureContract):
    evict = "random"


class TestReservoir(FeatureContract):
    evict = "reservoir"
