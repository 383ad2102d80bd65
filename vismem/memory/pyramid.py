"""`PyramidMemory`: the newest frames sharp, older ones coarser, the oldest merged, never dropped.

Every frame enters at full resolution. When the budget is full, the level of resolution that is
furthest beyond its share gives up what is told best by its next neighbour in time: a frame goes one
level down, to half its rows and columns; on the coarsest level it becomes one with its neighbour.
Neighbours are those in time, whatever their level, so that no scene is held twice and spans never
overlap. What leaves is merged and not dropped, down to a single entry that stands for all.

The idea is VideoChat-Online's. There the level that a frame enters follows from its number,
neighbours are those of insertion, and a frame that goes down may push another out for good; see
`vismem.memory.published.pyramid`. It gives three fifths of the tokens to the finest level; here the
coarsest has most of the bytes, since that is what keeps more scenes in a memory that is too small.

Source: Huang et al., "Online Video Understanding: OVBench and VideoChat-Online", 2024
(https://arxiv.org/abs/2501.00584).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.bank import SlotMemory
from vismem.memory.base import Budget, WriteReport
from vismem.memory.observations import Observation, observations_from, observations_state
from vismem.memory.slots import JoinNotes, Slot, SlotSnapshot, pool_grid

__all__ = ["PyramidConfig", "PyramidMemory"]

OVERHEAD = 8 * 5  # bytes: first and last time, weight, level, similarity to the next
ALIKE = 0.9  # cosine of the mean tokens
COARSEST = 4  # times the bytes of all other levels together


@dataclass(frozen=True)
class PyramidConfig:
    """Sizes of what is written, and the shares of the budget.

    Args:
        token_dim: Width ``D`` of the tokens.
        max_tokens: The most tokens that a frame may have.
        levels: Resolutions; each has half the rows and columns of the one before.
        embedding_dim: Width ``E`` of the embeddings that queries are compared with; 0 for none.
        max_note: The most bytes that a note may have.
        shares: What each level gets of a full budget, finest first, in any unit. By default the
            coarsest gets four times as much as all others, which are alike: 1 : 1 : 8 for three.
            What a level does not use is lent to the others.
        recent: Newest frames that are read first.
        max_gap: Seconds without a frame that end the run of a scene.

    Raises:
        ValueError: If a size or a share is none.
    """

    token_dim: int
    max_tokens: int = 16
    levels: int = 3
    embedding_dim: int = 0
    max_note: int = 0
    shares: tuple[float, ...] | None = None
    recent: int = 4
    max_gap: float = 5.0

    def __post_init__(self) -> None:
        if min(self.token_dim, self.max_tokens, self.levels) < 1:
            raise ValueError(f"sizes must be positive: {self}")
        if min(self.embedding_dim, self.max_note, self.recent) < 0:
            raise ValueError(f"sizes must be positive: {self}")
        shares = self.shares or ()
        if self.shares is not None and (len(shares) != self.levels or min(shares) < 0):
            raise ValueError(f"{self.levels} levels need as many shares of 0 or more, not {shares}")
        if self.shares is not None and not 0 < sum(shares) < math.inf:
            raise ValueError(f"shares must have a sum above 0, not {shares}")

    @property
    def fractions(self) -> tuple[float, ...]:
        """Shares that sum to 1.

        Example:
            >>> PyramidConfig(token_dim=4).fractions
            (0.1, 0.1, 0.8)
        """
        others = self.levels - 1
        shares = self.shares or (*[1.0] * others, COARSEST * others or 1.0)
        return tuple(share / sum(shares) for share in shares)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A frame, or what frames were merged into; never changed."""

    kept: Observation  # of the one that stands for all; its embedding is the mean
    first: float
    last: float
    weight: int
    level: int

    @property
    def nbytes(self) -> int:
        return self.kept.nbytes + OVERHEAD

    def halved(self) -> _Entry:
        """One level down, at half the rows and columns; of an odd number the larger half."""
        kept = self.kept
        rows, columns = (side + 1 >> 1 for side in kept.grid)
        tokens = pool_grid(kept.tokens, kept.grid, (rows, columns))
        kept = replace(kept, tokens=tokens, grid=(rows, columns))
        return replace(self, kept=kept, level=self.level + 1)

    def merged(self, other: _Entry, max_gap: float, join: JoinNotes | None) -> _Entry:
        """This and its neighbour, as one.

        The sharper stands for both, and of equals the heavier or the earlier. Tokens of one level
        become their weighted mean if they are alike; that of two scenes would be neither.
        """
        if (other.level, -other.weight) < (self.level, -self.weight):
            return other.merged(self, max_gap, join)
        a, b, weight = self.kept, other.kept, self.weight + other.weight
        share = other.weight / weight
        tokens, grid = a.tokens, a.grid
        if self.level == other.level and _similarity(self, other) >= ALIKE:
            grid = min(a.grid[0], b.grid[0]), min(a.grid[1], b.grid[1])
            own, others = (pool_grid(o.tokens.float(), o.grid, grid) for o in (a, b))
            tokens = torch.lerp(own, others, share).half()
        embedding = torch.lerp(a.embedding.float(), b.embedding.float(), share)
        start, end = a.start, a.end
        if max(a.start, b.start) - min(a.end, b.end) <= max_gap:
            start, end = min(a.start, b.start), max(a.end, b.end)
        note = a.note
        if join is not None and a.note and b.note:
            note = join(a.note, self.weight, b.note, other.weight)
        direction = F.normalize(embedding, dim=0).half()
        kept = Observation(a.time, start, end, a.source, tokens, grid, direction, note)
        first, last = min(self.first, other.first), max(self.last, other.last)
        return _Entry(kept, first, last, weight, self.level)

    def slot(self, level: str) -> Slot:
        return self.kept.slot(level, first=self.first, last=self.last, weight=self.weight)


