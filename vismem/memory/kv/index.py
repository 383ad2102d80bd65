"""What blocks are found by: mean keys and frame embeddings, in tables that only grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["ROWS", "Table", "TableView"]

ROWS = 64  # of a page; what is given up is freed a page at a time


class Table:
    """Rows of equal shape, added at the end, given up anywhere.

    A row is written once and a page is never moved, so a view of the rows that were there stays
    true while more are added, and readers need no lock.

    Args:
        shape: ``(L, ...)`` of one row; a page keeps the rows of each ``L`` together.
        dtype: Of the rows.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self.next = 0
        self._pages: dict[int, Tensor] = {}
        self._alive: dict[int, int] = {}

    def add(self, row: Tensor, at: int | None = None) -> int:
        """Add a row ``(L, ...)`` and give its number, counted over the life of the table."""
        at = self.next if at is None else at
        page, place = divmod(at, ROWS)
        if page not in self._pages:
            layers, *rest = self.shape
            self._pages[page] = torch.zeros(layers, ROWS, *rest, dtype=self.dtype)
            self._alive[page] = 0
        self._pages[page][:, place] = row.to(self.dtype)
        self._alive[page] += 1
        self.next = max(self.next, at + 1)
        return at

    def drop(self, row: int) -> None:
        """Give up a row; its page goes with its last one."""
        page = row // ROWS
        self._alive[page] -= 1
        if not self._alive[page]:
            del self._pages[page], self._alive[page]

    def view(self, rows: Sequence[int]) -> TableView:
        """An immutable view of some rows, ascending."""
        return TableView(dict(self._pages), tuple(rows))

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, empty rows included."""
        return len(self._pages) * ROWS * math.prod(self.shape) * self.dtype.itemsize


class TableView:
    """Some rows of a table as they were; see `Table.view`."""

    def __init__(self, pages: dict[int, Tensor], rows: Sequence[int]) -> None:
        self._pages, self._rows = pages, tuple(rows)

    def first(self, count: int) -> TableView:
        """The view of the first rows alone."""
        return TableView(self._pages, self._rows[:count])

    @cached_property
    def _places(self) -> tuple[list[int], Tensor]:
        """Pages in order, and where each row is in them put end to end; once for all layers."""
        numbers = sorted({row // ROWS for row in self._rows})
        starts = {number: n * ROWS for n, number in enumerate(numbers)}
        return numbers, torch.tensor([starts[row // ROWS] + row % ROWS for row in self._rows])

    def layer(self, layer: int) -> Tensor:
        """All rows of one layer, ``(N, ...)``; at least one."""
        numbers, places = self._places
        return torch.cat([self._pages[number][layer] for number in numbers])[places]
