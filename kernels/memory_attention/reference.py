"""The specification of attention over pages, readable and slow: one head at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .reads import Reads

SEEN_BY_ALL = -(2**62)  # instead of a running number


def memory_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    reads: Reads | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """In float64, see :func:`vismem.kernels.memory_attention.memory_attention`.

    Returns:
        What is seen, ``(B, M, H, E)``, and the logarithm of the sums, ``(B, M, H)``.
    """
    batch, count, heads, width = query.shape
    share = heads // keys.shape[2]
    query, keys, values = query.double(), keys.double(), values.double()
    scale = width**-0.5 if scale is None else scale
    seen = query.new_zeros(batch, count, heads, values.shape[3])
    sums = query.new_full((batch, count, heads), float("-inf"))
    for b in range(batch):
        key, value, number = _listed(keys, values, reads, b)
        hidden = torch.zeros(count, len(number), dtype=torch.bool, device=query.device)
        if reads is not None:
            age = reads.q_start[b] + torch.arange(count, device=query.device)[:, None] - number
            hidden = ((age < 0) | (age >= reads.window)) & (number != SEEN_BY_ALL)
        blind = hidden.all(1)
        for head in range(heads):
            logits = query[b, :, head] @ key[:, head // share].T * scale
            logits = logits.masked_fill(hidden, float("-inf"))
            sums[b, :, head] = torch.logsumexp(logits, 1)
            mixed = torch.softmax(logits, 1) @ value[:, head // share]
            seen[b, :, head] = mixed.masked_fill(blind[:, None], 0.0)
    return seen, sums


def _listed(
    keys: Tensor, values: Tensor, reads: Reads | None, b: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values ``(n, G, ...)`` and running numbers or `SEEN_BY_ALL`, of one part."""
    if reads is None:
        return keys[b], values[b], torch.zeros(keys.shape[1], device=keys.device)
    found = [(keys[0, :0], values[0, :0], torch.zeros(0, dtype=torch.int64, device=keys.device))]
    for n, (page, first, length, number) in enumerate(reads.entries[b].tolist()):
        if page < 0:
            continue
        key, value = (part[page, first : first + length] for part in (keys, values))
        if reads.cos is not None and reads.sin is not None and n < reads.cos.shape[1]:
            cos, sin = reads.cos[b, n].double(), reads.sin[b, n].double()
            one, two = key.chunk(2, -1)
            key = torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
        numbers = number + torch.arange(length, device=keys.device, dtype=torch.int64)
        found.append(
            (key, value, torch.full_like(numbers, SEEN_BY_ALL) if n < reads.far else numbers)
        )
    key, value, number = (torch.cat(parts) for parts in zip(*found, strict=True))
    return key, value, number
