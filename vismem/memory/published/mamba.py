"""The memory banks of MAMBA as published, to the number.

A bank is a list of rows. An update appends while fewer than ``max_length`` are stored, so that the
list may overshoot, and afterwards throws out as many old rows at random as come in. A model reads
``key_length`` rows at random. Kept as they are: an update without rows empties a full bank, one of
as many rows as are stored replaces all of them, and the capacity is soft.

At the pixel level a second, short list holds what is replaced with every frame: cells of boxes that
are half sure, and of the background.

Source: Sun et al., "MAMBA: Multi-level Aggregation via Memory Bank for Video Object Detection",
AAAI 2021 (https://arxiv.org/abs/2401.09923); classes ``MemoryBank`` of guanxiongsun/vfe.pytorch and
``MemoryBankPix`` of Duckduckgod/MAMBA. The bank without these quirks is
`vismem.memory.feature.FeatureMemory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vismem.memory.base import Budget, Memory, Recall, WriteReport, check_write

__all__ = [
    "PublishedMamba",
    "PublishedMambaConfig",
    "PublishedMambaSnapshot",
    "PublishedPixels",
    "cells_of_box",
]

_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class PublishedMambaConfig:
    """Sizes of a bank; the defaults are those of the released model.

    Args:
        dim: Width ``C`` of a row.
        max_length: Rows from which on old ones are thrown out.
        key_length: Rows of a random read.
        max_tokens: The most rows of one write.
        seed: Of the bank's own random numbers.
    """

    dim: int
    max_length: int = 20_000
    key_length: int = 2_000
    max_tokens: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.dim, self.max_length, self.key_length, self.max_tokens) < 1:
            raise ValueError("dim, max_length, key_length and max_tokens are 1 or more")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: float32, its time and the number of its write."""
        return 4 * self.dim + 16

    @property
    def most_bytes(self) -> int:
        """Bytes of the rows when the bank overshoots as far as it can."""
        return (self.max_length - 1 + self.max_tokens) * self.row_bytes


