"""`FlashMemory`: a synopsis of everything, details of what matters, and the newest frames whole.

After Flash-VStream's two memories: the context synopsis holds one mean of few tokens a scene, the
detail augmentation a sharp frame of it. Where the published code clusters anew for every frame from
a random start, keeps all frames ever seen to search them for details, and loses the times, this one
merges as frames come (see `vismem.memory.ward`), keeps each scene's sharpest frame with the scene,
and every time is true. The published rule is `vismem.memory.published.flash`.

One number, the budget, sets everything. While there is room, every frame is kept. When there is
none, frames that are alike become one scene. As more scenes are seen than fit whole, first details
and then synopses of those that are most like another give way, each down to a floor, and a gist of
one token is left; then different scenes are merged.

Source: Zhang et al., "Flash-VStream: Efficient Real-Time Understanding for Long Video Streams",
ICCV 2025 (https://arxiv.org/abs/2506.23825).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vismem.memory.bank import SlotMemory
from vismem.memory.base import Budget, WriteReport
from vismem.memory.observations import Observation, observations_from, observations_state
from vismem.memory.slots import JoinNotes, Slot, SlotSnapshot
from vismem.memory.ward import WardClusters

__all__ = ["FlashConfig", "FlashMemory"]

RECENT_SHARE = 0.125  # of the budget at most, for the newest frames
GROWTH = 0.25  # of the room for scenes comes to it at once, while the budget has some
SPARSE = 1.5  # room for so many times the clusters is given back when bytes are short


@dataclass(frozen=True)
class FlashConfig:
    """Sizes of what is written, and the shares of the budget.

    Args:
        token_dim: Width ``D`` of the tokens.
        max_tokens: The most tokens that a frame may have.
        embedding_dim: Width ``E`` of the embeddings that queries are compared with; 0 for none.
        synopsis: Rows and columns of a synopsis; half of the frame's sides as published.
        recent: Newest frames that are kept whole, as far as an eighth of the budget allows.
        gist: Rows and columns of what is left of a scene in the end, and scenes are compared by.
        detail: Share of the budget below which details give no more way to other scenes.
        coarse: Share of the budget below which synopses give no more way to other scenes.
        max_note: The most bytes that a note may have.
        mass_limit: What the mass of a scene tends to as it is seen longer; see `WardClusters`.
        alike: Scenes whose merging costs less than this share of their squared norm are merged
            before anything gives way.
        max_gap: Seconds without a frame that end the run of a scene.
        max_slots: The most scenes; beyond it, budget goes into synopses and details.
    """

    token_dim: int
    max_tokens: int = 16
    embedding_dim: int = 0
    synopsis: tuple[int, int] = (2, 2)
    gist: tuple[int, int] = (1, 1)
    recent: int = 4
    detail: float = 1 / 16
    coarse: float = 1 / 16
    max_note: int = 0
    mass_limit: float = 4.0
    alike: float = 0.05
    max_gap: float = 5.0
    max_slots: int = 4096

    def __post_init__(self) -> None:
        sizes = (self.token_dim, self.max_tokens, *self.synopsis, *self.gist)
        if min(sizes) < 1 or min(self.embedding_dim, self.recent, self.max_note) < 0:
            raise ValueError(f"sizes must be positive: {self}")
        if not (0 <= self.detail <= 1 and 0 <= self.coarse <= 1):
            raise ValueError(f"detail and coarse are shares: {self}")
        if not self.mass_limit >= 1 or self.max_slots < 2:
            raise ValueError(f"mass_limit is at least 1 and max_slots at least 2: {self}")


class FlashMemory(SlotMemory):
    """Synopsis, detail and recent frames of one stream in a hard budget of bytes; see the module.

    What is held are normal tensors also where it is written under `torch.inference_mode`, so that
    writes may be mixed and readers may train on what they read.

    Args:
        config: Sizes and shares.
        budget: Bytes, or text such as ``"8MB"``.
        join_notes: Makes one note of two when scenes are merged; the representative's by default.

    Example:
        >>> memory = FlashMemory(FlashConfig(token_dim=4), budget="1MB")
        >>> for second in range(10):
        ...     _ = memory.write(torch.ones(4, 4), time=float(second))
        >>> recall = memory.read()
        >>> len(recall.tokens), recall.weights.tolist()[0], recall.times.tolist()[-1]
        (40, 1, 9.0)
    """

    config: FlashConfig

    def __init__(
        self,
        config: FlashConfig,
        budget: Budget | int | str,
        join_notes: JoinNotes | None = None,
    ):
        self.config = config
        self.budget = Budget.parse(budget)
        self._past = WardClusters(
            config.synopsis,
            config.gist,
            config.token_dim,
            mass_limit=config.mass_limit,
            max_gap=config.max_gap,
            join_notes=join_notes,
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        self._past.reset()
        self._recent: deque[Observation] = deque()
        self._recent_bytes = 0
        self._writes = 0
        self._last = -math.inf

    _lightest = False  # whether the lightest scenes are blurred first, or those most like another

    @property
    def nbytes(self) -> int:
        """Bytes of synopses, details, recent frames, notes and cached costs."""
        return self._past.nbytes + self._recent_bytes

    @property
    def count(self) -> int:
        """How many slots are held."""
        return len(self._past) + len(self._recent)

    @property
    def oldest(self) -> float:
        """When the oldest observation still held was seen; infinity if nothing is held."""
        recent = self._recent[0].time if self._recent else math.inf
        return min(recent, float(self._past.first.min())) if len(self._past) else recent

    # ------------------------------------------------------------------ writing

    @torch.inference_mode(False)
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
        observation = self._checked(tokens, time, grid, embedding, note)
        self._take(observation)
        return self._settle()

    def _take(self, observation: Observation) -> None:
        self._recent.append(observation)
        self._recent_bytes += observation.nbytes
        self._writes += 1
        self._last = observation.time

    @torch.inference_mode(False)
    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget, at once; reports what that merged and dropped."""
        self.budget = Budget.parse(budget)
        return self._settle()

    def _settle(self) -> WriteReport:
        """Pass on what is no longer recent, then blur, merge and drop until the budget holds."""
        merged = dropped = 0
        most = RECENT_SHARE * self.budget.bytes
        while self._recent and (
            len(self._recent) > self.config.recent or self._recent_bytes > most
        ):
            observation = self._recent.popleft()
            self._recent_bytes -= observation.nbytes
            had_room, kept = self._pass_on(observation)
            merged, dropped = merged + (kept and not had_room), dropped + (not kept)
        past = self._past
        while self.nbytes > self.budget.bytes:
            if past.room > SPARSE * len(past) + 1:
                past.resize(len(past))
            elif past.redundancy() < self.config.alike:
                past.merge()
                merged += 1
            elif past.detail_bytes > self._floor(self.config.detail):
                past.blur(self._lightest)
            elif past.synopsis_bytes > self._floor(self.config.coarse):
                past.condense(self._lightest)
            elif len(past) > 1:
                past.merge()
                merged += 1
            elif past.detail_bytes:
                past.blur()
            elif past.synopsis_bytes:
                past.condense()
            elif past.room:
                dropped += len(past)
                past.reset()
            else:
                self._recent_bytes -= self._recent.popleft().nbytes
                dropped += 1
        return WriteReport(self.nbytes, merged=merged, dropped=dropped)

    def _pass_on(self, observation: Observation, slot: Slot | None = None) -> tuple[bool, bool]:
        """Begin a scene; whether there was room without merging two, and whether it is kept."""
        had_room = self._make_room(observation)
        if not had_room and len(self._past) < 2:
            return False, False
        if not had_room:
            self._past.merge()
        self._past.add(observation, slot)
        return had_room, True

    def _take_over(self, slots: Sequence[Slot]) -> WriteReport:
        merged = dropped = 0
        for slot in slots:
            observation = Observation.of(slot)
            if slot.level == "recent":
                self._recent.append(observation)
                self._recent_bytes += observation.nbytes
            else:
                had_room, kept = self._pass_on(observation, slot)
                merged, dropped = merged + (kept and not had_room), dropped + (not kept)
        report = self._settle()
        return WriteReport(report.nbytes, False, report.merged + merged, report.dropped + dropped)

    def _floor(self, share: float) -> float:
        """Bytes of details or synopses that give no more way."""
        return share * self.budget.bytes

    def _make_room(self, observation: Observation) -> bool:
        """Have a row for one more: the bytes are there, or what is finer gives way to it.

        Nothing gives way while there are scenes alike, which are merged instead.
        """
        past = self._past
        if len(past) < past.room:
            return True
        gives_way = 0.0
        if past.redundancy() >= self.config.alike:
            detail = past.detail_bytes + observation.tokens.nbytes
            gives_way = max(0.0, detail - self._floor(self.config.detail))
            gives_way += max(0.0, past.synopsis_bytes - self._floor(self.config.coarse))
        left = self.budget.bytes - self.nbytes - observation.nbytes + gives_way
        rows = min(int(left // past.row_bytes), max(2, int(past.room * GROWTH)))
        room = min(past.room + rows, self.config.max_slots)
        if room < 2 or room <= past.room:
            return False
        past.resize(room)
        return True

    @torch.inference_mode(False)
    def forget(self, start: float, end: float) -> int:
        """Give up every slot that may hold something of a span; see `SlotMemory.forget`."""
        kept = [held for held in self._recent if not start <= held.time <= end]
        gone = len(self._recent) - len(kept) + self._past.forget(start, end)
        self._recent = deque(kept)
        self._recent_bytes = sum(held.nbytes for held in kept)
        return gone

    # ------------------------------------------------------------------ reading and state

    def snapshot(self) -> SlotSnapshot:
        """Share what is held; the arrays are copied when the next write changes them."""
        recent, past = tuple(self._recent), self._past.view()

        def slots() -> list[Slot]:
            return [*past(), *(observation.slot("recent") for observation in recent)]

        return SlotSnapshot(slots, self.config.token_dim, self.config.embedding_dim)

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        state = {
            "writes": torch.tensor(self._writes),
            "last": torch.tensor(self._last, dtype=torch.float64),
        }
        state |= {f"recent.{k}": v for k, v in observations_state(self._recent).items()}
        return state | {f"past.{k}": v for k, v in self._past.state().items()}

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance; see `Memory.load_state_dict`."""
        try:
            self._restore(state)
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        self._settle()

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        """Take a state as it is, or raise and change nothing."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        config = self.config
        writes, last = int(state["writes"]), float(state["last"])
        recent = observations_from(part("recent."), config.token_dim, config.embedding_dim)
        self._past.restore(part("past."), config.embedding_dim)
        self._writes, self._last, self._recent = writes, last, deque(recent)
        self._recent_bytes = sum(held.nbytes for held in recent)
