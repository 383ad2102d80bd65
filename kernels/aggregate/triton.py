"""Aggregation on a GPU: each row is read where it lies."""

from __future__ import annotations

from torch import Tensor

from ..cross_attention import triton as attention

Parts = tuple[Tensor, Tensor, Tensor, float, Tensor | None, None, Tensor | None]


def aggregate(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    index: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Run the kernels, see :func:`vismem.kernels.aggregate.aggregate`."""
    seen, _ = attention.cross_attention(*split(query, keys, values, heads, index, bias))
    return seen.flatten(2)


def run(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    index: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Start the forward kernels; also on tensors without data, to compile them."""
    return attention.run(*split(query, keys, values, heads, index, bias))[0].flatten(2)


def split(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    index: Tensor | None,
    bias: Tensor | None,
) -> Parts:
    """The arguments of the kernels: heads apart, a bank with a batch of its own."""
    keys, values = (part if part.ndim == 3 else part[None] for part in (keys, values))
    q, k, v = (part.unflatten(2, (heads, -1)) for part in (query, keys, values))
    if index is not None:
        index = index.expand(len(query), -1)
    return q, k, v, q.shape[3] ** -0.5, index, None, bias
