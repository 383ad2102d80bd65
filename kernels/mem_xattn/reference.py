"""The specification of attention to memories, readable and slow."""

from __future__ import annotations

import torch
from torch import Tensor


def mem_xattn(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int = 1,
    scale: float | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """In the precision of its arguments, see :func:`vismem.kernels.mem_xattn.mem_xattn`."""
    width = query.shape[2] // heads
    scale = width**-0.5 if scale is None else scale
    seen = []
    for b in range(len(query)):
        count = keys.shape[1] if lengths is None else int(lengths[b])
        for q, k in zip(query[b].split(width, 1), keys[b, :count].split(width, 1), strict=True):
            if count:
                seen.append((scale * q @ k.T).softmax(1) @ mem[b, :count])
            else:
                seen.append(query.new_zeros(len(q), mem.shape[2]))
    stacked = torch.stack(seen).unflatten(0, (len(query), heads))
    return stacked.transpose(1, 2).flatten(2)
