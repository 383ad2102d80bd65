"""Attention over pages in Triton is its reference, and works under torch.compile."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import TOLERANCE, error, pages, stream, sums_agree
from vismem.kernels.memory_attention import Reads, memory_attention, reference
from vismem.kernels.registry import using

pytestmark = pytest.mark.usefixtures("in_triton")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel is to write is NaN before."""
    make = torch.Tensor.new_empty

    def new_empty(self, *size, **more):
        made = make(self, *size, **more)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


def check(parts, reads, dtype, **more) -> None:
    wanted, sums = reference.memory_attention(*parts, reads, **more)
    found, lse = memory_attention(*parts, reads, return_lse=True, **more)
    assert found.dtype == dtype and lse.dtype == torch.float32
    assert error(found, wanted) < TOLERANCE[dtype]
    assert sums_agree(lse, sums.float(), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "count", "heads", "widths", "size", "length", "more"),
    [
        (2, 1, (7, 1), (32, 32), (5, 70), 4, {"far": 2, "turns": 2}),
        (2, 17, (4, 2), (16, 16), (4, 66), 2, {"far": 1, "turns": 3}),
        (1, 5, (6, 2), (72, 40), (3, 130), 3, {"far": 1, "window": 20, "turns": 1}),
        (1, 1, (3, 3), (6, 256), (3, 9), 5, {"far": 5}),
        (1, 3, (2, 1), (9, 5), (2, 9), 2, {"far": 0, "window": 4}),
        (3, 2, (2, 2), (130, 130), (6, 20), 5, {"far": 2, "turns": 5, "window": 7}),
    ],
)
def test_is_the_reference(batch, count, heads, widths, size, length, more, dtype, device) -> None:
    parts = pages(batch, count, heads, widths, size, dtype=dtype, device=device)
    for seed in range(2):
        reads = stream(batch, count, size, length, widths[0], seed=seed, device=device, **more)
        check(parts, reads, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 9])
def test_whole_pages(count: int, dtype: torch.dtype, device: str) -> None:
    parts = pages(2, count, (4, 2), (24, 20), (2, 150), dtype=dtype, device=device)
    check(parts, None, dtype, scale=0.3)
    parts = pages(1, count, (4, 2), (24, 20), (1, 150), dtype=dtype, device=device)
    check(parts, Reads.causal(150, count, device), dtype)


