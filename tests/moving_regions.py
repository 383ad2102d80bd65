"""Moving regions as a finder of them gives them, one frame after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vismem.memory.movements import MovementConfig

DIM = 8
CONFIG = MovementConfig(look_dim=DIM)
ROOM = CONFIG.row_bytes
NOWHERE = (math.nan,) * 3
Box = tuple[float, float, float, float]


def look(number: int) -> Tensor:
    return torch.eye(DIM)[number % DIM]


def box_at(x: float) -> Box:
    return (x - 0.05, 0.4, x + 0.05, 0.6)


MIDDLE = box_at(0.5)


def region(
    track: int = 0,
    *,
    kind: int = 0,
    box: Box = MIDDLE,
    position: Sequence[float] = NOWHERE,
    score: float = 0.9,
    labels: Mapping[int, float] | None = None,
) -> dict[str, Tensor]:
    """One moving region."""
    rows = [*(labels or {}).items(), *[(-1, 0.0)] * 3][:3]
    return {
        "tokens": look(kind)[None].clone(),
        "id": torch.tensor([track]),
        "box": torch.tensor([box]),
        "position": torch.tensor([list(position)], dtype=torch.float64),
        "score": torch.tensor([score]),
        "label": torch.tensor([[number for number, _ in rows]], dtype=torch.int16),
        "label_score": torch.tensor([[sure for _, sure in rows]]),
    }


def frame(*regions: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([each[name] for each in regions]) for name in regions[0]}
