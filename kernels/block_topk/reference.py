"""The specification of scoring blocks and choosing the best, readable and slow."""

from __future__ import annotations

import torch
from torch import Tensor


def block_scores(query: Tensor, reps: Tensor, rule: str = "mean") -> Tensor:
    """In float64, see :func:`vismem.kernels.block_topk.block_scores`."""
    query, reps = query.double(), reps.double()
    if rule == "mean":
        return (query[..., None, :, :] * reps).sum((-2, -1))
    least, most = reps.unbind(-3)
    query = query[..., None, :, :]
    return torch.maximum(query * least, query * most).sum((-2, -1))


def block_topk(
    query: Tensor, reps: Tensor, k: int, rule: str = "mean", valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sort all scores, see :func:`vismem.kernels.block_topk.block_topk`."""
    scores = block_scores(query, reps, rule)
    there = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    rows = there.nonzero()[:, 0]
    order = torch.sort(scores[rows], descending=True, stable=True).indices[:k]
    found = scores.new_full((k,), float("-inf")), torch.full((k,), -1, device=scores.device)
    found[0][: len(order)], found[1][: len(order)] = scores[rows][order], rows[order]
    return found
