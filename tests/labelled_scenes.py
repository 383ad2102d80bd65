"""Scenes in which an encoder recognised something, and the moments that are kept of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vismem.encoders.color import COLORS
from vismem.memory.episodic import EpisodicConfig, EpisodicMemory, EpisodicSnapshot

CONFIG = EpisodicConfig(token_dim=4, embedding_dim=6, max_tokens=2, max_labels=4, max_thumbnail=9)
LEFT, RIGHT = (0.0, 0.25, 0.25, 0.75), (0.75, 0.25, 1.0, 0.75)

# A label in a scene: number, score, how many, colour of its region, box.
Seen = tuple[int, float, int, str, tuple[float, ...]]


def seen(
    label: int, score: float = 0.9, count: int = 1, color: str = "gray", box: tuple = LEFT
) -> Seen:
    return label, score, count, color, box


def film(*scenes: tuple[float, float, Sequence[Seen]], pose: bool = False) -> EpisodicSnapshot:
    """Scenes of a start, an end and what is seen; each looks unlike the one before."""
    memory = EpisodicMemory(CONFIG, "1MB")
    for number, (start, end, rows) in enumerate(scenes):
        look = torch.eye(6)[number % 6]
        for half_seconds in range(int((end - start) * 2) + 1):
            memory.write(
                look[None, :4] + torch.eye(4)[number % 4] / 2,
                start + half_seconds / 2,
                embedding=look,
                thumbnail=bytes([number]),
                pose=(number + 1.0) * torch.eye(4) if pose else None,
                labels={
                    "id": torch.tensor([row[0] for row in rows], dtype=torch.int64),
                    "score": torch.tensor([row[1] for row in rows]),
                    "count": torch.tensor([row[2] for row in rows], dtype=torch.int64),
                    "color": torch.tensor([[row[3] == c for c in COLORS] for row in rows])
                    .float()
                    .reshape(-1, len(COLORS)),
                    "box": torch.tensor([row[4] for row in rows]).reshape(-1, 4),
                },
            )
    return memory.snapshot()
