"""Attention on a processor, tile by tile: what the operators have in common that attend.

The products are oneDNN's in float32 (`products`), and softmax goes over the tiles of a row as they
come, so that scores stay in cache. PyTorch's own attention was measured to take 1.1 to 1.8 times as
long where there are many rows, and is quicker where there are few. What half types are asked for is
computed in float32, unless the processor multiplies matrices of bfloat16 in units of its own (AMX).

Source of the softmax over parts of a row: Milakov and Gimelshein, "Online normalizer calculation
for softmax", https://arxiv.org/abs/1805.02867.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .product import products

__all__ = ["attend", "multiplies_bfloat16", "pays"]

ROWS, COLUMNS = 512, 2048  # of a tile of scores: four megabytes of float32
FEW_ROWS, FEW_COLUMNS = 128, 512  # PyTorch's attention is at least as fast below


def pays(rows: int, columns: int, *parts: Tensor) -> bool:
    """Whether `attend` is the way to do it: by sizes, type and machine, the same in every run.

    Args:
        rows: Queries that meet the same keys.
        columns: Those keys.
        parts: Tensors of the call; where one wants a gradient PyTorch's attention has it.
    """
    if parts[0].device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if rows < FEW_ROWS or columns < FEW_COLUMNS:
        return False
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return False
    kind = parts[0].dtype
    return kind in (torch.float32, torch.float16) or (
        kind == torch.bfloat16 and not multiplies_bfloat16()
    )


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has units for matrices of bfloat16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def attend(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Attention of one head, without gradients.

    Args:
        query: ``(M, D)``.
        keys: ``(N, D)``.
        values: ``(N, E)``.
        scale: Of the products.
        mask: ``(M, N)``, what is added to the products; minus infinity hides. Nothing by default.

    Returns:
        ``(M, E)``, float32 at least; zeros for a row that sees nothing.

    Example:
        >>> attend(torch.zeros(1, 4), torch.ones(2, 4), torch.tensor([[1.0], [3.0]]), 0.5)
        tensor([[2.]])
    """
    kind = torch.promote_types(query.dtype, torch.float32)
    keys, values = keys.to(kind).contiguous(), values.to(kind).contiguous()
    seen = query.new_empty(len(query), values.shape[1], dtype=kind)
    for start in range(0, len(query), ROWS):
        rows = slice(start, start + ROWS)
        some = query[rows].to(kind).contiguous() * scale
        seen[rows] = _attend(some, keys, values, None if mask is None else mask[rows])
    return seen


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Some scaled queries meet all keys."""
    lowest = torch.finfo(query.dtype).min  # finite, so that what is hidden weighs zero beside it
    highest = query.new_full((len(query), 1), lowest)
    total, seen = query.new_zeros(len(query), 1), query.new_zeros(len(query), values.shape[1])
    for start in range(0, len(keys), COLUMNS):
        columns = slice(start, start + COLUMNS)
        weights = products(query, keys[columns])
        if mask is not None:
            weights += mask[:, columns]
        now = torch.maximum(highest, weights.amax(1, keepdim=True))
        weights.sub_(now).exp_()
        fade = (highest - now).exp_()
        total.mul_(fade).add_(weights.sum(1, keepdim=True))
        seen.mul_(fade).add_(products(weights, values[columns].T))
        highest = now
    return seen.div_(total.clamp_min_(torch.finfo(query.dtype).tiny))
