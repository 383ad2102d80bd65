"""Aggregation in PyTorch is its reference, with gradients, whichever way its rows are given."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vismem.kernels.aggregate import aggregate, cpu, reference

FEW = settings(max_examples=60, derandomize=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, below: int, seed: int = 0) -> Tensor:
    """Numbers of rows; a share of them, and all of the last batch entry, are of none."""
    draws = torch.Generator().manual_seed(seed)
    index = torch.randint(-1 - below // 4, below, shape, generator=draws).clamp(min=-1)
    if len(shape) == 2 and shape[0] > 1:
        index[-1] = -1
    return index


@FEW
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 7),
    rows=st.integers(1, 12),
    heads=st.sampled_from([(1, 16), (2, 5), (4, 3)]),
    places=st.sampled_from([None, (1,), (9,), (None, 4)]),
    shared=st.booleans(),
    biased=st.sampled_from([None, "bhqk", "b11k", "1h1k", "11q1", "1111"]),
    seed=st.integers(0, 99),
)
def test_is_the_reference_with_its_gradients(
    batch: int,
    queries: int,
    rows: int,
    heads: tuple[int, int],
    places: tuple[int | None, ...] | None,
    shared: bool,
    biased: str | None,
    seed: int,
) -> None:
    width, bank = heads[0] * heads[1], () if shared else (batch,)
    parts = [
        noise(batch, queries, width, seed=seed),
        noise(*bank, rows, width, seed=seed + 1),
        noise(*bank, rows, width, seed=seed + 2),
    ]
    index = None
    if places is not None:
        index = numbers(*(batch if n is None else n for n in places), below=rows, seed=seed)
    if biased is not None:
        sizes = {"b": batch, "h": heads[0], "q": queries, "1": 1}
        sizes["k"] = rows if index is None else index.shape[-1]
        parts.append(noise(*(sizes[letter] for letter in biased), seed=seed + 3))
    parts = [part.double().requires_grad_() for part in parts]
    bias = parts[3] if biased else None
    found = aggregate(*parts[:3], heads[0], index=index, bias=bias)
    expected = reference.aggregate(*parts[:3], heads[0], index, bias)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    grad = noise(*found.shape, seed=seed + 4).double()
    if not expected.requires_grad:  # no query sees any row
        assert not found.any()
        return
    for one, other in zip(
        torch.autograd.grad(found, parts, grad, allow_unused=True),
        torch.autograd.grad(expected, parts, grad, allow_unused=True),
        strict=True,
    ):
        zeros = torch.zeros(())
        one, other = (zeros if part is None else part for part in (one, other))
        torch.testing.assert_close(one.sum() * 0 + one, other + 0 * one, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)]
)
def test_keeps_the_type_of_its_features(dtype: torch.dtype, error: float) -> None:
    query, keys, values = (noise(2, n, 32, seed=n).to(dtype) for n in (5, 40, 40))
    index = numbers(2, 30, below=40).int()
    bias = noise(2, 1, 1, 30)
    found = aggregate(query, keys, values, 2, index=index, bias=bias)
    wide = (part.double() for part in (query, keys, values))
    expected = reference.aggregate(*wide, 2, index, bias)
    assert found.dtype == dtype
    assert (found.double() - expected).norm() < error * expected.norm()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("numbered", [None, (600,), (2, 600)])
def test_many_rows_go_tile_by_tile(
    numbered: tuple[int, ...] | None, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    attend = cpu.attend
    monkeypatch.setattr(cpu, "attend", lambda *given: calls.append(1) or attend(*given))
    query, keys, values = (noise(2, n, 32, seed=n) for n in (130, 700, 700))
    index = None if numbered is None else numbers(*numbered, below=700)
    count = 700 if numbered is None else 600
    bias = noise(1, 2, 130, count) if biased else None
    if bias is not None:
        bias[:, 1, 3] = -math.inf
    found = aggregate(query, keys, values, 2, index=index, bias=bias)
    wide = (part.double() for part in (query, keys, values))
    expected = reference.aggregate(*wide, 2, index, bias)
    assert len(calls) == 4
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_passes_the_numerical_check_of_gradients() -> None:
    query, keys, values = (noise(*s, seed=len(s)).double() for s in ((2, 3, 4), (5, 4), (5, 4)))
    bias, index = noise(1, 2, 1, 4).double(), torch.tensor([[0, 4, -1, 4], [1, -1, -1, 1]])
    parts = [part.requires_grad_() for part in (query, keys, values, bias)]
    assert torch.autograd.gradcheck(
        lambda q, k, v, b: aggregate(q, k, v, 2, index=index, bias=b), parts
    )


def test_numbers_are_copies_of_rows() -> None:
    query, bank, index = noise(1, 4, 8), noise(20, 8, seed=1), torch.tensor([3, 3, 19, 0])
    found = aggregate(query, bank, bank.flip(1), 2, index=index)
    assert torch.equal(found, aggregate(query, bank[index], bank[index].flip(1), 2))


def test_no_row_gives_zeros_and_none_is_read_where_there_is_none() -> None:
    query, bank = noise(2, 4, 8), noise(5, 8, seed=1)
    bank[4] = math.nan
    index = torch.tensor([[-1, -1, -1], [2, -1, 0]])
    found = aggregate(query, bank, bank, 2, index=index)
    assert not found[0].any() and found[1].isfinite().all()
    for some, none in ((bank[:0], None), (bank[:0], index), (bank, index[:, :0])):
        assert torch.equal(aggregate(query, some, some, 2, index=none), torch.zeros(2, 4, 8))
    assert aggregate(query[:, :0], bank, bank, 2).shape == (2, 0, 8)
    hidden = torch.zeros(2, 1, 4, 5)
    hidden[0, :, 2] = -math.inf
    found = aggregate(query, bank[:4].expand(2, -1, -1), bank[:4].expand(2, -1, -1), 2,
                      bias=hidden[..., :4])  # fmt: skip
    assert not found[0, 2].any() and found.isfinite().all() and found[1, 2].any()


@FEW
@given(rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_order_of_places_says_nothing(rows: int, seed: int) -> None:
    query, bank = noise(1, 3, 8, seed=seed), noise(9, 8, seed=seed + 1)
    index = numbers(rows, below=9, seed=seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    one, other = (aggregate(query, bank, bank, 2, index=i) for i in (index, index[order]))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_compiles_whole() -> None:
    query, bank, index = noise(2, 4, 8), noise(5, 8, seed=1), numbers(2, 6, below=5)
    compiled = torch.compile(aggregate, fullgraph=True, backend="aot_eager")
    expected = reference.aggregate(query, bank, bank, 2, index)
    torch.testing.assert_close(compiled(query, bank, bank, 2, index=index), expected)


GOOD = {"query": torch.ones(2, 3, 8), "keys": torch.ones(5, 8), "values": torch.ones(5, 8)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": torch.ones(3, 8)}, r"takes \(B, Q, C\)"),
        ({"keys": torch.ones(8), "values": torch.ones(8)}, r"takes \(B, Q, C\)"),
        ({"values": torch.ones(4, 8)}, r"takes \(B, Q, C\)"),
        ({"keys": torch.ones(5, 6), "values": torch.ones(5, 6)}, "one batch and one width"),
        ({"keys": torch.ones(3, 5, 8), "values": torch.ones(3, 5, 8)}, "one batch and one width"),
        ({"heads": 3}, "do not divide"),
        ({"heads": 0}, "do not divide"),
        ({"values": torch.ones(5, 8).half()}, "of one type"),
        ({"index": torch.ones(3, 4).long()}, r"\(K,\) or \(2, K\)"),
        ({"index": torch.tensor(1)}, r"\(K,\) or \(2, K\)"),
        ({"index": torch.ones(4)}, "whole numbers"),
        ({"bias": torch.ones(2, 3, 5)}, r"broadcastable to \(2, 2, 3, 5\)"),
        ({"bias": torch.ones(2, 2, 3, 4)}, r"broadcastable to \(2, 2, 3, 5\)"),
        ({"bias": torch.ones(1, 1, 1, 5), "index": torch.ones(4).long()}, r"\(2, 2, 3, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        aggregate(**{**GOOD, "heads": 2, **change})
