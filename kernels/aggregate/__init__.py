"""Attention of features to rows of a bank, which are given by number in place of copies."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import uses_triton
from .cpu import aggregate as _cpu

__all__ = ["aggregate"]

HALVES = (torch.float16, torch.bfloat16)


def aggregate(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    *,
    index: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multi-head attention to rows of a bank; with gradients of all but the numbers.

    Args:
        query: ``(B, Q, C)``.
        keys: ``(N, C)``, one bank for all of the batch, or ``(B, N, C)``.
        values: As ``keys``.
        heads: Number of heads ``H``; divides ``C``.
        index: Which rows are attended to, ``(K,)`` or ``(B, K)`` whole numbers; negative where
            there is none. All rows by default, ``K = N``. A row may stand at several places.
        bias: Added to the scaled products, ``(B, H, Q, K)`` or broadcastable to it; negative
            infinity hides a row.

    Returns:
        ``(B, Q, C)``; zeros where a query sees no row at all.

    Raises:
        ValueError: If the shapes or types do not fit.

    Source: the attention of MAMBA and SELSA, https://arxiv.org/abs/2401.09923, 1907.06390.

    Example:
        >>> bank = torch.arange(8.0).reshape(4, 2)
        >>> index = torch.tensor([[1, 3, -1], [2, -1, -1]])
        >>> aggregate(torch.zeros(2, 1, 2), bank, bank, 1, index=index)[:, 0].tolist()
        [[4.0, 5.0], [4.0, 5.0]]
    """
    places = _check(query, keys, values, heads, index, bias)
    if not keys.shape[-2] or not places or not query.numel():
        return torch.zeros_like(query)
    if uses_triton("aggregate", query, _obstacle(query, keys, values, heads)):
        from .triton import aggregate as _triton

        return _triton(query, keys, values, heads, index, bias)
    return _cpu(query, keys, values, heads, index, bias)


def _check(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    index: Tensor | None,
    bias: Tensor | None,
) -> int:
    """Refuse what does not fit; give the number of places ``K``."""
    shapes = f"query {tuple(query.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}"
    batch, width = query.shape[0], query.shape[-1]
    if query.ndim != 3 or keys.ndim not in (2, 3) or values.shape != keys.shape:
        raise ValueError(f"aggregate takes (B, Q, C) and twice (N, C) or (B, N, C), not {shapes}")
    if keys.shape[-1] != width or (keys.ndim == 3 and len(keys) != batch):
        raise ValueError(f"these are not of one batch and one width: {shapes}")
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")
    if not query.dtype == keys.dtype == values.dtype:
        kinds = f"{query.dtype}, {keys.dtype} and {values.dtype}"
        raise ValueError(f"query, keys and values must be of one type, not {kinds}")
    places = keys.shape[-2]
    if index is not None:
        if index.shape[:-1] not in ((), (batch,)) or index.ndim == 0:
            raise ValueError(f"index must be (K,) or ({batch}, K), not {tuple(index.shape)}")
        if index.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"index must be of whole numbers, int32 or int64, not {index.dtype}")
        places = index.shape[-1]
    full = (batch, heads, query.shape[1], places)
    if bias is not None and (
        bias.ndim != 4 or any(n not in (1, m) for n, m in zip(bias.shape, full, strict=True))
    ):
        raise ValueError(f"bias must be broadcastable to {full}, not {tuple(bias.shape)}")
    return places


def _obstacle(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> str | None:
    if query.dtype not in (torch.float32, *HALVES):
        return f"features of {str(query.dtype).removeprefix('torch.')} keep their precision"
    if query.shape[-1] // heads > 256:
        return f"heads of {query.shape[-1] // heads} columns, 256 at most"
    return None
