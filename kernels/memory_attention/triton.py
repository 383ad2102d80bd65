"""Attention over pages on a GPU: one kernel for long and for single queries, and one that joins.

The query heads that share a key head are rows of one tile, in order of their tokens. The tiles of
keys of all entries are counted through, so that the cut into parts that run side by side falls
inside a page as well. A turned page is not rotated: the query is turned back, once for a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch
from .configs import case, config, splits

LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
PROCESSORS = 132  # of the GPU that is compiled for without one


@triton.jit(do_not_specialize=["count", "far", "turns", "window", "per_entry", "tiles", "share"])
def _attend(
    query, keys, values, entries, q_start, cos, sin, seen, sums,
    count, tokens, most, far, turns, window, per_entry, tiles, share, scale,
    query_b, query_m, query_h, keys_p, keys_t, keys_g, values_p, values_t, values_g,
    HEADS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    HALF: tl.constexpr, BLOCK_E: tl.constexpr, LISTED: tl.constexpr, TURNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``BLOCK_M`` rows of one key head over ``share`` tiles of keys."""
    GROUPS: tl.constexpr = HEADS // ROWS
    LOW: tl.constexpr = (D + 1) // 2
    b, group = tl.program_id(1) // GROUPS, tl.program_id(1) % GROUPS
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    token, head = row // ROWS, group * ROWS + row % ROWS
    live = token < count
    channel, wide = tl.arange(0, HALF), tl.arange(0, BLOCK_E)
    lower, upper = channel < LOW, channel < D - LOW
    asked = query + b.to(tl.int64) * query_b + token.to(tl.int64) * query_m + head * query_h
    one = tl.load(asked[:, None] + channel, live[:, None] & lower, 0.0)
    two = tl.load(asked[:, None] + LOW + channel, live[:, None] & upper, 0.0)
    key_at = keys + group.to(tl.int64) * keys_g
    value_at = values + group.to(tl.int64) * values_g
    number = token
    if LISTED:
        number += tl.load(q_start + b)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    begin = tl.program_id(2) * share
    page, start, length, counted = b, 0, tokens, 0
    if LISTED:
        listed = entries + (b * most + tl.minimum(begin // per_entry, most - 1)) * 4
        page, start = tl.load(listed), tl.load(listed + 1)
        length, counted = tl.load(listed + 2), tl.load(listed + 3)
    for tile in range(begin, tl.minimum(begin + share, tiles)):
        entry = tile // per_entry
        column = (tile % per_entry) * BLOCK_N + tl.arange(0, BLOCK_N)
        there = column < tl.where(page < 0, 0, length)
        place = (start + column).to(tl.int64)
        key = key_at + page.to(tl.int64) * keys_p + place * keys_t
        held = value_at + page.to(tl.int64) * values_p + place * values_t
        numbered = counted + column
        if LISTED:
            # The next tile's stretch is looked up now, for its keys to be on their way in time.
            listed = entries + (b * most + tl.minimum((tile + 1) // per_entry, most - 1)) * 4
            page, start = tl.load(listed), tl.load(listed + 1)
            length, counted = tl.load(listed + 2), tl.load(listed + 3)
        low = tl.load(key[:, None] + channel, there[:, None] & lower, 0.0)
        high = tl.load(key[:, None] + LOW + channel, there[:, None] & upper, 0.0)
        first, second = one, two
        if TURNED:
            turn = (b * turns + entry) * LOW + channel
            turned = channel < tl.where(entry < turns, LOW, 0)
            c, s = tl.load(cos + turn, turned, 1.0), tl.load(sin + turn, turned, 0.0)
            wide_one, wide_two = one.to(tl.float32), two.to(tl.float32)
            first = (wide_one * c + wide_two * s).to(one.dtype)
            second = (wide_two * c - wide_one * s).to(one.dtype)
        logits = tl.dot(first, tl.trans(low), input_precision="ieee")
        logits = tl.dot(second, tl.trans(high), logits, input_precision="ieee") * scale
        sees = there[None]
        if LISTED:
            age = number[:, None] - numbered[None]
            age = tl.where(entry < far, 0, age)
            sees = sees & (age >= 0) & (age < window)
        logits = tl.where(sees, logits, float("-inf"))
        top = tl.maximum(best, tl.max(logits, 1))
        base = tl.where(top == float("-inf"), 0.0, top)  # rows that have seen nothing so far
        weight = tl.exp2(logits - base[:, None])
        faded = tl.exp2(best - base)
        total = total * faded + tl.sum(weight, 1)
        value = tl.load(held[:, None] + wide, there[:, None] & (wide < E), 0.0)
        mixed = mixed * faded[:, None]
        mixed = tl.dot(weight.to(value.dtype), value, mixed, input_precision="ieee")
        best = top
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    split = tl.program_id(2).to(tl.int64) * (tl.num_programs(1) // GROUPS)
    out = ((split + b) * count + token) * HEADS + head
    kept = live[:, None] & (wide < E)
    tl.store(seen + out[:, None] * E + wide, mixed.to(seen.dtype.element_ty), kept)
    lse = tl.where(total > 0, (best + tl.log2(total)) * LN_2, float("-inf"))
    tl.store(sums + out, lse, live)


@triton.jit(do_not_specialize=["rows", "parts"])
def _merge(
    part_seen, part_sums, seen, sums, rows, parts,
    E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Join what ``BLOCK_M`` rows saw in each part, by the sums of these."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    wide = tl.arange(0, BLOCK_E)
    live = row < rows
    there = live[:, None] & (wide < E)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for part in range(parts):
        lse = tl.load(part_sums + part * rows + row, live, float("-inf"))
        one = tl.load(part_seen + (part * rows + row)[:, None] * E + wide, there, 0.0)
        top = tl.maximum(best, lse)
        base = tl.where(top == float("-inf"), 0.0, top)
        weight, faded = tl.exp2((lse - base) * LOG2_E), tl.exp2((best - base) * LOG2_E)
        total = total * faded + weight
        mixed = mixed * faded[:, None] + one * weight[:, None]
        best = top
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(seen + row[:, None] * E + wide, mixed.to(seen.dtype.element_ty), there)
    lse = tl.where(total > 0, best + tl.log2(total) * LN_2, float("-inf"))
    tl.store(sums + row, lse, live)


@torch.library.custom_op("vismem::memory_attention", mutates_args=())
def memory_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    entries: Tensor | None,
    q_start: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    far: int,
    window: int,
    longest: int | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Run the kernels, see :func:`vismem.kernels.memory_attention.memory_attention`."""
    return run(query, keys, values, entries, q_start, cos, sin, far, window, longest, scale)


@memory_attention.register_fake
def _(query, keys, values, entries, q_start, cos, sin, far, window, longest, scale):  # type: ignore[no-untyped-def]
    seen = query.new_empty(*query.shape[:3], values.shape[3])
    return seen, query.new_empty(query.shape[:3], dtype=torch.float32)


def run(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    entries: Tensor | None = None,
    q_start: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    far: int = 0,
    window: int = 0,
    longest: int | None = None,
    scale: float | None = None,
    parts: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Start the kernels; also on tensors without data, to compile them.

    Args:
        query: ``(B, M, H, D)``.
        keys: ``(P, T, G, D)``.
        values: ``(P, T, G, E)``.
        entries: Of `Reads`, like the rest; none for whole pages.
        q_start: Of the queries.
        cos: Of the turns.
        sin: Of the turns.
        far: Entries that all see.
        window: Of the others.
        longest: Most tokens of an entry.
        scale: Of the products.
        parts: Into how many keys are cut; as many as keep the device busy by default.

    Returns:
        ``(B, M, H, E)`` in the type of the query, and ``(B, M, H)`` float32.
    """
    query, keys, values = (
        part if part.stride(-1) == 1 or part.shape[-1] == 1 else part.contiguous()
        for part in (query, keys, values)
    )
    batch, count, heads, width = query.shape
    tokens, groups, wide = keys.shape[1], keys.shape[2], values.shape[3]
    rows = heads // groups * count
    chosen = config(case(rows, width, wide, query.dtype))
    size = tokens if longest is None or entries is None else longest
    per_entry = triton.cdiv(size, chosen.tiles["BLOCK_N"])
    most = 1 if entries is None else entries.shape[1]
    tiles, programs = most * per_entry, triton.cdiv(rows, chosen.tiles["BLOCK_M"])
    parts = parts or splits(programs * batch * groups, tiles, _processors(query))
    share = triton.cdiv(tiles, parts)
    seen = query.new_empty(batch, count, heads, wide)
    sums = query.new_empty(batch, count, heads, dtype=torch.float32)
    into = seen, sums
    if parts > 1:
        into = (
            query.new_empty(parts, *seen.shape, dtype=torch.float32),
            sums.new_empty(parts, *sums.shape),
        )
    cos, sin = (None if part is None else part.contiguous() for part in (cos, sin))
    if not tiles:
        entries = None  # nothing to look up
    turns = 0 if cos is None or entries is None else cos.shape[1]
    scale = width**-0.5 if scale is None else scale
    block_e = max(16, triton.next_power_of_2(wide))
    launch(
        _attend, (programs, batch * groups, parts), query, keys, values,
        None if entries is None else entries.contiguous(), q_start, cos, sin, *into,
        count, tokens, most, far, turns, window, max(per_entry, 1), tiles, share,
        scale * LOG2_E.value,
        *query.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
        HEADS=heads, ROWS=heads // groups, D=width, E=wide,
        HALF=max(16, triton.next_power_of_2((width + 1) // 2)), BLOCK_E=block_e,
        LISTED=entries is not None, TURNED=turns > 0, **chosen.options,
    )  # fmt: skip
    if parts > 1:
        joining = config("merge")
        launch(
            _merge, (triton.cdiv(sums.numel(), joining.tiles["BLOCK_M"]),),
            *into, seen, sums, sums.numel(), parts, E=wide, BLOCK_E=block_e, **joining.options,
        )  # fmt: skip
    return seen, sums


def _processors(like: Tensor) -> int:
    if like.device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(like.device).multi_processor_count
