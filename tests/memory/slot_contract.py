"""What a bank of visual tokens is tested with, beside what every bank is."""

from __future__ import annotations

import torch
from contract import MemoryContract, Observation
from torch import Tensor

DIM, EMBEDDING = 8, 6


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class SlotContract(MemoryContract):
    """Eleven scenes of seven frames, again and again; a bank's notes have at most 40 bytes."""

    def observation(self, number: int, seed: int = 0) -> Observation:
        scene = noise(self.max_tokens, DIM, seed=1000 * seed + number // 7 % 11)
        own = noise(self.max_tokens, DIM, seed=77_000 + 1000 * seed + number)
        return {
            "tokens": scene + 0.1 * own,
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
