"""Attention of a few query heads to each key head, in PyTorch, with any mask.

The form for processors stands on it, and rules call it whose masks no list of pages tells.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ..tiled import attend, multiplies_bfloat16, pays

__all__ = ["added", "masked_attention", "working_type"]

_log = logging.getLogger(__name__)


def masked_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention of ``(H, M, D)`` to ``(G, n, D)``, each key head serving ``H / G`` query heads.

    The heads that share keys are laid behind each other as rows, so that keys need no copies.

    Args:
        query: Of ``M`` tokens.
        keys: ``(G, n, D)``.
        values: Of any width, ``(G, n, E)``.
        mask: ``(H / G * M, n)``, what is added to the products, see `added`; nothing by default.
        scale: Of the products; one over the root of ``D`` by default.

    Returns:
        ``(H, M, E)``; zeros for a token that sees nothing.

    Example:
        >>> keys = torch.eye(2)[None]
        >>> mask = added(torch.tensor([[True, False]]), repeats=3, dtype=keys.dtype)
        >>> masked_attention(torch.ones(3, 1, 2), keys, keys, mask)[:, 0].tolist()
        [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    """
    groups, count, wide = len(keys), query.shape[1], values.shape[2]
    scale = query.shape[2] ** -0.5 if scale is None else scale
    rows = query.reshape(groups, -1, query.shape[2])
    if pays(rows.shape[1], keys.shape[1], query, keys, values):
        seen = query.new_empty(*rows.shape[:2], wide)
        for group in range(groups):
            seen[group] = attend(rows[group], keys[group], values[group], scale, mask)
        return seen.reshape(len(query), count, wide)
    if wide != query.shape[2]:  # the fast kernels want one width for all; zeros change nothing
        width = max(wide, query.shape[2])
        rows, keys = (pad(part, (0, width - part.shape[2])) for part in (rows, keys))
        values = pad(values, (0, width - wide))
    seen = scaled_dot_product_attention(rows[None], keys[None], values[None], mask, scale=scale)
    return seen[0, ..., :wide].reshape(len(query), count, wide)


def added(seen: Tensor, repeats: int, dtype: torch.dtype) -> Tensor:
    """A mask as `masked_attention` takes it, made once for all layers.

    Args:
        seen: ``(M, n)`` bool, true where a token may look.
        repeats: Query heads that share a key head, ``H / G``.
        dtype: Of the queries.

    Returns:
        ``(H / G * M, n)``: zero where a token may look, minus infinity elsewhere.
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, float("-inf")).repeat(repeats, 1)


def working_type(like: Tensor) -> torch.dtype:
    """The type in which a processor computes; on other devices that of the tensor.

    Half types go through matrix units for bfloat16 where there are some. Elsewhere float16 is
    faster, and closer, in float32; bfloat16 stays as it is where vectors of it are multiplied.
    """
    if like.device.type != "cpu" or like.dtype not in (torch.float16, torch.bfloat16):
        return like.dtype
    return _half_types()[like.dtype]


@cache
def _half_types() -> dict[torch.dtype, torch.dtype]:
    tiles = multiplies_bfloat16()
    vectors = torch.cpu.get_capabilities().get("avx512_bf16", False)
    chosen = {
        torch.float16: torch.bfloat16 if tiles else torch.float32,
        torch.bfloat16: torch.bfloat16 if tiles or vectors else torch.float32,
    }
    told = ", ".join(f"{a} in {b}" for a, b in chosen.items()).replace("torch.", "")
    _log.info("memory_attention computes on this processor: %s", told)
    return chosen
