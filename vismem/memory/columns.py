"""State that is a table: columns of equal length beside a few counters, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Sizes", "load_table", "table_state"]


class Sizes(Protocol):
    """What the config of such a memory says."""

    def columns(self, rows: int) -> dict[str, Tensor]:
        """Columns of a number of rows, of their types and shapes."""
        ...

    def fingerprint(self) -> Tensor:
        """All fields as numbers, to tell states apart."""
        ...


def table_state(
    config: Sizes, held: Mapping[str, Tensor], counters: tuple[int, int], last: float
) -> dict[str, Tensor]:
    """Give all state as tensors; `load_table` takes it up bit for bit.

    Args:
        config: Of the memory.
        held: Its columns.
        counters: Two whole numbers of its own.
        last: Time of the newest write, in seconds.
    """
    return {
        "config": config.fingerprint(),
        "counters": torch.tensor(counters),
        "time": torch.tensor(last, dtype=torch.float64),
    } | {name: column.clone() for name, column in held.items()}


def load_table(
    config: Sizes, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[int, int], float]:
    """Read what `table_state` gave.

    Returns:
        Columns, counters and time.

    Raises:
        ValueError: If it is of another configuration or incomplete.
    """
    try:
        if not torch.equal(state["config"], config.fingerprint()):
            raise ValueError("the state is of another configuration")
        (one, other), last = state["counters"].tolist(), float(state["time"])
        held = {name: state[name].clone() for name in config.columns(0)}
    except KeyError as error:
        raise ValueError(f"the state holds no {error}; it is incomplete") from error
    rows = len(next(iter(held.values())))
    for name, column in config.columns(rows).items():
        if held[name].shape != column.shape or held[name].dtype != column.dtype:
            raise ValueError(f"the state's {name} are {held[name].dtype} {held[name].shape}")
    return held, (one, other), last
