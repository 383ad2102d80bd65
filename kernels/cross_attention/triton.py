"""Attention to rows on a GPU, forward and backward, without atomics: equal inputs, equal bits.

The forward is online softmax over tiles of rows, cut into several programs where a device would
otherwise stand idle, and merged by a second kernel. The backward computes the weights again: one
kernel goes over the rows for each tile of queries, one over the queries for each tile of rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch
from .configs import config

LEAST_TILES = 4  # of rows, that are worth a program of their own
PROCESSORS = 132  # of the device that kernels are compiled for where there is none
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _count(lengths, b, rows, RAGGED: tl.constexpr):
    """How many places of a batch entry may hold a row."""
    if RAGGED:
        return tl.minimum(tl.load(lengths + b).to(tl.int32), rows)
    return rows


@triton.jit
def _rows(index, at, count, HAS_INDEX: tl.constexpr):
    """Which rows stand at some places, and whether any does."""
    inside = at < count
    if HAS_INDEX:
        row = tl.load(index + at, inside, -1).to(tl.int64)
        return row, row >= 0
    return at.to(tl.int64), inside


@triton.jit
def _tile(base, row, stride, there, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows as a tile; zeros where there is none."""
    column = tl.arange(0, BLOCK)
    at = row[:, None] * stride + column[None]
    return tl.load(base + at, there[:, None] & (column < WIDTH)[None], 0.0)


@triton.jit
def _logits(product, scale, bias, at, inside, HAS_BIAS: tl.constexpr):
    """Scores in powers of two: scaled products and the bias; none where not inside."""
    product *= scale * _LOG2E
    if HAS_BIAS:
        product += tl.load(bias + at, inside, 0.0).to(tl.float32) * _LOG2E
    return tl.where(inside, product, float("-inf"))


