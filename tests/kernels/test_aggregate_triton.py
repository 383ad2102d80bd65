"""Aggregation in Triton is its reference, forward and backward, and works under torch.compile."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from vismem.kernels.aggregate import aggregate, reference
from vismem.kernels.registry import using

pytestmark = pytest.mark.usefixtures("in_triton")
ERRORS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(
    batch: int, queries: int, rows: int, heads: int, width: int, shared: bool, seed: int = 0
) -> list[Tensor]:
    """Query, keys and values; the latter two as halves of one table, as projections are kept."""
    bank = () if shared else (batch,)
    table = noise(*bank, rows, 2 * heads * width, seed=seed + 1)
    return [noise(batch, queries, heads * width, seed=seed), *table.chunk(2, -1)]


def numbers(*shape: int, below: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(-1 - below // 4, below, shape, generator=draws).clamp(min=-1)


def close(found: Tensor, expected: Tensor, error: float) -> None:
    assert found.shape == expected.shape and found.isfinite().all()
    assert (found.double().cpu() - expected).norm() <= error * expected.norm() + 1e-7


def check(
    parts: list[Tensor], heads: int, index: Tensor | None, dtype: torch.dtype, device: str
) -> None:
    """Result and gradients against the reference in float64."""
    own = [parts[0].to(device, dtype), *parts[1:]]
    own[1:3] = [part.to(device, dtype) for part in parts[1:3]]
    own[3:] = [part.to(device) for part in parts[3:]]
    wide = [part.cpu().double().requires_grad_() for part in own]
    own = [part.requires_grad_() for part in own]
    where = None if index is None else index.to(device)
    bias, wide_bias = (list_[3] if len(list_) > 3 else None for list_ in (own, wide))
    found = aggregate(*own[:3], heads, index=where, bias=bias)
    expected = reference.aggregate(*wide[:3], heads, index, wide_bias)
    assert found.dtype == dtype
    close(found, expected, ERRORS[dtype])
    grad = noise(*found.shape, seed=9).to(dtype)
    for mine, theirs, part in zip(
        torch.autograd.grad(found, own, grad.to(device)),
        torch.autograd.grad(expected, wide, grad.double()),
        own,
        strict=True,
    ):
        assert mine.dtype == part.dtype
        close(mine, theirs, 3 * ERRORS[dtype])


@pytest.mark.parametrize("dtype", list(ERRORS))
@pytest.mark.parametrize(
    ("batch", "queries", "rows", "heads", "width", "shared"),
    [
        (1, 1, 2, 1, 16, True),
        (2, 5, 70, 2, 24, False),
        (3, 17, 33, 2, 7, True),
        (1, 67, 40, 1, 80, False),
        (1, 3, 300, 1, 16, True),  # cut into shares, that are merged
    ],
)
def test_is_the_reference(
    batch: int, queries: int, rows: int, heads: int, width: int, shared: bool,
    dtype: torch.dtype, device: str,
) -> None:  # fmt: skip
    parts = inputs(batch, queries, rows, heads, width, shared)
    check(parts, heads, None, dtype, device)


def test_one_row_is_what_is_seen(device: str) -> None:
    query, keys, values = (part.to(device).requires_grad_() for part in inputs(1, 1, 1, 1, 8, True))
    found = aggregate(query, keys, values, 1)
    torch.testing.assert_close(found[0], values)
    grads = torch.autograd.grad(found.sum(), (query, keys, values))
    assert max(float(part.abs().max()) for part in grads[:2]) < 1e-6
    torch.testing.assert_close(grads[2], torch.ones(1, 8, device=device))


@pytest.mark.parametrize("width", [129, 256])
def test_wide_heads(width: int, device: str) -> None:
    check(inputs(1, 5, 37, 1, width, True), 1, None, torch.float32, device)


@pytest.mark.parametrize("shape", [(50,), (2, 50), (2, 3)])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_rows_by_number(
    shape: tuple[int, ...], shared: bool, kind: torch.dtype, device: str
) -> None:
    """Rows that stand nowhere, once and several times; one batch entry with none at all."""
    index = numbers(*shape, below=20).to(kind)
    if len(shape) == 2:
        index[1] = -1
    check(inputs(2, 9, 20, 2, 16, shared), 2, index, torch.float32, device)


def test_rows_by_number_in_other_strides(device: str) -> None:
    index = numbers(50, 2, below=20).T
    check(inputs(2, 9, 20, 2, 16, True), 2, index, torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 2, 9, 50), (2, 1, 1, 50), (1, 2, 1, 50), (1, 1, 9, 50), (1, 1, 1, 1)]
)
def test_bias(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    index = numbers(2, 50, below=20)
    parts = [*inputs(2, 9, 20, 2, 16, True), 2 * noise(*shape, seed=5)]
    # All scores of a query raised alike change nothing: that gradient is zero.
    if shape[-1] == 1:
        grads = torch.autograd.grad(
            aggregate(*(part.to(device) for part in parts[:3]), 2, index=index.to(device),
                      bias=(bias := parts[3].to(device).requires_grad_())).sum(), bias
        )  # fmt: skip
        assert grads[0].shape == shape and grads[0].abs().max() < 1e-5
        return
    check(parts, 2, index, dtype, device)


def test_bias_in_other_strides_and_hidden_rows(device: str) -> None:
    bias = noise(9, 50, 2, 2).permute(3, 2, 0, 1)
    bias[:, :, 4, 7:] = -math.inf
    bias[0, 1, 3] = -math.inf
    parts = [*inputs(2, 9, 50, 2, 16, False), bias]
    check(parts, 2, None, torch.float32, device)
    with torch.no_grad():
        moved = [part.to(device) for part in parts]
        found = aggregate(*moved[:3], 2, bias=moved[3])
    assert not found[0, 3, 16:].any() and found[1, 3, 16:].any()


def test_shares_of_rows_change_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vismem.kernels.cross_attention import triton as kernels

    query, keys, values = (part.to(device) for part in inputs(2, 5, 300, 1, 16, False))
    index = numbers(2, 300, below=300).to(device)
    index[0, 100:] = -1  # whole shares without any row
    found = {}
    for splits in (1, 2, 5, 16):
        monkeypatch.setattr(kernels, "_splits", lambda *_, splits=splits: splits)
        found[splits] = aggregate(query, keys, values, 1, index=index)
    for one in found.values():
        torch.testing.assert_close(one, found[1], rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow(device: str) -> None:
    query, keys, values = (part.to(device) for part in inputs(1, 3, 300, 1, 16, True))
    found = aggregate(300 * query, keys, values, 1)
    expected = reference.aggregate(*(p.double() for p in (300 * query, keys, values)), 1)
    close(found, expected.cpu(), 1e-4)


def test_nothing_is_read_where_there_is_no_row(device: str) -> None:
    query, keys, values = (part.clone().to(device) for part in inputs(2, 4, 9, 2, 16, True))
    keys[8], values[8], keys[0], values[0] = math.nan, math.nan, math.nan, math.nan
    index = torch.tensor([[3, -1, 4], [-1, -1, -1]], device=device)
    found = aggregate(query, keys, values, 2, index=index)
    assert found[0].isfinite().all() and found[0].any() and not found[1].any()
    assert not aggregate(query, keys[:0], values[:0], 2).any()


def test_equal_inputs_give_equal_bits(device: str) -> None:
    index = numbers(2, 40, below=10).to(device)
    parts = [part.to(device).requires_grad_() for part in inputs(2, 9, 10, 2, 16, True)]
    runs = []
    for _ in range(25 if device == "cuda" else 2):
        out = aggregate(*parts, 2, index=index)
        runs.append((out, *torch.autograd.grad(out.square().sum(), parts)))
    assert all(all(map(torch.equal, run, runs[0])) for run in runs)


def test_what_it_cannot_do_is_refused_by_name_and_falls_back_by_default(device: str) -> None:
    double = [part.to(device).double() for part in inputs(1, 3, 4, 1, 8, True)]
    wide = [part.to(device) for part in inputs(1, 3, 4, 1, 257, True)]
    for parts, words in ((double, "float64"), (wide, "257 columns")):
        with pytest.raises(RuntimeError, match=words):
            aggregate(*parts, 1)
        with using("auto"):
            torch.testing.assert_close(aggregate(*parts, 1), reference.aggregate(*parts, 1))


@pytest.mark.parametrize("mode", ["torch", "triton"])
def test_compiles_whole_with_its_gradients(mode: str, device: str) -> None:
    parts = [part.to(device).requires_grad_() for part in inputs(2, 5, 12, 2, 16, False)]
    bias = noise(1, 2, 1, 7).to(device).requires_grad_()
    index = numbers(2, 7, below=12).to(device)
    with using(mode):
        compiled = torch.compile(aggregate, fullgraph=True, backend="aot_eager")
        found = compiled(*parts, 2, index=index, bias=bias)
        grads = torch.autograd.grad(found.square().sum(), [*parts, bias])
    expected = reference.aggregate(*parts, 2, index, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    others = torch.autograd.grad(expected.square().sum(), [*parts, bias])
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_custom_op_keeps_its_promises(whole: bool, device: str) -> None:
    query, keys, values = (
        part.to(device).unflatten(-1, (2, 16)) for part in inputs(2, 3, 8, 2, 16, False)
    )
    index = None if whole else numbers(2, 6, below=8).to(device)
    bias = None if whole else noise(1, 2, 1, 6).to(device).requires_grad_()
    parts = [part.detach().requires_grad_() for part in (query, keys, values)]
    op = torch.ops.vismem.cross_attention
    torch.library.opcheck(op, (*parts, 0.25, index, None, bias))
