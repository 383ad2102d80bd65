"""`Table`: rows of a memory as columns of equal length, beside what is counted of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Sizes", "Table"]


class Sizes(Protocol):
    """A config: a data class of numbers that says what the columns are."""

    def columns(self, rows: int) -> dict[str, Tensor]:
        """Columns of a number of rows, of their types and shapes; first the rows' numbers."""
        ...


class Table:
    """Rows that come and go, each with a number that is never given again.

    What is written into a column is seen by whoever shares it; `own` comes before that. Rows that
    are added or given up leave what was shared as it was.

    Args:
        config: Of the memory.

    Attributes:
        held: Columns by name.
        writes: How many there were.
        time: Second of the newest; minus infinity before the first.
    """

    def __init__(self, config: Sizes):
        self._columns, self.held = config.columns, config.columns(0)
        self._fingerprint = torch.tensor(list(vars(config).values()), dtype=torch.float64)
        self._next = self.writes = 0
        self.time = -math.inf
        self._shared = False

    def __len__(self) -> int:
        return len(next(iter(self.held.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(column.nbytes for column in self.held.values())

    def add(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Append rows, given as columns, and number them; gives where they are now."""
        name, column = next(iter(rows.items()))
        count = len(column)
        rows = {**rows, name: torch.arange(self._next, self._next + count)}
        self._next += count
        self.held = {name: torch.cat([column, rows[name]]) for name, column in self.held.items()}
        return torch.arange(len(self) - count, len(self))

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but some, ``(N,)`` bool or numbers in the order to be kept."""
        self.held = {name: column[rows] for name, column in self.held.items()}

    def share(self) -> Mapping[str, Tensor]:
        """Give the columns to a reader."""
        self._shared = True
        return self.held

    def own(self) -> None:
        """What a reader has is not written to from now on."""
        if self._shared:
            self.held = {name: column.clone() for name, column in self.held.items()}
            self._shared = False

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        return {
            "config": self._fingerprint.clone(),
            "counters": torch.tensor([self._next, self.writes]),
            "time": torch.tensor(self.time, dtype=torch.float64),
        } | {name: column.clone() for name, column in self.held.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave; nothing is changed if that fails.

        Raises:
            ValueError: If it is of another configuration or incomplete.
        """
        try:
            if not torch.equal(state["config"], self._fingerprint):
                raise ValueError("the state is of another configuration")
            (given, writes), time = state["counters"].tolist(), float(state["time"])
            held = {name: state[name].clone() for name in self.held}
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        rows = len(next(iter(held.values())))
        for name, column in self._columns(rows).items():
            if held[name].shape != column.shape or held[name].dtype != column.dtype:
                raise ValueError(f"the state's {name} are {held[name].dtype} {held[name].shape}")
        self.held, self._next, self.writes, self.time = held, given, writes, time