@triton.jit
def _attend(
    query, keys, values, index, lengths, bias, out, sums, scale, queries, rows,
    query_b, query_m, query_h, keys_b, keys_n, keys_h, values_b, values_n, values_h,
    index_b, bias_b, bias_h, bias_m, bias_n, heads, splits,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_INDEX: tl.constexpr, RAGGED: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head meets its share of the rows."""
    h, b = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    split = tl.program_id(2)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    asked = m < queries
    q = _tile(
        query + b * query_b + h * query_h, m.to(tl.int64), query_m, asked, D, BLOCK_D
    )  # fmt: skip
    count = _count(lengths, b, rows, RAGGED)
    share = tl.cdiv(tl.cdiv(count, BLOCK_N), splits) * BLOCK_N
    index += b * index_b
    keys += b * keys_b + h * keys_h
    values += b * values_b + h * values_h
    bias += b * bias_b + h * bias_h
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    seen = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for start in range(split * share, tl.minimum(split * share + share, count), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        row, there = _rows(index, n, count, HAS_INDEX)
        k = _tile(keys, row, keys_n, there, D, BLOCK_D)
        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        at = m[:, None].to(tl.int64) * bias_m + n[None].to(tl.int64) * bias_n
        inside = asked[:, None] & there[None]
        logits = _logits(product, scale, bias, at, inside, HAS_BIAS)
        now = tl.maximum(highest, tl.max(logits, 1))
        base = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp2(logits - base[:, None])
        fade = tl.exp2(highest - base)
        total = total * fade + tl.sum(weights, 1)
        v = _tile(values, row, values_n, there, E, BLOCK_E)
        seen = seen * fade[:, None]
        seen = tl.dot(weights.to(v.dtype), v, seen, input_precision="ieee")
        highest = now
    some = total > 0
    seen = seen / tl.where(some, total, 1.0)[:, None]
    level = tl.where(some, highest + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    part = (split * (tl.num_programs(1) // heads) + b) * queries
    e = tl.arange(0, BLOCK_E)
    at = ((part + m)[:, None] * heads + h) * E + e[None]
    tl.store(out + at, seen.to(out.dtype.element_ty), asked[:, None] & (e < E)[None])
    tl.store(sums + part * heads + h.to(tl.int64) * queries + m, level, asked)


@triton.jit
def _merge(
    parts, levels, out, sums, queries, heads, splits, batch,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What a tile of queries saw in each share of the rows becomes what it saw in all."""
    h, b = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    asked, e = m < queries, tl.arange(0, BLOCK_E)
    line = (b * heads + h) * queries + m
    cell = ((b * queries + m)[:, None] * heads + h) * E + e[None]
    inside = asked[:, None] & (e < E)[None]
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for split in range(splits):
        level = tl.load(levels + split * batch * heads * queries + line, asked, float("-inf"))
        highest = tl.maximum(highest, level)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    total = tl.zeros([BLOCK_M], tl.float32)
    seen = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for split in range(splits):
        level = tl.load(levels + split * batch * heads * queries + line, asked, float("-inf"))
        weight = tl.exp2(level - base)
        total += weight
        part = tl.load(parts + split * batch * queries * heads * E + cell, inside, 0.0)
        seen += weight[:, None] * part
    some = total > 0
    seen = seen / tl.where(some, total, 1.0)[:, None]
    tl.store(out + cell, seen.to(out.dtype.element_ty), inside)
    level = tl.where(some, base + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    tl.store(sums + line, level, asked)


@triton.jit
def _grad_query(
    grad, query, keys, values, index, lengths, bias, out, sums, delta, query_grad, score_grad,
    scale, queries, rows,
    query_b, query_m, query_h, keys_b, keys_n, keys_h, values_b, values_n, values_h,
    index_b, bias_b, bias_h, bias_m, bias_n, heads,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_INDEX: tl.constexpr, RAGGED: tl.constexpr, HAS_BIAS: tl.constexpr,
    KEEP_SCORES: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and of its scores where those are wanted."""
    h, b = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    asked, wide = m < queries, m.to(tl.int64)
    q = _tile(query + b * query_b + h * query_h, wide, query_m, asked, D, BLOCK_D)
    line = (b * queries + wide) * heads + h  # of tensors that are laid out as the result is
    dy = _tile(grad, line, E, asked, E, BLOCK_E)
    y = _tile(out, line, E, asked, E, BLOCK_E)
    mean = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(delta + (b * heads + h) * queries + m, mean, asked)
    level = tl.load(sums + (b * heads + h) * queries + m, asked, float("-inf"))
    level = tl.where(level == float("-inf"), float("inf"), level)  # what saw nothing has no weights
    count = _count(lengths, b, rows, RAGGED)
    index += b * index_b
    keys += b * keys_b + h * keys_h
    values += b * values_b + h * values_h
    bias += b * bias_b + h * bias_h
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, count, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        row, there = _rows(index, n, count, HAS_INDEX)
        k = _tile(keys, row, keys_n, there, D, BLOCK_D)
        v = _tile(values, row, values_n, there, E, BLOCK_E)
        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        at = wide[:, None] * bias_m + n[None].to(tl.int64) * bias_n
        inside = asked[:, None] & there[None]
        logits = _logits(product, scale, bias, at, inside, HAS_BIAS)
        weights = tl.exp2(logits - level[:, None])
        ds = weights * (tl.dot(dy, tl.trans(v), input_precision="ieee") - mean[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
        if KEEP_SCORES:
            at = ((b * heads + h) * queries + wide)[:, None] * rows + n[None]
            tl.store(score_grad + at, ds, inside)
    d = tl.arange(0, BLOCK_D)
    at = line[:, None] * D + d[None]
    tl.store(
        query_grad + at, (dq * scale).to(query_grad.dtype.element_ty),
        asked[:, None] & (d < D)[None],
    )  # fmt: skip


@triton.jit
def _grad_keys(
    grad, query, keys, values, index, lengths, bias, sums, delta, keys_grad, values_grad,
    column_grad, scale, queries, rows,
    query_b, query_m, query_h, keys_b, keys_n, keys_h, values_b, values_n, values_h,
    index_b, bias_b, bias_h, bias_m, bias_n, heads,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_INDEX: tl.constexpr, RAGGED: tl.constexpr, HAS_BIAS: tl.constexpr,
    KEEP_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of places: of key and value, and of a bias that all queries share."""
    h, b = tl.program_id(1) % heads, (tl.program_id(1) // heads).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, there = _rows(index + b * index_b, n, _count(lengths, b, rows, RAGGED), HAS_INDEX)
    k = _tile(keys + b * keys_b + h * keys_h, row, keys_n, there, D, BLOCK_D)
    v = _tile(values + b * values_b + h * values_h, row, values_n, there, E, BLOCK_E)
    query += b * query_b + h * query_h
    bias += b * bias_b + h * bias_h
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    db = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, queries, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        asked, wide = m < queries, m.to(tl.int64)
        q = _tile(query, wide, query_m, asked, D, BLOCK_D)
        dy = _tile(grad, (b * queries + wide) * heads + h, E, asked, E, BLOCK_E)
        level = tl.load(sums + (b * heads + h) * queries + m, asked, float("inf"))
        level = tl.where(level == float("-inf"), float("inf"), level)
        mean = tl.load(delta + (b * heads + h) * queries + m, asked, 0.0)
        product = tl.dot(k, tl.trans(q), input_precision="ieee")
        at = wide[None] * bias_m + n[:, None].to(tl.int64) * bias_n
        inside = there[:, None] & asked[None]
        logits = _logits(product, scale, bias, at, inside, HAS_BIAS)
        weights = tl.exp2(logits - level[None])
        dv = tl.dot(weights.to(dy.dtype), dy, dv, input_precision="ieee")
        ds = weights * (tl.dot(v, tl.trans(dy), input_precision="ieee") - mean[None])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
        if KEEP_COLUMNS:
            db += tl.sum(ds, 1)
    line = ((b * rows + n) * heads + h)[:, None]
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    inside = (n < rows)[:, None]
    tl.store(
        keys_grad + line * D + d[None], (dk * scale).to(keys_grad.dtype.element_ty),
        inside & (d < D)[None],
    )  # fmt: skip
    tl.store(
        values_grad + line * E + e[None], dv.to(values_grad.dtype.element_ty),
        inside & (e < E)[None],
    )  # fmt: skip
    if KEEP_COLUMNS:
        tl.store(column_grad + (b * heads + h) * rows + n, db, n < rows)


@triton.jit
def _sum_places(places, order, starts, out, width, BLOCK: tl.constexpr):
    """Sum the gradients of all places that one row stood at, in order."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros([BLOCK], tl.float32)
    for number in range(tl.load(starts + row), tl.load(starts + row + 1)):
        place = tl.load(order + number)
        total += tl.load(places + place * width + column, inside, 0.0)
    tl.store(out + row * width + column, total.to(out.dtype.element_ty), inside)


def run(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    index: Tensor | None = None,
    lengths: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Start the forward kernels; also on tensors without data, to compile them.

    Args:
        query: ``(B, M, H, D)``.
        keys: ``(B, N, H, D)`` or ``(1, N, H, D)``, for all batch entries.
        values: ``(B, N, H, E)`` or ``(1, N, H, E)``.
        scale: Of the products.
        index: ``(B, K)``: which row stands at each place, negative for none. Without it ``K = N``
            and each row stands at its own place.
        lengths: ``(B,)``: how many places count.
        bias: ``(B, H, M, K)``; any of these may be 1.

    Returns:
        ``(B, M, H, E)``, zeros where a query sees no row, and the logarithms (to base 2) of the
        sums of the exponentials, ``(B, H, M)`` float32.
    """
    batch, queries, heads, _ = query.shape
    shape = (batch, queries, heads, values.shape[3])
    out, sums = query.new_empty(shape), query.new_empty(batch, heads, queries, dtype=torch.float32)
    common, strides, constants = _arguments(query, keys, values, index, lengths, bias)
    chosen = config("attend", constants["BLOCK_D"], constants["BLOCK_E"], query.dtype)
    tile = chosen.tiles["BLOCK_M"]
    programs = triton.cdiv(queries, tile) * batch * heads
    rows = keys.shape[1] if index is None else index.shape[1]
    splits = _splits(programs, triton.cdiv(rows, chosen.tiles["BLOCK_N"]), query.device)
    grid = (triton.cdiv(queries, tile), batch * heads, splits)
    parts, levels = out, sums
    if splits > 1:
        parts = torch.empty(splits, *shape, dtype=torch.float32, device=query.device)
        levels = torch.empty(splits, *sums.shape, dtype=torch.float32, device=query.device)
    launch(
        _attend, grid, *common, parts, levels, scale, queries, rows, *strides, heads, splits,
        **constants, **chosen.options,
    )  # fmt: skip
    if splits > 1:
        narrow = 32
        launch(
            _merge, (triton.cdiv(queries, narrow), batch * heads), parts, levels, out, sums,
            queries, heads, splits, batch,
            E=shape[3], BLOCK_E=constants["BLOCK_E"], BLOCK_M=narrow, num_warps=4,
        )  # fmt: skip
    return out, sums


def run_backward(
    grad: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    index: Tensor | None,
    lengths: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    sums: Tensor,
    bias_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Start the backward kernels.

    Args:
        grad: Of the result, ``(B, M, H, E)``.
        query: As of `run`, and so the next six.
        keys: See `run`.
        values: See `run`.
        scale: See `run`.
        index: See `run`.
        lengths: See `run`.
        bias: See `run`.
        out: What `run` gave.
        sums: What `run` gave.
        bias_grad: Whether the gradient of the bias is wanted.

    Returns:
        Gradients of query, keys, values and bias; an empty one of a bias that is not wanted.
    """
    batch, queries, heads, width = query.shape
    rows = keys.shape[1] if index is None else index.shape[1]
    common, strides, constants = _arguments(query, keys, values, index, lengths, bias)
    grad, full = grad.contiguous(), torch.float32
    delta, query_grad = torch.empty_like(sums), query.new_empty(query.shape)
    nothing = query.new_empty(0, dtype=full)
    by_column = bias_grad and bias is not None and bias.shape[2] == 1
    by_score = bias_grad and not by_column
    score_grad = query.new_zeros(batch, heads, queries, rows, dtype=full) if by_score else nothing
    column_grad = query.new_empty(batch, heads, 1, rows, dtype=full) if by_column else nothing
    chosen = config("grad_query", constants["BLOCK_D"], constants["BLOCK_E"], query.dtype)
    launch(
        _grad_query, (triton.cdiv(queries, chosen.tiles["BLOCK_M"]), batch * heads),
        grad, *common, out, sums, delta, query_grad, score_grad, scale, queries, rows, *strides,
        heads, **constants, KEEP_SCORES=by_score, **chosen.options,
    )  # fmt: skip
    # What several places add to is summed up in float32.
    kind = query.dtype if index is None and len(keys) == len(values) == batch else full
    keys_grad = query.new_empty(batch, rows, heads, width, dtype=kind)
    values_grad = query.new_empty(batch, rows, heads, values.shape[3], dtype=kind)
    chosen = config("grad_keys", constants["BLOCK_D"], constants["BLOCK_E"], query.dtype)
    launch(
        _grad_keys, (triton.cdiv(rows, chosen.tiles["BLOCK_N"]), batch * heads),
        grad, *common, sums, delta, keys_grad, values_grad, column_grad, scale, queries, rows,
        *strides, heads, **constants, KEEP_COLUMNS=by_column, **chosen.options,
    )  # fmt: skip
    found = [
        _of_rows(places, part, index) for places, part in ((keys_grad, keys), (values_grad, values))
    ]
    wanted = column_grad if by_column else score_grad
    if bias is not None and bias_grad:
        wanted = wanted.sum_to_size(bias.shape).to(bias.dtype)
    return query_grad, *found, wanted


def _of_rows(places: Tensor, part: Tensor, index: Tensor | None) -> Tensor:
    """Gradients ``(B, K, H, D)`` of places as those of the rows that stand there."""
    if index is None:
        return places.sum_to_size(part.shape).to(part.dtype)
    batch, rows = part.shape[:2]
    row = index.long() + rows * torch.arange(batch, device=index.device)[:, None]
    row = torch.where(index < 0, batch * rows, row).flatten()
    ordered, order = row.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(batch * rows + 1, device=row.device))
    width = part.shape[2] * part.shape[3]
    out = part.new_empty(part.shape)
    block = min(1024, triton.next_power_of_2(width))
    launch(
        _sum_places, (batch * rows, triton.cdiv(width, block)),
        places, order, starts, out, width, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def _arguments(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    index: Tensor | None,
    lengths: Tensor | None,
    bias: Tensor | None,
) -> tuple[list[Tensor], list[int], dict[str, int]]:
    """Tensors, strides and constants that the kernels have in common."""
    batch, queries, heads, width = query.shape
    query, keys, values = (
        part if part.stride(-1) == 1 else part.contiguous() for part in (query, keys, values)
    )
    steps = [*query.stride()[:3]]
    for part in (keys, values):
        steps += [part.stride(0) if len(part) > 1 else 0, part.stride(1), part.stride(2)]
    if index is not None:
        index = index if index.stride(-1) == 1 else index.contiguous()
    steps.append(0 if index is None else index.stride(0))
    if bias is None:
        steps += [0] * 4
    else:
        rows = keys.shape[1] if index is None else index.shape[1]
        steps += bias.expand(batch, heads, queries, rows).stride()
    constants = {
        "D": width,
        "E": values.shape[3],
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
        "BLOCK_E": max(16, triton.next_power_of_2(values.shape[3])),
        "HAS_INDEX": index is not None,
        "RAGGED": lengths is not None,
        "HAS_BIAS": bias is not None,
    }
    # What is not there is never read; a kernel takes some tensor in its place.
    others = [query if part is None else part for part in (index, lengths, bias)]
    return [query, keys, values, *others], steps, constants


def _splits(programs: int, tiles: int, device: torch.device) -> int:
    """Into how many shares the rows are cut, so that all of a device has work."""
    processors = PROCESSORS
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(processors // max(programs, 1), tiles // LEAST_TILES))


@torch.library.custom_op("vismem::cross_attention", mutates_args=())
def cross_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    index: Tensor | None = None,
    lengths: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the kernels, see `run`."""
    return run(query, keys, values, scale, index, lengths, bias)


@cross_attention.register_fake
def _(query, keys, values, scale, index=None, lengths=None, bias=None):  # type: ignore[no-untyped-def]
    batch, queries, heads, _ = query.shape
    out = query.new_empty(batch, queries, heads, values.shape[3])
    return out, query.new_empty(batch, heads, queries, dtype=torch.float32)


@torch.library.custom_op("vismem::cross_attention_backward", mutates_args=())
def cross_attention_backward(
    grad: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    index: Tensor | None,
    lengths: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    sums: Tensor,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the backward kernels, see `run_backward`."""
    return run_backward(
        grad, query, keys, values, scale, index, lengths, bias, out, sums, bias_grad
    )


@cross_attention_backward.register_fake
def _(grad, query, keys, values, scale, index, lengths, bias, out, sums, bias_grad):  # type: ignore[no-untyped-def]
    found = [part.new_empty(part.shape) for part in (query, keys, values)]
    last = bias.new_empty(bias.shape) if bias_grad else query.new_empty(0, dtype=torch.float32)
    return *found, last


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    query, keys, values, ctx.scale, index, lengths, bias = inputs
    ctx.save_for_backward(query, keys, values, index, lengths, bias, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    query, keys, values, index, lengths, bias, out, sums = ctx.saved_tensors
    wanted = bias is not None and ctx.needs_input_grad[6]
    *found, last = cross_attention_backward(
        grad, query, keys, values, ctx.scale, index, lengths, bias, out, sums, wanted
    )
    return *found, None, None, None, last if wanted else None


cross_attention.register_autograd(_backward, setup_context=_keep)
