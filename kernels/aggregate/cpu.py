"""Aggregation in PyTorch: the rows are gathered, and attention does the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..tiled import attend, pays


def aggregate(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    index: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """In the precision of its arguments, see :func:`vismem.kernels.aggregate.aggregate`."""
    batch = len(query)
    there = None
    if index is not None:
        there = index >= 0
        if query.device.type == "cpu" and not torch.compiler.is_compiling() and there.all():
            there = None  # without a mask attention is faster, and asking costs nothing here
        else:
            index = index.clamp_min(0)
        keys, values = gather(keys, index), gather(values, index)
    q, k, v = (
        part.expand(batch, -1, -1).unflatten(2, (heads, -1)).transpose(1, 2)
        for part in (query, keys, values)
    )
    mask = None if bias is None else bias.to(query.dtype)
    some = None
    if there is not None:
        there = there.expand(batch, -1)
        some = there.any(1)[:, None, None]
        # Not all kernels survive it where no row is left, so none is hidden there.
        shown = (there | ~some[:, 0])[:, None, None]
        mask = shown if mask is None else mask.masked_fill(~shown, -math.inf)
    if mask is not None:
        mask = mask.expand(batch, heads, q.shape[2], k.shape[2])
    if pays(q.shape[2], k.shape[2], query, keys, values, *([] if bias is None else [bias])):
        seen = _tiled(q, k, v, mask)
    else:
        seen = scaled_dot_product_attention(q, k, v, mask)
    seen = seen.transpose(1, 2).flatten(2)
    return seen if some is None else seen.where(some, 0.0)


def _tiled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of ``(B, H, M, D)`` tile by tile."""
    batch, heads, count, width = q.shape
    seen = q.new_empty(batch, count, heads, width).transpose(1, 2)
    for b in range(batch):
        for h in range(heads):
            hidden = None if mask is None else mask[b, h]
            if hidden is not None and hidden.dtype == torch.bool:
                hidden = torch.zeros_like(hidden, dtype=q.dtype).masked_fill_(~hidden, -math.inf)
            seen[b, h] = attend(q[b, h], k[b, h], v[b, h], width**-0.5, hidden)
    return seen


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """Rows ``(N, C)`` or ``(B, N, C)`` by numbers ``(K,)`` or ``(B, K)``; as a batch if any is."""
    if rows.ndim == 2:
        return rows.index_select(0, index.flatten()).view(*index.shape, -1)
    if index.ndim == 1:
        return rows.index_select(1, index)
    return rows.gather(1, index.long()[..., None].expand(-1, -1, rows.shape[2]))
