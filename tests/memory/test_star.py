"""`StarMemory` keeps the contract; its abstract memory does not collapse."""

from __future__ import annotations

import test_flash
from test_flash import DIM, EMBEDDING, TOKENS

from vismem.memory.star import StarConfig, StarMemory

SIZES = {"token_dim": DIM, "max_tokens": TOKENS, "embedding_dim": EMBEDDING, "max_note": 40}


class TestStarMemory(test_flash.TestFlashMemory):
    def make(self, budget: int) -> StarMemory:
        return StarMemory(StarConfig(**SIZES), budget)

    def make_other(self, budget: int) -> StarMemory:
        return StarMemory(StarConfig(**SIZES | {"token_dim": DIM + 1}), budget)
