"""Exact top-k search over a bank of vectors."""

from __future__ import annotations

from torch import Tensor

from .cpu import topk_search as _cpu

__all__ = ["topk_search"]


def topk_search(bank: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the rows of a bank with the largest inner product.

    Args:
        bank: ``(M, D)``, any floating type; may be empty.
        query: ``(D,)`` or ``(Q, D)``.
        k: How many rows; fewer come back where the bank is smaller.

    Returns:
        Scores and row numbers, ``(k,)`` float32 and int64 or ``(Q, k)``, best first.

    Raises:
        ValueError: If the widths differ or ``k`` is not positive.

    Example:
        >>> import torch
        >>> topk_search(torch.eye(3), torch.tensor([0.0, 2.0, 1.0]), k=2)[1].tolist()
        [1, 2]
    """
    if k < 1 or bank.ndim != 2 or query.ndim not in (1, 2) or query.shape[-1] != bank.shape[1]:
        raise ValueError(
            f"topk_search takes bank (M, D), query (..., D) and k >= 1, "
            f"not {tuple(bank.shape)}, {tuple(query.shape)} and {k}"
        )
    return _cpu(bank, query, k)
