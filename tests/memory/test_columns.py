"""The table that memories keep their rows in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vismem.memory.columns import Table


@dataclass(frozen=True)
class Config:
    width: int = 2

    def columns(self, rows: int) -> dict[str, Tensor]:
        return {"id": torch.zeros(rows, dtype=torch.int64), "look": torch.zeros(rows, self.width)}


def table_of(rows: int) -> Table:
    table = Table(Config())
    table.add(Config().columns(rows))
    return table


def test_numbers_are_given_once() -> None:
    table = table_of(3)
    table.keep(torch.tensor([True, False, False]))
    new = Config().columns(2)
    assert table.add(new).tolist() == [1, 2] and table.held["id"].tolist() == [0, 3, 4]
    assert new["id"].tolist() == [0, 0]  # what was given stays as it is
    assert len(table) == 3 and table.nbytes == 3 * (8 + 2 * 4)


def test_rows_may_be_kept_in_another_order() -> None:
    table = table_of(3)
    table.keep(torch.tensor([2, 0]))
    assert table.held["id"].tolist() == [2, 0]


def test_what_was_shared_is_copied_once_before_it_is_written_to() -> None:
    table = table_of(2)
    shared = table.share()
    table.own()
    own = table.held["look"]
    own += 1
    assert shared["look"].sum() == 0
    table.own()
    assert table.held["look"] is own


def test_a_state_is_a_copy_both_ways() -> None:
    table = table_of(2)
    table.writes, table.time = 7, 1.5
    state = table.state_dict()
    table.held["look"] += 1
    assert state["look"].sum() == 0
    other = Table(Config())
    other.load_state_dict(state)
    other.held["look"] += 1
    assert state["look"].sum() == 0 and (other.writes, other.time) == (7, 1.5)
    assert other.add(Config().columns(1)).tolist() == [2] and other.held["id"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": torch.tensor([3.0], dtype=torch.float64)}, "another configuration"),
        ({"look": None}, "no 'look'; it is incomplete"),
        ({"counters": None}, "no 'counters'; it is incomplete"),
        ({"look": torch.zeros(1, 2)}, "the state's look"),
        ({"look": torch.zeros(2, 2).half()}, "the state's look"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(changes: dict, message: str) -> None:
    state = {k: v for k, v in (table_of(2).state_dict() | changes).items() if v is not None}
    table = table_of(5)
    with pytest.raises(ValueError, match=message):
        table.load_state_dict(state)
    assert len(table) == 5 and table.add(Config().columns(1)).tolist() == [5]
