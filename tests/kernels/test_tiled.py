"""Attention tile by tile is softmax over whole rows, whatever the tiles, masks and strides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vismem.kernels import tiled
from vismem.kernels.product import products
from vismem.kernels.tiled import attend, pays

FEW = settings(max_examples=60, derandomize=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    scores = query.double() @ keys.double().T * scale
    if mask is not None:
        scores = scores + mask.double()
    return scores.softmax(-1).nan_to_num(0.0) @ values.double()


@FEW
@given(
    rows=st.integers(0, 9),
    columns=st.integers(1, 20),
    widths=st.sampled_from([(4, 4), (6, 2), (3, 7)]),
    masked=st.booleans(),
    tile=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_any_tiles_give_softmax_over_whole_rows(
    rows: int, columns: int, widths: tuple[int, int], masked: bool, tile: int, seed: int
) -> None:
    parts = noise(rows, widths[0]), noise(columns, widths[0], seed=1), noise(columns, widths[1])
    mask = None
    if masked:
        mask = 3 * noise(rows, columns, seed=seed)
        mask[noise(rows, columns, seed=seed + 1) > 0] = -math.inf
        mask[: rows // 3] = -math.inf  # these see nothing
        mask[:, : columns // 2] = -math.inf  # the first tiles of all rows are hidden
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "ROWS", tile)
        patch.setattr(tiled, "COLUMNS", tile + 1)
        found = attend(*parts, 0.7, mask)
    expected = plain(*parts, 0.7, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    if masked:
        assert not found[: rows // 3].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_of_whole_tiles_in_every_type_and_from_slices(dtype: torch.dtype) -> None:
    every = noise(3000, 96, seed=3).to(dtype)
    query, keys, values = every[:700, 5:37], every[:2500, 40:72], every[:2500, 72:96]
    found = attend(query, keys, values, 0.2)
    exact = plain(query, keys, values, 0.2, None)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    parts = 300 * noise(3, 8), noise(2000, 8, seed=1), noise(2000, 4, seed=2)
    torch.testing.assert_close(
        attend(*parts, 1.0).double(), plain(*parts, 1.0, None), rtol=1e-3, atol=1e-3
    )


def test_what_is_not_a_number_is_told() -> None:
    keys = noise(5, 4)
    keys[3, 0] = math.nan
    assert attend(noise(2, 4), keys, noise(5, 4), 1.0).isnan().all()


def test_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(2, 4)
    for able in (False, True):
        monkeypatch.setattr(tiled, "multiplies_bfloat16", lambda able=able: able)
        assert pays(128, 512, x) and pays(128, 512, x.half())
        assert pays(128, 512, x.bfloat16()) != able
    assert not pays(127, 512, x) and not pays(128, 511, x)
    assert not pays(128, 512, x.double()) and not pays(128, 512, x.to("meta"))
    assert not pays(128, 512, x, x.clone().requires_grad_())
    with torch.no_grad():
        assert pays(128, 512, x, x.clone().requires_grad_())


def test_products_of_slices_are_products() -> None:
    one, other = noise(40, 30), noise(50, 30, seed=1)
    exact = one[:, 3:20].double() @ other[:, 3:20].double().T
    for x in (one[:, 3:20], one[:, 3:20].contiguous(), one[:, 3:20].T.contiguous().T):
        for y in (other[:, 3:20], other[:, 3:20].T.contiguous().T):
            torch.testing.assert_close(products(x, y).double(), exact, rtol=1e-5, atol=1e-5)


def test_products_of_nothing_are_the_bias() -> None:
    bias = noise(5)
    assert torch.equal(products(noise(2, 0), noise(5, 0), bias), bias.expand(2, 5))
    assert products(noise(0, 3), noise(5, 3), bias).shape == (0, 5)
