"""One forward of a detector: what it reads of memory, and what its class layer judges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vismem.models.enhancement import Projected

__all__ = ["Forward", "Keys", "evaluating"]


@dataclass(frozen=True)
class Keys:
    """What a batch attends to, as the enhancement takes it."""

    rows: Tensor | Projected
    boxes: Tensor
    scores: Tensor
    ages: Tensor
    index: Tensor


@dataclass
class Forward:
    """One forward of the detector: what it reads, and what its class layer saw."""

    keys: Keys | None
    tokens: Tensor = torch.empty(0)  # (B, Q, C), raw
    boxes: Tensor = torch.empty(0)  # (B, Q, 4)
    scores: Tensor = torch.empty(0)  # (B, Q), of the raw tokens
    labels: Tensor = torch.empty(0)  # (B, Q)
    mask: Tensor = torch.empty(0)  # (B, Q)

    def best(self, count: int, least: float) -> tuple[Tensor, Tensor]:
        """The surest instances of each picture, ``(B, count)`` numbers, and which of them count."""
        scores = self.scores.masked_fill(~self.mask, -1.0)
        best, at = scores.topk(min(count, scores.shape[1]), dim=1)
        return at, best >= least


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode, and put every part back into its own mode."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
