"""The pyramid memory bank of VideoChat-Online as published, to the number.

Levels of falling resolution hold whole frames. The level that a frame enters follows from its
number alone. A full level gives up the earlier frame of its two most similar neighbours, neighbours
in the order of insertion and not of time; that frame goes one level down, where another may have to
go for good.

Source: Huang et al., "Online Video Understanding: OVBench and VideoChat-Online", 2024
(https://arxiv.org/abs/2501.00584), class ``HierarchicalMemoryBank`` of MCG-NJU/VideoChat-Online.
The bank without these quirks is `vismem.memory.pyramid.PyramidMemory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.base import Budget, Memory, Recall, WriteReport, check_write

__all__ = ["PublishedPyramid", "PublishedPyramidConfig", "PublishedPyramidSnapshot"]

_NUMBER_BYTES = 8 * 7  # time, source, level, and rows and columns now and when written
_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class PublishedPyramidConfig:
    """Sizes of the levels, finest first; the defaults are those of OVBench at 8 frames a second.

    Args:
        token_dim: Width ``D`` of the tokens.
        capacities: Frames of each level; 0 is no limit, as published.
        level_tokens: Tokens of a square frame at each level, square numbers.
        intervals: Frame ``i`` enters the first level whose interval divides ``i``; the last is 1.

    Raises:
        ValueError: If they are not of one length, or not what the published code can run.
    """

    token_dim: int
    capacities: tuple[int, ...] = (2, 2, 12)
    level_tokens: tuple[int, ...] = (256, 64, 16)
    intervals: tuple[int, ...] = (8, 4, 1)

    def __post_init__(self) -> None:
        if not len(self.capacities) == len(self.level_tokens) == len(self.intervals) > 0:
            raise ValueError("capacities, level_tokens and intervals must be as many, one or more")
        if 1 in self.capacities:
            raise ValueError(
                "the published rule compares neighbours and stops at its second frame with a "
                "capacity of 1; use 2 or more, or PyramidMemory, which can"
            )
        if min(self.capacities) < 0:
            raise ValueError(f"a capacity is 0 (no limit) or 2 and more, not {self.capacities}")
        if any(count < 1 or math.isqrt(count) ** 2 != count for count in self.level_tokens):
            raise ValueError(f"level_tokens must be square numbers, not {self.level_tokens}")
        if list(self.level_tokens) != sorted(self.level_tokens, reverse=True):
            raise ValueError(f"level_tokens go from fine to coarse, not {self.level_tokens}")
        if min(self.intervals) < 1 or self.intervals[-1] != 1:
            raise ValueError(f"intervals are at least 1 and end with 1, not {self.intervals}")

    def grid(self, level: int, full: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns at a level of a frame that has ``full`` at the finest."""
        finest, side = math.isqrt(self.level_tokens[0]), math.isqrt(self.level_tokens[level])
        return max(1, full[0] * side // finest), max(1, full[1] * side // finest)

    @property
    def most_bytes(self) -> int | None:
        """Bytes of square frames when every level is full; ``None`` if one has no limit."""
        if 0 in self.capacities:
            return None
        frames = zip(self.capacities, self.level_tokens, strict=True)
        return sum(count * _frame_bytes(tokens, self.token_dim) for count, tokens in frames)


def _frame_bytes(tokens: int, dim: int) -> int:
    return 4 * dim * (tokens + 1) + _NUMBER_BYTES


@dataclass(frozen=True, eq=False)
class _Frame:
    """One stored frame; never changed once made."""

    time: float
    source: int
    grid: tuple[int, int]  # at its level
    full: tuple[int, int]  # when it was written
    tokens: Tensor  # (N, D) float32
    mean: Tensor  # (D,), which the published code takes anew at each comparison

    @property
    def nbytes(self) -> int:
        return _frame_bytes(*self.tokens.shape)


def _spatial(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens row by row, ``(N, D)``, as a map ``(1, D, rows, columns)``."""
    return tokens.T.reshape(1, -1, *grid)


def _rows(picture: Tensor) -> Tensor:
    """Inverse of `_spatial`."""
    return picture.flatten(2)[0].T.contiguous()


class PublishedPyramid(Memory):
    """Whole frames on levels of falling resolution, as published; see the module.

    Args:
        config: Sizes of the levels.
        budget: Bytes, or text such as ``"64MB"``; by default what the full levels hold. A level
            without a limit has no such sum and needs a budget.

    Raises:
        ValueError: If a level has no limit and no budget is given.

    Example:
        >>> memory = PublishedPyramid(PublishedPyramidConfig(token_dim=2))
        >>> for number in range(40):
        ...     _ = memory.write(torch.randn(256, 2), time=number / 8)
        >>> len(memory.read().tokens)  # 2 x 256 + 2 x 64 + 12 x 16
        832
    """

    def __init__(
        self, config: PublishedPyramidConfig, budget: Budget | int | str | None = None
    ) -> None:
        most = config.most_bytes if budget is None else budget
        if most is None:
            raise ValueError("a level of capacity 0 grows without limit; give a budget")
        self.config = config
        self.budget = Budget.parse(most)
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        self._levels: list[list[_Frame]] = [[] for _ in self.config.capacities]
        self._writes = 0
        self._last = -math.inf

    @property
    def nbytes(self) -> int:
        """Bytes of all frames: tokens, their mean, and seven numbers each."""
        return sum(frame.nbytes for level in self._levels for frame in level)

    @property
    def level_sources(self) -> list[list[int]]:
        """Numbers of the writes that each level holds, finest first, in order of insertion."""
        return [[frame.source for frame in level] for level in self._levels]

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self, tokens: Tensor, time: float, *, grid: tuple[int, int] | None = None
    ) -> WriteReport:
        """Add one frame.

        Args:
            tokens: ``(N, D)``, row by row, at most ``level_tokens[0]``.
            time: Seconds, never earlier than the write before.
            grid: Rows and columns; a square where none is given.

        Raises:
            ValueError: If anything does not fit, is not finite, or would pass the budget; the
                memory is then unchanged.
        """
        last = self._last if self._writes else None
        check_write(tokens, time, self.config.token_dim, self.config.level_tokens[0], last)
        if tokens.abs().max() > _HALF:
            raise ValueError(f"tokens are beyond {_HALF:.0f}, the largest half-precision number")
        side = math.isqrt(len(tokens))
        rows, cols = (side, side) if grid is None else grid
        if rows < 1 or rows * cols != len(tokens):
            raise ValueError(f"{len(tokens)} tokens are no grid of {rows} x {cols}; give grid=")
        dividing = (self._writes % interval == 0 for interval in self.config.intervals)
        level = list(dividing).index(True)
        full = (rows, cols)
        target = self.config.grid(level, full)
        picture = _spatial(tokens.detach().float(), full)
        pooled = _rows(F.adaptive_avg_pool2d(picture, target))
        frame = _Frame(float(time), self._writes, target, full, pooled, pooled.mean(0))

        levels = [list(frames) for frames in self._levels]
        dropped = 0
        if self._is_full(levels, level):
            leaving = levels[level].pop(_most_similar(levels[level]))
            if level + 1 < len(levels):
                below = levels[level + 1]
                if self._is_full(levels, level + 1):
                    del below[_most_similar(below)]
                    dropped = 1
                below.append(self._resized(leaving, level + 1))
            else:
                dropped = 1
        levels[level].append(frame)
        needed = sum(held.nbytes for frames in levels for held in frames)
        if needed > self.budget.bytes:
            raise ValueError(
                f"this frame would need {needed} bytes of a budget of {self.budget.bytes}; give a "
                "larger budget, or smaller capacities (0 is no limit), or use PyramidMemory"
            )
        self._levels = levels
        self._writes += 1
        self._last = frame.time
        return WriteReport(needed, dropped=dropped)

    def _is_full(self, levels: Sequence[Sequence[_Frame]], level: int) -> bool:
        return 0 < self.config.capacities[level] <= len(levels[level])

    def _resized(self, frame: _Frame, level: int) -> _Frame:
        """Put a frame into the size of a level."""
        target = self.config.grid(level, frame.full)
        picture = _spatial(frame.tokens, frame.grid)
        smaller = _rows(F.interpolate(picture, target, mode="bilinear", align_corners=False))
        return _Frame(frame.time, frame.source, target, frame.full, smaller, smaller.mean(0))

    def snapshot(self) -> PublishedPyramidSnapshot:
        """Share the frames, which never change."""
        frames = [frame for level in self._levels for frame in level]
        return PublishedPyramidSnapshot(frames, self.config.token_dim)

    # ------------------------------------------------------------------ state

    def _fingerprint(self) -> Tensor:
        config = self.config
        lists = (*config.capacities, *config.level_tokens, *config.intervals)
        return torch.tensor([config.token_dim, *lists])

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        placed = [(number, f) for number, level in enumerate(self._levels) for f in level]
        numbers = [[f.source, level, *f.grid, *f.full] for level, f in placed]
        tokens = [f.tokens for _, f in placed]
        return {
            "config": self._fingerprint(),
            "writes": torch.tensor(self._writes),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "times": torch.tensor([f.time for _, f in placed], dtype=torch.float64),
            "numbers": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 6),
            "tokens": torch.cat([torch.empty(0, self.config.token_dim), *tokens]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance; see `Memory.load_state_dict`."""
        try:
            if not torch.equal(state["config"], self._fingerprint()):
                raise ValueError("the state is of another configuration")
            writes, last = int(state["writes"]), float(state["last"])
            times, numbers = state["times"].tolist(), state["numbers"].tolist()
            sizes = [row[2] * row[3] for row in numbers]
            parts = state["tokens"].split(sizes) if sizes else ()
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        except RuntimeError as error:
            raise ValueError("the state holds another number of tokens than it says") from error
        levels: list[list[_Frame]] = [[] for _ in self.config.capacities]
        for time, row, part in zip(times, numbers, parts, strict=True):
            source, level, rows, cols, *full = row
            tokens = part.clone()
            frame = _Frame(time, source, (rows, cols), tuple(full), tokens, tokens.mean(0))
            levels[level].append(frame)
        needed = sum(frame.nbytes for level in levels for frame in level)
        if needed > self.budget.bytes:
            raise ValueError(f"the state is {needed} bytes, the budget {self.budget.bytes}")
        self._levels, self._writes, self._last = levels, writes, last


def _most_similar(frames: Sequence[_Frame]) -> int:
    """The earlier, in order of insertion, of the two neighbours that are most similar."""
    means = torch.stack([frame.mean for frame in frames])
    return int(F.cosine_similarity(means[1:], means[:-1]).argmax())


class PublishedPyramidSnapshot:
    """An immutable view of a `PublishedPyramid`.

    Args:
        frames: What is held; sorted here by the number of the frame.
        token_dim: Width of the tokens.
    """

    def __init__(self, frames: Sequence[_Frame], token_dim: int) -> None:
        self._frames = sorted(frames, key=lambda frame: frame.source)
        self._token_dim = token_dim

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, query: Tensor | None = None, **context: Any) -> Recall:
        """Give all frames of all levels in time order; the published rule knows no query.

        Returns:
            Tokens as float32, each of weight 1: what left was dropped and not merged.
        """
        counts = torch.tensor([len(frame.tokens) for frame in self._frames], dtype=torch.int64)

        def spread(values: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).repeat_interleave(counts)

        total = int(counts.sum())
        return Recall(
            tokens=torch.cat(
                [torch.empty(0, self._token_dim), *(frame.tokens for frame in self._frames)]
            ),
            times=spread([frame.time for frame in self._frames], torch.float64),
            weights=torch.ones(total, dtype=torch.int64),
            scores=torch.zeros(total),
            sources=spread([frame.source for frame in self._frames], torch.int64),
        )
