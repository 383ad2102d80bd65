"""Exact top-k search on a processor: one pass over the bank in chunks that stay in cache."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 8192  # rows; 8192 x 384 float32 is 12 MB, the size where converting from float16 pays


def topk_search(bank: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the best of every chunk, see :func:`vismem.kernels.topk_search.topk_search`."""
    query = query.float()
    best = [(query.new_empty(*query.shape[:-1], 0), query.new_empty(*query.shape[:-1], 0).long())]
    for start in range(0, bank.shape[0], CHUNK):
        scores = query @ bank[start : start + CHUNK].float().T
        values, indices = torch.topk(scores, min(k, scores.shape[-1]), dim=-1)
        best.append((values, indices + start))
    values = torch.cat([v for v, _ in best], dim=-1)
    indices = torch.cat([i for _, i in best], dim=-1)
    values, order = torch.topk(values, min(k, values.shape[-1]), dim=-1)
    return values, indices.gather(-1, order)
