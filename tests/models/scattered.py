"""Noise for networks: the same for the same seed, from generators of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scatter(parameters: Iterable[Tensor], size: float, seed: int = 0) -> None:
    """Give every parameter noise, so that none hides behind a zero or a one."""
    with torch.no_grad():
        for number, one in enumerate(parameters):
            one.copy_(size * noise(*one.shape, seed=1000 * seed + number))
