"""Attention over pages in PyTorch: put together what is read, and attend to it by SDPA.

A stretch that is read alone is not copied. Turned keys are rotated here, which for a stretch that a
few queries read costs nothing beside putting it together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .folded import masked_attention, working_type
from .reads import Reads
from .walk import Run


def memory_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    reads: Reads | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See :func:`vismem.kernels.memory_attention.memory_attention`; sums only if asked for."""
    batch, count, heads, _ = query.shape
    masks: list[Tensor | None] = [None] * batch
    dtype = working_type(query)
    if reads is not None:
        repeats = heads // keys.shape[2]
        masks = reads.walk.masks(count, repeats, dtype, query.device)
    seen = query.new_empty(batch, count, heads, values.shape[3])
    sums = query.new_empty(batch, count, heads, dtype=torch.float32) if return_lse else None
    for b in range(batch):
        if reads is None:
            key, value = keys[b], values[b]
        else:
            key = _joined(keys, reads.walk.runs[b], reads, b)
            value = _joined(values, reads.walk.runs[b])
        rows, key, value = (part.transpose(0, 1).to(dtype) for part in (query[b], key, value))
        if sums is None:
            seen[b] = masked_attention(rows, key, value, masks[b], scale=scale).transpose(0, 1)
        else:
            found, sums[b] = _with_sums(rows, key, value, masks[b], scale)
            seen[b] = found.transpose(0, 1)
    return seen, sums


def _joined(pages: Tensor, runs: list[Run], reads: Reads | None = None, b: int = 0) -> Tensor:
    """What one part of a batch reads, ``(n, G, D)``; turned, if plans of turns are given."""
    parts = []
    for page, first, length, turn in runs:
        part = pages[page, first : first + length]
        if reads is not None and turn is not None:
            assert reads.cos is not None and reads.sin is not None
            part = _turned(part, reads.cos[b, turn], reads.sin[b, turn])
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return pages.new_empty(0, *pages.shape[2:])
    # Laid out by heads, as attention reads it.
    return torch.cat([part.transpose(0, 1) for part in parts], 1).transpose(0, 1)


def _turned(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of ``(n, G, D)`` against each other by one angle a channel pair."""
    one, two = keys.chunk(2, -1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1).to(keys.dtype)


def _with_sums(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attention of ``(H, M, D)`` with the logarithm of its sums, ``(M, H)`` float32."""
    heads, count, width = query.shape
    scale = width**-0.5 if scale is None else scale
    rows = query.reshape(len(keys), -1, width)
    logits = (rows @ keys.mT).float() * scale
    if mask is not None:
        logits = logits + mask
    sums = torch.logsumexp(logits, -1, keepdim=True)
    weights = torch.exp(logits - sums).nan_to_num(0.0)  # of rows that see nothing
    seen = weights.to(values.dtype) @ values
    return seen.reshape(heads, count, -1), sums.reshape(heads, count).T
