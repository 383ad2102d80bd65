"""Scoring blocks on a processor: a product for means, chunks that stay in cache for bounds."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**17  # numbers; half a megabyte of float32


def block_scores(query: Tensor, reps: Tensor, rule: str = "mean") -> Tensor:
    """Float32 throughout, see :func:`vismem.kernels.block_topk.block_scores`."""
    query = query.float().flatten(-2)
    if rule == "mean":
        return (reps.float().flatten(-2) @ query[..., None])[..., 0]
    # The larger of both products is that of the upper bound where a query is positive.
    up, down = query.clamp_min(0)[..., None], query.clamp_max(0)[..., None]
    rows = max(1, CHUNK // max(query.shape[-1], 1))
    scores = []
    for part in reps.split(rows, -4) if reps.shape[-4] else ():
        least, most = part.float().flatten(-2).unbind(-2)
        scores.append((most @ up + least @ down)[..., 0])
    return torch.cat(scores, -1) if scores else query.new_zeros(*query.shape[:-1], 0)


def block_topk(
    query: Tensor, reps: Tensor, k: int, rule: str = "mean", valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`vismem.kernels.block_topk.block_topk`."""
    scores = block_scores(query, reps, rule)
    if valid is not None:
        scores = scores.masked_fill(~valid, float("-inf"))
    # Whole numbers that order as the scores, then by the lower row: `topk` breaks ties freely.
    count = scores.shape[0]
    rows = torch.arange(count, device=scores.device)
    best = torch.topk(packed(scores, rows), min(k, count)).values
    found = scores.new_full((k,), float("-inf")), rows.new_full((k,), -1)
    values, chosen = unpacked(best)
    found[0][: len(best)] = values
    found[1][: len(best)] = chosen.masked_fill(values == float("-inf"), -1)
    return found


LAST = 0x7FFFFFFF


def packed(scores: Tensor, rows: Tensor) -> Tensor:
    """Scores and rows as one int64 each, larger for higher scores, then for lower rows."""
    bits = (scores + 0.0).view(torch.int32)  # zero has one sign
    ordered = torch.where(bits < 0, bits ^ LAST, bits).long()
    return (ordered << 32) | (LAST - rows)


def unpacked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and rows of `packed`."""
    ordered = (keys >> 32).int()
    bits = torch.where(ordered < 0, ordered ^ LAST, ordered)
    return bits.view(torch.float32), LAST - (keys & LAST)
