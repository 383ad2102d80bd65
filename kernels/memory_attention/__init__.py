"""Attention over memory: pages that each query finds by a list, with positions as data."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ..registry import uses_triton
from .cpu import memory_attention as _cpu
from .folded import added, masked_attention
from .reads import ALL, Reads

__all__ = ["ALL", "Reads", "added", "masked_attention", "memory_attention"]

WIDEST = 256  # numbers of a head


@overload
def memory_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    reads: Reads | None = None,
    *,
    scale: float | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def memory_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    reads: Reads | None = None,
    *,
    scale: float | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def memory_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    reads: Reads | None = None,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend to stretches of pages, each key head serving ``H / G`` query heads.

    Keys are rotated to where they stand inside their page, if at all, and queries to where they
    stand in the stream; `Reads` turns a page to where it is read. ``(G, n, D)`` keys are one page
    of ``n`` tokens, ``keys.transpose(0, 1)[None]``, without a copy.

    Args:
        query: ``(B, M, H, D)`` floating.
        keys: ``(P, T, G, D)``, any strides.
        values: ``(P, T, G, E)``, any strides.
        reads: What each part of the batch reads; without it the whole page of its own number, of
            which there are ``B`` then.
        scale: Of the products; one over the root of ``D`` by default.
        return_lse: Whether to tell the logarithm of the sums of softmax as well, with which results
            over parts of a memory can be joined.

    Returns:
        ``(B, M, H, E)`` in the type of the query; zeros for a query that sees nothing. With
        ``return_lse`` also ``(B, M, H)`` float32, minus infinity there.

    Raises:
        ValueError: If shapes or types do not fit.

    Sources: attention in one pass and split over keys, FlashAttention (arXiv 2205.14135) and
    Flash-Decoding; pages, PagedAttention (arXiv 2309.06180); reading retrieved blocks at positions
    of their own, ReKV (arXiv 2503.00540).

    Example:
        >>> keys = torch.eye(4)[None, :, None]  # a page of four tokens, one head
        >>> query = 50 * keys[:, :2]
        >>> reads = Reads.of([[(0, 0, 1, 0), (0, 2, 2, 7)]], [7], far=1)
        >>> memory_attention(query, keys, keys, reads, scale=1.0)[0, :, 0].round(decimals=2)
        tensor([[1.0000, 0.0000, 0.0000, 0.0000],
                [0.3300, 0.0000, 0.3300, 0.3300]])
    """
    _check(query, keys, values, reads)
    if uses_triton("memory_attention", query, _obstacle(query, values)):
        from .triton import memory_attention as _triton

        plan = (reads.entries, reads.q_start, reads.cos, reads.sin) if reads else (None,) * 4
        far, window, longest = (reads.far, reads.window, reads.longest) if reads else (0, ALL, None)
        seen, sums = _triton(query, keys, values, *plan, far, window, longest, scale)
        return (seen, sums) if return_lse else seen
    form = _opaque if torch.compiler.is_compiling() else _cpu
    found, lse = form(query, keys, values, reads, scale, return_lse)
    return found if lse is None or not return_lse else (found, lse)


def _check(query: Tensor, keys: Tensor, values: Tensor, reads: Reads | None) -> None:
    if (
        (query.ndim, keys.ndim, values.ndim) != (4, 4, 4)
        or keys.shape[:3] != values.shape[:3]
        or keys.shape[3] != query.shape[3]
        or not keys.shape[2]
        or query.shape[2] % keys.shape[2]
    ):
        raise ValueError(
            f"memory_attention takes query (B, M, H, D), keys (P, T, G, D) and values "
            f"(P, T, G, E), H a multiple of G, not {tuple(query.shape)}, {tuple(keys.shape)} and "
            f"{tuple(values.shape)}"
        )
    if not (query.dtype == keys.dtype == values.dtype and query.is_floating_point()):
        raise ValueError(
            f"query, keys and values are of one floating type, not {query.dtype}, {keys.dtype} "
            f"and {values.dtype}"
        )
    parts = len(keys) if reads is None else len(reads.entries)
    if parts != len(query):
        raise ValueError(f"{len(query)} parts of a batch cannot read for {parts}")
    if reads is not None and reads.cos is not None and 2 * reads.cos.shape[2] != query.shape[3]:
        raise ValueError(f"turns of {reads.cos.shape[2]} angles for heads of {query.shape[3]}")


def _obstacle(query: Tensor, values: Tensor) -> str | None:
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"keys of {query.dtype} keep their precision".replace("torch.", "")
    if max(query.shape[3], values.shape[3]) > WIDEST:
        return f"heads are at most {WIDEST} wide"
    return None


def _opaque(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    reads: Reads | None,
    scale: float | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """PyTorch's form as one node of a graph: it walks over lists, which cannot be traced."""
    if reads is None:
        return _in_graph(query, keys, values, None, None, None, None, 0, ALL, scale, return_lse)
    plan = reads.entries, reads.q_start, reads.cos, reads.sin, reads.far, reads.window
    return _in_graph(query, keys, values, *plan, scale, return_lse)


@torch.library.custom_op("vismem::memory_attention_in_graph", mutates_args=())
def _in_graph(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    entries: Tensor | None,
    q_start: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    far: int,
    window: int,
    scale: float | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    reads = None
    if entries is not None and q_start is not None:
        reads = Reads(entries, q_start, far, window, cos, sin)
    seen, sums = _cpu(query, keys, values, reads, scale, return_lse)
    return seen, sums if sums is not None else query.new_empty(0, dtype=torch.float32)


@_in_graph.register_fake
def _(query, keys, values, entries, q_start, cos, sin, far, window, scale, return_lse):  # type: ignore[no-untyped-def]
    seen = query.new_empty(*query.shape[:3], values.shape[3])
    shape = query.shape[:3] if return_lse else (0,)
    return seen, query.new_empty(shape, dtype=torch.float32)