@settings(max_examples=8, derandomize=True)
@given(
    count=st.integers(1, 9),
    ratio=st.integers(1, 5),
    width=st.sampled_from([2, 8, 20]),
    tokens=st.integers(1, 70),
    length=st.integers(0, 5),
    far=st.integers(0, 3),
    window=st.sampled_from([1, 6, 2**31 - 1]),
    turns=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_any_list(count, ratio, width, tokens, length, far, window, turns, seed) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = pages(2, count, (2 * ratio, 2), (width, 8), (3, tokens), seed=seed, device=device)
    reads = stream(
        2, count, (3, tokens), length, width,
        far=far, window=window, turns=turns, seed=seed, device=device,
    )  # fmt: skip
    check(parts, reads, torch.float32)


@pytest.mark.parametrize("count", [1, 6])
def test_cuts_do_not_matter(count: int, device: str) -> None:
    from vismem.kernels.memory_attention import triton

    parts = pages(2, count, (4, 2), (16, 16), (4, 150), device=device)
    reads = stream(2, count, (4, 150), 4, 16, far=2, turns=4, seed=5, device=device)
    wanted, sums = reference.memory_attention(*parts, reads)
    for cut in (1, 2, 5, 16):
        plan = reads.entries, reads.q_start, reads.cos, reads.sin
        found, lse = triton.run(*parts, *plan, 2, reads.window, reads.longest, parts=cut)
        assert error(found, wanted) < 1e-5 and sums_agree(lse, sums, 1e-5)


def test_nothing_to_see_is_zero(device: str) -> None:
    parts = pages(2, 3, (4, 2), (8, 8), (3, 6), device=device)
    for reads in (
        Reads.of([[], []], [0, 0], device=device),
        Reads.of([[(-1, 0, 6, 0)], [(1, 0, 0, 0)]], [0, 0], far=1, device=device),
        Reads.of([[(0, 0, 6, 9)]] * 2, [0, 0], device=device),
        Reads.of([[(0, 0, 6, 0)]] * 2, [90, 90], window=10, device=device),
    ):
        found, lse = memory_attention(*parts, reads, return_lse=True)
        assert not found.any() and bool((lse == float("-inf")).all())
    empty = pages(0, 3, (4, 2), (8, 8), (0, 6), device=device)
    assert memory_attention(*empty).shape == (0, 3, 4, 8)
    none = pages(1, 0, (4, 2), (8, 8), (1, 6), device=device)
    assert memory_attention(*none).shape == (1, 0, 4, 8)


def test_what_is_not_listed_does_not_matter(device: str) -> None:
    query, keys, values = pages(1, 2, (4, 2), (8, 8), (4, 6), device=device)
    reads = Reads.of([[(2, 1, 3, 0), (0, 0, 2, 3)]], [3], far=1, device=device)
    wanted = memory_attention(query, keys, values, reads)
    wild = [part.clone() for part in (keys, values)]
    for part in wild:
        part[1], part[3], part[2, 0], part[2, 4:], part[0, 2:] = (float("nan"),) * 5
    assert torch.equal(memory_attention(query, *wild, reads), wanted)


def test_any_strides(device: str) -> None:
    parts = pages(2, 3, (4, 2), (8, 8), (3, 6), device=device)
    reads = stream(2, 3, (3, 6), 3, 8, seed=3, turns=1, device=device)
    wanted = memory_attention(*parts, reads)
    for axes in ((0, 2, 1, 3), (3, 2, 1, 0)):
        other = [part.permute(axes).contiguous().permute(axes) for part in parts]
        assert torch.equal(memory_attention(*other, reads), wanted)


def test_large_logits_and_equal_results_each_time(device: str) -> None:
    query, keys, values = pages(1, 4, (4, 2), (16, 16), (2, 150), device=device)
    reads = stream(1, 4, (2, 150), 4, 16, turns=2, device=device, seed=2)
    check((60 * query, keys, values), reads, torch.float32)
    first = memory_attention(query, keys, values, reads)
    assert all(torch.equal(memory_attention(query, keys, values, reads), first) for _ in range(3))


def test_obstacles_are_refused_by_name_and_fall_back_by_default(device: str) -> None:
    for parts, message in [
        ([p.double() for p in pages(1, 2, (2, 1), (4, 4), (1, 3), device=device)], "float64"),
        (pages(1, 2, (2, 1), (258, 4), (1, 3), device=device), "at most 256"),
        (pages(1, 2, (2, 1), (4, 258), (1, 3), device=device), "at most 256"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            memory_attention(*parts)
        with using("auto"):
            found = memory_attention(*parts)
        assert error(found, reference.memory_attention(*parts)[0]) < 1e-5


@pytest.mark.parametrize("mode", ["torch", "triton"])
@pytest.mark.parametrize("return_lse", [True, False])
def test_compiles_whole(mode: str, return_lse: bool, device: str) -> None:
    parts = pages(2, 3, (4, 2), (8, 8), (3, 6), device=device)
    reads = stream(2, 3, (3, 6), 3, 8, seed=3, turns=1, device=device)
    wanted = reference.memory_attention(*parts, reads)
    with using(mode):
        compiled = torch.compile(memory_attention, fullgraph=True, backend="aot_eager")
        found = compiled(*parts, reads, return_lse=return_lse)
        assert error(found[0] if return_lse else found, wanted[0]) < 1e-5
        plain = compiled(parts[0][:1], parts[1][:1], parts[2][:1])
    assert error(plain, reference.memory_attention(*(p[:1] for p in parts))[0]) < 1e-5


@pytest.mark.parametrize("listed", [True, False])
def test_custom_ops_keep_their_promises(listed: bool, device: str) -> None:
    parts = pages(2, 2, (4, 2), (8, 8), (2, 6), device=device)
    reads = stream(2, 2, (2, 6), 3, 8, seed=3, turns=1, device=device)
    plan = (reads.entries, reads.q_start, reads.cos, reads.sin) if listed else (None,) * 4
    ops = torch.ops.vismem
    torch.library.opcheck(ops.memory_attention, (*parts, *plan, 1, 9, None, None))
    torch.library.opcheck(ops.memory_attention_in_graph, (*parts, *plan, 1, 9, None, True))
    torch.library.opcheck(ops.memory_attention_in_graph, (*parts, *plan, 1, 9, None, False))
