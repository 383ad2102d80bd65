"""Waypoints from heat maps: by a loop over points, views and the four pixels around."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scattered import noise

from vismem.models.waypoint import (
    cube_points,
    heat_loss,
    heat_target,
    orthographic_pixels,
    waypoint,
)


def sampled(heat: list[list[float]], x: float, y: float) -> float:
    """Bilinear between the middles of pixels, zero outside."""
    height, width = len(heat), len(heat[0])
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    total = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - abs(column + 0.5 - x)) * (1 - abs(row + 0.5 - y))
                total += weight * heat[row][column]
    return total


@settings(max_examples=60, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99)
)
def test_is_the_point_that_a_loop_finds(
    batch: int, views: int, height: int, width: int, seed: int
) -> None:
    heat = noise(batch, views, height, width, seed=seed).flatten(2).softmax(2).view(
        batch, views, height, width
    )  # fmt: skip
    points = noise(20, 3, seed=seed + 1)
    wide = torch.tensor([width, height])
    pixels = (noise(views, 20, 2, seed=seed + 2) * 0.4 + 0.5) * wide  # some are outside
    found = waypoint(heat, points, pixels)
    for b in range(batch):
        scores = [
            sum(
                sampled(heat[b, v].tolist(), *pixels[v, p].tolist()) for v in range(views)
            ) / views
            for p in range(20)
        ]  # fmt: skip
        chosen = next(p for p in range(20) if torch.equal(points[p], found[b]))
        assert scores[chosen] >= max(scores) - 1e-6


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_bells_of_a_point_lead_back_to_it(size: tuple[int, int]) -> None:
    points = cube_points(8)
    pixels = orthographic_pixels(points, size)
    assert pixels.shape == (3, 512, 2)
    for number in (0, 77, 300, 511):
        heat = heat_target(pixels[:, number], size)[None]
        torch.testing.assert_close(heat.sum((2, 3)), torch.ones(1, 3))
        assert torch.equal(waypoint(heat, points, pixels)[0], points[number])


def test_views_are_from_the_top_the_front_and_the_right() -> None:
    x, y, z = orthographic_pixels(torch.eye(3), (10, 20)).unbind(1)
    assert x.tolist() == [[20, 5], [20, 5], [10, 5]]
    assert y.tolist() == [[10, 0], [10, 5], [20, 5]]
    assert z.tolist() == [[10, 5], [10, 0], [10, 0]]


def test_a_bell_is_cut_and_its_loss_is_least_at_itself() -> None:
    bell = heat_target(torch.tensor([10.5, 8.5]), (20, 20), sigma=1.5)
    assert bell.argmax().item() == 8 * 20 + 10
    rows, columns = torch.nonzero(bell).T
    assert ((rows - 8) ** 2 + (columns - 10) ** 2).max() <= 4.5**2
    assert bell[8, 6] > 0 and bell[8, 5] == 0
    ratio = (bell[8, 10] / bell[8, 12]).item()
    assert ratio == pytest.approx(math.exp(4 / (2 * 1.5**2)), rel=1e-5)
    best = heat_loss((bell + 1e-9).log(), torch.tensor([10.5, 8.5]))
    for moved in (torch.zeros(20, 20), 2 * (bell + 1e-9).log(), bell.roll(1, 0).log().clamp(-20)):
        assert heat_loss(moved, torch.tensor([10.5, 8.5])) > best
    assert heat_target(torch.tensor([-50.0, 3.0]), (8, 8)).sum() == 0


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        waypoint(torch.zeros(1, 3, 4, 4), torch.zeros(5, 3), torch.zeros(3, 4, 2))
    with pytest.raises(ValueError, match="do not fit"):
        waypoint(torch.zeros(1, 2, 4, 4), torch.zeros(5, 3), torch.zeros(3, 5, 2))
