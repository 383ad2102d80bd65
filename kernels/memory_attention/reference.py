"""The specification of attention over pages, readable and slow: one query, one head at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .reads import Reads


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
        for m in range(count):
            there = torch.ones_like(number, dtype=torch.bool)
            if reads is not None:
                age = int(reads.q_start[b]) + m - number
                there = ((age >= 0) & (age < reads.window)) | (number < 0)
            for head in range(heads):
                logits = key[there, head // share] @ query[b, m, head] * scale
                if len(logits):
                    seen[b, m, head] = torch.softmax(logits, 0) @ value[there, head // share]
                    sums[b, m, head] = torch.logsumexp(logits, 0)
    return seen, sums


def _listed(
    keys: Tensor, values: Tensor, reads: Reads | None, b: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values ``(n, G, ...)`` and running numbers, -1 where all see it, of one part."""
    if reads is None:
        return keys[b], values[b], torch.zeros(keys.shape[1], device=keys.device)
    found = [(keys[0, :0], values[0, :0], torch.zeros(0, device=keys.device))]
    for n, (page, first, length, number) in enumerate(reads.entries[b].tolist()):
        if page < 0:
            continue
        key, value = (part[page, first : first + length] for part in (keys, values))
        if reads.cos is not None and reads.sin is not None and n < reads.cos.shape[1]:
            cos, sin = reads.cos[b, n].double(), reads.sin[b, n].double()
            one, two = key.chunk(2, -1)
            key = torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
        numbers = number + torch.arange(length, device=keys.device)
        found.append((key, value, torch.full_like(numbers, -1) if n < reads.far else numbers))
    key, value, number = (torch.cat(parts) for parts in zip(*found, strict=True))
    return key, value, number
