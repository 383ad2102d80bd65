"""The specification of exact top-k search, readable and slow."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_search(
    bank: Tensor, query: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sort all inner products, see :func:`vismem.kernels.topk_search.topk_search`."""
    scores = query.double() @ bank.double().T
    if scale is not None:
        scores = scores * scale.double()
    order = torch.sort(scores, dim=-1, descending=True, stable=True)
    k = min(k, bank.shape[0])
    return order.values[..., :k].float(), order.indices[..., :k]