class PublishedMamba(Memory):
    """One bank of rows as published; see the module.

    Args:
        config: Sizes.
        budget: Bytes, or text such as ``"64MB"``; by default what the largest overshoot holds. A
            write that would pass it is refused: the published rule has no hard limit.

    Example:
        >>> bank = PublishedMamba(PublishedMambaConfig(dim=2, max_length=4, key_length=3))
        >>> for number in range(5):
        ...     _ = bank.write(torch.full((3, 2), float(number)), time=float(number))
        >>> len(bank), tuple(bank.sample().shape)  # 3 + 3 is more than 4, and stays so
        (6, (3, 2))
    """

    def __init__(
        self, config: PublishedMambaConfig, budget: Budget | int | str | None = None
    ) -> None:
        self.config = config
        self.budget = Budget.parse(config.most_bytes if budget is None else budget)
        self.reset()

    def reset(self) -> None:
        """Forget everything, the random numbers included."""
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self._writes = 0
        self._last = -math.inf
        self.replace(torch.empty(0, self.config.dim))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self.config.row_bytes

    # ------------------------------------------------------------------ the published rule

    def replace(self, rows: Tensor) -> None:
        """Hold these rows ``(n, C)`` and no others; published as ``init_memory``."""
        self.rows = rows.detach().float().clone()
        self._times = torch.full((len(rows),), self._last, dtype=torch.float64)
        self._sources = torch.full((len(rows),), max(0, self._writes - 1))

    def sample(self) -> Tensor:
        """Give all rows if they are fewer than ``key_length``, else as many at random.

        Returns:
            ``(n, C)``; no rows of an empty bank, where the published code gives an empty list.
        """
        if len(self) < self.config.key_length:
            return self.rows
        return self.rows[self.permutation(len(self))[: self.config.key_length]]

    def update(self, rows: Tensor) -> None:
        """Add rows ``(m, C)`` as published; zero rows empty a full bank."""
        self._append(rows, self._last, max(0, self._writes - 1))

    def permutation(self, count: int) -> Tensor:
        """Draw an order of ``count`` rows, ``(count,)`` int64."""
        return torch.randperm(count, generator=self.generator)

    def _append(self, rows: Tensor, time: float, source: int) -> None:
        new = len(rows)
        kept = torch.arange(len(self))
        if len(self) >= self.config.max_length:
            # A slice to minus zero is empty: the published way to lose everything.
            kept = self.permutation(len(self))[: -new if new else 0]
        self.rows = torch.cat([self.rows[kept], rows.detach().float()])
        times, sources = self._times[kept], self._sources[kept]
        self._times = torch.cat([times, times.new_full((new,), time)])
        self._sources = torch.cat([sources, sources.new_full((new,), source)])

    # ------------------------------------------------------------------ the contract

    def write(self, tokens: Tensor, time: float, **context: Any) -> WriteReport:
        """Update with the rows of one frame and note when it was seen.

        Args:
            tokens: ``(N, C)``, at least one row.
            time: Seconds, never earlier than the write before.
            **context: Ignored, the published bank keeps nothing beside the rows.

        Raises:
            ValueError: If they do not fit, are not finite, or pass the budget.
        """
        last, time = self._last if self._writes else None, float(time)
        check_write(tokens, time, self.config.dim, self.config.max_tokens, last)
        if tokens.abs().max() > _HALF:
            raise ValueError("tokens must be within ±65504, the range of float16")
        before, new = len(self), len(tokens)
        full = before >= self.config.max_length
        after = max(before, new) if full else before + new
        if after * self.config.row_bytes > self.budget.bytes:
            raise ValueError(
                f"{after} rows of {self.config.row_bytes} bytes pass the budget of "
                f"{self.budget.bytes}; the published rule needs {self.config.most_bytes}"
            )
        self._append(tokens.cpu(), time, self._writes)
        self._writes, self._last = self._writes + 1, time
        return WriteReport(self.nbytes, dropped=before + new - after)

    def snapshot(self) -> PublishedMambaSnapshot:
        """Share the rows; an update makes new ones and changes none."""
        return PublishedMambaSnapshot(self.rows, self._times, self._sources)

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        return {
            "config": torch.tensor(list(vars(self.config).values())),
            "writes": torch.tensor(self._writes),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "generator": self.generator.get_state(),
            "rows": self.rows.clone(),
            "times": self._times.clone(),
            "sources": self._sources.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance; see `Memory.load_state_dict`."""
        try:
            if state["config"].tolist() != list(vars(self.config).values()):
                raise ValueError("the state is of another configuration")
            generator = torch.Generator()
            generator.set_state(state["generator"])
            writes, last = int(state["writes"]), float(state["last"])
            rows, times, sources = (state[name].clone() for name in ("rows", "times", "sources"))
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        if not (rows.shape == (len(times), self.config.dim) and times.shape == sources.shape):
            raise ValueError("the state's rows, times and sources do not belong together")
        if len(rows) * self.config.row_bytes > self.budget.bytes:
            raise ValueError(f"the state's {len(rows)} rows pass {self.budget.bytes} bytes")
        self.rows, self._times, self._sources = rows, times, sources
        self._writes, self._last, self.generator = writes, last, generator


class PublishedMambaSnapshot:
    """An immutable view of a `PublishedMamba`."""

    def __init__(self, rows: Tensor, times: Tensor, sources: Tensor) -> None:
        self.rows, self.times, self.sources = rows, times, sources

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, query: Tensor | None = None, **context: Any) -> Recall:
        """Give all rows in time order; the published rule knows no query."""
        order = self.sources.argsort(stable=True)
        return Recall(
            tokens=self.rows[order],
            times=self.times[order],
            weights=torch.ones(len(order), dtype=torch.int64),
            scores=torch.zeros(len(order)),
            sources=self.sources[order],
        )


# --------------------------------------------------------------------------- the pixel level


def cells_of_box(
    box: Tensor, stride: int, grid: tuple[int, int], *, clip: bool = False
) -> np.ndarray:
    """Number the cells of a map that a box covers, both borders included.

    Args:
        box: ``(4,)`` ``x0 y0 x1 y1`` in pixels.
        stride: Pixels of a cell.
        grid: Rows and columns of the map.
        clip: Leave out what lies beyond the map. As published nothing is left out: a column too
            many is taken for the first of the next row, and a number past the last cell stops.

    Returns:
        Rising numbers ``x + y * columns``, ``(n,)`` int64.

    Raises:
        ValueError: If the box leaves the map where the published code stops.

    Example:
        >>> cells_of_box(torch.tensor([8.0, 8.0, 40.0, 24.0]), 16, (4, 10)).tolist()
        [0, 1, 2, 10, 11, 12]
    """
    rows, columns = grid
    x0, y0, x1, y1 = (box.float() / stride).int().tolist()
    if clip:
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, columns - 1), min(y1, rows - 1)
    x, y = np.arange(x0, x1 + 1), np.arange(y0, y1 + 1)
    cells = np.sort((x[:, None] + y * columns).ravel())
    if len(cells) and not -rows * columns <= cells[0] <= cells[-1] < rows * columns:
        raise ValueError(
            f"box {box.tolist()} leaves a map of {rows} x {columns} cells of {stride} pixels, "
            "where the published code stops; clip=True leaves out what lies beyond"
        )
    return cells


class PublishedPixels:
    """The memory of the pixel level as published; see the module.

    A baseline to measure against, for one video at a time: it has no state to save.

    Args:
        config: Sizes of the bank of objects.
        stride: Pixels of a cell of the map.
        score: From which a box is an object; half sure is from 0.5 on.
        cells: The most cells of one box, and of the background.
        clip: Leave out cells beyond the map, where the published code stops.
        seed: Of the choice of cells.
    """

    def __init__(
        self,
        config: PublishedMambaConfig,
        *,
        stride: int = 16,
        score: float = 0.8,
        cells: int = 100,
        clip: bool = False,
        seed: int = 0,
    ) -> None:
        self.objects = PublishedMamba(config)
        self.stride, self.score, self.cells, self.clip = stride, score, cells, clip
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget everything, the random numbers included."""
        self.objects.reset()
        self.others: Tensor | None = None  # half sure boxes and background of the last write
        self.random = np.random.RandomState(self._seed)

    def keys(self) -> Tensor:
        """Give what a map is enhanced with, ``(n, C)``.

        Returns:
            Rows of the objects at random, then the others. No rows if nothing was written: the
            published model then attends to the pixels of the frame itself.
        """
        rows = self.objects.sample()
        return rows if self.others is None else torch.cat([rows, self.others])

    def write(self, picture: Tensor, boxes: Tensor, scores: Tensor) -> None:
        """Add cells of the enhanced map of a frame whose objects have been detected.

        Args:
            picture: ``(C, H, W)``.
            boxes: ``(N, 4)`` ``x0 y0 x1 y1`` in pixels.
            scores: ``(N,)``; unless one reaches `score` nothing is written.

        Raises:
            ValueError: If a box leaves the map where the published code stops; nothing is written.
        """
        sure, half = scores >= self.score, (scores >= 0.5) & (scores < self.score)
        if not sure.any():
            return
        grid = (picture.shape[1], picture.shape[2])
        rows = picture.detach().flatten(1).T.float()
        covered = {
            number: cells_of_box(boxes[number], self.stride, grid, clip=self.clip)
            for number in torch.nonzero(sure | half)[:, 0].tolist()
        }
        others = []
        for number, cells in covered.items():
            chosen = rows[self.choice(cells)]
            if sure[number]:
                self.objects.update(chosen)
            else:
                others.append(chosen)
        lengths = rows.norm(dim=1) / math.sqrt(rows.shape[1])
        background = torch.nonzero(lengths.softmax(0) > 1 / len(rows))[:, 0]
        self.others = torch.cat([*others, rows[self.choice(background.numpy())]])

    def choice(self, cells: np.ndarray) -> np.ndarray:
        """Keep all cells if they are not too many, else some at random."""
        if len(cells) <= self.cells:
            return cells
        return self.random.choice(cells, self.cells, replace=False)
