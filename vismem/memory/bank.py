"""The contract of a bank of visual tokens, and the door that every observation comes in by."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.base import Budget, Memory, WriteReport, check_write
from vismem.memory.observations import Observation
from vismem.memory.slots import Slot, SlotSnapshot

__all__ = ["Sizes", "SlotMemory", "check_observation"]


class Sizes(Protocol):
    """What the config of every bank says of the frames that it takes."""

    @property
    def token_dim(self) -> int:
        """Width ``D`` of the tokens."""
        ...

    @property
    def max_tokens(self) -> int:
        """The most tokens that a frame may have."""
        ...

    @property
    def embedding_dim(self) -> int:
        """Width ``E`` of the embeddings; 0 for none."""
        ...

    @property
    def max_note(self) -> int:
        """The most bytes that a note may have."""
        ...


class SlotMemory(Memory):
    """A bank of visual tokens: what the pipeline can take as its visual memory."""

    config: Sizes
    _writes: int  # since the last reset
    _last: float  # time of the newest of them

    @abstractmethod
    def write(  # type: ignore[override]  # names what it takes instead of any context
        self,
        tokens: Tensor,
        time: float,
        *,
        grid: tuple[int, int] | None = None,
        embedding: Tensor | None = None,
        note: bytes = b"",
    ) -> WriteReport:
        """Add one frame.

        Args:
            tokens: ``(N, D)``, row by row of a grid of cells.
            time: Seconds, never earlier than the write before.
            grid: Rows and columns, ``rows * columns == N``; by default square if ``N`` is a square
                and one row otherwise.
            embedding: ``(E,)`` in the space of queries; needed where ``E`` is above 0.
            note: At most ``max_note`` bytes that stay with the frame.

        Raises:
            ValueError: If anything does not fit or is not finite; the memory is then unchanged.
        """

    def check(
        self,
        tokens: Tensor,
        time: float,
        *,
        grid: tuple[int, int] | None = None,
        embedding: Tensor | None = None,
        note: bytes = b"",
    ) -> None:
        """Refuse what `write` would refuse, and change nothing.

        Raises:
            ValueError: If anything does not fit or is not finite.
        """
        self._checked(tokens, time, grid, embedding, note)

    def _checked(
        self,
        tokens: Tensor,
        time: float,
        grid: tuple[int, int] | None,
        embedding: Tensor | None,
        note: bytes,
    ) -> Observation:
        config, time = self.config, float(time)
        held, grid, direction = check_observation(
            tokens,
            time,
            grid=grid,
            embedding=embedding,
            note=note,
            token_dim=config.token_dim,
            max_tokens=config.max_tokens,
            embedding_dim=config.embedding_dim,
            max_note=config.max_note,
            last=self._last if self._writes else None,
        )
        return Observation(time, time, time, self._writes, held, grid, direction, note)

    @abstractmethod
    def snapshot(self) -> SlotSnapshot:
        """Give an immutable view, at a cost that does not grow with what is held unchanged."""

    @abstractmethod
    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget, at once; reports what that merged and dropped."""

    @torch.inference_mode(False)
    def take_over(self, other: SlotMemory) -> WriteReport:
        """Hold what another bank of the same stream holds, and go on where it stands.

        Every slot stays one: its representative, when it was seen, its note, its embedding, and
        what the slot stands for (first and last second, weight). Of the tokens the sharpest that
        the other has are taken, and the mean over the slot where it is of a form that this bank
        keeps too. A mean of another form is begun anew from the representative, and what a bank
        sums up without times (the abstract memory of ``"star"``) from the slots.

        Args:
            other: A bank of the same sizes; it stays as it is.

        Returns:
            What was merged and dropped to hold this bank's budget.

        Raises:
            ValueError: If this bank has been written to.
        """
        if self._writes:
            raise ValueError("only a bank that is empty takes over what another holds")
        self._writes, self._last = other._writes, other._last
        return self._take_over(other.snapshot().slots())

    @abstractmethod
    def _take_over(self, slots: Sequence[Slot]) -> WriteReport:
        """Hold the slots of another bank, given by the time of their representatives."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many slots are held."""

    @abstractmethod
    def forget(self, start: float, end: float) -> int:
        """Give up every slot that may hold something of a span of time, whole.

        Args:
            start: First second of the span; minus infinity forgets by age.
            end: Last second of the span.

        Returns:
            How many slots are gone.
        """

    @property
    @abstractmethod
    def oldest(self) -> float:
        """When the oldest observation still held was seen; infinity if nothing is held."""


def check_observation(
    tokens: Tensor,
    time: float,
    *,
    grid: tuple[int, int] | None,
    embedding: Tensor | None,
    note: bytes,
    token_dim: int,
    max_tokens: int,
    embedding_dim: int,
    max_note: int,
    last: float | None,
) -> tuple[Tensor, tuple[int, int], Tensor]:
    """Refuse an observation that no bank of slots can take.

    Args:
        tokens: What is written.
        time: Its time in seconds.
        grid: Rows and columns of the tokens, if given.
        embedding: In the space of queries, if given.
        note: What stays with it.
        token_dim: The width ``D`` that the bank was made for.
        max_tokens: The most tokens it takes.
        embedding_dim: The width ``E`` of embeddings; 0 for none.
        max_note: The most bytes that a note may have.
        last: The time of the write before, if there was one.

    Returns:
        Copies of the tokens in float16, the grid, and the embedding in float16 of unit length.

    Raises:
        ValueError: If anything is wrong, naming it.
    """
    check_write(tokens, time, token_dim, max_tokens, last)
    count = len(tokens)
    side = math.isqrt(count)
    rows, columns = grid or ((side, side) if side * side == count else (1, count))
    if rows * columns != count or rows < 1:
        raise ValueError(f"a grid of {rows} rows and {columns} columns has not {count} tokens")
    halves = tokens.detach().to("cpu", torch.float16, copy=True)
    if not torch.isfinite(halves).all():
        raise ValueError("tokens must be within ±65504, the range of float16")
    if embedding is None:
        if embedding_dim:
            raise ValueError(f"an embedding of ({embedding_dim},) is needed")
        embedding = torch.empty(0)
    if tuple(embedding.shape) != (embedding_dim,):
        raise ValueError(f"embedding must be ({embedding_dim},), not {tuple(embedding.shape)}")
    if not torch.isfinite(embedding).all():
        raise ValueError("embedding holds NaN or infinity")
    if len(note) > max_note:
        raise ValueError(f"a note has at most {max_note} bytes, not {len(note)}")
    return halves, (rows, columns), F.normalize(embedding.detach().double().cpu(), dim=0).half()
