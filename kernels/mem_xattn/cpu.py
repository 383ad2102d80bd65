"""Attention to memories in PyTorch.

Its own attention is fast only where values are as wide as keys, so a quarter of a SAM 2 memory
would be three quarters of padding. Tile by tile nothing is padded. Where gradients are wanted,
PyTorch's attention has them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tiled import attend, pays


def mem_xattn(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int,
    scale: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """See :func:`vismem.kernels.mem_xattn.mem_xattn`."""
    if pays(query.shape[1], keys.shape[1], query, keys, mem):
        return tiled(query, keys, mem, heads, scale, lengths)
    return padded(query, keys, mem, heads, scale, lengths)


def tiled(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int,
    scale: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """Tile by tile, in float32 at least; without gradients."""
    width, values = query.shape[2] // heads, mem.shape[2]
    out = query.new_empty(*query.shape[:2], heads * values)
    counts = [keys.shape[1]] * len(query) if lengths is None else lengths.tolist()
    for b, count in enumerate(counts):
        for h in range(heads):
            own, to = slice(h * width, (h + 1) * width), slice(h * values, (h + 1) * values)
            out[b, :, to] = attend(query[b, :, own], keys[b, :count, own], mem[b, :count], scale)
    return out


def padded(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int,
    scale: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """PyTorch's attention, values or keys filled up with zeros to be equally wide."""
    q, k = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, keys))
    values, width = mem.shape[2], max(q.shape[3], mem.shape[2])
    q, k, v = (F.pad(part, (0, width - part.shape[-1])) for part in (q, k, mem))
    v = v[:, None].expand(-1, heads, -1, -1)
    mask = some = None
    if lengths is not None:
        some = (lengths > 0)[:, None, None]
        there = torch.arange(keys.shape[1], device=keys.device) < lengths[:, None]
        # Not all kernels survive it where no key is left, so none is hidden there.
        mask = (there | ~some[:, 0])[:, None, None].expand(-1, heads, q.shape[2], -1)
    seen = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)[..., :values]
    seen = seen.transpose(1, 2).flatten(2)
    return seen if some is None else seen.where(some, 0.0)
