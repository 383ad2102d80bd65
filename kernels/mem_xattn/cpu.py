"""Attention to memories in PyTorch.

Its own attention is fast only where values are as wide as keys, so a quarter of a SAM 2 memory
would be three quarters of padding. In float32 online softmax over tiles that stay in cache is
faster, and in half types too (computed in float32), unless the processor multiplies bfloat16
matrices in tiles of its own (AMX). Where gradients are wanted, PyTorch's attention has them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, COLUMNS = 512, 512  # of a tile of scores: a megabyte of float32


def mem_xattn(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int,
    scale: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """See :func:`vismem.kernels.mem_xattn.mem_xattn`."""
    if _tiled(query, keys, mem):
        return tiled(query, keys, mem, heads, scale, lengths)
    return padded(query, keys, mem, heads, scale, lengths)


def _tiled(*parts: Tensor) -> bool:
    if parts[0].device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return False
    return parts[0].dtype != torch.bfloat16 or not _multiplies_bfloat16()


@lru_cache
def _multiplies_bfloat16() -> bool:
    """Whether the processor has units for matrices of bfloat16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def tiled(
    query: Tensor,
    keys: Tensor,
    mem: Tensor,
    heads: int,
    scale: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """Online softmax over tiles of queries and keys, in float32 at least; without gradients."""
    kind = torch.promote_types(query.dtype, torch.float32)
    width, values = query.shape[2] // heads, mem.shape[2]
    out = query.new_empty(*query.shape[:2], heads * values)
    counts = [keys.shape[1]] * len(query) if lengths is None else lengths.tolist()
    for b, count in enumerate(counts):
        if not count:
            out[b] = 0
            continue
        k, v = keys[b, :count].to(kind), mem[b, :count].to(kind)
        for h in range(heads):
            own, to = slice(h * width, (h + 1) * width), slice(h * values, (h + 1) * values)
            for start in range(0, query.shape[1], ROWS):
                rows = slice(start, start + ROWS)
                out[b, rows, to] = _attend(query[b, rows, own].to(kind) * scale, k[:, own], v)
    return out


def _attend(query: Tensor, keys: Tensor, mem: Tensor) -> Tensor:
    """Some scaled queries ``(M, D)`` meet all keys ``(N, D)``."""
    highest = query.new_full((len(query), 1), -math.inf)
    total, seen = query.new_zeros(len(query), 1), query.new_zeros(len(query), mem.shape[1])
    for some, values in zip(keys.split(COLUMNS), mem.split(COLUMNS), strict=True):
        weights = query @ some.T
        now = torch.maximum(highest, weights.amax(1, keepdim=True))
        weights.sub_(now).exp_()
        fade = (highest - now).exp_()
        total.mul_(fade).add_(weights.sum(1, keepdim=True))
        seen.mul_(fade).addmm_(weights, values)
        highest = now
    return seen / total


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
