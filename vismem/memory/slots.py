"""Slots: what a bank of visual tokens holds, one slot a scene, and how they are read.

A slot stands for all the observations that were merged into it. It knows when the first and the
last of them were seen, how many there were, and keeps one of them, the representative, with its
true time. Banks differ in what they merge; what is held is read in one way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vismem.memory.base import Recall

__all__ = [
    "JoinNotes",
    "Slot",
    "SlotSnapshot",
    "cell_positions",
    "pool_grid",
    "read_slots",
]

DETAIL_SHARE = 2 / 3  # of the tokens read of the past; the published split does best

# (note and weight of the representative, note and weight of the other) -> note of both
JoinNotes = Callable[[bytes, int, bytes, int], bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One scene that a bank holds.

    Args:
        time: When its representative was seen, in seconds.
        start: First second of the uninterrupted run that the representative belongs to.
        end: Last second of that run.
        first: When the first of its observations was seen.
        last: When the last of them was.
        weight: How many there were.
        source: Running number of the write that gave the representative.
        tokens: ``(N, D)`` float16, row by row of `grid`.
        grid: Rows and columns of cells in the picture.
        embedding: ``(E,)`` float16 of unit length, or empty.
        note: What the writer wanted to be kept with it.
        level: Which part of the memory it lies in: ``"recent"``, ``"detail"``,
            ``"synopsis"``, ``"gist"``…
        synopsis: A coarser form of all that was merged, ``(P, D)`` float16, where `tokens` are the
            representative's own; ``None`` where there is one form only.
        synopsis_grid: Its rows and columns.
    """

    time: float
    start: float
    end: float
    first: float
    last: float
    weight: int
    source: int
    tokens: Tensor
    grid: tuple[int, int]
    embedding: Tensor
    note: bytes
    level: str
    synopsis: Tensor | None = None
    synopsis_grid: tuple[int, int] = (1, 1)

    def coarse(self, level: str = "synopsis") -> Slot:
        """The slot with its synopsis for tokens."""
        if self.synopsis is None:
            return self
        grid, tokens = self.synopsis_grid, self.synopsis
        return replace(self, tokens=tokens, grid=grid, synopsis=None, level=level)

    def as_of(self, time: float) -> Slot | None:
        """What of it had been seen by a time: all, its representative alone, or nothing."""
        if self.last <= time:
            return self
        if self.time > time or self.synopsis is None:
            return None
        end = min(self.end, time)
        return replace(self, end=end, first=self.time, last=self.time, weight=1, synopsis=None)


class SlotSnapshot:
    """An immutable view of a bank: its slots in time order, made when they are first asked for.

    Args:
        slots: Gives them; called once at most.
        token_dim: Width ``D`` of the tokens.
        embedding_dim: Width ``E`` of the embeddings.
    """

    def __init__(self, slots: Callable[[], Sequence[Slot]], token_dim: int, embedding_dim: int):
        self._make, self._slots = slots, None
        self.token_dim, self.embedding_dim = token_dim, embedding_dim

    _slots: Sequence[Slot] | None

    def slots(self) -> Sequence[Slot]:
        """All slots, by the time of their representatives."""
        if self._slots is None:
            self._slots = sorted(self._make(), key=lambda slot: (slot.time, slot.source))
        return self._slots

    def read(
        self,
        query: Tensor | None = None,
        *,
        tokens: int | None = None,
        k: int | None = None,
        before: float | None = None,
        **context: object,
    ) -> Recall:
        """Give the newest observations and the slots that fit a query best, in time order.

        Args:
            query: ``(E,)``; without one the heaviest slots are given.
            tokens: How many tokens may be given; the newest observations come first.
            k: How many slots may be given beside the newest observations.
            before: Nothing that was seen later than this second is read.
            **context: Ignored, other banks take more.

        Raises:
            ValueError: If the query's width is not that of the embeddings.
        """
        if query is not None and tuple(query.shape) != (self.embedding_dim,):
            raise ValueError(f"a query must be ({self.embedding_dim},), not {tuple(query.shape)}")
        slots = self.slots()
        if before is not None:
            slots = [held for slot in slots if (held := slot.as_of(before)) is not None]
        return read_slots(slots, query, self.token_dim, tokens=tokens, k=k)


def read_slots(
    slots: Sequence[Slot],
    query: Tensor | None,
    token_dim: int,
    *,
    tokens: int | None = None,
    k: int | None = None,
) -> Recall:
    """Choose slots for a query within a number of tokens; see `SlotSnapshot.read`."""
    scores = torch.zeros(len(slots))
    if query is not None and slots:
        held = torch.stack([slot.embedding for slot in slots]).float()
        scores = held @ F.normalize(query.detach().float().cpu(), dim=0)
    recent = [n for n, slot in enumerate(slots) if slot.level == "recent"]
    worth = scores if query is not None else torch.tensor([float(slot.weight) for slot in slots])
    best = worth.argsort(descending=True, stable=True).tolist()
    past = [n for n in best if slots[n].level != "recent"]
    left = math.inf if tokens is None else float(tokens)
    chosen: dict[int, Slot] = {}
    for number in recent[::-1]:
        if len(slots[number].tokens) <= left:
            left -= len(slots[number].tokens)
            chosen[number] = slots[number]
    sharp = DETAIL_SHARE * left
    for number in past[:k]:
        slot = slots[number]
        if len(slot.tokens) > min(sharp, left):
            slot = slot.coarse()
        elif slot.synopsis is not None:
            sharp -= len(slot.tokens)
        if len(slot.tokens) <= left:
            left -= len(slot.tokens)
            chosen[number] = slot
    order = sorted(chosen)
    read = [chosen[number] for number in order]
    counts = torch.tensor([len(slot.tokens) for slot in read], dtype=torch.int64)

    def spread(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(counts)

    empty = [torch.empty(0, token_dim, dtype=torch.float16)]
    return Recall(
        tokens=torch.cat([slot.tokens for slot in read] or empty),
        times=spread([slot.time for slot in read], torch.float64),
        weights=spread([slot.weight for slot in read], torch.int64),
        scores=scores[order].repeat_interleave(counts),
        sources=spread([slot.source for slot in read], torch.int64),
        positions=torch.cat([cell_positions(slot.grid) for slot in read] or [torch.empty(0, 2)]),
    )


# --------------------------------------------------------------------------- operators


def pool_grid(tokens: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Average the tokens of a picture over a coarser grid.

    Any grid will do: cells of the target that cut through cells of the picture share them.

    Args:
        tokens: ``(..., rows * columns, D)``.
        grid: Rows and columns of the tokens.
        target: Rows and columns wanted.

    Returns:
        ``(..., target rows * target columns, D)`` in the type of the tokens, float32 inside.

    Example:
        >>> pool_grid(torch.arange(6.0)[:, None], (2, 3), (1, 1)).tolist()
        [[2.5]]
    """
    if grid == target:
        return tokens
    maps = rearrange(tokens.float(), "... (h w) d -> ... d h w", h=grid[0])
    pooled = F.adaptive_avg_pool2d(maps.reshape(-1, 1, *grid), target)
    pooled = pooled.reshape(*maps.shape[:-2], *target)
    return rearrange(pooled, "... d h w -> ... (h w) d").to(tokens.dtype)


def cell_positions(grid: tuple[int, int]) -> Tensor:
    """Centres of a grid's cells as fractions of the picture, ``(rows * columns, 2)`` ``x y``."""
    rows, columns = grid
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
