from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vismem.kernels.topk_search import cpu, reference, topk_search


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 40),
    width=st.integers(1, 33),
    queries=st.one_of(st.none(), st.integers(0, 5)),
    k=st.integers(1, 50),
    chunk=st.integers(1, 17),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_is_the_reference(
    rows: int, width: int, queries: int | None, k: int, chunk: int, dtype: torch.dtype
) -> None:
    bank = normal(rows, width).to(dtype)
    query = normal(width, seed=1) if queries is None else normal(queries, width, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "CHUNK", chunk)
        scores, numbers = topk_search(bank, query, k)
    expected, places = reference.topk_search(bank, query, k)
    assert scores.shape == numbers.shape == (*query.shape[:-1], min(k, rows))
    assert scores.dtype == torch.float32 and numbers.dtype == torch.int64
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    # Rows whose products differ by rounding alone may change places.
    clear = (expected.diff(dim=-1).abs() > 1e-4).all(-1)
    assert torch.equal(numbers[clear], places[clear])


@pytest.mark.parametrize("rows", [8191, 8192, 8193, 20_000])
def test_rows_are_found_in_every_chunk(rows: int) -> None:
    bank = torch.zeros(rows, 3)
    planted = torch.tensor([0, rows // 2, rows - 1])
    bank[planted, 0] = torch.tensor([1.0, 3.0, 2.0])
    scores, numbers = topk_search(bank, torch.tensor([1.0, 0.0, 0.0]), 3)
    assert scores.tolist() == [3.0, 2.0, 1.0]
    assert numbers.tolist() == planted[[1, 2, 0]].tolist()


def test_ties_give_different_rows_of_the_same_score() -> None:
    bank = torch.ones(20, 4)
    bank[7] = 2.0
    scores, numbers = topk_search(bank, torch.ones(4), 5)
    assert scores.tolist() == [8.0, 4.0, 4.0, 4.0, 4.0]
    assert numbers[0] == 7 and len(set(numbers.tolist())) == 5


def test_half_precision_rows_are_summed_in_full() -> None:
    """4096 ones and a small rest, which float16 would lose."""
    bank = torch.ones(2, 4097, dtype=torch.float16)
    bank[1, -1] = 1.5
    scores, numbers = topk_search(bank, torch.ones(4097), 2)
    assert scores.tolist() == [4097.5, 4097.0] and numbers.tolist() == [1, 0]


def test_an_empty_bank_gives_nothing() -> None:
    scores, numbers = topk_search(torch.empty(0, 4, dtype=torch.float16), torch.ones(4), 3)
    assert scores.shape == numbers.shape == (0,) and numbers.dtype == torch.int64


def test_nothing_is_changed() -> None:
    bank, query = normal(9, 4), normal(4, seed=1)
    before = bank.clone(), query.clone()
    topk_search(bank, query, 3)
    assert torch.equal(bank, before[0]) and torch.equal(query, before[1])


@pytest.mark.parametrize(
    ("bank", "query", "k"),
    [
        (torch.ones(3, 4), torch.ones(5), 1),
        (torch.ones(3, 4), torch.ones(4), 0),
        (torch.ones(3, 4), torch.ones(4), -1),
        (torch.ones(4), torch.ones(4), 1),
        (torch.ones(1, 3, 4), torch.ones(4), 1),
        (torch.ones(3, 4), torch.tensor(1.0), 1),
    ],
)
def test_what_does_not_fit_is_refused(bank: Tensor, query: Tensor, k: int) -> None:
    with pytest.raises(ValueError, match=r"bank \(M, D\), query \(..., D\) and k >= 1"):
        topk_search(bank, query, k)
