"""The contract that every memory keeps: bounded, timed, restartable; one writer, many readers."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Budget", "Memory", "Recall", "Snapshot", "WriteReport", "check_write"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20}
_UNITS["gib"] = 2**30


@dataclass(frozen=True, slots=True)
class Budget:
    """A hard limit on what a memory holds.

    Args:
        bytes: Bytes of state, thumbnails included.

    Example:
        >>> Budget.parse("64MB").bytes
        64000000
    """

    bytes: int

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise ValueError(f"a budget cannot be negative, got {self.bytes} bytes")

    @classmethod
    def parse(cls, value: Budget | int | str) -> Budget:
        """Read a budget: a number of bytes or text such as ``"64MB"`` or ``"1.5 GiB"``.

        Raises:
            ValueError: If the text is no size, or the size is negative.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, int):
            return cls(value)
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b?)\s*", value.lower())
        if match and match[2] in _UNITS:
            return cls(int(float(match[1]) * _UNITS[match[2]]))
        raise ValueError(f"{value!r} is no size; write it like 64MB, 1.5GB or 512KiB")


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What one write did.

    Args:
        nbytes: Bytes held afterwards.
        boundary: Whether a new moment began with this write.
        merged: How many moments were merged into a neighbour to stay within the budget.
        dropped: How many moments were given up because nothing was left to merge.
    """

    nbytes: int
    boundary: bool = False
    merged: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Recall:
    """What a read gives back, sorted by time.

    Args:
        tokens: ``(N, D)`` float16.
        times: When each token was seen, ``(N,)`` float64 seconds.
        weights: How many observations each token stands for, ``(N,)`` int64.
        scores: How well each token's origin fits the query, ``(N,)`` float32; zero without a query.
        sources: Running number of the write that each token came from, ``(N,)`` int64.
        positions: Centres in the picture, ``(N, 2)`` float32 ``x y`` fractions, or where a bank
            keeps them places in the world, ``(N, 3)`` metres and NaN where unknown; if known.
    """

    tokens: Tensor
    times: Tensor
    weights: Tensor
    scores: Tensor
    sources: Tensor
    positions: Tensor | None = None

    def frames(self) -> Iterator[tuple[float, int, Tensor]]:
        """The tokens of one observation after the other: time, weight and tokens ``(n, D)``.

        What a video language model is fed with: each group behind its own timestamp.

        Example:
            >>> one = torch.ones(2, dtype=torch.int64)
            >>> recall = Recall(torch.ones(2, 4), one.double(), one, torch.zeros(2), one)
            >>> [(time, weight, tuple(tokens.shape)) for time, weight, tokens in recall.frames()]
            [(1.0, 1, (2, 4))]
        """
        _, counts = torch.unique_consecutive(self.sources, return_counts=True)
        start = 0
        for count in counts.tolist():
            yield (
                float(self.times[start]),
                int(self.weights[start]),
                self.tokens[start : start + count],
            )
            start += count


class Snapshot(Protocol):
    """An immutable view of a memory; reading it never waits for the writer."""

    def read(self, query: Tensor | None = None, **context: Any) -> Recall:
        """Read as :meth:`Memory.read` would have, at the time of the snapshot."""
        ...


class Memory(ABC):
    """A bounded memory over one stream. One writer; readers work on snapshots."""

    budget: Budget

    @abstractmethod
    def write(self, tokens: Tensor, time: float, **context: Any) -> WriteReport:
        """Add one observation.

        Args:
            tokens: ``(N, D)``, finite.
            time: When it was seen, in seconds; never earlier than the write before.
            **context: What else a bank knows how to keep.

        Raises:
            ValueError: If the input is refused; the memory is then unchanged.
        """

    def write_many(
        self, tokens: Tensor, times: Iterable[float], contexts: Iterable[Mapping[str, Any]] = ()
    ) -> list[WriteReport]:
        """Add observations in order, ``(T, N, D)`` at ``T`` times; equals ``T`` single writes.

        Raises:
            ValueError: If one of them is refused; those before it stay written.
        """
        given = list(contexts) or [{} for _ in range(len(tokens))]
        return [
            self.write(t, time, **context)
            for t, time, context in zip(tokens, times, given, strict=True)
        ]

    def read(self, query: Tensor | None = None, **context: Any) -> Recall:
        """Read from what is held now; see :class:`Recall`."""
        return self.snapshot().read(query, **context)

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Give an immutable view, at a cost that does not grow with what is held unchanged."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration.

        Raises:
            ValueError: If the state is of another configuration or incomplete.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes really held; at most ``budget.bytes`` after every write."""


def check_write(tokens: Tensor, time: float, dim: int, most: int, last: float | None) -> None:
    """Refuse an observation that no memory can take.

    Args:
        tokens: What is written.
        time: Its time in seconds.
        dim: The width that the memory was made for.
        most: The largest number of tokens it takes.
        last: The time of the write before, if there was one.

    Raises:
        ValueError: If anything is wrong, naming it.
    """
    if tokens.ndim != 2 or tokens.shape[1] != dim:
        raise ValueError(f"tokens must be (N, {dim}), not {tuple(tokens.shape)}")
    if not 0 < tokens.shape[0] <= most:
        raise ValueError(f"a write takes 1 to {most} tokens, not {tokens.shape[0]}")
    if not torch.isfinite(tokens).all():
        raise ValueError("tokens hold NaN or infinity; drop that frame")
    if not math.isfinite(time):
        raise ValueError(f"the time of a write must be finite seconds, not {time}")
    if last is not None and time < last:
        raise ValueError(f"time went backwards, from {last:.3f} s to {time:.3f} s; sort the stream")
