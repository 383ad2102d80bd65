"""Attention to memories in Triton is its reference, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from vismem.kernels.mem_xattn import mem_xattn, reference
from vismem.kernels.registry import using

pytestmark = pytest.mark.usefixtures("in_triton")
ERRORS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(
    batch: int, queries: int, rows: int, width: int, values: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    sizes = ((queries, width), (rows, width), (rows, values))
    return [noise(batch, *size, seed=n).to(device, dtype) for n, size in enumerate(sizes)]


def close(found: Tensor, expected: Tensor, error: float) -> None:
    assert found.shape == expected.shape and found.isfinite().all()
    assert (found.double().cpu() - expected).norm() <= error * expected.norm() + 1e-7


def check(
    parts: list[Tensor], heads: int, scale: float | None, lengths: Tensor | None
) -> list[Tensor]:
    """Result and gradients against the reference in float64."""
    error = ERRORS[parts[0].dtype]
    wide = [part.cpu().double().requires_grad_() for part in parts]
    own = [part.detach().requires_grad_() for part in parts]
    found = mem_xattn(*own, heads, scale, lengths=lengths)
    expected = reference.mem_xattn(*wide, heads, scale, lengths)
    assert found.dtype == parts[0].dtype
    close(found, expected, error)
    grad = noise(*found.shape, seed=9).to(found)
    grads = torch.autograd.grad(found, own, grad)
    others = torch.autograd.grad(expected, wide, grad.cpu().double())
    for mine, theirs in zip(grads, others, strict=True):
        assert mine.dtype == parts[0].dtype
        close(mine, theirs, 3 * error)
    return list(grads)


@pytest.mark.parametrize("dtype", list(ERRORS))
@pytest.mark.parametrize(
    ("batch", "queries", "rows", "heads", "width", "values"),
    [
        (1, 3, 2, 1, 16, 4),
        (2, 5, 70, 1, 24, 64),
        (1, 7, 300, 2, 20, 5),
        (1, 130, 20, 1, 32, 48),
    ],
)
def test_is_the_reference(
    batch: int, queries: int, rows: int, heads: int, width: int, values: int,
    dtype: torch.dtype, device: str,
) -> None:  # fmt: skip
    check(inputs(batch, queries, rows, heads * width, values, dtype, device), heads, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_widths_of_sam2(dtype: torch.dtype, device: str) -> None:
    check(inputs(1, 20, 290, 256, 64, dtype, device), 1, 0.1, None)


@pytest.mark.parametrize("lengths", [[300, 0, 1], [65, 64, 63], [299, 257, 256]])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_memories_of_several_lengths(lengths: list[int], kind: torch.dtype, device: str) -> None:
    parts = inputs(3, 5, 300, 16, 16, torch.float32, device)
    for b, length in enumerate(lengths):
        for part in parts[1:]:
            part[b, length:] = math.nan  # nothing of it is read
    grads = check(parts, 1, None, torch.tensor(lengths, dtype=kind, device=device))
    for b, length in enumerate(lengths):
        assert not grads[1][b, length:].any() and not grads[2][b, length:].any()


def test_shares_of_rows_change_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vismem.kernels.cross_attention import triton as kernels

    parts = inputs(2, 5, 200, 16, 16, torch.float32, device)
    lengths, found = torch.tensor([200, 30], device=device), {}
    for splits in (1, 3, 9):
        monkeypatch.setattr(kernels, "_splits", lambda *_, splits=splits: splits)
        found[splits] = mem_xattn(*parts, lengths=lengths)
        torch.testing.assert_close(found[splits], found[1], rtol=1e-5, atol=1e-6)


def test_how_many_shares(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vismem.kernels.cross_attention import triton as kernels

    monkeypatch.setattr(kernels, "PROCESSORS", 132)
    nowhere = torch.device("meta")
    assert kernels._splits(32, 449, nowhere) == 4  # one object of SAM 2 fills a device
    assert kernels._splits(256, 449, nowhere) == 1
    assert kernels._splits(1, 9, nowhere) == 2  # no share of less than four tiles
    assert kernels._splits(1, 3, nowhere) == kernels._splits(0, 0, nowhere) == 1


def test_without_keys_nothing_is_seen(device: str) -> None:
    parts = inputs(2, 5, 6, 16, 8, torch.float32, device)
    assert not mem_xattn(parts[0], parts[1][:, :0], parts[2][:, :0]).any()
    assert not mem_xattn(*parts, lengths=torch.zeros(2, device=device).long()).any()
    assert mem_xattn(parts[0][:, :0], *parts[1:]).shape == (2, 0, 8)


def test_strides_do_not_matter(device: str) -> None:
    parts = inputs(2, 5, 40, 16, 8, torch.float32, device)
    expected = mem_xattn(*parts)
    wide = [torch.stack([part, part], -1)[..., 0] for part in parts]
    turned = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in parts]
    assert torch.equal(mem_xattn(*wide), expected) and torch.equal(mem_xattn(*turned), expected)


def test_what_it_cannot_do_is_refused_by_name_and_falls_back_by_default(device: str) -> None:
    double = inputs(1, 3, 4, 8, 4, torch.float64, device)
    wide = inputs(1, 3, 4, 8, 257, torch.float32, device)
    for parts, words in ((double, "float64"), (wide, "257 columns")):
        with pytest.raises(RuntimeError, match=words):
            mem_xattn(*parts)
        with using("auto"):
            torch.testing.assert_close(mem_xattn(*parts), reference.mem_xattn(*parts))


def test_compiles_whole_with_its_gradients(device: str) -> None:
    parts = [part.requires_grad_() for part in inputs(2, 5, 12, 16, 8, torch.float32, device)]
    lengths = torch.tensor([12, 7], device=device)
    compiled = torch.compile(mem_xattn, fullgraph=True, backend="aot_eager")
    found = compiled(*parts, lengths=lengths)
    expected = reference.mem_xattn(*parts, 1, None, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grads, others = (torch.autograd.grad(y.square().sum(), parts) for y in (found, expected))
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_custom_op_keeps_its_promises(device: str) -> None:
    q, k, v = inputs(2, 3, 8, 16, 4, torch.float32, device)
    parts = [part[:, :, None].requires_grad_() for part in (q, k, v)]
    lengths = torch.tensor([8, 5], device=device)
    op = torch.ops.vismem.cross_attention
    torch.library.opcheck(op, (*parts, 0.25, None, lengths, None))
