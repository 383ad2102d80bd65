"""Which moments of a very large memory a question is compared with: those its index finds near."""

from __future__ import annotations

import torch
from torch import Tensor

from vismem.heads.answer import Nearest
from vismem.memory.episodic import EpisodicSnapshot
from vismem.store import VectorIndex

__all__ = ["nearest_by"]

NEAREST = 4096  # moments that the index picks for comparison


def nearest_by(index: VectorIndex, place: int) -> Nearest:
    """Give what picks the moments of a stream that are worth comparing.

    Args:
        index: Of the store.
        place: Number of the stream in the store.

    Returns:
        Takes a snapshot and a vector ``(E,)``; gives the numbers of moments, rising.
    """

    def pick(snapshot: EpisodicSnapshot, vector: Tensor) -> Tensor:
        first = {
            f"{place}-{segment.name}": int(offset)
            for segment, offset in zip(snapshot.segments, snapshot.offsets, strict=False)
        }
        _, numbers, rows = index.search(vector[None], NEAREST)
        found = [
            first[index.segments[number]] + row
            for number, row in zip(numbers[0].tolist(), rows[0].tolist(), strict=True)
            if number >= 0 and index.segments[number] in first
        ]
        # What came after the index was built is compared in full.
        for (name, offset), segment in zip(first.items(), snapshot.segments, strict=True):
            if name not in index.covered:
                found += range(offset, offset + len(segment))
        return torch.tensor(sorted(set(found)), dtype=torch.int64)

    return pick
