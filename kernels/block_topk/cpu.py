"""Scoring blocks on a processor: a product for means, chunks that stay in cache for bounds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..best import best

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
    found, rows = best(scores[None], min(k, len(scores)))
    rows = rows.masked_fill(found == float("-inf"), -1)
    short = k - found.shape[1]
    return pad(found, (0, short), value=float("-inf"))[0], pad(rows, (0, short), value=-1)[0]
