from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vismem.memory.assignment import assign


@settings(max_examples=200, derandomize=True)
@given(st.integers(0, 5), st.integers(0, 6), st.integers(0, 10**6), st.booleans())
def test_no_other_pairing_costs_less(rows: int, columns: int, seed: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    costs = random.normal(size=(rows, columns))
    costs = costs.round() if ties else costs
    row, column = assign(costs)
    assert len(set(row)) == len(set(column)) == len(row) == len(column) == min(rows, columns)
    assert row.tolist() == sorted(row)
    wide = costs if rows <= columns else costs.T
    pairings = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    least = min(sum(wide[n, c] for n, c in enumerate(p)) for p in pairings)
    assert costs[row, column].sum() == pytest.approx(least)


def test_as_scipy_at_the_size_of_a_crowd() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(5):
        costs = np.random.default_rng(seed).normal(size=(90, 120)).clip(-1)
        ours, theirs = assign(costs), optimize.linear_sum_assignment(costs)
        assert costs[ours].sum() == pytest.approx(costs[theirs].sum())


@pytest.mark.parametrize("costs", [np.full((2, 2), np.nan), np.full((2, 2), np.inf), np.zeros(3)])
def test_what_cannot_be_paired_is_refused(costs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite matrix"):
        assign(costs)
