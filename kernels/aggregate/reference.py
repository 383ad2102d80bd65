"""The specification of aggregation, readable and slow."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def aggregate(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    index: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """In the precision of its arguments, see :func:`vismem.kernels.aggregate.aggregate`."""
    out = torch.zeros_like(query)
    per_head = query.shape[2] // heads
    for b in range(len(query)):
        bank, held = (part if part.ndim == 2 else part[b] for part in (keys, values))
        row = torch.arange(len(bank), device=bank.device) if index is None else index
        row = row if row.ndim == 1 else row[b]
        there = row >= 0
        added = query.new_zeros(heads, query.shape[1], len(row))
        if bias is not None:
            added = bias[b if len(bias) > 1 else 0].expand(added.shape)
        for h in range(heads):
            own = slice(h * per_head, (h + 1) * per_head)
            products = query[b, :, own] @ bank[row[there]][:, own].T / math.sqrt(per_head)
            logits = products + added[h][:, there].to(query.dtype)
            seen = (logits > -math.inf).any(1)  # queries that see a row at all
            if seen.any():
                weights = logits[seen].softmax(1)
                out[b, seen, own] = weights @ held[row[there]][:, own]
    return out
