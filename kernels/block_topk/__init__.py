"""Which blocks of a memory fit a query best: scores by means or bounds, and an exact choice."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..registry import uses_triton
from .cpu import block_scores as _cpu_scores
from .cpu import block_topk as _cpu_topk

__all__ = ["Rule", "block_scores", "block_topk"]

Rule = Literal["mean", "minmax"]
MOST = 1024  # blocks that are chosen at a time in Triton


def block_scores(query: Tensor, reps: Tensor, rule: Rule = "mean") -> Tensor:
    """Score blocks by what stands for their keys.

    Args:
        query: ``(..., G, D)``, the heads that share a key head summed.
        reps: Mean key of each block, ``(..., N, G, D)``; for ``"minmax"`` the least and the
            largest number of each channel, ``(..., N, 2, G, D)``.
        rule: ``"mean"`` is the product with the mean key, summed over key heads; ``"minmax"`` what
            the product with a key inside of the bounds can be at most.

    Returns:
        ``(..., N)`` float32.

    Raises:
        ValueError: If shapes or rule do not fit.

    Sources: mean keys, ReKV (arXiv 2503.00540); bounds, Quest (arXiv 2406.10774).

    Example:
        >>> reps = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
        >>> block_scores(torch.tensor([[2.0, 1.0]]), reps).tolist()
        [2.0, 3.0]
    """
    _check(query, reps, rule)
    if uses_triton("block_scores", query, _obstacle(query, reps)):
        from .triton import block_scores as _triton

        batch = query.shape[:-2]
        rows = reps.reshape(batch.numel(), *reps.shape[len(batch) :])
        found = _triton(query.reshape(-1, *query.shape[-2:]), rows, rule == "minmax")
        return found.reshape(*batch, rows.shape[1])
    return _cpu_scores(query, reps, rule)


def block_topk(
    query: Tensor, reps: Tensor, k: int, rule: Rule = "mean", *, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The blocks of highest score, exactly, the lowest rows first among equals.

    Args:
        query: ``(G, D)``, see `block_scores`.
        reps: ``(N, G, D)`` or ``(N, 2, G, D)``.
        k: How many.
        rule: Of the scores.
        valid: Which may be chosen, ``(N,)`` bool; all by default.

    Returns:
        Scores ``(k,)`` float32, best first, and rows ``(k,)`` int64; minus infinity and -1 where
        there are no more.

    Raises:
        ValueError: If shapes or rule do not fit, or ``k`` is below 1.

    Example:
        >>> reps = torch.tensor([1.0, 3.0, 3.0])[:, None, None]
        >>> block_topk(torch.ones(1, 1), reps, 2)[1].tolist()
        [1, 2]
    """
    _check(query, reps, rule)
    if query.ndim != 2 or k < 1:
        raise ValueError(f"block_topk takes query (G, D) and k >= 1, not {query.shape} and {k}")
    if valid is not None and (valid.shape != reps.shape[:1] or valid.dtype != torch.bool):
        raise ValueError(f"valid is ({len(reps)},) bool, not {tuple(valid.shape)} {valid.dtype}")
    obstacle = f"at most {MOST} blocks are chosen at a time" if k > MOST else None
    if uses_triton("block_topk", query, obstacle or _obstacle(query, reps)):
        from .triton import block_topk as _triton

        return _triton(query, reps, k, rule == "minmax", valid)
    return _cpu_topk(query, reps, k, rule, valid)


def _check(query: Tensor, reps: Tensor, rule: str) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f"rule is one of {', '.join(get_args(Rule))}, not {rule!r}")
    batch, pair = query.shape[:-2], (2,) if rule == "minmax" else ()
    wanted = len(batch) + 3 + len(pair)
    fits = query.ndim >= 2 and reps.ndim == wanted and reps.shape[: len(batch)] == batch
    if not fits or reps.shape[len(batch) + 1 :] != (*pair, *query.shape[-2:]):
        raise ValueError(
            f"blocks take query (..., G, D) and reps (..., N, {'2, ' if pair else ''}G, D), not "
            f"{tuple(query.shape)} and {tuple(reps.shape)}"
        )


def _obstacle(query: Tensor, reps: Tensor) -> str | None:
    wide = torch.float64 in (query.dtype, reps.dtype)
    return "float64 keeps its precision" if wide else None