def _similarity(one: _Entry, other: _Entry) -> float:
    """Cosine of the mean tokens, as published."""
    a, b = (entry.kept.tokens.mean(0, dtype=torch.float32) for entry in (one, other))
    return float(F.cosine_similarity(a, b, dim=0))


class PyramidMemory(SlotMemory):
    """Frames of one stream on levels of falling resolution in a hard budget; see the module.

    Args:
        config: Sizes and shares.
        budget: Bytes, or text such as ``"8MB"``; the room of every level follows from it.
        join_notes: Makes one note of two when entries are merged; the heavier's by default.

    Example:
        >>> memory = PyramidMemory(PyramidConfig(token_dim=4), budget=2_000)
        >>> for second in range(60):
        ...     _ = memory.write(torch.ones(16, 4), time=float(second))
        >>> slots = memory.snapshot().slots()
        >>> slots[-1].grid, slots[-1].time, sum(slot.weight for slot in slots)
        ((4, 4), 59.0, 60)
    """

    config: PyramidConfig

    def __init__(
        self,
        config: PyramidConfig,
        budget: Budget | int | str,
        join_notes: JoinNotes | None = None,
    ) -> None:
        self.config = config
        self.budget = Budget.parse(budget)
        self.join_notes = join_notes
        self._fractions = config.fractions
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        self._entries: list[_Entry] = []  # in time order
        self._similarities: list[float] = []  # of each to the next
        self._level_bytes = [0] * self.config.levels
        self._writes = 0
        self._last = -math.inf

    @property
    def nbytes(self) -> int:
        """Bytes of tokens, embeddings, notes, times, weights and cached similarities."""
        return sum(self._level_bytes)

    @property
    def count(self) -> int:
        """How many slots are held."""
        return len(self._entries)

    @property
    def oldest(self) -> float:
        """When the oldest observation still held was seen; infinity if nothing is held."""
        return self._entries[0].first if self._entries else math.inf

    # ------------------------------------------------------------------ writing

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self,
        tokens: Tensor,
        time: float,
        *,
        grid: tuple[int, int] | None = None,
        embedding: Tensor | None = None,
        note: bytes = b"",
    ) -> WriteReport:
        """Add one frame; see `SlotMemory.write`."""
        kept = self._checked(tokens, time, grid, embedding, note)
        self._replace(len(self._entries), 0, _Entry(kept, kept.time, kept.time, 1, level=0))
        self._writes += 1
        self._last = kept.time
        return self._settle()

    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget, at once; reports what that merged and dropped."""
        self.budget = Budget.parse(budget)
        return self._settle()

    def _take_over(self, slots: Sequence[Slot]) -> WriteReport:
        """Entries in the order of their first seconds, for spans of other banks may overlap."""
        finest = max((slot.grid for slot in slots), key=math.prod, default=(1, 1))
        for slot in sorted(slots, key=lambda slot: (slot.first, slot.source)):
            kept, level = Observation.of(slot), self._level(slot, finest)
            entry = _Entry(kept, slot.first, slot.last, slot.weight, level)
            self._replace(len(self._entries), 0, entry)
        return self._settle()

    def _level(self, slot: Slot, finest: tuple[int, int]) -> int:
        """The level that has the resolution of a slot, if `finest` is that of the first."""
        level = 0
        while level < self.config.levels - 1 and math.prod(slot.grid) < math.prod(finest):
            finest = (finest[0] + 1 >> 1, finest[1] + 1 >> 1)
            level += 1
        return level

    def _replace(self, place: int, count: int, *new: _Entry) -> None:
        """Put entries in the place of ``count``, and compare those with their neighbours alone."""
        for entry in self._entries[place : place + count]:
            self._level_bytes[entry.level] -= entry.nbytes
        for entry in new:
            self._level_bytes[entry.level] += entry.nbytes
        self._entries[place : place + count] = new
        left = max(place - 1, 0)
        near = self._entries[left : place + len(new) + 1]
        fresh = [_similarity(one, other) for one, other in zip(near, near[1:], strict=False)]
        self._similarities[left : place + count] = fresh

    def _settle(self) -> WriteReport:
        """Move down and merge until the budget holds; drop the one entry that is left at last."""
        merged = dropped = 0
        entries, coarsest = self._entries, self.config.levels - 1
        while self.nbytes > self.budget.bytes:
            level = self._giving()
            if level < coarsest:
                places = [n for n, entry in enumerate(entries[:-1]) if entry.level == level]
                # Else it is the last that gives, which has no next to be compared with.
                last = len(entries) - 1
                place = max(places, key=self._similarities.__getitem__, default=last)
                self._replace(place, 1, entries[place].halved())
            elif len(entries) > 1:
                pairs = range(len(entries) - 1 - self._ends_with_newest)
                places = [n for n in pairs if coarsest in (entries[n].level, entries[n + 1].level)]
                # Else there are two, and the newest is merged.
                place = max(places, key=self._similarities.__getitem__, default=0)
                one, other = entries[place : place + 2]
                self._replace(place, 2, one.merged(other, self.config.max_gap, self.join_notes))
                merged += 1
            else:
                self._replace(0, 1)
                dropped += 1
        return WriteReport(self.nbytes, merged=merged, dropped=dropped)

    @property
    def _ends_with_newest(self) -> bool:
        return bool(self._entries) and self._entries[-1].kept.source == self._writes - 1

    def _giving(self) -> int:
        """The level that gives: the furthest beyond its share of those that can.

        The newest gives only if no other can; it is coarsened, and at last merged or dropped.
        """
        older = self._entries[:-1] if self._ends_with_newest else self._entries
        able = {entry.level for entry in older}
        if len(older) < 2:
            able.discard(self.config.levels - 1)  # nothing to merge with
        if not able:
            return self._entries[-1].level
        room = [share * self.budget.bytes for share in self._fractions]
        return max(sorted(able), key=lambda level: self._level_bytes[level] - room[level])

    def forget(self, start: float, end: float) -> int:
        """Give up every slot that may hold something of a span; see `SlotMemory.forget`."""
        touched = [
            n for n, entry in enumerate(self._entries) if entry.first <= end and entry.last >= start
        ]
        for place in reversed(touched):
            self._replace(place, 1)
        return len(touched)

    # ------------------------------------------------------------------ reading and state

    def snapshot(self) -> SlotSnapshot:
        """Share the entries, which never change."""
        entries, recent = tuple(self._entries), self._writes - self.config.recent

        def slots() -> list[Slot]:
            fresh = [entry.kept.source >= recent and entry.weight == 1 for entry in entries]
            return [
                entry.slot("recent" if new else f"level {entry.level}")
                for entry, new in zip(entries, fresh, strict=True)
            ]

        return SlotSnapshot(slots, self.config.token_dim, self.config.embedding_dim)

    def _fingerprint(self) -> Tensor:
        config = self.config
        sizes = (config.token_dim, config.max_tokens, config.embedding_dim, config.max_note)
        return torch.tensor([*sizes, *self._fractions], dtype=torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        entries = self._entries
        spans = [(entry.first, entry.last) for entry in entries]
        counts = [(entry.weight, entry.level) for entry in entries]
        return {
            "config": self._fingerprint(),
            "writes": torch.tensor(self._writes),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "spans": torch.tensor(spans, dtype=torch.float64).reshape(-1, 2),
            "weights_and_levels": torch.tensor(counts, dtype=torch.int64).reshape(-1, 2),
            **observations_state(entry.kept for entry in entries),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance; see `Memory.load_state_dict`."""
        config = self.config
        try:
            if not torch.equal(state["config"], self._fingerprint()):
                raise ValueError("the state is of another configuration")
            writes, last = int(state["writes"]), float(state["last"])
            spans, counts = state["spans"].tolist(), state["weights_and_levels"].tolist()
            kept = observations_from(state, config.token_dim, config.embedding_dim)
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        rows = zip(kept, spans, counts, strict=True)
        entries = [_Entry(observation, *span, *count) for observation, span, count in rows]
        self.reset()
        self._writes, self._last = writes, last
        self._replace(0, 0, *entries)
        self._settle()
