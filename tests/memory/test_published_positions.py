from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.published.positions import (
    Grid,
    am_rope,
    memory_positions,
    pixel_pool,
    pool_rows,
    real_grids,
)


@settings(max_examples=30, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_pooled_pixels_are_those_of_a_smaller_picture(t: int, i: int, j: int, pool: int) -> None:
    h, w = 2 * pool * i, 2 * pool * j
    pictures = torch.randn(t * 2, 3, h * 14, w * 14, generator=torch.Generator().manual_seed(pool))

    def patches(images: Tensor) -> Tensor:
        """Patch by patch, the slow way."""
        rows = []
        down, across = images.shape[2] // 28, images.shape[3] // 28
        for step in range(t):
            for row in range(down):
                for column in range(across):
                    for a in (0, 1):
                        for b in (0, 1):
                            y, x = 14 * (2 * row + a), 14 * (2 * column + b)
                            pair = images[2 * step : 2 * step + 2, :, y : y + 14, x : x + 14]
                            rows.append(pair.transpose(0, 1).flatten())
        return torch.stack(rows)

    pooled, grid = pixel_pool(patches(pictures), Grid(t, h, w), pool)
    smaller = torch.nn.functional.avg_pool2d(pictures, pool)
    assert grid == Grid(t, h // pool, w // pool)
    assert torch.allclose(pooled, patches(smaller), atol=1e-6)
    means = pooled.reshape(t, -1, 1176).mean(2, keepdim=True)
    of_rows = pool_rows(patches(pictures).reshape(t, h * w, 1176), (h, w), pool)
    assert torch.allclose(of_rows.mean(2, keepdim=True), means, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((15, 1176), (1, 4, 4)),
        ((24, 1176), (1, 4, 6)),
        ((24, 1176), (1, 6, 4)),
        ((16, 1175), (1, 4, 4)),
        ((4, 588), (1, 2, 2)),
    ],
)
def test_pixels_that_do_not_fill_a_grid_are_refused(
    shape: tuple[int, int], grid: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError):
        pixel_pool(torch.zeros(shape), Grid(*grid))


def test_a_full_memory_has_the_published_number_of_tokens() -> None:
    synopsis, detail = real_grids(Grid(120, 32, 32), 60, 30)
    ids = memory_positions(synopsis, torch.arange(60.0), detail, torch.arange(30))
    assert ids.shape == (3, 11_520)


def test_a_prompt_without_pictures_keeps_its_ids() -> None:
    prompt = torch.arange(5, dtype=torch.int32).expand(3, 5)
    given_ids = am_rope(prompt, torch.full((5,), -1), torch.zeros(3, 0, dtype=torch.int64))
    assert torch.equal(given_ids, prompt) and given_ids.dtype == torch.int32
