"""Scoring blocks on a GPU, and choosing the best by tournaments of sorted tiles.

A score and its row are one whole number that orders by the score, then by the lower row, so no two
are equal, and the best of all are the best of the best of any parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..best import places
from ..best import scores as scores_of
from ..launch import launch
from .configs import config

LAST = tl.constexpr(0x7FFFFFFF)
NONE = tl.constexpr(-(2**63))


@triton.jit
def _score(
    query, reps, valid, scores, keys, count, width, block_stride,
    MINMAX: tl.constexpr, VALID: tl.constexpr, PACK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Scores of ``BLOCK_N`` blocks for one query, or these and their rows as sortable numbers."""
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = row < count
    base = reps + (batch * count + row.to(tl.int64)) * block_stride
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_S):
        column = start + tl.arange(0, BLOCK_S)
        inside = there[:, None] & (column < width)[None]
        asked = tl.load(query + batch * width + column, column < width, 0.0).to(tl.float32)
        key = tl.load(base[:, None] + column[None], inside, 0.0).to(tl.float32)
        product = key * asked[None]
        if MINMAX:
            most = tl.load(base[:, None] + width + column[None], inside, 0.0).to(tl.float32)
            product = tl.maximum(product, most * asked[None])
        total += tl.sum(product, 1)
    if PACK:
        bits = (total + 0.0).to(tl.int32, bitcast=True)
        ordered = tl.where(bits < 0, bits ^ LAST, bits).to(tl.int64)
        number = (ordered << 32) | (row ^ LAST).to(tl.int64)
        if VALID:
            number = tl.where(tl.load(valid + row, there, 0) != 0, number, NONE)
        tl.store(keys + row, number, there)
    else:
        tl.store(scores + batch * count + row, total, there)


@triton.jit
def _select(keys, best, count, K: tl.constexpr, BLOCK_N: tl.constexpr):
    """The best ``K`` of ``BLOCK_N`` numbers, sorted."""
    place = tl.arange(0, BLOCK_N)
    row = tl.program_id(0) * BLOCK_N + place
    held = tl.sort(tl.load(keys + row, row < count, NONE), descending=True)
    tl.store(best + tl.program_id(0) * K + place, held, place < K)


def scores(query: Tensor, reps: Tensor, minmax: bool) -> Tensor:
    """Start the kernel that scores; ``query (B, G, D)``, ``reps (B, N, ...)``."""
    query, reps = query.contiguous(), reps.contiguous()
    batch, count, width = len(query), reps.shape[1], query.shape[1] * query.shape[2]
    made = query.new_empty(batch, count, dtype=torch.float32)
    _start_score(query, reps, None, made, None, count, width, minmax, batch)
    return made


def run(
    query: Tensor, reps: Tensor, k: int, minmax: bool = False, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Start the kernels that score and choose; also on tensors without data, to compile them.

    Args:
        query: ``(G, D)``.
        reps: ``(N, G, D)`` or ``(N, 2, G, D)``.
        k: How many.
        minmax: Whether blocks are told by bounds.
        valid: ``(N,)`` bool.

    Returns:
        ``(k,)`` float32 and ``(k,)`` int64.
    """
    query, reps = query.contiguous(), reps.contiguous()
    count, width = len(reps), query.shape[0] * query.shape[1]
    keys = query.new_empty(count, dtype=torch.int64)
    held = None if valid is None else valid.contiguous().view(torch.uint8)
    _start_score(query, reps, held, None, keys, count, width, minmax, 1)
    chosen = config("select")
    size = max(chosen.tiles["BLOCK_N"], 2 * triton.next_power_of_2(k))
    while True:
        tiles = max(1, triton.cdiv(count, size))
        best = keys.new_empty(tiles * k)
        launch(
            _select, (tiles,), keys, best, count, K=k, BLOCK_N=size,
            num_warps=chosen.warps, num_stages=chosen.stages,
        )  # fmt: skip
        keys, count = best, tiles * k
        if tiles == 1:
            break
    values, rows = scores_of(keys), places(keys)
    none = keys == NONE.value
    return values.masked_fill(none, float("-inf")), rows.masked_fill(none, -1)


def _start_score(
    query: Tensor,
    reps: Tensor,
    valid: Tensor | None,
    made: Tensor | None,
    keys: Tensor | None,
    count: int,
    width: int,
    minmax: bool,
    batch: int,
) -> None:
    chosen = config("score")
    launch(
        _score, (triton.cdiv(count, chosen.tiles["BLOCK_N"]), batch),
        query, reps, valid, made, keys, count, width, width * (2 if minmax else 1),
        MINMAX=minmax, VALID=valid is not None, PACK=keys is not None, **chosen.options,
    )  # fmt: skip


@torch.library.custom_op("vismem::block_scores", mutates_args=())
def block_scores(query: Tensor, reps: Tensor, minmax: bool) -> Tensor:
    """Run the kernel, see :func:`vismem.kernels.block_topk.block_scores`."""
    return scores(query, reps, minmax)


@block_scores.register_fake
def _(query: Tensor, reps: Tensor, minmax: bool) -> Tensor:
    return query.new_empty(len(query), reps.shape[1], dtype=torch.float32)


@torch.library.custom_op("vismem::block_topk", mutates_args=())
def block_topk(
    query: Tensor, reps: Tensor, k: int, minmax: bool, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the kernels, see :func:`vismem.kernels.block_topk.block_topk`."""
    return run(query, reps, k, minmax, valid)


@block_topk.register_fake
def _(
    query: Tensor, reps: Tensor, k: int, minmax: bool, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    return query.new_empty(k, dtype=torch.float32), query.new_empty(k, dtype=torch.int64)
