"""Rows of a memory, and how all memories of the comparison are asked: by the nearest of a place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

NEIGHBOURS = 8
REACH = 0.06  # metres, of the kernel by which near rows weigh
MOST = 200.0  # observations that a mean stands for at most


@dataclass(frozen=True)
class Held:
    """Rows of a memory.

    Args:
        features: ``(n, D)`` float32.
        positions: ``(n, 3)`` metres.
        times: When each was seen last, ``(n,)`` seconds.
        motion: Share that moves, ``(n,)`` in 0 to 1.
        counts: Observations that each stands for, ``(n,)``.
    """

    features: Tensor
    positions: Tensor
    times: Tensor
    motion: Tensor
    counts: Tensor

    @classmethod
    def seen(cls, features: Tensor, positions: Tensor, time: float, motion: Tensor) -> Held:
        """The rows of one moment, each a single observation."""
        count = len(features)
        return cls(features, positions, torch.full((count,), time), motion, torch.ones(count))

    @classmethod
    def join(cls, parts: Iterable[Held]) -> Held:
        """The rows of several, in order."""
        parts = list(parts)
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    @classmethod
    def of(cls, table: Tensor) -> Held:
        """The rows of a `table`."""
        return cls(table[:, :-6], table[:, -6:-3], *table[:, -3:].unbind(1))

    def table(self) -> Tensor:
        """All that is known of each row side by side, ``(n, D + 6)``."""
        beside = torch.stack([self.times, self.motion, self.counts], 1)
        return torch.cat([self.features, self.positions, beside], 1)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice) -> Held:
        return Held(*(getattr(self, field.name)[index] for field in fields(self)))


def look(
    held: Held, positions: Tensor, reach: float = REACH, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Ask what is seen at some places: the mean of the nearest rows by ``exp(-(d / reach)^2)``.

    Args:
        held: ``n`` rows, at least one.
        positions: ``(M, 3)`` metres.
        reach: Metres.
        bias: What is added to the score of each row for each place, ``(M, n)`` or ``(n,)``.

    Returns:
        Features ``(M, D)``, the distance of the best row ``(M,)``, and each row's share of the
        attention, ``(n,)``.
    """
    away = torch.cdist(positions, held.positions, compute_mode="donot_use_mm_for_euclid_dist")
    scores = -((away / reach) ** 2)
    if bias is not None:
        scores = scores + bias
    best, index = scores.topk(min(NEIGHBOURS, len(held)), 1)
    weights = best.softmax(1)
    attention = torch.zeros(len(held)).index_add_(0, index.flatten(), weights.flatten())
    answer = (weights[..., None] * held.features[index]).sum(1)
    return answer, away.gather(1, index[:, :1])[:, 0], attention


def merge(held: Held, side: float, *, by_class: bool = False) -> Held:
    """Make one row of all in a cube of a given side: their mean by counts, and the newest time."""
    cells = (held.positions / side).floor().long() + (1 << 19)
    kind = (held.motion > 0.5).long() if by_class else 0
    key = (cells[:, 0] << 41 | cells[:, 1] << 21 | cells[:, 2] << 1) | kind
    found, into = key.unique(return_inverse=True)
    weight = held.counts.clamp(max=MOST)
    counts = torch.zeros(len(found)).index_add_(0, into, weight)

    def mean(x: Tensor) -> Tensor:
        wide = weight.view(-1, *[1] * (x.ndim - 1))
        sums = x.new_zeros(len(found), *x.shape[1:]).index_add_(0, into, x * wide)
        return sums / counts.view(-1, *[1] * (x.ndim - 1))

    times = held.times.new_zeros(len(found)).scatter_reduce_(
        0, into, held.times, "amax", include_self=False
    )
    return Held(mean(held.features), mean(held.positions), times, mean(held.motion), counts)


def newest(held: Held, count: int) -> Held:
    """The rows that were seen last, in their order."""
    kept = held.times.argsort(descending=True, stable=True)[:count]
    return held[kept.sort().values]
