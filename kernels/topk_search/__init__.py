"""Exact top-k search over a bank of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..registry import uses_triton
from .cpu import topk_search as _cpu

__all__ = ["topk_search"]


def topk_search(
    bank: Tensor, query: Tensor, k: int, *, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the rows of a bank with the largest inner product; of equal scores the lowest row.

    Scores are those of float32, whatever the type of the bank; not a number is the largest.

    Args:
        bank: ``(M, D)``, any floating type, or int8 with a ``scale``; may be empty.
        query: ``(D,)`` or ``(Q, D)``, any floating type.
        k: How many rows; fewer come back where the bank is smaller.
        scale: What each row of an int8 bank is multiplied with, ``(M,)``. The search is exact for
            the rows as they are stored, ``scale * bank``; the query is not quantised.

    Returns:
        Scores and row numbers, ``(k,)`` float32 and int64 or ``(Q, k)``, best first.

    Raises:
        ValueError: If the shapes do not fit, ``k`` is not positive, or an int8 bank has no scale.

    Example:
        >>> topk_search(torch.eye(3), torch.tensor([0.0, 2.0, 1.0]), k=2)[1].tolist()
        [1, 2]
        >>> bank, scale = torch.tensor([[127, 0], [0, 127]]).to(torch.int8), torch.ones(2) / 127
        >>> topk_search(bank, torch.tensor([[3.0, 2.0]]), k=1, scale=scale)
        (tensor([[3.]]), tensor([[0]]))
    """
    if k < 1 or bank.ndim != 2 or query.ndim not in (1, 2) or query.shape[-1] != bank.shape[1]:
        raise ValueError(
            f"topk_search takes bank (M, D), query (..., D) and k >= 1, "
            f"not {tuple(bank.shape)}, {tuple(query.shape)} and {k}"
        )
    quantised = bank.dtype == torch.int8
    if not (quantised or bank.is_floating_point()) or not query.is_floating_point():
        raise ValueError(f"topk_search takes no bank of {bank.dtype} and query of {query.dtype}")
    if quantised != (scale is not None) or (scale is not None and scale.shape != bank.shape[:1]):
        given = "none" if scale is None else tuple(scale.shape)
        raise ValueError(f"a scale (M,) belongs to a bank of int8, not {given} to {bank.dtype}")
    queries = query[None] if query.ndim == 1 else query
    if uses_triton("topk_search", bank, _obstacle(bank, queries)):
        from .triton import topk_search as search
    else:
        search = _cpu
    scores, rows = search(bank, queries, min(k, len(bank)), scale)
    return (scores[0], rows[0]) if query.ndim == 1 else (scores, rows)


def _obstacle(bank: Tensor, query: Tensor) -> str | None:
    if torch.float64 in (bank.dtype, query.dtype):
        return "its kernels have no products of float64"
    return "rows are numbered in 31 bits" if len(bank) >= 2**31 else None
