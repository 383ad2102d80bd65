"""The bias of attention by where two boxes are, how large, and how long ago."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_enhancement import SIZES, boxes, random_weights

from vismem.models import geometry_bias
from vismem.models.geometry_bias import GeometryBias, cell_boxes, pair_features


def test_pairs_are_compared_in_sizes_of_the_query() -> None:
    query = torch.tensor([[[10.0, 10.0, 14.0, 12.0]]])  # 4 wide, 2 high, centre (12, 11)
    key = torch.tensor([[[14.0, 14.0, 16.0, 22.0]]])  # 2 wide, 8 high, centre (15, 18)
    found = pair_features(query, key, torch.tensor([[3.0]])).flatten()
    distance = (9 + 49) ** 0.5 / 8**0.5
    expected = [4 * 3 / 4 + 1, 4 * 7 / 2 + 1, 4 / 2, 2 / 8, 4 * distance + 1, 4.0]
    assert torch.allclose(found, torch.tensor(expected).log())


@SIZES
@given(st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 1000))
def test_moving_and_scaling_a_picture_changes_no_pair(by: float, to: float, seed: int) -> None:
    one, other, ages = boxes(1, 4, seed=seed), boxes(1, 3, seed=seed + 1), torch.rand(1, 3)
    moved = pair_features(by * one + to, by * other + to, ages)
    assert torch.allclose(moved, pair_features(one, other, ages), atol=1e-3)


def test_pairs_of_nothing_are_finite() -> None:
    flat = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]])
    assert pair_features(flat, flat, torch.zeros(1, 2)).isfinite().all()


def test_beyond_the_horizon_all_is_equally_old() -> None:
    bias = random_weights(GeometryBias(2, horizon=5.0))
    one, other = boxes(1, 4), boxes(1, 3, seed=1)
    near, far, further = (bias(one, other, torch.full((1, 3), age)) for age in (1.0, 5.0, 900.0))
    assert torch.equal(far, further) and not torch.allclose(near, far)
    assert torch.equal(
        bias(one, other, torch.full((1, 3), -1.0)), bias(one, other, torch.zeros(1, 3))
    )


@pytest.mark.parametrize("pairs", [1, 7, 40])
def test_some_pairs_at_a_time_are_all_pairs(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bias = random_weights(GeometryBias(2))
    one, other, ages = boxes(2, 9), boxes(2, 5, seed=1), torch.rand(2, 5)
    whole = bias(one, other, ages)
    assert whole.shape == (2, 2, 9, 5)
    monkeypatch.setattr(geometry_bias, "PAIRS", pairs)
    assert torch.allclose(bias(one, other, ages), whole, atol=1e-6)


def test_cells_are_numbered_row_by_row() -> None:
    cells = cell_boxes(3, 5)
    assert cells.shape == (15, 4)
    assert torch.allclose(cells[1], torch.tensor([0.2, 0.0, 0.4, 1 / 3]))
    assert torch.allclose(cells[-1], torch.tensor([0.8, 2 / 3, 1.0, 1.0]))
