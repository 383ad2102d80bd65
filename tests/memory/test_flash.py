"""`FlashMemory` keeps the contract, scenes and the newest frames."""

from __future__ import annotations

import torch
from contract import MemoryContract, Observation
from torch import Tensor

from vismem.memory.flash import FlashConfig, FlashMemory

DIM, EMBEDDING, TOKENS = 8, 6, 9


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestFlashMemory(MemoryContract):
    small, large, max_tokens = 12_000, 400_000, TOKENS

    def make(self, budget: int) -> FlashMemory:
        sizes = {"token_dim": DIM, "max_tokens": TOKENS, "embedding_dim": EMBEDDING}
        return FlashMemory(FlashConfig(**sizes, max_note=40), budget)

    def make_other(self, budget: int) -> FlashMemory:
        return FlashMemory(FlashConfig(token_dim=DIM, max_tokens=TOKENS, synopsis=(1, 2)), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        scene = noise(TOKENS, DIM, seed=1000 * seed + number // 7 % 11)
        return {
            "tokens": scene + 0.1 * noise(TOKENS, DIM, seed=77_000 + 1000 * seed + number),
            "time": 0.5 * number,
            "embedding": scene[0, :EMBEDDING].clone(),
            "note": bytes(number % 40),
        }

    def query(self) -> Tensor:
        return noise(EMBEDDING, seed=5)

    def hostile(self, good: Observation) -> dict[str, Observation]:
        return {
            "grid that does not fit": good | {"grid": (2, 3)},
            "no embedding": good | {"embedding": None},
            "embedding of another width": good | {"embedding": torch.ones(EMBEDDING + 1)},
            "embedding of NaN": good | {"embedding": torch.full((EMBEDDING,), torch.nan)},
            "note too long": good | {"note": bytes(41)},
        }
