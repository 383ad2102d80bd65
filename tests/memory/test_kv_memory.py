"""The memory of keys and values: the contract, blocks, tiers, as-of times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from contract import MemoryContract, Observation
from torch import Tensor

from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.shape import KVShape

SHAPE = KVShape(layers=2, heads=4, kv_heads=2, head_dim=4)


def config(**more: Any) -> KVConfig:
    sizes: dict[str, Any] = {"precision": "model", "block": 6, "window": 18, "max_tokens": 8}
    return KVConfig(SHAPE, **{**sizes, **more})


def tokens(number: int, count: int = 4, seed: int = 0) -> Tensor:
    """Keys and values in halves, so that they are exact in float16."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    return torch.randn(count, SHAPE.width, generator=generator).half().float()


class TestKVMemory(MemoryContract):
    small, large, max_tokens = 30_000, 2_000_000, 8

    def make(self, budget: int) -> KVMemory:
        return KVMemory(config(embedding_dim=3), budget)

    def make_other(self, budget: int) -> KVMemory:
        return KVMemory(config(embedding_dim=3, block=5), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        return {
            "tokens": tokens(number, 4, seed),
            "time": number // 3 * 0.5,
            "embedding": tokens(number, 1, seed + 1)[0, :3],
            "companion": {"last": tokens(number, 1, seed)},
        }

    def query(self) -> Tensor:
        return tokens(77)[0, : SHAPE.width // 2]

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        return {
            "embedding missing": {**good, "embedding": None},
            "embedding NaN": {**good, "embedding": torch.full((3,), torch.nan)},
            "coords of another size": {**good, "coords": torch.zeros(3, 3, dtype=torch.int64)},
            "coords of floats": {**good, "coords": torch.zeros(4, 3)},
        }
