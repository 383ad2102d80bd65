"""Attention over pages is its reference, whatever is listed, turned, masked and copied."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import TOLERANCE, error, normal, pages, stream, sums_agree
from torch.nn.functional import scaled_dot_product_attention
from vismem.kernels import tiled
from vismem.kernels.memory_attention import (
    Reads,
    added,
    folded,
    masked_attention,
    memory_attention,
    reference,
)


@settings(max_examples=120, derandomize=True)
@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 7),
    groups=st.integers(1, 3),
    ratio=st.integers(1, 3),
    widths=st.sampled_from([(8, 8), (6, 8), (8, 3), (2, 1), (10, 10)]),
    many=st.integers(1, 4),
    tokens=st.integers(1, 9),
    length=st.integers(0, 6),
    far=st.integers(0, 3),
    window=st.sampled_from([1, 2, 5, 1000, 2**31 - 1]),
    turns=st.integers(0, 4),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 9),
)
def test_is_the_reference(
    batch, count, groups, ratio, widths, many, tokens, length, far, window, turns, scale, seed
) -> None:
    size = many, tokens
    parts = pages(batch, count, (groups * ratio, groups), widths, size, seed=seed)
    reads = stream(
        batch, count, size, length, widths[0], far=far, window=window, turns=turns, seed=seed
    )
    wanted, sums = reference.memory_attention(*parts, reads, scale)
    found = memory_attention(*parts, reads, scale=scale)
    again, lse = memory_attention(*parts, reads, scale=scale, return_lse=True)
    assert found.dtype == again.dtype == lse.dtype == torch.float32
    assert error(found, wanted) < 1e-5 and error(again, wanted) < 1e-5
    assert sums_agree(lse, sums, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reading", [True, False])
def test_half_types(dtype: torch.dtype, reading: bool) -> None:
    parts = pages(2, 5, (6, 2), (16, 16), (2, 40), dtype=dtype)
    reads = stream(2, 5, (2, 40), 4, 16, turns=2, seed=1) if reading else None
    wanted, sums = reference.memory_attention(*parts, reads)
    found, lse = memory_attention(*parts, reads, return_lse=True)
    assert found.dtype == dtype and lse.dtype == torch.float32
    worked = folded.working_type(parts[0])
    tolerance = TOLERANCE[dtype if worked == torch.float32 else worked]
    assert error(found, wanted) < tolerance and sums_agree(lse, sums, tolerance)
    assert error(memory_attention(*parts, reads), wanted) < tolerance


@pytest.mark.parametrize(
    ("tiles", "vectors", "wanted"),
    [(True, True, "bfloat16 in bfloat16"), (False, False, "bfloat16 in float32")],
)
def test_the_working_type_follows_the_processor_and_is_told_once(
    tiles, vectors, wanted, monkeypatch, caplog
) -> None:
    able = {"amx_bf16": tiles, "avx512_bf16": vectors}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(folded, "multiplies_bfloat16", lambda: tiles)
    folded._half_types.cache_clear()
    try:
        with caplog.at_level("INFO"):
            half = [folded.working_type(torch.zeros(1).half()) for _ in range(2)]
        assert half == [torch.bfloat16 if tiles else torch.float32] * 2
        assert caplog.text.count(wanted) == 1
        assert folded.working_type(torch.zeros(1)) == torch.float32
        assert folded.working_type(torch.zeros(1).double()) == torch.float64
    finally:
        folded._half_types.cache_clear()


def test_float64_keeps_its_precision() -> None:
    parts = [part.double() for part in pages(2, 3, (4, 2), (8, 8), (3, 6))]
    reads = stream(2, 3, (3, 6), 3, 8)
    found = memory_attention(*parts, reads)
    assert found.dtype == torch.float64
    assert error(found, reference.memory_attention(*parts, reads)[0]) < 1e-14


def test_without_lists_each_part_reads_its_own_page() -> None:
    query, keys, values = pages(3, 4, (4, 2), (8, 8), (3, 6))
    wanted = scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in (query, keys, values)), enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(memory_attention(query, keys, values), wanted)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_last_of_a_page_look_back(count: int) -> None:
    query, keys, values = pages(1, count, (4, 2), (8, 8), (1, 6))
    found = memory_attention(query, keys, values, Reads.causal(6, count))
    for m in range(count):
        end = 6 - count + m + 1
        alone = memory_attention(query[:, m : m + 1], keys[:, :end], values[:, :end])
        torch.testing.assert_close(found[:, m : m + 1], alone, rtol=0, atol=1e-6)


def test_nothing_to_see_is_zero() -> None:
    query, keys, values = pages(2, 3, (4, 2), (8, 8), (3, 6))
    for reads in (
        Reads.of([[], []], [0, 0]),
        Reads.of([[(-1, 0, 6, 0)], [(1, 0, 0, 0)]], [0, 0], far=1),
        Reads.of([[(0, 0, 6, 9)]] * 2, [0, 0]),  # all ahead
        Reads.of([[(0, 0, 6, 0)]] * 2, [90, 90], window=10),  # all too old
    ):
        for found, lse in [
            memory_attention(query, keys, values, reads, return_lse=True),
            (memory_attention(query, keys, values, reads), torch.tensor(float("-inf"))),
        ]:
            assert not found.any() and bool((lse == float("-inf")).all())
    assert not memory_attention(query, keys[:, :0], values[:, :0], Reads.of([[], []], [0, 0])).any()


def test_what_is_not_listed_does_not_matter() -> None:
    """Not even NaN, in pages and behind what counts of a page."""
    query, keys, values = pages(1, 2, (4, 2), (8, 8), (4, 6))
    reads = Reads.of([[(2, 1, 3, 0), (0, 0, 2, 3)]], [3], far=1)
    wanted = memory_attention(query, keys, values, reads)
    wild = [part.clone() for part in (keys, values)]
    for part in wild:
        part[1], part[3], part[2, 0], part[2, 4:], part[0, 2:] = (float("nan"),) * 5
    assert torch.equal(memory_attention(query, *wild, reads), wanted)


@settings(max_examples=30, derandomize=True)
@given(seed=st.integers(0, 99), shift=st.integers(-1000, 1000))
def test_order_of_far_entries_and_running_numbers_do_not_matter(seed: int, shift: int) -> None:
    query, keys, values = pages(1, 4, (4, 2), (8, 8), (5, 6), seed=seed)
    entries = [(n, 0, 6, 6 * n) for n in range(5)]
    angles = normal(1, 3, 4, seed=seed)
    turned = {"cos": angles.cos(), "sin": angles.sin()}
    wanted = memory_attention(
        query, keys, values, Reads.of([entries], [27], far=3, window=9, **turned)
    )
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    mixed = [entries[n] for n in order] + [(p, f, n, s + shift) for p, f, n, s in entries[3:]]
    turned = {name: part[:, order] for name, part in turned.items()}
    moved = Reads.of([mixed], [27 + shift], far=3, window=9, **turned)
    torch.testing.assert_close(
        memory_attention(query, keys, values, moved), wanted, rtol=0, atol=1e-6
    )


def test_turning_a_page_is_rotating_its_keys() -> None:
    """Positions: keys at places inside their page, the page at one in the stream."""
    width, frequency = 8, 10000.0 ** (-torch.arange(4) / 4)

    def rotate(x, where):
        one, two = x.chunk(2, -1)
        angle = torch.as_tensor(where)[..., None, None] * frequency
        return torch.cat(
            [one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1
        )

    query, keys, values = pages(1, 2, (2, 1), (width, width), (3, 5))
    places = [40, 7, 90]
    stored = rotate(keys, torch.arange(5).expand(3, 5).float())
    asked = rotate(query, torch.tensor([[100.0, 101.0]]))
    angles = torch.tensor(places)[:, None] * frequency
    entries = [[(n, 0, 5, 0) for n in range(3)]]
    reads = Reads.of(entries, [0], far=3, cos=angles.cos()[None], sin=angles.sin()[None])
    whole = rotate(keys, torch.tensor(places)[:, None] + torch.arange(5.0))
    wanted = memory_attention(asked, whole.reshape(1, 15, 1, 8), values.reshape(1, 15, 1, 8))
    torch.testing.assert_close(
        memory_attention(asked, stored, values, reads), wanted, rtol=0, atol=1e-5
    )


def test_stretches_that_lie_together_are_not_copied(monkeypatch) -> None:
    query, keys, values = pages(1, 2, (4, 2), (8, 8), (2, 9))
    still = {"cos": torch.ones(1, 1, 4), "sin": torch.zeros(1, 1, 4)}
    reads = Reads.of([[(1, 2, 3, 0), (1, 5, 4, 3)]], [5], far=1, **still)
    wanted = memory_attention(query, keys, values, reads)
    monkeypatch.setattr(torch, "cat", None)
    assert torch.equal(memory_attention(query, keys, values, reads), wanted)


def test_frames_of_one_length_share_a_mask() -> None:
    lists = [[(0, 0, 3, 0), (0, 3 + 4 * n, 4 * n + 4, 0)] for n in range(3)]
    reads = Reads.of(lists, [0, 4, 8], far=1)
    masks = reads.walk.masks(4, 2, torch.float32, torch.device("cpu"))
    assert len({mask.untyped_storage().data_ptr() for mask in masks if mask is not None}) == 1
    assert [mask.shape[1] for mask in masks if mask is not None] == [7, 11, 15]
    assert reads.walk.masks(4, 2, torch.float32, torch.device("cpu")) is masks


def test_any_strides_and_nothing_is_changed() -> None:
    query, keys, values = pages(1, 3, (4, 2), (8, 8), (3, 6))
    reads = stream(1, 3, (3, 6), 3, 8, seed=3, turns=1)
    wanted = memory_attention(query, keys, values, reads)
    before = [part.clone() for part in (query, keys, values)]
    for axes in ((0, 2, 1, 3), (3, 2, 1, 0)):
        other = [part.permute(axes).contiguous().permute(axes) for part in (query, keys, values)]
        torch.testing.assert_close(memory_attention(*other, reads), wanted)
    assert all(map(torch.equal, before, (query, keys, values)))


@pytest.mark.parametrize("wide", [3, 8, 11])
def test_masked_attention_takes_any_width_of_values(wide: int) -> None:
    query, keys, values = (
        normal(6, 4, 8, seed=0),
        normal(2, 7, 8, seed=1),
        normal(2, 7, wide, seed=2),
    )
    seen = torch.rand(4, 7, generator=torch.Generator().manual_seed(3)) < 0.6
    seen[:, 0] = True
    found = masked_attention(query, keys, values, added(seen, 3, query.dtype))
    for head in range(6):
        logits = query[head] @ keys[head // 3].T / math.sqrt(8)
        weights = torch.softmax(logits.masked_fill(~seen, float("-inf")), -1)
        torch.testing.assert_close(found[head], weights @ values[head // 3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_attention_of_many_rows_goes_tile_by_tile(dtype, monkeypatch) -> None:
    calls = []
    attend = folded.attend
    monkeypatch.setattr(folded, "attend", lambda *given: calls.append(1) or attend(*given))
    monkeypatch.setattr(folded, "pays", lambda *given: tiled.pays(*given[:2], torch.zeros(1)))
    query, keys, values = (
        normal(*shape, seed=seed).to(dtype)
        for seed, shape in enumerate([(6, 50, 8), (2, 600, 8), (2, 600, 5)])
    )
    seen = torch.rand(50, 600, generator=torch.Generator().manual_seed(3)) < 0.6
    seen[7] = False
    found = masked_attention(query, keys, values, added(seen, 3, dtype))
    assert len(calls) == 2 and found.dtype == dtype and not found[:, 7].any()
    for head in range(6):
        logits = query[head].double() @ keys[head // 3].double().T / math.sqrt(8)
        weights = torch.softmax(logits.masked_fill(~seen, float("-inf")), -1).nan_to_num(0.0)
        wanted = weights @ values[head // 3].double()
        error = 1e-5 if dtype == torch.float32 else 5e-3
        torch.testing.assert_close(found[head].double(), wanted, rtol=0, atol=error)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 2, 4), (1, 2, 2, 8), (1, 2, 2, 8)], "query"),
        ([(1, 2, 4, 8), (1, 2, 2, 6), (1, 2, 2, 8)], "query"),
        ([(1, 2, 4, 8), (1, 2, 3, 8), (1, 2, 3, 8)], "multiple of G"),
        ([(1, 2, 4, 8), (1, 2, 2, 8), (1, 3, 2, 8)], "query"),
        ([(2, 2, 4, 8), (1, 2, 2, 8), (1, 2, 2, 8)], "2 parts"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message) -> None:
    with pytest.raises(ValueError, match=message):
        memory_attention(*(torch.zeros(shape) for shape in shapes))


def test_types_and_plans_that_do_not_fit_are_refused() -> None:
    query, keys, values = pages(1, 2, (4, 2), (8, 8), (1, 2))
    with pytest.raises(ValueError, match="one floating type"):
        memory_attention(query, keys.half(), values)
    reads = Reads.of([[(0, 0, 2, 0)]], [0])
    with pytest.raises(ValueError, match="2 parts of a batch cannot read for 1"):
        memory_attention(query.expand(2, -1, -1, -1), keys, values, reads)
    with pytest.raises(ValueError, match="turns of 3 angles"):
        turns = torch.zeros(1, 1, 3)
        memory_attention(query, keys, values, replace(reads, cos=turns, sin=turns))
    for change, message in [
        ({"entries": torch.zeros(1, 3)}, "entries are"),
        ({"q_start": torch.zeros(2).int()}, "q_start is"),
        ({"q_start": torch.zeros(1)}, "int32"),
        ({"far": -1}, "far >= 0"),
        ({"window": 0}, "window >= 1"),
        ({"cos": torch.zeros(1, 1, 4)}, "a cosine and a sine"),
        ({"cos": torch.zeros(1, 2, 4), "sin": torch.zeros(1, 2, 4)}, "turns for"),
        ({"cos": torch.zeros(1, 4), "sin": torch.zeros(1, 4)}, "turns are"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(reads, **change)
