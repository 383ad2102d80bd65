"""Exact top-k search on a GPU: one pass over the bank keeps the best score of each group of rows.

The ``k`` best groups have the ``k`` best rows; their scores are computed again. What is sorted are
whole numbers that hold a score and a place, of which no two are equal: ties go to the lowest row,
and the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..best import places
from ..best import scores as scores_of
from ..launch import launch
from . import configs


@triton.jit
def _keys(scores, place):
    """As `best.keys`: ordered scores above, and how far the place is from the last one."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    bits = tl.where(scores == scores, bits, 0x7FC00000)  # not a number is the largest
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@triton.jit
def _maxima(
    bank, query, scale, keys, count, queries, width, groups,
    SCALED: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The best score of each group of some rows, for some queries."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    one = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    there, asked = row < count, one < queries
    scores = tl.zeros([BLOCK_Q, BLOCK_M], tl.float32)
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < width
        at = row[:, None] * width + column[None]
        rows = tl.load(bank + at, there[:, None] & inside[None], 0.0)
        at = one[:, None] * width + column[None]
        wanted = tl.load(query + at, asked[:, None] & inside[None], 0.0)
        rows = rows.to(wanted.dtype)  # int8 is exact in any type
        scores = tl.dot(wanted, tl.trans(rows), scores, input_precision="ieee")
    if SCALED:
        scores *= tl.load(scale + row, there, 1.0).to(tl.float32)[None]
    # The largest of numbers among which some are none is not defined; infinity is as large.
    scores = tl.where(scores == scores, scores, float("inf"))
    scores = tl.where(there[None], scores, float("-inf"))
    best = tl.max(tl.reshape(scores, [BLOCK_Q, BLOCK_M // GROUP, GROUP]), 2)
    group = tl.program_id(0) * (BLOCK_M // GROUP) + tl.arange(0, BLOCK_M // GROUP)
    at = one[:, None].to(tl.int64) * groups + group[None]
    held = asked[:, None] & (group < groups)[None]
    tl.store(keys + at, _keys(best, group[None]), held)


@triton.jit
def _scores(
    bank, query, scale, best, keys, count, width, k,
    SCALED: tl.constexpr, GROUP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The scores of one query and the rows of one of its best groups."""
    one, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group = 0x7FFFFFFF - (tl.load(best + one * k + number) & 0x7FFFFFFF)
    row = group * GROUP + tl.arange(0, GROUP)
    there = row < count
    sums = tl.zeros([GROUP, BLOCK_D], tl.float32)
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        inside = column < width
        at = row[:, None] * width + column[None]
        rows = tl.load(bank + at, there[:, None] & inside[None], 0.0).to(tl.float32)
        wanted = tl.load(query + one * width + column, inside, 0.0).to(tl.float32)
        sums += rows * wanted[None]
    scores = tl.sum(sums, 1)
    if SCALED:
        scores *= tl.load(scale + row, there, 1.0).to(tl.float32)
    # Below all keys of scores: a row that is not there is never found.
    found = tl.where(there, _keys(scores, row), -0x7FFFFFFFFFFFFFFF)
    tl.store(keys + (one * k + number) * GROUP + tl.arange(0, GROUP), found)


@torch.library.custom_op("vismem::topk_search", mutates_args=())
def topk_search(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run the kernels, see :func:`vismem.kernels.topk_search.topk_search`."""
    return run(bank, query, k, scale)


@topk_search.register_fake
def _(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = len(query), k
    return query.new_empty(shape, dtype=torch.float32), query.new_empty(shape, dtype=torch.int64)


def run(bank: Tensor, query: Tensor, k: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Start both passes; also on tensors without data, to compile them.

    Args:
        bank: ``(M, D)``.
        query: ``(Q, D)``.
        k: ``M`` at most.
        scale: ``(M,)`` with a bank of int8.
    """
    # What is multiplied: the type of both, else float32, so that nothing is rounded before.
    quantised = bank.dtype == torch.int8
    products = query.dtype if quantised or bank.dtype == query.dtype else torch.float32
    bank, query = bank.contiguous(), query.to(products).contiguous()
    scale = bank if scale is None else scale.contiguous()
    (count, width), queries, device = bank.shape, len(query), bank.device
    groups = triton.cdiv(count, configs.GROUP)
    kept = min(k, groups)
    group_keys = torch.empty(queries, groups, dtype=torch.int64, device=device)
    row_keys = torch.empty(queries, kept * configs.GROUP, dtype=torch.int64, device=device)
    first, second = configs.maxima(products, queries), configs.scores()
    options = {"SCALED": quantised, "GROUP": configs.GROUP}
    grid = triton.cdiv(count, first.tiles["BLOCK_M"]), triton.cdiv(queries, first.tiles["BLOCK_Q"])
    launch(
        _maxima, grid, bank, query, scale, group_keys, count, queries, width, groups,
        **options, **first.options,
    )  # fmt: skip
    best = group_keys.topk(kept, 1).values
    launch(
        _scores, (queries, kept), bank, query, scale, best, row_keys, count, width, kept,
        **options, **second.options,
    )  # fmt: skip
    found = row_keys.topk(k, 1).values
    return scores_of(found), places(found)
